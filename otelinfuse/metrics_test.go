package otelinfuse_test

// This file tests the metrics.

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
)

// start registers the source with a new SDK.
func start(tb testing.TB, source otelinfuse.Source, options ...otelinfuse.Option) *sdk.ManualReader {
	tb.Helper()
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	unregister, err := otelinfuse.Register(source, append(options, otelinfuse.WithMeterProvider(provider))...)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, unregister()) })
	return reader
}

func collect(tb testing.TB, reader *sdk.ManualReader) (all []metricdata.Metrics) {
	tb.Helper()
	var data metricdata.ResourceMetrics
	require.NoError(tb, reader.Collect(tb.Context(), &data))
	for _, scope := range data.ScopeMetrics {
		require.Equal(tb, otelinfuse.ScopeName, scope.Scope.Name)
		all = append(all, scope.Metrics...)
	}
	return all
}

// values returns each data point's value by "metric{attributes}".
func values(tb testing.TB, reader *sdk.ManualReader) map[string]float64 {
	tb.Helper()
	all := make(map[string]float64)
	for _, m := range collect(tb, reader) {
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			put(all, m.Name, data.DataPoints)
		case metricdata.Gauge[int64]:
			put(all, m.Name, data.DataPoints)
		case metricdata.Gauge[float64]:
			put(all, m.Name, data.DataPoints)
		default:
			tb.Fatalf("%s is a %T", m.Name, data)
		}
	}
	return all
}

func put[N int64 | float64](all map[string]float64, name string, points []metricdata.DataPoint[N]) {
	for _, p := range points {
		all[name+"{"+p.Attributes.Encoded(attribute.DefaultEncoder())+"}"] = float64(p.Value)
	}
}

