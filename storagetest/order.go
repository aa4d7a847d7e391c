package storagetest

// This file tests sequence numbers, generations and lost records.

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

func testNumbers(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	first, second := calls("f"), calls("f")
	first.Source, first.Number = "one", 7
	second.Source, second.Number = "other", 1
	for range 3 {
		equal(t, applied, c.apply(first))
		equal(t, 1, c.seen.Failures)
	}
	c.apply(second)
	equal(t, applied, c.apply(first), "after a change of another source")
	equal(t, 2, c.load().Failures)
	first.Number = 6
	equal(t, applied, c.apply(first), "a lower number")
	equal(t, 2, c.load().Failures)

	large := calls("f") // sequence numbers may exceed the exact range of a double
	large.Source, large.Number = "other", 1<<64-2
	c.limits.FailMax = 100
	c.apply(large)
	c.apply(large)
	equal(t, 3, c.load().Failures)
	large.Number++
	c.apply(large)
	equal(t, 4, c.load().Failures)

	c.setState(infuse.StateHalfOpen)
	equal(t, moved, c.requestTrial("trial"))
	equal(t, applied, c.requestTrial("trial"), "the same request again")
	equal(t, 1, len(c.load().Trials))
}

// twice makes the change twice, as if the first reply was lost.
func (c *circuit) twice(first infuse.Change, between func(), what string) {
	c.Helper()
	first = c.complete(first)
	_, _, err := c.storage.Apply(c.Context(), c.name, first)
	noError(c.T, err)
	c.seen = c.load()
	between()
	want := c.load()
	_, verdict, err := c.storage.Apply(c.Context(), c.name, first)
	noError(c.T, err)
	equal(c.T, applied, verdict, what)
	same(c.T, want, c.load(), what)
	c.seen = c.load()
}

func testNumberAfterSuccess(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.FailMax = 5
	c.twice(calls("s"), func() { c.calls("fff") }, "a success without a streak")
	equal(t, 3, c.load().Failures)
	c.twice(calls("s"), func() { c.calls("fff") }, "a success that ended a streak")
	equal(t, 3, c.load().Failures)
	c.twice(calls("s"), func() {}, "a success")
	c.twice(calls("ffffs"), func() { c.calls("f") }, "failures, and a success")
	equal(t, infuse.StateClosed, c.load().State)
	c.twice(calls("fff"), func() { c.calls("s") }, "failures of a streak that has ended")
	equal(t, 0, c.load().Failures)
}

func testNumberAfterTransitions(t *testing.T, s infuse.Storage) {
	for _, from := range []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen} {
		for _, to := range []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen} {
			c := newCircuit(t, s)
			c.twice(infuse.Change{Manual: &infuse.ManualState{To: from}}, func() { c.setState(to) }, "a state that was set")
			equal(t, to, c.load().State)
		}
	}
	c := newCircuit(t, s)
	c.twice(calls("fff"), func() { c.setState(infuse.StateClosed) }, "failures that opened the circuit")
	equal(t, infuse.StateClosed, c.load().State)

	c.limits.Suspicion = long / 4
	c.twice(calls("fff"), func() {}, "failures that made the circuit suspect")
	equal(t, 3, c.load().Score)
	c.twice(calls("f"), func() { c.calls("f") }, "a failure while the circuit is suspect")
	equal(t, 5, c.load().Score)
	c.twice(calls("ss"), func() { c.calls("ff") }, "a dismissal")
	equal(t, 2, c.load().Failures)

	c.limits.SuccessThreshold = 1
	c.setState(infuse.StateHalfOpen)
	c.requestTrial("trial")
	open := func() { c.setState(infuse.StateOpen) }
	c.twice(settle("trial", infuse.OutcomeSuccess), open, "the end of a trial")
	equal(t, infuse.StateOpen, c.load().State)
}

func testOlderCalls(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	healthy := c.seen
	c.calls("fff")
	open := c.seen
	equal(t, infuse.StateOpen, open.State)
	equal(t, refused, c.calls("f"), "while the circuit is open")
	c.setState(infuse.StateClosed)
	for what, older := range map[string]infuse.Record{"before the opening": healthy, "while the circuit was open": open} {
		c.seen = older
		equal(t, refused, c.calls("f"), "directly after closing, known ", what)
	}
	equal(t, 0, c.load().Failures)
	c.seen = c.load()
	equal(t, applied, c.calls("f"))
	equal(t, 1, c.load().Failures)
}

