package prominfuse_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
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
# HELP infuse_circuit_calls_total Calls by what became of them. Needs Config.CountCalls.
# TYPE infuse_circuit_calls_total counter
infuse_circuit_calls_total{circuit="prices",outcome="failure"} 2
infuse_circuit_calls_total{circuit="prices",outcome="ignored"} 0
infuse_circuit_calls_total{circuit="prices",outcome="rejected"} 1
infuse_circuit_calls_total{circuit="prices",outcome="success"} 3
# HELP infuse_circuit_consecutive_failures Failures in a row: of this process or, if those are more, of the fleet.
# TYPE infuse_circuit_consecutive_failures gauge
infuse_circuit_consecutive_failures{circuit="prices"} 2
# HELP infuse_circuit_local 1 if the circuit of this process alone is not closed, while the fleet's is.
# TYPE infuse_circuit_local gauge
infuse_circuit_local{circuit="prices"} 0
# HELP infuse_circuit_overridden 1 if an override holds the circuit open or closed.
# TYPE infuse_circuit_overridden gauge
infuse_circuit_overridden{circuit="prices"} 0
# HELP infuse_circuit_state 1 for the state that the circuit is in, 0 for the others.
# TYPE infuse_circuit_state gauge
infuse_circuit_state{circuit="prices",state="closed"} 0
infuse_circuit_state{circuit="prices",state="half_open"} 0
infuse_circuit_state{circuit="prices",state="open"} 1
# HELP infuse_circuit_storage_away 1 if the storage is away, so that the circuit is not shared.
# TYPE infuse_circuit_storage_away gauge
infuse_circuit_storage_away{circuit="prices"} 0
# HELP infuse_circuit_transitions_total Transitions of the local and of the shared circuit, by the state that began.
# TYPE infuse_circuit_transitions_total counter
infuse_circuit_transitions_total{circuit="prices",local="false",to="closed"} 0
infuse_circuit_transitions_total{circuit="prices",local="false",to="half_open"} 0
infuse_circuit_transitions_total{circuit="prices",local="false",to="open"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="closed"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="half_open"} 0
infuse_circuit_transitions_total{circuit="prices",local="true",to="open"} 1
# HELP infuse_circuits Circuits that this process keeps.
# TYPE infuse_circuits gauge
infuse_circuits 1
`), "infuse_circuits", "infuse_circuit_calls_total", "infuse_circuit_consecutive_failures", "infuse_circuit_local",
		"infuse_circuit_overridden", "infuse_circuit_state", "infuse_circuit_storage_away", "infuse_circuit_transitions_total"))

	since := value(t, c, "infuse_circuit_state_since_timestamp_seconds", "prices")
	require.InDelta(t, float64(began.UnixMilli())/1000, since, 10)
}

func TestMetricsAreLintedAndConsistent(t *testing.T) {
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
	require.Equal(t, 1+3+1+1+1+1+1+4+6, n)
}

func TestOverrideAndStorageUnavailable(t *testing.T) {
	group := newGroup(t, infuse.Config{Storage: nowhere(t), FailMax: 2})
	b := breakerOf(t, group, "prices")
	c := prominfuse.NewCollector(group)
	require.Eventually(t, func() bool { return b.Stats().StorageErr != nil }, 10*time.Second, time.Millisecond)
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_storage_away", "prices"))
	require.Zero(t, value(t, c, "infuse_circuit_local", "prices"))

	trip(t, b)
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_local", "prices"))

	require.Error(t, b.Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "false alarm"}))
	require.Equal(t, 1.0, value(t, c, "infuse_circuit_overridden", "prices"))
	require.Zero(t, value(t, c, "infuse_circuit_local", "prices"))
}

// With CountCalls off nobody knows how many calls there were.
func TestNothingIsSaidOfCallsThatAreNotCounted(t *testing.T) {
	group := newGroup(t, infuse.Config{})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	require.Zero(t, testutil.CollectAndCount(prominfuse.NewCollector(group), "infuse_circuit_calls_total"))
}

func TestMetricsOfEvictedCircuitsGo(t *testing.T) {
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
	require.Equal(t, 2*4, testutil.CollectAndCount(c, "infuse_circuit_calls_total"))
	require.Equal(t, 2*6, testutil.CollectAndCount(c, "infuse_circuit_transitions_total"))
	require.Zero(t, value(t, c, "infuse_circuit_overridden", "service-99"))
}

// What a circuit is called may come from anywhere. One scrape that fails would
// hide all metrics of the process.
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
	require.Len(t, seen, len(names), "also where one is called as another is quoted")
	require.Contains(t, seen, `"a\xfe"`)
}

// Two breakers of one name are one circuit: the first is shown.
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
func TestNilIsFoundEarly(t *testing.T) {
	require.Panics(t, func() { prominfuse.NewCollector(nil) })
	require.Panics(t, func() { prominfuse.NewCollector((*infuse.Group)(nil)) })
}

func TestScrapesAndCallsAtOnce(t *testing.T) {
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

// value returns the value of a metric that the circuit has one of.
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