func TestRegister(t *testing.T) {
	counted := new(otelinfuse.Transitions)
	group := newGroup(t, infuse.Config{FailMax: 2, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	b := breakerOf(t, group, "prices")
	for range 3 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	trip(t, b)
	require.ErrorIs(t, b.Call(t.Context(), succeeds), infuse.ErrOpen)

	got := values(t, start(t, group, otelinfuse.WithTransitions(counted)))
	const age = "infuse.circuit.time_in_state{infuse.circuit.name=prices}"
	require.InDelta(t, 0, got[age], 10)
	require.Positive(t, got[age])
	delete(got, age)
	require.Equal(t, map[string]float64{
		"infuse.circuit.count{}":   1,
		"infuse.circuit.omitted{}": 0,
		"infuse.circuit.calls{infuse.call.outcome=would_reject,infuse.circuit.name=prices}":                                0,
		"infuse.circuit.dry_run{infuse.circuit.name=prices}":                                                               0,
		"infuse.circuit.ready_for_trial{infuse.circuit.name=prices}":                                                       0,
		"infuse.circuit.calls{infuse.call.outcome=success,infuse.circuit.name=prices}":                                     3,
		"infuse.circuit.calls{infuse.call.outcome=failure,infuse.circuit.name=prices}":                                     2,
		"infuse.circuit.calls{infuse.call.outcome=ignored,infuse.circuit.name=prices}":                                     0,
		"infuse.circuit.calls{infuse.call.outcome=rejected,infuse.circuit.name=prices}":                                    1,
		"infuse.circuit.consecutive_failures{infuse.circuit.name=prices}":                                                  2,
		"infuse.circuit.local_only{infuse.circuit.name=prices}":                                                            0,
		"infuse.circuit.overridden{infuse.circuit.name=prices}":                                                            0,
		"infuse.circuit.storage_unavailable{infuse.circuit.name=prices}":                                                   0,
		"infuse.circuit.status{infuse.circuit.name=prices,infuse.circuit.state=closed}":                                    0,
		"infuse.circuit.status{infuse.circuit.name=prices,infuse.circuit.state=half_open}":                                 0,
		"infuse.circuit.status{infuse.circuit.name=prices,infuse.circuit.state=open}":                                      1,
		"infuse.circuit.transitions{infuse.circuit.local=false,infuse.circuit.name=prices,infuse.circuit.state=closed}":    0,
		"infuse.circuit.transitions{infuse.circuit.local=false,infuse.circuit.name=prices,infuse.circuit.state=half_open}": 0,
		"infuse.circuit.transitions{infuse.circuit.local=false,infuse.circuit.name=prices,infuse.circuit.state=open}":      0,
		"infuse.circuit.transitions{infuse.circuit.local=true,infuse.circuit.name=prices,infuse.circuit.state=closed}":     0,
		"infuse.circuit.transitions{infuse.circuit.local=true,infuse.circuit.name=prices,infuse.circuit.state=half_open}":  0,
		"infuse.circuit.transitions{infuse.circuit.local=true,infuse.circuit.name=prices,infuse.circuit.state=open}":       1,
	}, got)
}

// Names, units and kinds follow the naming rules of OpenTelemetry. Names are lower case
// and in one namespace, counters have no suffix _total, and units are from UCUM. No name
// is both a metric and an attribute, or the namespace of another name.
func TestNamesFollowTheConventions(t *testing.T) {
	group := newGroup(t, infuse.Config{CountCalls: true})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	all := collect(t, start(t, group, otelinfuse.WithTransitions(new(otelinfuse.Transitions))))
	require.Len(t, all, 12)
	names := make(map[string]string) // name to kind
	for _, m := range all {
		require.NotContains(t, names, m.Name)
		names[m.Name] = "metric"
		require.NotRegexp(t, `(_total|\.total|_count)$`, m.Name)
		require.Regexp(t, `^(s|\{[a-z]+\})$`, m.Unit, m.Name)
		require.NotEmpty(t, m.Description, m.Name)
		if sum, is := m.Data.(metricdata.Sum[int64]); is {
			require.Equal(t, strings.HasSuffix(m.Name, "s") && m.Unit != "{circuit}", sum.IsMonotonic, m.Name)
		}
		for key := range attributesOfMetric(t, m) {
			require.NotEqual(t, "metric", names[key], "%s is a metric and an attribute", key)
			names[key] = "attribute"
		}
	}
	for _, a := range otelinfuse.Attributes(&infuse.OpenError{Circuit: "prices", By: "ann", Reason: "test", DueAt: time.Now()}) {
		require.NotEqual(t, "metric", names[string(a.Key)], "%s is a metric and an attribute", a.Key)
		names[string(a.Key)] = "attribute"
	}
	require.Len(t, names, 12+7)
	for name := range names {
		require.Regexp(t, `^infuse(\.[a-z]+(_[a-z]+)*)+$`, name)
		for other := range names {
			require.False(t, strings.HasPrefix(other, name+"."), "%s is both a name and the namespace of %s", name, other)
		}
	}
}

// attributesOfMetric returns the keys of all data points.
func attributesOfMetric(t *testing.T, m metricdata.Metrics) map[string]bool {
	keys := make(map[string]bool)
	add := func(set attribute.Set) {
		for _, a := range set.ToSlice() {
			keys[string(a.Key)] = true
		}
	}
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes)
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes)
		}
	case metricdata.Gauge[float64]:
		for _, p := range data.DataPoints {
			add(p.Attributes)
		}
	default:
		t.Fatalf("%s is a %T", m.Name, data)
	}
	return keys
}

// In a dry run, calls that would be rejected run, and count as would_reject.
func TestDryRun(t *testing.T) {
	group := newGroup(t, infuse.Config{FailMax: 2, CountCalls: true, DryRun: true})
	b := breakerOf(t, group, "prices")
	trip(t, b)
	for range 3 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	got := values(t, start(t, group))
	require.Equal(t, 3.0, got["infuse.circuit.calls{infuse.call.outcome=would_reject,infuse.circuit.name=prices}"])
	require.Zero(t, got["infuse.circuit.calls{infuse.call.outcome=rejected,infuse.circuit.name=prices}"])
	require.Zero(t, got["infuse.circuit.calls{infuse.call.outcome=success,infuse.circuit.name=prices}"])
	require.Equal(t, 1.0, got["infuse.circuit.dry_run{infuse.circuit.name=prices}"])
	require.Equal(t, 1.0, got["infuse.circuit.status{infuse.circuit.name=prices,infuse.circuit.state=open}"])
}