func testStaleTrials(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.SuccessThreshold = 1
	c.setState(infuse.StateHalfOpen)
	c.requestTrial("old")
	c.setState(infuse.StateOpen)
	c.setState(infuse.StateHalfOpen)
	equal(t, 1, len(c.load().Trials), "the old trial is in progress")
	equal(t, refused, c.requestTrial("new"), "the old trial uses the slot")
	since := c.load().Since
	c.settle("old", infuse.OutcomeFailure)
	equal(t, infuse.StateHalfOpen, c.load().State, "the old trial is not counted")
	equal(t, since, c.load().Since)
	equal(t, moved, c.requestTrial("new"))
	equal(t, refused, c.settle("old", infuse.OutcomeSuccess))
	equal(t, moved, c.settle("new", infuse.OutcomeSuccess))
	equal(t, infuse.StateClosed, c.load().State)
}

func testSetState(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.calls("ff")
	states := []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateClosed}
	for _, from := range states {
		for _, to := range states {
			c.setState(from)
			generation := c.seen.Generation
			equal(t, moved, c.setState(to))
			r := c.load()
			equal(t, to, r.State)
			check(t, r.Generation > generation, "from %v to %v", from, to)
			equal(t, r.Generation, r.Manual)
			equal(t, "test", r.By)
			if to == infuse.StateOpen {
				about(t, time.Now().Add(long), r.DueAt)
			}
		}
	}
	equal(t, 0, c.load().Failures)
}

// testLostRecord tests senders that know a newer record than a storage that has lost its
// data.
func testLostRecord(t *testing.T, s infuse.Storage) {
	generation := time.Now().UnixMilli()
	trial := infuse.Trial{ID: "running", Started: time.Now(), Deadline: time.Now().Add(long)}
	open := infuse.Record{State: infuse.StateOpen, Generation: generation, Since: generation, Opened: generation, Failures: 3, DueAt: time.Now().Add(long)}
	halfOpen := infuse.Record{State: infuse.StateHalfOpen, Generation: generation, Since: generation, Failures: 3, Successes: 1, Trials: []infuse.Trial{trial}}

	for name, known := range map[string]infuse.Record{"open": open, "half-open": halfOpen} {
		c := newCircuit(t, s)
		c.seen = known
		equal(t, moved, c.apply(infuse.Change{}), name)
		same(t, known, c.load(), name)
		equal(t, refused, c.requestTrial("new"), name)
		c.seen = infuse.Record{}
		equal(t, refused, c.calls("f"), name, " for a sender without the record")
	}

	c := newCircuit(t, s)
	c.seen = halfOpen
	equal(t, moved, c.settle("running", infuse.OutcomeSuccess))
	equal(t, infuse.StateClosed, c.load().State, "the second consecutive success")
	check(t, c.load().Generation > generation, "the generation is not above the known one")

	c.seen = open // older than the record in the storage
	now := c.load()
	c.apply(infuse.Change{})
	same(t, now, c.load())
}

func testLostAndReady(t *testing.T, s infuse.Storage) {
	generation := time.Now().UnixMilli() - 1000
	due := infuse.Record{State: infuse.StateOpen, Generation: generation, Since: generation, Opened: generation, Failures: 3, DueAt: time.Now().Add(-time.Second)}
	ended := infuse.Record{State: infuse.StateHalfOpen, Generation: generation, Since: generation, Opened: generation}
	for _, known := range []infuse.Record{due, ended} {
		c := newCircuit(t, s)
		c.seen = known
		equal(t, applied, c.apply(infuse.Change{}))
		equal(t, infuse.StateClosed, c.load().State, "losing it costs one trial only")
	}

	// A newer closing that the sender knows replaces an opening that was restored.
	c := newCircuit(t, s)
	c.setState(infuse.StateOpen)
	closed := c.seen
	closed.State, closed.Generation, closed.DueAt = infuse.StateClosed, closed.Generation+10, time.Time{}
	closed.Since, closed.Manual = closed.Generation, closed.Generation
	c.seen = closed
	equal(t, moved, c.apply(infuse.Change{}))
	equal(t, infuse.StateClosed, c.load().State)
}
