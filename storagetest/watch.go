package storagetest

import (
	"cmp"
	"slices"
	"sync"
	"testing"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ear is a watcher that remembers what it has heard.
type ear struct {
	stop  func()
	mu    sync.Mutex
	heard []infuse.Record
}

func listen(t *testing.T, s infuse.Storage, circuit string) *ear {
	e := &ear{}
	e.stop = s.Watch(circuit, func(r infuse.Record) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.heard = append(e.heard, r)
	})
	t.Cleanup(e.stop) // a second stop does nothing
	return e
}

func (e *ear) all() []infuse.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.heard)
}

// waitFor waits until the record is the last that was heard.
func (e *ear) waitFor(t *testing.T, want infuse.Record) {
	t.Helper()
	eventually(t, "a watcher has heard "+withoutTimes(want), func() bool {
		all := e.all()
		return len(all) > 0 && sameNews(all[len(all)-1], want)
	})
}

// sameNews leaves out the tokens: they are nobody's business but the storage's.
func sameNews(a, b infuse.Record) bool {
	a.Tokens, b.Tokens = nil, nil
	return withoutTimes(a) == withoutTimes(b)
}

func testWatch(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	e := listen(t, s, c.name)
	hears := func(verdict infuse.Verdict) {
		t.Helper()
		require.Equal(t, infuse.VerdictMoved, verdict)
		e.waitFor(t, c.seen)
	}
	hears(c.fail(3))
	hears(c.move(infuse.StateHalfOpen))
	c.acquire("a")
	hears(c.settle("a", infuse.OutcomeIgnored))
	c.acquire("b")
	hears(c.settle("b", infuse.OutcomeSuccess))
	c.acquire("c")
	hears(c.settle("c", infuse.OutcomeFailure))
	c.due()
	hears(c.acquire("d"))
	c.limits.SuccessThreshold = 1
	hears(c.settle("d", infuse.OutcomeSuccess))
	all := e.all()
	require.Equal(t, infuse.StateClosed, all[len(all)-1].State)
	requireNoOlder(t, all)
}

func requireNoOlder(t *testing.T, all []infuse.Record) {
	t.Helper()
	inOrder := slices.IsSortedFunc(all, func(a, b infuse.Record) int { return cmp.Compare(a.Generation, b.Generation) })
	require.True(t, inOrder, "an older record after a newer one: %+v", all)
}

func testWatchers(t *testing.T, s infuse.Storage) {
	for _, names := range [][2]string{
		{unique("watched"), unique("other")},
		{unique("{a}") + "1", unique("{a}") + "2"},
		{"日本 " + unique("\n"), "日本 " + unique("\r\n")},
	} {
		c := newCircuit(t, s)
		c.name = names[0]
		other := listen(t, s, names[1])
		both := []*ear{listen(t, s, c.name), listen(t, s, c.name)}
		for _, to := range []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateClosed} {
			c.move(to)
			for _, e := range both {
				e.waitFor(t, c.seen)
			}
		}
		for _, r := range other.all() {
			assert.Zero(t, r.Generation, "the watchers of %q heard %s", names[1], withoutTimes(r))
		}
	}
}

func testStop(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	stops, stays := listen(t, s, c.name), listen(t, s, c.name)
	c.move(infuse.StateOpen)
	stops.waitFor(t, c.seen)
	stays.waitFor(t, c.seen)
	last := c.seen.Generation
	stops.stop()
	for range 3 {
		c.move(infuse.StateOpen)
		stays.waitFor(t, c.seen)
	}
	for _, r := range stops.all() {
		require.LessOrEqual(t, r.Generation, last)
	}
	again := listen(t, s, c.name)
	c.move(infuse.StateHalfOpen)
	again.waitFor(t, c.seen)
}

// testWatchOrder has several processes move a circuit as fast as they can. A
// watcher may miss what is no more, but not the last.
func testWatchOrder(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	ears := []*ear{listen(t, s, c.name), listen(t, s, c.name)}
	moves := func() infuse.Change {
		return infuse.Change{Kind: infuse.ChangeMove, Token: unique("token"), To: infuse.StateOpen}
	}
	verdicts := c.atOnce(4, 25, moves)
	require.Equal(t, 100, verdicts[infuse.VerdictMoved])
	last := c.load()
	for _, e := range ears {
		e.waitFor(t, last)
		requireNoOlder(t, e.all())
	}
}
