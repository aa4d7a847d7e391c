package main

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// TestMain makes the test's own program a process of a fleet, too.
func TestMain(m *testing.M) {
	worker.Serve(jobs)
	healthyFor, settles = 500*time.Millisecond, 2*time.Second
	os.Exit(m.Run())
}

// The tables in small: they count what happens.

func TestHealthyProcessesAreCountedBesideAnUnhealthyOne(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	b := beside{size: 2, rates: []float64{20}}
	require.NoError(t, b.run(2*time.Second, 1))
	require.Len(t, b.byKind, len(unhealthies))
	for i, f := range b.byKind {
		require.InDelta(t, 2*2*20*len(errorRates), f.calls, 100, unhealthies[i].name)
		require.Positive(t, f.suspicions, unhealthies[i].name)
		require.Zero(t, f.rejected, unhealthies[i].name)
		require.Zero(t, f.openings, unhealthies[i].name)
	}
}

// A program that could not tell an opening from none would prove nothing.
func TestRejectionsAndOpeningsAreSeen(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	plans := make([]plan, 3)
	for i := range plans {
		plans[i] = plan{For: 2 * time.Second, Seed: uint64(i), Calls: []calls{{Circuit: "service", Rate: 50, Before: 1}}}
	}
	err := onServer(plans, func(f *fleet, tallies [][]tally) {
		suspicions, openings := f.seen("service")
		require.Equal(t, []int{1, 1}, []int{suspicions, openings})
		for _, found := range tallies {
			require.Positive(t, found[0].Rejected)
			require.Less(t, found[0].Rejected, found[0].Calls)
		}
	})
	require.NoError(t, err)
}

func TestAnOutageIsCountedForEachKind(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	costs := map[costKey][]cost{}
	o := outage{size: 3, rate: 10, length: 3 * time.Second}
	require.NoError(t, measure(costs, []outage{o}, kinds, 1, 1))
	for _, kind := range kinds {
		found := costs[costKey{0, 1, kind}]
		require.Len(t, found, 1)
		require.True(t, found[0].all, kind)
	}
	require.Equal(t, int64(3*failMax), costs[costKey{0, 1, local}][0].calls)
	require.Positive(t, costs[costKey{0, 1, gobreakers}][0].calls)
	require.LessOrEqual(t, costs[costKey{0, 1, shared}][0].calls, int64(3*failMax))
}

func TestAFaultHappensInASuspicion(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	e, err := faults[0].run(6*time.Second, 12*time.Second, 1)
	require.NoError(t, err)
	require.Positive(t, e.faults)
	require.Positive(t, e.suspicions)
	require.Positive(t, e.calls)
	require.Zero(t, e.rejected)
	require.Zero(t, e.openings)
	require.Zero(t, e.never, "the outage opens")
	require.Positive(t, e.until)
}

func TestFailureRatesAreCountedBesideLocalBreakers(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	row, err := rateCase{size: 3, rate: 40, errors: 0.9}.measure(4*time.Second, 1)
	require.NoError(t, err)
	require.Positive(t, row.calls)
	require.Positive(t, row.rejected+row.rejectedLocally)
	require.Positive(t, row.byLocalBreakers)
}
