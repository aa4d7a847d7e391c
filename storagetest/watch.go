package storagetest

// This file tests Watch.

import (
	"cmp"
	"slices"
	"sync"
	"testing"

	"github.com/infuse-go/infuse"
)

// watcher records what it receives.
type watcher struct {
	stop     func()
	mu       sync.Mutex
	received []infuse.Record
}

func watch(t *testing.T, s infuse.Storage, circuit string) *watcher {
	e := &watcher{}
	e.stop = s.Watch(circuit, func(r infuse.Record) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.received = append(e.received, r)
	})
	t.Cleanup(e.stop) // stopping twice is allowed
	return e
}

func (e *watcher) all() []infuse.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.received)
}

// waitFor waits until the record is the last one received.
func (e *watcher) waitFor(t *testing.T, want infuse.Record) {
	t.Helper()
	eventually(t, "a watcher has received "+withoutTimes(want), func() bool {
		all := e.all()
		return len(all) > 0 && withoutTimes(all[len(all)-1]) == withoutTimes(want)
	})
}

// requireNotified checks that watchers are notified of the last change.
func (c *circuit) requireNotified(e *watcher, verdict infuse.Verdict) {
	c.Helper()
	equal(c.T, moved, verdict)
	e.waitFor(c.T, c.seen)
}

func testWatch(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	e := watch(t, s, c.name)
	c.requireNotified(e, c.calls("fff"))
	c.requireNotified(e, c.setState(infuse.StateHalfOpen))
	c.requestTrial("a")
	c.requireNotified(e, c.settle("a", infuse.OutcomeIgnored))
	c.requestTrial("b")
	c.requireNotified(e, c.settle("b", infuse.OutcomeSuccess))
	c.requestTrial("c")
	c.requireNotified(e, c.settle("c", infuse.OutcomeFailure))
	c.makeReady()
	c.requireNotified(e, c.requestTrial("d"))
	c.limits.SuccessThreshold = 1
	c.requireNotified(e, c.settle("d", infuse.OutcomeSuccess))
	all := e.all()
	equal(t, infuse.StateClosed, all[len(all)-1].State)
	noOlder(t, all)
}

func testWatchSuspicion(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = long / 4
	e := watch(t, s, c.name)
	c.calls("ff")
	c.requireNotified(e, c.calls("f"))
	all := e.all()
	check(t, all[len(all)-1].Suspect(), "watchers are not notified of the suspicion")
	c.calls("f")
	c.requireNotified(e, c.calls("s"))
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
		other := watch(t, s, names[1])
		both := []*watcher{watch(t, s, c.name), watch(t, s, c.name)}
		for _, to := range []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateClosed} {
			c.setState(to)
			for _, e := range both {
				e.waitFor(t, c.seen)
			}
		}
		for _, r := range other.all() {
			equal(t, int64(0), r.Generation, "the watchers of ", names[1], " received ", withoutTimes(r))
		}
	}
}

func testStop(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	stops, stays := watch(t, s, c.name), watch(t, s, c.name)
	c.setState(infuse.StateOpen)
	stops.waitFor(t, c.seen)
	stays.waitFor(t, c.seen)
	last := c.seen.Generation
	stops.stop()
	for range 3 {
		c.setState(infuse.StateOpen)
		stays.waitFor(t, c.seen)
	}
	for _, r := range stops.all() {
		check(t, r.Generation <= last, "received generation %d after %d", r.Generation, last)
	}
	again := watch(t, s, c.name)
	c.setState(infuse.StateHalfOpen)
	again.waitFor(t, c.seen)
}

// testWatchOrder sets states concurrently. A watcher may skip records, but not the last
// one.
func testWatchOrder(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	ears := []*watcher{watch(t, s, c.name), watch(t, s, c.name)}
	moves := func() infuse.Change { return infuse.Change{Manual: &infuse.ManualState{To: infuse.StateOpen}} }
	verdicts := c.concurrently(4, 10, moves)
	equal(t, 40, verdicts[moved])
	last := c.load()
	for _, e := range ears {
		e.waitFor(t, last)
		noOlder(t, e.all())
	}
}
