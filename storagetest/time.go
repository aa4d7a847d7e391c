package storagetest

// This file tests timeouts and leases.

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// short is a timeout that ends during a test. coarse allows for a storage whose clock has
// whole milliseconds.
const (
	short  = 250 * time.Millisecond
	coarse = 5 * time.Millisecond
)

func testReady(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.ResetTimeout = short
	began := time.Now()
	c.setState(infuse.StateOpen)
	eventually(t, "the circuit is ready for a trial", func() bool { return c.requestTrial("trial") != refused })
	check(t, time.Since(began) >= short-coarse, "ready after %v", time.Since(began))
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 1, len(c.load().Trials))
}

func testReading(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.makeReady()
	for range 3 {
		same(t, c.seen, c.load())
		equal(t, applied, c.apply(infuse.Change{}))
	}
	equal(t, infuse.StateOpen, c.load().State, "although it is ready for a trial")
	equal(t, moved, c.requestTrial("trial"))
}

func testLease(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.setState(infuse.StateHalfOpen)
	c.limits.TrialTimeout = short
	began := time.Now()
	equal(t, moved, c.requestTrial("late"))
	c.limits.TrialTimeout = long
	eventually(t, "the lease ends", func() bool { return c.requestTrial("next") != refused })
	check(t, time.Since(began) >= short-coarse, "the lease ends after %v", time.Since(began))

	for outcome := range infuse.OutcomeIgnored + 1 {
		equal(t, refused, c.settle("late", outcome), "a late ", outcome)
	}
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 0, c.load().Successes)
	equal(t, refused, c.requestTrial("third"), "the late end frees no slot")
	equal(t, moved, c.settle("next", infuse.OutcomeSuccess))
}

func testIgnored(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.setState(infuse.StateHalfOpen)
	for range 3 {
		equal(t, moved, c.requestTrial("trial"))
		equal(t, refused, c.requestTrial("other"))
		equal(t, moved, c.settle("trial", infuse.OutcomeIgnored))
		equal(t, refused, c.settle("trial", infuse.OutcomeIgnored), "twice")
	}
	equal(t, infuse.StateHalfOpen, c.load().State)
	equal(t, 0, c.load().Successes)
	equal(t, 0, len(c.load().Trials))
}

// testWaits writes a record repeatedly. Its deadlines must not change.
func testWaits(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.MaxTrials = 100
	c.setState(infuse.StateHalfOpen)
	c.requestTrial("first")
	first := c.seen.Trials[0].Deadline
	for range 20 {
		c.requestTrial(unique("trial"))
		now := c.load().Trials[0].Deadline
		check(t, now.Sub(first) < short, "the deadline was delayed by %v", now.Sub(first))
	}

	// The sender knows an earlier time, which then applies to others.
	c.setState(infuse.StateOpen)
	c.seen.DueAt = time.Now().Add(-time.Second)
	equal(t, moved, c.requestTrial("due"), "the same generation, and ready for a trial according to the sender")
}
