package prominfuse_test

// This file tests the Collector.

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

func TestCollector(t *testing.T) {
	counted := new(prominfuse.Transitions)
	group := newGroup(t, infuse.Config{FailMax: 2, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	b := breakerOf(t, group, "prices")
	for range 3 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	began := time.Now()
	trip(t, b)
	require.ErrorIs(t, b.Call(t.Context(), succeeds), infuse.ErrOpen)

	c := prominfuse.NewCollector(group, prominfuse.WithTransitions(counted))
	require.NoError(t, testutil.CollectAndCompare(c, strings.NewReader(`
# HELP infuse_circuit_calls_total Calls by outcome. Needs Config.CountCalls.
# TYPE infuse_circuit_calls_total counter
infuse_circuit_calls_total{circuit="prices",outcome="failure"} 2
infuse_circuit_calls_total{circuit="prices",outcome="ignored"} 0
infuse_circuit_calls_total{circuit="prices",outcome="rejected"} 1
infuse_circuit_calls_total{circuit="prices",outcome="success"} 3
infuse_circuit_calls_total{circuit="prices",outcome="would_reject"} 0
# HELP infuse_circuit_consecutive_failures Consecutive failures of the local or the shared circuit, whichever is more.
# TYPE infuse_circuit_consecutive_failures gauge
infuse_circuit_consecutive_failures{circuit="prices"} 2
# HELP infuse_circuit_dry_run 1 if Config.DryRun is set: no call is rejected.
# TYPE infuse_circuit_dry_run gauge
infuse_circuit_dry_run{circuit="prices"} 0
# HELP infuse_circuit_local_only 1 if the local circuit rejects calls while the shared circuit is closed.
# TYPE infuse_circuit_local_only gauge
infuse_circuit_local_only{circuit="prices"} 0
# HELP infuse_circuit_overridden 1 if an override forces the circuit open or closed.
# TYPE infuse_circuit_overridden gauge
infuse_circuit_overridden{circuit="prices"} 0
# HELP infuse_circuit_ready_for_trial 1 if the circuit is open or half-open and the next call becomes a trial. Remains 1 until a call is made.
# TYPE infuse_circuit_ready_for_trial gauge
infuse_circuit_ready_for_trial{circuit="prices"} 0
# HELP infuse_circuit_state State of the circuit for calls of this process: 1 for the current state, 0 for the others.
# TYPE infuse_circuit_state gauge
infuse_circuit_state{circuit="prices",state="closed"} 0
infuse_circuit_state{circuit="prices",state="half_open"} 0
infuse_circuit_state{circuit="prices",state="open"} 1
# HELP infuse_circuit_storage_unavailable 1 if the storage is unavailable: this process uses its local circuit.
# TYPE infuse_circuit_storage_unavailable gauge
infuse_circuit_storage_unavailable{circuit="prices"} 0
# HELP infuse_circuit_transitions_total Transitions of the local and of the shared circuit, by the new state.
# TYPE infuse_circuit_transitions_total counter
infuse_circuit_transitions_total{circuit="prices",local="false",to="closed"} 0
infuse_circuit_transitions_total{circuit="prices",local="false",to="half_open"} 0
infuse_circuit_transitions_total{circuit="prices",local="false",to="open"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="closed"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="half_open"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="open"} 1
# HELP infuse_circuits Circuits of this process.
# TYPE infuse_circuits gauge
infuse_circuits 1
# HELP infuse_circuits_omitted Circuits of this process that have no metrics because there are more than WithMaxCircuits.
# TYPE infuse_circuits_omitted gauge
infuse_circuits_omitted 0
`), "infuse_circuits", "infuse_circuits_omitted", "infuse_circuit_dry_run", "infuse_circuit_ready_for_trial", "infuse_circuit_calls_total", "infuse_circuit_consecutive_failures", "infuse_circuit_local_only",
		"infuse_circuit_overridden", "infuse_circuit_state", "infuse_circuit_storage_unavailable", "infuse_circuit_transitions_total"))

	since := value(t, c, "infuse_circuit_state_since_timestamp_seconds", "prices")
	require.InDelta(t, float64(began.UnixMilli())/1000, since, 10)
}

func TestMetricsPassLint(t *testing.T) {
	group := newGroup(t, infuse.Config{CountCalls: true})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	c := prominfuse.NewCollector(group, prominfuse.WithTransitions(new(prominfuse.Transitions)))
	problems, err := testutil.CollectAndLint(c)
	require.NoError(t, err)
	require.Empty(t, problems)

	pedantic := prometheus.NewPedanticRegistry()
	require.NoError(t, pedantic.Register(c))
	n, err := testutil.GatherAndCount(pedantic)
	require.NoError(t, err)
	require.Equal(t, 2+3+1+1+1+1+1+1+1+5+6, n)
}

func TestOverrideAndStorageUnavailable(t *testing.T) {
	group := newGroup(t, infuse.Config{Storage: nowhere(t), FailMax: 2})
	b := breakerOf(t, group, "prices")
	c := prominfuse.NewCollector(group)
	require.Eventually(t, func() bool { return b.Stats().StorageErr != nil }, 10*time.Second, time.Millisecond)
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_storage_unavailable", "prices"))
	require.Zero(t, value(t, c, "infuse_circuit_local_only", "prices"))

	trip(t, b)
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_local_only", "prices"))

	require.Error(t, b.Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "false alarm"}))
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_overridden", "prices"))
	require.Zero(t, value(t, c, "infuse_circuit_local_only", "prices"))

	require.Error(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "upgrade"}))
	require.Equal(t, infuse.StateOpen, b.State())
	require.Zero(t, value(t, c, "infuse_circuit_local_only", "prices"), "the override rejects calls")
}