// Without calls, an open circuit stays open and ready for a trial.
func TestReadyForTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group := newGroup(t, infuse.Config{FailMax: 2, ResetTimeout: time.Minute})
		b := breakerOf(t, group, "prices")
		reader := start(t, group)
		const ready = "infuse.circuit.ready_for_trial{infuse.circuit.name=prices}"
		trip(t, b)
		require.Zero(t, values(t, reader)[ready])
		time.Sleep(time.Hour)
		require.Equal(t, 1.0, values(t, reader)[ready])
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.Zero(t, values(t, reader)[ready])
	})
}

func TestOverrideAndStorageUnavailable(t *testing.T) {
	group := newGroup(t, infuse.Config{Storage: nowhere(t), FailMax: 2})
	b := breakerOf(t, group, "prices")
	reader := start(t, group)
	require.Eventually(t, func() bool { return b.Stats().StorageErr != nil }, 10*time.Second, time.Millisecond)
	require.Equal(t, 1.0, values(t, reader)["infuse.circuit.storage_unavailable{infuse.circuit.name=prices}"])
	trip(t, b)
	require.Equal(t, 1.0, values(t, reader)["infuse.circuit.local_only{infuse.circuit.name=prices}"])
	require.Error(t, b.Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "false alarm"}))
	got := values(t, reader)
	require.Equal(t, 1.0, got["infuse.circuit.overridden{infuse.circuit.name=prices}"])
	require.Zero(t, got["infuse.circuit.local_only{infuse.circuit.name=prices}"])
}

