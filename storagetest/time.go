package storagetest

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/require"
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
	eventually(t, "it is due", func() bool { return c.acquire("trial") != infuse.VerdictRefused })
	require.GreaterOrEqual(t, time.Since(began), short-coarse)
	require.Equal(t, infuse.StateHalfOpen, c.load().State)
	require.Len(t, c.load().Trials, 1)
}

func testReading(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.due()
	for range 3 {
		requireSame(t, c.seen, c.load())
		require.Equal(t, infuse.VerdictApplied, c.apply(infuse.Change{Kind: infuse.ChangeSync}))
	}
	require.Equal(t, infuse.StateOpen, c.load().State, "though it is due")
	require.Equal(t, infuse.VerdictMoved, c.acquire("trial"))
}

func testLease(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.move(infuse.StateHalfOpen)
	c.limits.TrialTimeout = short
	began := time.Now()
	require.Equal(t, infuse.VerdictApplied, c.acquire("dead"))
	c.limits.TrialTimeout = long
	eventually(t, "the lease ends", func() bool { return c.acquire("next") != infuse.VerdictRefused })
	require.GreaterOrEqual(t, time.Since(began), short-coarse)

	for outcome := range infuse.OutcomeIgnored + 1 {
		require.Equal(t, infuse.VerdictRefused, c.settle("dead", outcome), "it did not die: its late %v", outcome)
	}
	require.Equal(t, infuse.StateHalfOpen, c.load().State)
	require.Zero(t, c.load().Successes)
	require.Equal(t, infuse.VerdictRefused, c.acquire("third"), "the late end has freed nothing")
	require.Equal(t, infuse.VerdictMoved, c.settle("next", infuse.OutcomeSuccess))
}

func testIgnored(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.move(infuse.StateHalfOpen)
	for range 3 {
		require.Equal(t, infuse.VerdictApplied, c.acquire("trial"))
		require.Equal(t, infuse.VerdictRefused, c.acquire("other"))
		require.Equal(t, infuse.VerdictMoved, c.settle("trial", infuse.OutcomeIgnored))
		require.Equal(t, infuse.VerdictRefused, c.settle("trial", infuse.OutcomeIgnored), "twice")
	}
	require.Equal(t, infuse.StateHalfOpen, c.load().State)
	require.Zero(t, c.load().Successes)
	require.Empty(t, c.load().Trials)
}
