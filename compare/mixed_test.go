package compare_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// This file tests fleets whose processes have different settings, as docs/tuning.md
// describes them.

// fleet is a record to which several processes report.
type fleet struct {
	record  infuse.Record
	now     time.Time
	sources int
}

func newFleet() *fleet { return &fleet{now: time.Unix(1_700_000_000, 0)} }

// reports applies a report of another process each time.
func (f *fleet) reports(l infuse.Limits, calls, failures int) {
	f.sources++
	c := infuse.Change{Source: fmt.Sprint("s", f.sources), Limits: l, Seen: f.record}
	if failures > 0 {
		c.Calls = infuse.Calls{Failures: failures, Lead: failures, Streak: failures}
	}
	if l.FailureRate > 0 {
		c.Counted = []infuse.Bucket{{Start: f.now, Calls: calls, Failures: failures}}
	}
	f.record, _ = f.record.Apply(c, f.now)
}

func (f *fleet) passes(d time.Duration) {
	f.now = f.now.Add(d)
	f.record = f.record.At(f.now)
}

func (f *fleet) suspect() bool {
	return f.record.Suspect()
}

const noRow = 1<<31 - 1

func limits(failMax int, rate float64, window, openTime time.Duration) infuse.Limits {
	return infuse.Limits{
		FailMax: failMax, ResetTimeout: openTime, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Minute,
		Suspicion: 50 * time.Millisecond, FailureRate: rate, Window: window, MinCalls: 20,
	}
}

var (
	byRow   = limits(5, 0, 10*time.Second, time.Minute)
	loose   = limits(noRow, 0.3, 10*time.Second, time.Minute)
	strict  = limits(noRow, 0.9, 10*time.Second, 2*time.Minute)
	farther = limits(noRow, 0.3, time.Minute, time.Minute)
)

func TestProcessWithoutRateDoesNotChangeTheWindow(t *testing.T) {
	f := newFleet()
	f.reports(byRow, 4, 4)
	require.Empty(t, f.record.Window.Buckets)

	f = newFleet()
	f.reports(loose, 30, 15)
	require.True(t, f.suspect())
	f.passes(100 * time.Millisecond)
	f.reports(byRow, 1, 0)
	require.True(t, f.suspect(), "it does not dismiss the suspicion")
	f.passes(100 * time.Millisecond)
	f.reports(loose, 20, 20)
	require.Equal(t, infuse.StateOpen, f.record.State, "it does not confirm the suspicion")
}

func TestConsecutiveFailuresDuringRateSuspicionAreOnlyCounted(t *testing.T) {
	f := newFleet()
	f.reports(loose, 30, 4)
	f.reports(loose, 10, 10)
	require.True(t, f.record.Rated)
	f.reports(byRow, 5, 5)
	require.True(t, f.record.Rated)
	require.Zero(t, f.record.Score)
}

func TestReportIsEvaluatedWithItsSettings(t *testing.T) {
	f := newFleet()
	f.reports(loose, 30, 15)
	require.True(t, f.suspect())
	f.passes(100 * time.Millisecond)
	f.reports(strict, 1, 1)
	require.False(t, f.suspect())
	require.Equal(t, infuse.StateClosed, f.record.State)
}

func TestTotalOutageAfterHealthyTrafficOpensWithinASecond(t *testing.T) {
	f, calls := newFleet(), 0
	for ; f.record.State == infuse.StateClosed; calls++ {
		f.passes(hundredth)
		f.reports(limits(noRow, 0.5, 10*time.Second, time.Minute), 1, 1)
	}
	require.LessOrEqual(t, calls, 100, "at 100 calls a second")
}

func TestOpenDurationOfTheProcessThatReachesTheThreshold(t *testing.T) {
	f := newFleet()
	f.reports(loose, 19, 19)
	f.reports(strict, 1, 1)
	require.True(t, f.suspect())
	require.Equal(t, 2*time.Minute, f.record.DueAt.Sub(f.now))
}

// The buckets are as narrow as the shortest window requires, and cover the longest window.
func TestBucketsAreAsNarrowAsTheShortestWindow(t *testing.T) {
	f := newFleet()
	f.reports(loose, 1, 1)
	require.Equal(t, time.Second, f.record.Window.Width)
	f.reports(farther, 1, 1)
	f.reports(loose, 1, 1)
	require.Equal(t, 6*time.Second, f.record.Window.Width)
	f.passes(5 * time.Second)
	f.reports(loose, 1, 1)
	require.Len(t, f.record.Window.Buckets, 2)
}

// The failure that opens the local circuit is reported before Call returns.
func TestFailureThatOpensTheLocalCircuitIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := infuse.New("service", preset.config(infuse.NewMemoryStorage()))
		require.NoError(t, err)
		defer b.Stop()
		for range preset.minCalls {
			require.True(t, runs(b, true))
		}
		require.Equal(t, infuse.StateOpen, b.State())
		r, err := b.Record(t.Context())
		require.NoError(t, err)
		failures := 0
		for _, bucket := range r.Window.Buckets {
			failures += bucket.Failures
		}
		require.Equal(t, preset.minCalls, failures)
		require.True(t, r.Suspect())
	})
}
