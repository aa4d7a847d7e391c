package storagetest

// This file tests how outcomes are counted: streaks, suspicions and openings.

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// testStreaks tests the rule of pybreaker: consecutive failures count, and a success ends
// a streak that has not reached the threshold.
func testStreaks(t *testing.T, s infuse.Storage) {
	for _, test := range []struct {
		calls []string // one change each
		state infuse.State
		count int
	}{
		{[]string{"f"}, infuse.StateClosed, 1},
		{[]string{"f", "f"}, infuse.StateClosed, 2},
		{[]string{"f", "f", "f"}, infuse.StateOpen, 3},
		{[]string{"fff"}, infuse.StateOpen, 3},
		{[]string{"ffffff"}, infuse.StateOpen, 6},
		{[]string{"f", "f", "s"}, infuse.StateClosed, 0},
		{[]string{"f", "f", "s", "f"}, infuse.StateClosed, 1},
		{[]string{"ff", "sff"}, infuse.StateClosed, 2},
		{[]string{"ff", "fs"}, infuse.StateOpen, 3},
		{[]string{"f", "fsf", "f"}, infuse.StateClosed, 2},
		{[]string{"sfff"}, infuse.StateOpen, 3},
		{[]string{"s"}, infuse.StateClosed, 0},
	} {
		c := newCircuit(t, s)
		for _, outcomes := range test.calls {
			c.calls(outcomes)
		}
		r := c.load()
		equal(t, test.state, r.State, test.calls)
		equal(t, test.count, r.Failures, test.calls)
	}
	c := newCircuit(t, s)
	equal(t, infuse.VerdictRefused, c.calls("s"), "a success without failures on record changes nothing")
	c.calls("f")
	equal(t, infuse.VerdictApplied, c.calls("s"), "a success that ends a streak")
}

// suspect returns a circuit that stays suspect during the test.
func suspect(t *testing.T, s infuse.Storage) *circuit {
	t.Helper()
	c := newCircuit(t, s)
	c.limits.Suspicion = long / 4
	c.calls("ff")
	equal(t, moved, c.calls("f"), "the threshold is reached")
	return c
}

func testSuspicion(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	began := c.load()
	same(t, c.seen, began)
	equal(t, infuse.StateClosed, began.State)
	check(t, began.Suspect(), "not suspect")
	equal(t, 3, began.Threshold)
	equal(t, 3, began.Score)
	equal(t, "failed", began.Cause)
	about(t, time.Now(), began.SuspectAt)
	about(t, time.Now().Add(long), began.DueAt, "the open duration starts with the suspicion")

	equal(t, applied, c.calls("f"))
	equal(t, 4, c.load().Score)
	equal(t, applied, c.calls("fff"))
	equal(t, 7, c.load().Score)
	equal(t, applied, c.calls("s"))
	equal(t, 3, c.load().Score, "a success subtracts 4")
	equal(t, applied, c.calls("fsf"), "the order is irrelevant")
	equal(t, 1, c.load().Score)
	equal(t, applied, c.calls("ffffffff"))
	equal(t, 9, c.load().Score)
	equal(t, infuse.StateClosed, c.load().State, "not before Suspicion")
	equal(t, began.Generation, c.load().Generation)

	change := calls("f")
	change.OpenFor = 3 * long
	equal(t, moved, c.apply(change), "all processes are notified of the longer open duration")
	about(t, time.Now().Add(3*long), c.load().DueAt, "a failure may extend the open duration")
	equal(t, 10, c.load().Score)
}

func testDismissal(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	suspected := c.seen
	equal(t, moved, c.calls("s"))
	r := c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateClosed, r.State)
	check(t, !r.Suspect() && r.DueAt.IsZero() && r.SuspectAt.IsZero(), "still suspect: %+v", r)
	equal(t, 0, r.Failures)
	equal(t, 0, r.Score)
	equal(t, "", r.Cause)
	check(t, r.Generation > suspected.Generation, "generation %d is not above %d", r.Generation, suspected.Generation)
	about(t, time.Now(), r.DismissedAt)

	equal(t, applied, c.calls("ffffff"), "no other suspicion starts for the time Suspicion")
	equal(t, 6, c.load().Failures)
	check(t, !c.load().Suspect(), "suspect again")

	c.seen = infuse.Record{} // a sender without the record: its calls still count
	equal(t, applied, c.calls("s"))
	equal(t, 0, c.load().Failures)
	c.seen = suspected
	c.apply(infuse.Change{})
	check(t, !c.load().Suspect(), "a sender that did not receive the dismissal restores the suspicion")
}

// testOpening tests the only way in which calls open a circuit: a report of failures with
// a score of twice the threshold, after the time Suspicion.
func testOpening(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = short
	c.calls("fff")
	suspected := c.seen
	equal(t, applied, c.calls("fff"), "twice the threshold, too early")
	time.Sleep(time.Until(suspected.SuspectAt.Add(short + coarse)))
	equal(t, infuse.StateClosed, c.load().State, "time alone does not open the circuit")
	equal(t, moved, c.calls("f"))
	r := c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateOpen, r.State)
	equal(t, 7, r.Score)
	equal(t, r.Generation, r.Opened)
	equal(t, suspected.Since, r.Since, "calls in progress still count")
	about(t, suspected.DueAt, r.DueAt)
	equal(t, refused, c.requestTrial("early"))

	equal(t, applied, c.calls("s"))
	equal(t, 3, c.load().Score, "the score continues")
	equal(t, infuse.StateOpen, c.load().State)
	equal(t, moved, c.calls("s"))
	equal(t, infuse.StateClosed, c.load().State, "successes dismiss an opening")
	check(t, !c.load().Suspect(), "suspect")

	// Only a report of failures opens the circuit: a success with such a score comes after
	// the outage.
	c = newCircuit(t, s)
	c.limits.Suspicion = short
	c.calls("ffffff")
	c.calls("f")
	c.calls("ff")
	time.Sleep(time.Until(c.seen.SuspectAt.Add(short + coarse)))
	equal(t, applied, c.apply(infuse.Change{}))
	equal(t, applied, c.calls("s"))
	check(t, c.load().Suspect(), "not suspect any more")
	c.calls("ffff")
	equal(t, infuse.StateOpen, c.load().State)
}

// testConfirmedTrials tests a failed trial that another process confirms.
func testConfirmedTrials(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = long / 4
	one, other := c.source, unique("source")
	c.setState(infuse.StateHalfOpen)
	equal(t, moved, c.requestTrial("a"))
	equal(t, moved, c.settle("a", infuse.OutcomeFailure))
	r := c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateHalfOpen, r.State, "one failed trial does not open the circuit for all")
	equal(t, one, r.Witness)
	equal(t, 3, r.Threshold, "the threshold is set from now on")
	about(t, time.Now().Add(long), r.RetryAt)
	equal(t, refused, c.requestTrial("b"), "the same process waits")

	c.source, c.number = other, 0
	equal(t, moved, c.requestTrial("c"), "another process gets the next trial immediately")
	equal(t, moved, c.settle("c", infuse.OutcomeFailure))
	r = c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateOpen, r.State)
	equal(t, "", r.Witness)
	about(t, time.Now().Add(long), r.DueAt)
}
