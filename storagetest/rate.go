package storagetest

// This file tests the failure rate, the open duration and the recovery.

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// rated returns a circuit with a failure rate only, whose window does not move during the
// test.
func rated(t *testing.T, s infuse.Storage) *circuit {
	c := newCircuit(t, s)
	c.limits.FailMax = 1 << 30
	c.limits.FailureRate, c.limits.Window, c.limits.MinCalls = 0.5, 10*long, 10
	c.limits.Suspicion = long / 4
	return c
}

// counted reports calls that end now.
func (c *circuit) counted(calls, failures int) infuse.Verdict {
	return c.apply(infuse.Change{Cause: "failed", Counted: []infuse.Bucket{{Start: time.Now(), Calls: calls, Failures: failures}}})
}

// window returns the sum of the record's window.
func (c *circuit) window() (all infuse.Bucket) {
	for _, b := range c.load().Window.Buckets {
		all.Calls, all.Failures = all.Calls+b.Calls, all.Failures+b.Failures
	}
	return all
}

func testWindow(t *testing.T, s infuse.Storage) {
	c := rated(t, s)
	equal(t, applied, c.counted(5, 0))
	equal(t, 0, len(c.load().Window.Buckets), "a window starts with a failure")
	equal(t, applied, c.counted(3, 1))
	equal(t, applied, c.counted(4, 0))
	equal(t, infuse.Bucket{Calls: 7, Failures: 1}, c.window())
	equal(t, long, c.load().Window.Width)

	// Calls that ended an hour ago belong to another bucket.
	change := infuse.Change{Counted: []infuse.Bucket{{Start: time.Now().Add(-3 * long), Calls: 2, Failures: 1}, {Start: time.Now(), Calls: 1}}}
	equal(t, applied, c.apply(change))
	equal(t, infuse.Bucket{Calls: 10, Failures: 2}, c.window())
	buckets := c.load().Window.Buckets
	equal(t, 2, buckets[0].Calls)
	check(t, time.Since(buckets[0].Start) > 2*long, "the older calls are in a bucket of %v ago", time.Since(buckets[0].Start))
	check(t, time.Since(buckets[len(buckets)-1].Start) <= long, "the newest bucket began %v ago", time.Since(buckets[len(buckets)-1].Start))

	// Older calls than the window are dropped.
	change = infuse.Change{Counted: []infuse.Bucket{{Start: time.Now().Add(-20 * long), Calls: 2, Failures: 2}}}
	equal(t, applied, c.apply(change))
	equal(t, infuse.Bucket{Calls: 10, Failures: 2}, c.window())

	equal(t, moved, c.setState(infuse.StateClosed))
	equal(t, 0, len(c.load().Window.Buckets), "a new state starts with an empty window")
}

func testRate(t *testing.T, s infuse.Storage) {
	c := rated(t, s)
	equal(t, applied, c.counted(9, 9))
	equal(t, moved, c.counted(1, 1), "the rate is reached")
	r := c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateClosed, r.State)
	equal(t, true, r.Rated)
	equal(t, "failed", r.Cause)
	about(t, time.Now(), r.SuspectAt)
	equal(t, c.source, r.Witness)
	about(t, time.Now().Add(long), r.DueAt, "the open duration starts with the suspicion")
	equal(t, applied, c.counted(5, 0))
	equal(t, moved, c.counted(6, 0), "10 of 21")
	r = c.load()
	check(t, !r.Suspect() && r.SuspectAt.IsZero(), "still suspect")
	about(t, time.Now(), r.DismissedAt)
	equal(t, infuse.Bucket{Calls: 21, Failures: 10}, c.window(), "the window continues")

	c = rated(t, s)
	c.limits.Suspicion = time.Millisecond
	equal(t, moved, c.counted(10, 10))
	time.Sleep(10 * time.Millisecond) // longer than 4 × Suspicion
	equal(t, applied, c.counted(30, 30), "from the same process")
	equal(t, infuse.StateClosed, c.load().State)
	c.source, c.number = unique("source"), 0
	equal(t, applied, c.counted(1, 0), "a report without a failure does not confirm")
	equal(t, moved, c.counted(1, 1))
	r = c.load()
	equal(t, infuse.StateOpen, r.State)
	equal(t, true, r.Rated)
	equal(t, infuse.Bucket{Calls: 42, Failures: 41}, c.window(), "the window continues")
	equal(t, moved, c.counted(60, 0), "41 of 102")
	equal(t, infuse.StateClosed, c.load().State, "a lower rate dismisses an opening")
}

func testConcurrentWindow(t *testing.T, s infuse.Storage) {
	const senders, each = 8, 25
	c := rated(t, s)
	c.limits.MinCalls = 1 << 30
	equal(t, applied, c.counted(1, 1))
	verdicts := c.concurrently(senders, each, func() infuse.Change {
		return infuse.Change{Counted: []infuse.Bucket{{Start: time.Now(), Calls: 3, Failures: 1}}}
	})
	equal(t, senders*each, verdicts[applied])
	equal(t, infuse.Bucket{Calls: 1 + 3*senders*each, Failures: 1 + senders*each}, c.window())
}

func testGrowth(t *testing.T, s infuse.Storage) {
	const unit = 200 * time.Millisecond
	c := newCircuit(t, s)
	c.limits.FailMax, c.limits.SuccessThreshold = 1, 1
	c.limits.ResetTimeout, c.limits.MaxResetTimeout = unit, 4*unit
	equal(t, moved, c.calls("f"))
	for i, want := range []time.Duration{unit, 2 * unit, 4 * unit, 4 * unit} {
		r := c.load()
		equal(t, want, r.OpenDuration)
		left := time.Until(r.DueAt)
		check(t, left <= want+10*time.Millisecond, "open duration %d ends in %v, not in %v", i+1, left, want)
		time.Sleep(left + time.Millisecond)
		equal(t, moved, c.apply(infuse.Change{RequestTrial: "trial"}))
		equal(t, moved, c.apply(infuse.Change{Settled: []infuse.Settlement{{ID: "trial", Outcome: infuse.OutcomeFailure}}}))
	}
}

func testClosedAt(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	equal(t, moved, c.setState(infuse.StateOpen))
	check(t, c.load().ClosedAt.IsZero(), "the circuit is not closed")
	equal(t, moved, c.setState(infuse.StateClosed))
	about(t, time.Now(), c.load().ClosedAt)
	time.Sleep(50 * time.Millisecond)
	closed := c.load().ClosedAt
	check(t, time.Since(closed) >= 40*time.Millisecond, "the circuit was closed %v ago", time.Since(closed))
	equal(t, applied, c.calls("f"))
	equal(t, moved, c.setState(infuse.StateClosed))
	check(t, c.load().ClosedAt.IsZero(), "closing a closed circuit does not start a ramp")
}