// Without CountCalls there are no counters, rather than counters of 0.
func TestCallsThatAreNotCountedHaveNoMetrics(t *testing.T) {
	group := newGroup(t, infuse.Config{})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	require.Zero(t, testutil.CollectAndCount(prominfuse.NewCollector(group), "infuse_circuit_calls_total"))
}

func TestEvictedCircuitsHaveNoMetrics(t *testing.T) {
	counted := new(prominfuse.Transitions)
	group := newGroup(t, infuse.Config{MaxCircuits: 2, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	c := prominfuse.NewCollector(group, prominfuse.WithTransitions(counted))
	for i := range 100 {
		b := breakerOf(t, group, fmt.Sprintf("service-%d", i))
		require.NoError(t, b.Call(t.Context(), succeeds))
		trip(t, b)
		require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
	}
	require.Equal(t, 2, testutil.CollectAndCount(c, "infuse_circuit_overridden"))
	require.Equal(t, 2*5, testutil.CollectAndCount(c, "infuse_circuit_calls_total"))
	require.Equal(t, 2*6, testutil.CollectAndCount(c, "infuse_circuit_transitions_total"))
	require.Zero(t, value(t, c, "infuse_circuit_overridden", "service-99"))
}

// Circuit names are untrusted. An invalid label would fail the scrape of all metrics of
// the process.
func TestNamesAreUntrusted(t *testing.T) {
	group := newGroup(t, infuse.Config{})
	names := []string{"a\xff", "a\xfe", `"a\xff"`, "a\nb\"c\\", "<script>", strings.Repeat("\xff", infuse.MaxNameLength), "{{$x}}", "\x00"}
	for _, name := range names {
		breakerOf(t, group, name)
	}
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(prominfuse.NewCollector(group)))
	families, err := registry.Gather()
	require.NoError(t, err)
	seen := make(map[string]bool)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				require.LessOrEqual(t, len(label.GetValue()), 4*infuse.MaxNameLength+2)
				if label.GetName() == "circuit" {
					seen[label.GetValue()] = true
				}
			}
		}
	}
	require.Len(t, seen, len(names), "even if a name is the quoted form of another")
	require.Contains(t, seen, `"a\xfe"`)
}

// In a dry run, calls that would be rejected run, and count as would_reject.
func TestDryRun(t *testing.T) {
	group := newGroup(t, infuse.Config{FailMax: 2, CountCalls: true, DryRun: true})
	b := breakerOf(t, group, "prices")
	trip(t, b)
	for range 3 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	require.NoError(t, testutil.CollectAndCompare(prominfuse.NewCollector(group), strings.NewReader(`
# HELP infuse_circuit_calls_total Calls by outcome. Needs Config.CountCalls.
# TYPE infuse_circuit_calls_total counter
infuse_circuit_calls_total{circuit="prices",outcome="failure"} 2
infuse_circuit_calls_total{circuit="prices",outcome="ignored"} 0
infuse_circuit_calls_total{circuit="prices",outcome="rejected"} 0
infuse_circuit_calls_total{circuit="prices",outcome="success"} 0
infuse_circuit_calls_total{circuit="prices",outcome="would_reject"} 3
# HELP infuse_circuit_dry_run 1 if Config.DryRun is set: no call is rejected.
# TYPE infuse_circuit_dry_run gauge
infuse_circuit_dry_run{circuit="prices"} 1
`), "infuse_circuit_calls_total", "infuse_circuit_dry_run"))
}

