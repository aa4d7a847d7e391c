package storagetest

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// short is a timeout that ends during a test. A storage's clock is its own,
// perhaps of whole milliseconds: a few are allowed for that.
const (
	short  = 250 * time.Millisecond
	coarse = 5 * time.Millisecond
)

func testDue(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.ResetTimeout = short
	began := time.Now()
	c.move(infuse.StateOpen)
	eventually(t, "it is due", func() bool { return c.ask("trial") != refused })
	check(t, time.Since(began) >= short-coarse, "due after %v", time.Since(began))
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 1, len(c.load().Trials))
}

func testReading(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.due()
	for range 3 {
		same(t, c.seen, c.load())
		equal(t, applied, c.apply(infuse.Change{}))
	}
	equal(t, infuse.StateOpen, c.load().State, "though it is due")
	equal(t, moved, c.ask("trial"))
}

func testLease(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.move(infuse.StateHalfOpen)
	c.limits.TrialTimeout = short
	began := time.Now()
	equal(t, moved, c.ask("dead"))
	c.limits.TrialTimeout = long
	eventually(t, "the lease ends", func() bool { return c.ask("next") != refused })
	check(t, time.Since(began) >= short-coarse, "it ends after %v", time.Since(began))

	for outcome := range infuse.OutcomeIgnored + 1 {
		equal(t, refused, c.settle("dead", outcome), "it did not die: its late ", outcome)
	}
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 0, c.load().Successes)
	equal(t, refused, c.ask("third"), "the late end has freed nothing")
	equal(t, moved, c.settle("next", infuse.OutcomeSuccess))
}

func testIgnored(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.move(infuse.StateHalfOpen)
	for range 3 {
		equal(t, moved, c.ask("trial"))
		equal(t, refused, c.ask("other"))
		equal(t, moved, c.settle("trial", infuse.OutcomeIgnored))
		equal(t, refused, c.settle("trial", infuse.OutcomeIgnored), "twice")
	}
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 0, c.load().Successes)
	equal(t, 0, len(c.load().Trials))
}

// testWaits writes a record again and again: what it waits for stays when it was.
func testWaits(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.MaxTrials = 100
	c.move(infuse.StateHalfOpen)
	c.ask("first")
	first := c.seen.Trials[0].Deadline
	for range 20 {
		c.ask(unique("trial"))
		now := c.load().Trials[0].Deadline
		check(t, now.Sub(first) < short, "its deadline was put off by %v", now.Sub(first))
	}

	// A sender knows of an earlier time: it is what others are told, too.
	c.move(infuse.StateOpen)
	c.seen.DueAt = time.Now().Add(-time.Second)
	equal(t, moved, c.ask("due"), "of the same generation, and due for the sender")
}