func TestEvictedCircuitsHaveNoMetrics(t *testing.T) {
	counted := new(otelinfuse.Transitions)
	group := newGroup(t, infuse.Config{MaxCircuits: 2, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	reader := start(t, group, otelinfuse.WithTransitions(counted))
	for i := range 50 {
		b := breakerOf(t, group, fmt.Sprintf("service-%d", i))
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
		require.LessOrEqual(t, len(values(t, reader)), 2+2*(7+3+5+6))
	}
	got := values(t, reader)
	require.Len(t, got, 2+2*(7+3+5+6))
	require.Contains(t, got, "infuse.circuit.local_only{infuse.circuit.name=service-49}")
}

func TestUnregisteredCircuitsHaveNoMetrics(t *testing.T) {
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	group := newGroup(t, infuse.Config{})
	breakerOf(t, group, "prices")
	unregister, err := otelinfuse.Register(group, otelinfuse.WithMeterProvider(provider))
	require.NoError(t, err)
	require.NotEmpty(t, values(t, reader))
	require.NoError(t, unregister())
	require.Empty(t, values(t, reader))
}

// Without CountCalls there are no counters, rather than counters of 0.
func TestCallsThatAreNotCountedHaveNoMetrics(t *testing.T) {
	group := newGroup(t, infuse.Config{})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	for name := range values(t, start(t, group)) {
		require.NotContains(t, name, "infuse.circuit.calls")
	}
}

// The default limit is below the limit of the SDK, above which data points lose their
// attributes.
func TestManyCircuits(t *testing.T) {
	group := newGroup(t, infuse.Config{CountCalls: true})
	for i := range 1000 {
		require.NoError(t, breakerOf(t, group, fmt.Sprintf("%03d", i)).Call(t.Context(), succeeds))
	}
	trip(t, breakerOf(t, group, "998"))
	_ = breakerOf(t, group, "997").Call(t.Context(), fails)
	got := values(t, start(t, group, otelinfuse.WithTransitions(new(otelinfuse.Transitions))))
	require.Len(t, got, 2+300*(7+3+5+6))
	require.Equal(t, 1000.0, got["infuse.circuit.count{}"])
	require.Equal(t, 700.0, got["infuse.circuit.omitted{}"])
	for _, name := range []string{"998", "997", "000", "297"} {
		require.Contains(t, got, "infuse.circuit.local_only{infuse.circuit.name="+name+"}")
	}
	require.NotContains(t, got, "infuse.circuit.local_only{infuse.circuit.name=298}")

	got = values(t, start(t, group, otelinfuse.WithMaxCircuits(1)))
	require.Len(t, got, 2+(7+3+5))
	require.Contains(t, got, "infuse.circuit.local_only{infuse.circuit.name=998}")
}

func TestNamesAreUntrusted(t *testing.T) {
	group := newGroup(t, infuse.Config{})
	for _, name := range []string{"a\xff", "a\xfe", `"a\xff"`, "a\n\"b", strings.Repeat("\xff", infuse.MaxNameLength)} {
		breakerOf(t, group, name)
	}
	got := values(t, start(t, group))
	require.Len(t, got, 2+5*(7+3))
	for name := range got {
		require.True(t, strings.ToValidUTF8(name, "") == name)
		require.Less(t, len(name), 6*infuse.MaxNameLength, "including escapes of the encoder")
	}
}

// Two groups may have circuits with the same name.
func TestAttributesDistinguishGroups(t *testing.T) {
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	for _, client := range []string{"web", "batch"} {
		group := newGroup(t, infuse.Config{})
		breakerOf(t, group, "prices")
		unregister, err := otelinfuse.Register(group, otelinfuse.WithMeterProvider(provider),
			otelinfuse.WithAttributes(attribute.String("client", client)))
		require.NoError(t, err)
		defer func() { require.NoError(t, unregister()) }()
	}
	require.Len(t, values(t, reader), 2*(2+7+3))
}

// Of two breakers with the same name, the first has metrics.
func TestBreakers(t *testing.T) {
	var all otelinfuse.Breakers
	for _, name := range []string{"prices", "stock", "prices"} {
		b, err := infuse.New(name, infuse.Config{})
		require.NoError(t, err)
		t.Cleanup(b.Stop)
		all = append(all, b)
	}
	all = append(all, nil)
	trip(t, all[0])
	got := values(t, start(t, all))
	require.Equal(t, 2.0, got["infuse.circuit.count{}"])
	require.Equal(t, 5.0, got["infuse.circuit.consecutive_failures{infuse.circuit.name=prices}"])
}

func TestGlobalProviderIsTheDefault(t *testing.T) {
	reader := sdk.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))
	defer otel.SetMeterProvider(before)
	unregister, err := otelinfuse.Register(newGroup(t, infuse.Config{}))
	require.NoError(t, err)
	require.Contains(t, values(t, reader), "infuse.circuit.count{}")
	require.NoError(t, unregister())
}

// brokenMeter fails to create gauges.
type brokenMeter struct{ noop.Meter }

var errBroken = errors.New("broken")

func (brokenMeter) Float64ObservableGauge(string, ...metric.Float64ObservableGaugeOption) (metric.Float64ObservableGauge, error) {
	return nil, errBroken
}

type brokenProvider struct{ noop.MeterProvider }

func (brokenProvider) Meter(string, ...metric.MeterOption) metric.Meter { return brokenMeter{} }

func TestErrorsOfRegister(t *testing.T) {
	_, err := otelinfuse.Register(nil)
	require.ErrorContains(t, err, "source is nil")
	require.Panics(t, func() { _, _ = otelinfuse.Register((*infuse.Group)(nil)) })
	_, err = otelinfuse.Register(newGroup(t, infuse.Config{}), otelinfuse.WithMeterProvider(brokenProvider{}))
	require.ErrorIs(t, err, errBroken)
}

func TestConcurrentCollectionsAndCalls(t *testing.T) {
	counted := new(otelinfuse.Transitions)
	group := newGroup(t, infuse.Config{MaxCircuits: 3, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	reader := start(t, group, otelinfuse.WithTransitions(counted))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 200 {
				if b, err := group.Breaker(fmt.Sprint(i % 7)); err == nil {
					_ = b.Call(t.Context(), fails)
				}
			}
		})
		all.Go(func() {
			for range 50 {
				var data metricdata.ResourceMetrics
				if err := reader.Collect(t.Context(), &data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
