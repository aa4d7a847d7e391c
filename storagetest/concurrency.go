package storagetest

// This file tests concurrent changes.

import (
	"sync"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// concurrently makes changes on several goroutines, like processes that know the same
// record. It returns the number of each verdict.
func (c *circuit) concurrently(goroutines, each int, change func() infuse.Change) (verdicts [3]int) {
	c.Helper()
	var mu sync.Mutex
	var running sync.WaitGroup
	start := make(chan struct{})
	for range goroutines {
		running.Go(func() {
			<-start
			for range each {
				change := change()
				change.Source, change.Number = unique("source"), 1
				_, verdict, err := c.storage.Apply(c.Context(), c.name, c.complete(change))
				if err != nil {
					c.Error(err)
				}
				mu.Lock()
				verdicts[verdict]++
				mu.Unlock()
			}
		})
	}
	close(start)
	running.Wait()
	return verdicts
}

func testConcurrentFailures(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.FailMax = 1_000_000
	verdicts := c.concurrently(8, 50, func() infuse.Change { return calls("f") })
	equal(t, 400, verdicts[applied])
	equal(t, 400, c.load().Failures)
}

func testConcurrentSuspicion(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	verdicts := c.concurrently(8, 50, func() infuse.Change { return calls("fffffs") })
	equal(t, 400, verdicts[applied]+verdicts[moved])
	equal(t, 403, c.load().Score)
}

func testConcurrentThreshold(t *testing.T, s infuse.Storage) {
	for _, suspicion := range []time.Duration{0, long / 4} {
		c := newCircuit(t, s)
		c.limits.Suspicion = suspicion
		c.limits.FailMax = 10
		verdicts := c.concurrently(20, 1, func() infuse.Change { return calls("f") })
		r := c.load()
		equal(t, 1, verdicts[moved])
		if suspicion == 0 {
			equal(t, infuse.StateOpen, r.State)
			equal(t, 10, r.Failures)
		} else {
			equal(t, 20, r.Score, "all other failures count in the suspicion, or started it")
			equal(t, 19, verdicts[applied])
		}
	}
}

func testConcurrentTrials(t *testing.T, s infuse.Storage) {
	for _, most := range []int{1, 3} {
		c := newCircuit(t, s)
		c.limits.MaxTrials = most
		c.makeReady()
		verdicts := c.concurrently(20, 1, func() infuse.Change { return infuse.Change{RequestTrial: unique("trial")} })
		equal(t, [3]int{moved: most, refused: 20 - most}, verdicts)
		equal(t, most, len(c.load().Trials))
	}
}

func testConcurrentSetState(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	verdicts := c.concurrently(8, 10, func() infuse.Change { return infuse.Change{Manual: &infuse.ManualState{To: infuse.StateOpen}} })
	equal(t, 80, verdicts[moved])
}

// makeReady opens the circuit, and waits until it is ready for a trial.
func (c *circuit) makeReady() {
	c.Helper()
	before := c.limits.ResetTimeout
	c.limits.ResetTimeout = time.Millisecond
	c.setState(infuse.StateOpen)
	c.limits.ResetTimeout = before
	eventually(c.T, "the circuit is ready for a trial", func() bool {
		due := c.load().DueAt
		return !time.Now().Before(due)
	})
}