// Without calls, an open circuit stays open and ready for a trial. So does a
// half-open one, after the process with the trial slot has crashed.
func TestReadyForTrial(t *testing.T) {
	for _, storage := range []func() infuse.Storage{func() infuse.Storage { return nil }, func() infuse.Storage { return infuse.NewMemoryStorage() }} {
		synctest.Test(t, func(t *testing.T) {
			group := newGroup(t, infuse.Config{FailMax: 2, ResetTimeout: time.Minute, TrialTimeout: time.Minute, CountCalls: true, Storage: storage()})
			b := breakerOf(t, group, "prices")
			c := prominfuse.NewCollector(group)
			ready := func() float64 { return value(t, c, "infuse_circuit_ready_for_trial", "prices") }
			require.Zero(t, ready())
			trip(t, b)
			require.Zero(t, ready())
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Equal(t, infuse.StateOpen, b.State())
			require.Equal(t, 1.0, ready())

			_, err := b.Acquire(t.Context()) // the trial never ends
			require.NoError(t, err)
			require.Zero(t, ready())
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Equal(t, 1.0, ready())

			require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "test"}))
			require.Zero(t, ready(), "an override allows no trial")
			require.NoError(t, b.ClearOverride(t.Context(), "ann"))
			require.NoError(t, b.Call(t.Context(), succeeds))
			require.Equal(t, infuse.StateClosed, b.State())
			require.Zero(t, ready())
		})
	}
}

// In a dry run every call runs, so Ready is true; the gauge is not.
func TestReadyForTrialInADryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group := newGroup(t, infuse.Config{FailMax: 2, ResetTimeout: time.Minute, DryRun: true})
		trip(t, breakerOf(t, group, "prices"))
		c := prominfuse.NewCollector(group)
		require.Zero(t, value(t, c, "infuse_circuit_ready_for_trial", "prices"))
		time.Sleep(time.Hour)
		require.Equal(t, 1.0, value(t, c, "infuse_circuit_ready_for_trial", "prices"))
	})
}

// If there are too many circuits, the most important ones have metrics, and the others
// are counted.
func TestManyCircuits(t *testing.T) {
	group := newGroup(t, infuse.Config{CountCalls: true})
	for i := range 1000 {
		require.NoError(t, breakerOf(t, group, fmt.Sprintf("%03d", i)).Call(t.Context(), succeeds))
	}
	trip(t, breakerOf(t, group, "998"))
	_ = breakerOf(t, group, "997").Call(t.Context(), fails)
	require.NoError(t, breakerOf(t, group, "996").Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "test"}))
	scrape := func(options ...prominfuse.Option) (shown map[string]bool, total, omitted float64) {
		c := prominfuse.NewCollector(group, options...)
		shown = make(map[string]bool)
		registry := prometheus.NewPedanticRegistry()
		require.NoError(t, registry.Register(c))
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				switch f.GetName() {
				case "infuse_circuits":
					total = m.GetGauge().GetValue()
				case "infuse_circuits_omitted":
					omitted = m.GetGauge().GetValue()
				default:
					shown[m.GetLabel()[0].GetValue()] = true
				}
			}
		}
		return shown, total, omitted
	}
	shown, total, omitted := scrape()
	require.Len(t, shown, 300)
	require.Equal(t, []float64{1000, 700}, []float64{total, omitted})
	for _, name := range []string{"998", "997", "996", "000", "296"} {
		require.Contains(t, shown, name)
	}
	shown, total, omitted = scrape(prominfuse.WithMaxCircuits(3), prominfuse.WithMaxCircuits(0))
	require.Equal(t, map[string]bool{"998": true, "997": true, "996": true}, shown)
	require.Equal(t, []float64{1000, 997}, []float64{total, omitted})
	shown, _, omitted = scrape(prominfuse.WithMaxCircuits(1000))
	require.Len(t, shown, 1000)
	require.Zero(t, omitted)
}

// Of two breakers with the same name, the first has metrics.
func TestBreakers(t *testing.T) {
	var all prominfuse.Breakers
	for _, name := range []string{"prices", "stock", "prices"} {
		b, err := infuse.New(name, infuse.Config{})
		require.NoError(t, err)
		t.Cleanup(b.Stop)
		all = append(all, b)
	}
	all = append(all, nil)
	trip(t, all[0])
	c := prominfuse.NewCollector(all)
	require.Equal(t, 2, testutil.CollectAndCount(c, "infuse_circuit_overridden"))
	require.Equal(t, 5.0, value(t, c, "infuse_circuit_consecutive_failures", "prices"))
}

// A panic in a scrape would end the process.
func TestNilSourcePanics(t *testing.T) {
	require.Panics(t, func() { prominfuse.NewCollector(nil) })
	require.Panics(t, func() { prominfuse.NewCollector((*infuse.Group)(nil)) })
}

func TestConcurrentScrapesAndCalls(t *testing.T) {
	counted := new(prominfuse.Transitions)
	group := newGroup(t, infuse.Config{MaxCircuits: 3, CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(prominfuse.NewCollector(group, prominfuse.WithTransitions(counted))))
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
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// value returns the value of a gauge whose only label is the circuit.
func value(t *testing.T, c prometheus.Collector, name, circuit string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == name && metric.GetLabel()[0].GetValue() == circuit {
				return metric.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("%s of %s is missing", name, circuit)
	return 0
}
