package storagetest

import (
	"sync"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// atOnce makes changes on so many goroutines, as that many processes that have
// seen the same would, and returns how often each verdict was given.
func (c *circuit) atOnce(goroutines, each int, change func() infuse.Change) (verdicts [3]int) {
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
	verdicts := c.atOnce(8, 50, func() infuse.Change { return calls("f") })
	equal(t, 400, verdicts[applied])
	equal(t, 400, c.load().Failures)
}

func testConcurrentSuspicion(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	verdicts := c.atOnce(8, 50, func() infuse.Change { return calls("fffffs") })
	equal(t, 400, verdicts[applied]+verdicts[moved])
	equal(t, 403, c.load().Score)
}

func testConcurrentLimit(t *testing.T, s infuse.Storage) {
	for _, suspicion := range []time.Duration{0, long / 4} {
		c := newCircuit(t, s)
		c.limits.Suspicion = suspicion
		c.limits.FailMax = 10
		verdicts := c.atOnce(20, 1, func() infuse.Change { return calls("f") })
		r := c.load()
		equal(t, 1, verdicts[moved])
		if suspicion == 0 {
			equal(t, infuse.StateOpen, r.State)
			equal(t, 10, r.Failures)
		} else {
			equal(t, 20, r.Score, "all others count in the suspicion, or began it")
			equal(t, 19, verdicts[applied])
		}
	}
}

func testConcurrentAskers(t *testing.T, s infuse.Storage) {
	for _, most := range []int{1, 3} {
		c := newCircuit(t, s)
		c.limits.MaxTrials = most
		c.due()
		verdicts := c.atOnce(20, 1, func() infuse.Change { return infuse.Change{Ask: unique("trial")} })
		equal(t, [3]int{moved: most, refused: 20 - most}, verdicts)
		equal(t, most, len(c.load().Trials))
	}
}

func testConcurrentMoves(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	verdicts := c.atOnce(8, 10, func() infuse.Change { return infuse.Change{Move: &infuse.Move{To: infuse.StateOpen}} })
	equal(t, 80, verdicts[moved])
}

// due opens the circuit, and waits until it is due.
func (c *circuit) due() {
	c.Helper()
	before := c.limits.ResetTimeout
	c.limits.ResetTimeout = time.Millisecond
	c.move(infuse.StateOpen)
	c.limits.ResetTimeout = before
	eventually(c.T, "it is due", func() bool {
		due := c.load().DueAt
		return !time.Now().Before(due)
	})
}
