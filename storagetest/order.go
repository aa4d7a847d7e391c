package storagetest

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/require"
)

func testTokens(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	first := infuse.Change{Kind: infuse.ChangeReport, Token: "first", Failures: 1}
	second := infuse.Change{Kind: infuse.ChangeReport, Token: "second", Failures: 1}
	for range 3 {
		require.Equal(t, infuse.VerdictApplied, c.apply(first))
		require.Equal(t, 1, c.seen.Failures)
	}
	c.apply(second)
	require.Equal(t, infuse.VerdictApplied, c.apply(first), "with another in between")
	require.Equal(t, 2, c.load().Failures)

	open := infuse.Change{Kind: infuse.ChangeMove, Token: "open", To: infuse.StateOpen}
	require.Equal(t, infuse.VerdictMoved, c.apply(open))
	opened := c.seen
	require.Equal(t, infuse.VerdictApplied, c.apply(open))
	requireSame(t, opened, c.load())

	c.move(infuse.StateHalfOpen)
	require.Equal(t, infuse.VerdictApplied, c.acquire("trial"))
	require.Equal(t, infuse.VerdictApplied, c.acquire("trial"), "its own, once more")
	require.Len(t, c.load().Trials, 1)
}

func testOlderReports(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	healthy := c.seen
	c.fail(3)
	open := c.seen
	require.Equal(t, infuse.StateOpen, open.State)
	require.Equal(t, infuse.VerdictRefused, c.fail(1), "while it is open")
	c.move(infuse.StateClosed)
	for name, older := range map[string]infuse.Record{
		"before it opened":  healthy,
		"while it was open": open,
	} {
		c.seen = older
		require.Equal(t, infuse.VerdictRefused, c.fail(1), "right after closing, seen %s", name)
	}
	require.Zero(t, c.load().Failures)
	c.seen = c.load()
	require.Equal(t, infuse.VerdictApplied, c.fail(1))
	require.Equal(t, 1, c.load().Failures)
}

func testOlderSettles(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.move(infuse.StateHalfOpen)
	c.acquire("trial")
	older := c.seen
	c.move(infuse.StateHalfOpen)
	c.acquire("trial") // has the older one's name, and is another
	newer := c.seen
	c.seen = older
	for outcome := range infuse.OutcomeIgnored + 1 {
		require.Equal(t, infuse.VerdictRefused, c.settle("trial", outcome))
		c.seen = older
	}
	requireSame(t, newer, c.load())

	c.move(infuse.StateClosed)
	closed := c.seen
	c.seen = newer
	require.Equal(t, infuse.VerdictRefused, c.settle("trial", infuse.OutcomeFailure), "right after closing")
	requireSame(t, closed, c.load())
}

func testMoves(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	require.Equal(t, infuse.VerdictApplied, c.move(infuse.StateClosed), "it is closed")
	c.fail(2)
	states := []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateClosed}
	for _, from := range states {
		for _, to := range states {
			c.move(from)
			generation := c.seen.Generation
			c.move(to)
			record := c.load()
			require.Equal(t, to, record.State)
			if from != infuse.StateClosed || to != infuse.StateClosed {
				require.Greater(t, record.Generation, generation, "from %v to %v", from, to)
			}
			if to == infuse.StateOpen {
				require.WithinDuration(t, time.Now().Add(long), record.DueAt, patience)
			}
			require.Empty(t, record.Trials)
		}
	}
	c.move(infuse.StateClosed)
	require.Zero(t, c.load().Failures)
}

// testLostRecord has senders that know more than the storage, which happens
// when it has lost its data.
func testLostRecord(t *testing.T, s infuse.Storage) {
	generation := time.Now().UnixMilli()
	trial := infuse.Trial{ID: "running", Deadline: time.Now().Add(long)}
	open := infuse.Record{State: infuse.StateOpen, Generation: generation, Failures: 3, DueAt: time.Now().Add(long)}
	halfOpen := infuse.Record{State: infuse.StateHalfOpen, Generation: generation, Failures: 3, Successes: 1, Trials: []infuse.Trial{trial}}

	for name, known := range map[string]infuse.Record{"open": open, "half-open": halfOpen} {
		c := newCircuit(t, s)
		c.seen = known
		require.Equal(t, infuse.VerdictMoved, c.apply(infuse.Change{Kind: infuse.ChangeSync}), name)
		requireSame(t, known, c.load(), name)
		require.Equal(t, infuse.VerdictRefused, c.acquire("new"), name)
		c.seen = infuse.Record{}
		require.Equal(t, infuse.VerdictRefused, c.fail(1), "%s: of one who has not heard", name)
	}

	c := newCircuit(t, s)
	c.seen = open
	c.seen.DueAt = time.Now().Add(-time.Second)
	require.Equal(t, infuse.VerdictMoved, c.acquire("trial"), "it is lost, and due")
	require.Equal(t, infuse.StateHalfOpen, c.load().State)
	require.Greater(t, c.load().Generation, generation)

	c = newCircuit(t, s)
	c.seen = halfOpen
	require.Equal(t, infuse.VerdictMoved, c.settle("running", infuse.OutcomeSuccess))
	require.Equal(t, infuse.StateClosed, c.load().State, "the second success in a row")
	require.Greater(t, c.load().Generation, generation)

	c.seen = open // older than what the storage has
	now := c.load()
	c.apply(infuse.Change{Kind: infuse.ChangeSync})
	requireSame(t, now, c.load())
}
