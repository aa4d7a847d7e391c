package storagetest

import (
	"sync"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
				change.Seen, change.Limits = c.seen, c.limits
				_, verdict, err := c.storage.Apply(c.Context(), c.name, change)
				assert.NoError(c, err)
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

func oneFailure() infuse.Change {
	return infuse.Change{Kind: infuse.ChangeReport, Token: unique("token"), Failures: 1}
}

func testConcurrentReports(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.FailMax = 1_000_000
	verdicts := c.atOnce(8, 50, oneFailure)
	require.Equal(t, 400, verdicts[infuse.VerdictApplied])
	require.Equal(t, 400, c.load().Failures)
}

func testConcurrentThreshold(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	verdicts := c.atOnce(20, 1, oneFailure)
	require.Equal(t, [3]int{infuse.VerdictApplied: 2, infuse.VerdictMoved: 1, infuse.VerdictRefused: 17}, verdicts)
	require.Equal(t, infuse.StateOpen, c.load().State)
	require.Equal(t, 3, c.load().Failures)
}

func testConcurrentAskers(t *testing.T, s infuse.Storage) {
	ask := func() infuse.Change { return infuse.Change{Kind: infuse.ChangeAcquire, Token: unique("trial")} }
	for _, most := range []int{1, 3} {
		c := newCircuit(t, s)
		c.limits.MaxTrials = most
		c.due()
		verdicts := c.atOnce(10, 3, ask)
		require.Equal(t, [3]int{infuse.VerdictMoved: 1, infuse.VerdictApplied: most - 1, infuse.VerdictRefused: 30 - most}, verdicts)
		require.Len(t, c.load().Trials, most)
	}
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
