package storagetest

import (
	"cmp"
	"slices"
	"sync"
	"testing"

	"github.com/infuse-go/infuse"
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
		return len(all) > 0 && withoutTimes(all[len(all)-1]) == withoutTimes(want)
	})
}

// hears makes sure that the last change was one that watchers hear of.
func (c *circuit) hears(e *ear, verdict infuse.Verdict) {
	c.Helper()
	equal(c.T, moved, verdict)
	e.waitFor(c.T, c.seen)
}

func testWatch(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	e := listen(t, s, c.name)
	c.hears(e, c.calls("fff"))
	c.hears(e, c.move(infuse.StateHalfOpen))
	c.ask("a")
	c.hears(e, c.settle("a", infuse.OutcomeIgnored))
	c.ask("b")
	c.hears(e, c.settle("b", infuse.OutcomeSuccess))
	c.ask("c")
	c.hears(e, c.settle("c", infuse.OutcomeFailure))
	c.due()
	c.hears(e, c.ask("d"))
	c.limits.SuccessThreshold = 1
	c.hears(e, c.settle("d", infuse.OutcomeSuccess))
	all := e.all()
	equal(t, infuse.StateClosed, all[len(all)-1].State)
	noOlder(t, all)
}

func testWatchSuspicion(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = long / 4
	e := listen(t, s, c.name)
	c.calls("ff")
	c.hears(e, c.calls("f"))
	all := e.all()
	check(t, all[len(all)-1].Suspect(), "the watchers are not notified that it is suspect")
	c.calls("f")
	c.hears(e, c.calls("s"))
	noOlder(t, e.all())
}

func noOlder(t *testing.T, all []infuse.Record) {
	t.Helper()
	inOrder := slices.IsSortedFunc(all, func(a, b infuse.Record) int { return cmp.Compare(a.Generation, b.Generation) })
	check(t, inOrder, "an older record after a newer one: %+v", all)
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
			equal(t, int64(0), r.Generation, "the watchers of ", names[1], " heard ", withoutTimes(r))
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
		check(t, r.Generation <= last, "it heard generation %d after %d", r.Generation, last)
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
	moves := func() infuse.Change { return infuse.Change{Move: &infuse.Move{To: infuse.StateOpen}} }
	verdicts := c.atOnce(4, 10, moves)
	equal(t, 40, verdicts[moved])
	last := c.load()
	for _, e := range ears {
		e.waitFor(t, last)
		noOlder(t, e.all())
	}
}
