package compare_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// What docs/policies.md says of a fleet whose processes have different settings.

// fleet is a record that several processes report to.
type fleet struct {
	record infuse.Record
	now    time.Time
}

func newFleet() *fleet { return &fleet{now: time.Unix(1_700_000_000, 0)} }

func (f *fleet) reports(l infuse.Limits, calls, failures int) {
	c := infuse.Change{Limits: l, Seen: f.record}
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
	return f.record.State == infuse.StateClosed && !f.record.OpensAt.IsZero()
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

func TestAProcessWithoutARateLeavesTheWindowAlone(t *testing.T) {
	f := newFleet()
	f.reports(byRow, 4, 4)
	require.Empty(t, f.record.Window.Buckets)

	f = newFleet()
	f.reports(loose, 30, 15)
	require.True(t, f.suspect())
	f.passes(100 * time.Millisecond)
	f.reports(byRow, 1, 0)
	require.True(t, f.suspect(), "it refutes nothing")
	f.passes(time.Minute)
	require.Equal(t, infuse.StateOpen, f.record.State)
}

func TestARowTakesThePlaceOfASuspicionOfTheRate(t *testing.T) {
	f := newFleet()
	f.reports(loose, 30, 4)
	f.reports(loose, 10, 10)
	require.True(t, f.record.Rated)
	f.reports(byRow, 1, 1)
	require.True(t, f.suspect())
	require.False(t, f.record.Rated)
}

func TestOneReportRefutesBySettingsOfItsOwn(t *testing.T) {
	f := newFleet()
	f.reports(loose, 30, 15)
	require.True(t, f.suspect())
	f.passes(100 * time.Millisecond)
	f.reports(strict, 1, 1)
	require.False(t, f.suspect())
	require.Equal(t, infuse.StateClosed, f.record.State)
}

func TestOneReportEndsASuspicionEarly(t *testing.T) {
	f := newFleet()
	f.reports(loose, 400, 300)
	require.True(t, f.suspect())
	f.passes(time.Millisecond)
	f.reports(loose, 1, 1)
	require.Equal(t, 199*time.Millisecond, f.record.OpensAt.Sub(f.now), "four times Suspicion after it began")
	f.passes(time.Millisecond)
	f.reports(strict, 1, 1)
	require.False(t, f.suspect(), "the next report can still refute it")
}

func TestATotalOutageAfterHealthOpensWithinASecond(t *testing.T) {
	f, calls := newFleet(), 0
	for ; f.record.State == infuse.StateClosed; calls++ {
		f.passes(hundredth)
		f.reports(limits(noRow, 0.5, 10*time.Second, time.Minute), 1, 1)
	}
	require.LessOrEqual(t, calls, 100, "of a hundred a second")
}

func TestASuspicionOfTheRateLastsHalfAWindow(t *testing.T) {
	f := newFleet()
	f.reports(loose, 30, 15)
	require.Equal(t, 5*time.Second, f.record.OpensAt.Sub(f.now))

	f = newFleet()
	f.reports(loose, 10, 5)
	f.passes(4 * time.Second)
	f.reports(loose, 20, 10)
	require.Equal(t, 12*time.Second, f.record.OpensAt.Sub(f.now), "three times as long as the window has lasted")

	f = newFleet()
	f.reports(loose, 10, 5)
	f.passes(4 * time.Second)
	short := loose
	short.ResetTimeout = 10 * time.Second
	f.reports(short, 20, 10)
	require.Equal(t, 5*time.Second, f.record.OpensAt.Sub(f.now), "but half of ResetTimeout at most")
}

func TestTheOpenTimeIsThatOfTheProcessThatReachesTheLimit(t *testing.T) {
	f := newFleet()
	f.reports(loose, 19, 19)
	f.reports(strict, 1, 1)
	require.True(t, f.suspect())
	require.Equal(t, 2*time.Minute, f.record.DueAt.Sub(f.now))
}

// So much is kept ten times as the longest window asks for, in buckets that are as
// narrow as the shortest does.
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

// "The failure is reported before Call returns", and Config.FailureRate: "all
// processes report what they have counted".
func TestTheFleetHearsOfTheFailureThatOpensTheOwnCircuit(t *testing.T) {
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
		require.False(t, r.OpensAt.IsZero(), "the fleet is asked")
	})
}
