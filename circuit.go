package infuse

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"
	"weak"
)

// circuit is the shell around a replica, and has the only lock of a circuit. An
// input goes in under the lock, by step; its effects are carried out after it.
// All decisions are the replica's.
//
// It is part of its Breaker. What tells it of news holds it weakly, so that a
// breaker which nothing else refers to is garbage.
type circuit struct {
	name    string
	breaker *Breaker // of which this is a part
	link    *link    // nil: there is no storage
	events  queue[event]
	unwatch func() // does not refer to the circuit

	background sync.WaitGroup

	mu      sync.Mutex
	replica replica
	tally   *striped // successes that the replica has not been told of yet; nil until some are counted
	counts  *callCounts
	before  *view     // the view before this one: used again where calls meet the same
	since   time.Time // when the view's state began
	timer   *time.Timer
	armed   time.Time // when the timer fires; zero if it does not
	waiting []waiter
	away    bool // as the listeners were told
	started bool // listeners are told
}

// waiter is a call that waits until something holds of the replica.
type waiter struct {
	until func(*replica) bool
	done  chan struct{}
}

// init has the circuit hear of its record, if the storage answers in time.
// Listeners hear nothing until start.
func (c *circuit) init(b *Breaker, name string, s *settings, l *link) {
	c.breaker, c.name, c.link = b, name, l
	c.replica = newReplica(s, newSource(), l != nil, rand.Uint64())
	c.unwatch = func() {}
	c.events.hold()
	c.step(func(*replica, time.Time) {}) // a link needs the view of all that have joined it
	if l == nil {
		return
	}
	weakly := weak.Make(c)
	var down error
	c.step(func(r *replica, now time.Time) { // under one lock, or the link could be up again before lost
		if c.link, down = l.join(weakly); down != nil {
			r.lost(down, now)
		}
	})
	c.unwatch = c.link.watch(weakly, name)
	if _, inMemory := l.storage.(*MemoryStorage); !inMemory && isLoopback(name) {
		c.events.add(warning(errLoopback))
	}
	if down == nil { // nobody waits for a storage that is known to be away
		ctx, cancel := c.patience(context.Background(), time.Now())
		defer cancel()
		c.read(ctx)
	}
}

// start lets listeners be told.
func (c *circuit) start() {
	c.events.release()
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	c.tell()
}

// newSource returns a name that no other circuit has, in any process.
func newSource() string { return base36(rand.Uint64()) }

func base36(n uint64) string { return strconv.FormatUint(n, 36) }

// step is the one way in: it takes the lock, has the replica take an input, and
// carries out what follows from that.
func (c *circuit) step(input func(r *replica, now time.Time)) {
	c.mu.Lock()
	now := time.Now()
	c.takeTally(now)
	input(&c.replica, now)
	c.finish(now)
}

// takeTally tells the replica of the successes that were tallied since the last
// step. c.mu is held.
func (c *circuit) takeTally(now time.Time) {
	if c.tally == nil {
		return
	}
	if n := c.tally.take(); n > 0 {
		c.replica.tallied(int(min(n, unlimited)), now)
	}
}

// finish ends a step: it gives the lock back, and carries out what follows.
func (c *circuit) finish(now time.Time) {
	change := c.follow(now)
	c.mu.Unlock()
	if change != nil {
		c.link.send(c, change)
	}
}

// follow brings everything in line with the replica: the view, the timer, those
// who wait, and the events. It returns what is to be sent, if anything is. c.mu
// is held.
func (c *circuit) follow(now time.Time) *Change {
	change := c.replica.outgoing(now)
	c.publish(now)
	c.arm(now)
	if c.waiting != nil {
		c.waiting = slices.DeleteFunc(c.waiting, func(w waiter) bool {
			if !w.until(&c.replica) {
				return false
			}
			close(w.done)
			return true
		})
	}
	if away := c.replica.trouble != nil; away != c.away && !c.replica.stopped {
		c.away = away
		if away {
			c.events.add(storageAway(c.replica.trouble))
		} else {
			c.events.add(storageBack(now.Sub(c.replica.since)))
		}
	}
	return change
}

// publish stores what calls meet from now on, if that has changed. Views are
// used again, so that a failure between two successes allocates none.
func (c *circuit) publish(now time.Time) {
	old := c.breaker.view.Load()
	var fresh view
	fresh.derive(&c.replica, c.name, now)
	switch {
	case old != nil && fresh.same(old):
		return
	case c.before != nil && fresh.same(c.before):
		c.breaker.view.Store(c.before)
	default:
		v := fresh
		if v.tallies && c.tally == nil {
			c.tally = new(striped)
		}
		if v.settings.CountCalls && c.counts == nil {
			c.counts = new(callCounts)
		}
		if v.tally = c.tally; v.settings.CountCalls {
			v.counts = c.counts
		}
		if v.admits == admitsNone && !v.settings.Strict && !v.settings.rejects {
			if v.onlyCounts = v.settings.CountCalls; !v.onlyCounts {
				v.rejects = v.rejection
			}
		}
		c.breaker.view.Store(&v)
	}
	c.before = old
	if old == nil || old.state != fresh.state {
		c.since = now
	}
	if old != nil && old.state != fresh.state && c.started {
		c.events.add(stateChanged(c.transition(old, &fresh, now)))
	}
}

func (c *circuit) transition(from, to *view, now time.Time) Transition {
	t := Transition{From: from.state, To: to.state, Local: to.local || to.state == StateClosed && from.local, At: now}
	if to.state == StateOpen {
		t.Cause = textOf(to.rejection.Cause)
	}
	if o := c.replica.override(now); o != nil {
		t.Origin, t.Cause = o.By, o.Reason
		return t
	}
	t.Origin = c.replica.shared.By
	if t.Local || !c.replica.attached() {
		t.Origin = c.replica.settings.Instance
	}
	return t
}

// arm has the circuit wake when time alone changes something.
func (c *circuit) arm(now time.Time) {
	at := c.replica.wakeAt(now)
	if at.Equal(c.armed) {
		return
	}
	c.armed = at
	if c.timer != nil {
		c.timer.Stop()
	}
	if at.IsZero() {
		return
	}
	weakly := weak.Make(c) // a timer is no reason to keep a breaker
	c.timer = time.AfterFunc(at.Sub(now), func() {
		if c := weakly.Value(); c != nil {
			c.step(func(*replica, time.Time) { c.armed = time.Time{} })
			c.tell()
		}
	})
}

// Inputs from below.

func (c *circuit) answered(q *Change, rec Record) {
	c.step(func(r *replica, now time.Time) { r.answered(q, rec, now) })
	c.tellAside()
}

func (c *circuit) unanswered(q *Change, err error) {
	c.step(func(r *replica, now time.Time) { r.unanswered(q.Number, err, now) })
	c.tellAside()
}

// unread is for a caller whose read failed: of all callers of one read, the first
// detaches the circuit.
func (c *circuit) unread(err error) {
	c.step(func(r *replica, now time.Time) {
		if r.attached() {
			r.unread(err, now)
		}
	})
	c.tellAside()
}

func (c *circuit) lost(err error) {
	c.step(func(r *replica, now time.Time) { r.lost(err, now) })
	c.tellAside()
}

func (c *circuit) back() {
	c.step(func(r *replica, _ time.Time) { r.back() })
}

// observed is what Storage.Watch calls.
func (c *circuit) observed(rec Record) {
	c.step(func(r *replica, now time.Time) {
		if !c.replica.stopped {
			r.observed(rec, now)
		}
	})
	c.tellAside()
}

// Inputs from above.

// asks admits a call that the view alone does not admit. It waits for the
// storage until ctx is done at most.
func (c *circuit) asks(ctx context.Context) (a admission, admitted bool) {
	var d decision
	var wait <-chan struct{}
	gone := ctx.Err() != nil // such a caller takes no trial from another
	c.step(func(r *replica, now time.Time) {
		switch a, d = r.asked(now); {
		case d == waits && gone:
			a, d = r.goesOn(a, now)
		case d == waits:
			wait = c.waitFor(func(r *replica) bool { return r.decided(a.trial) })
		}
	})
	if d == waits {
		select {
		case <-wait:
		case <-ctx.Done():
		}
		c.step(func(r *replica, now time.Time) { a, d = r.goesOn(a, now) })
	}
	a.view = c.breaker.view.Load()
	return a, d == admits
}

// ended counts the outcome of an admitted call. After a failure, and after a
// trial, it waits until the storage has heard, or for as long as the call may.
func (c *circuit) ended(a *admission, res *result) {
	c.mu.Lock()
	var now time.Time
	if !c.replica.timeless(res.outcome) {
		now = time.Now()
		c.takeTally(now)
	}
	number := c.replica.ended(a, *res, now)
	waits := number > 0 && (res.outcome != OutcomeSuccess || a.trial != "" || c.replica.settings.Strict || c.replica.stopped)
	var done <-chan struct{}
	if waits {
		done = c.waitFor(func(r *replica) bool { return r.heard(number) })
	}
	c.finish(now)
	if waits && !c.await(done, c.storageTimeout()-a.waited) && a.trial != "" {
		c.step(func(r *replica, _ time.Time) { r.gaveUp(number) })
	}
}

// await waits until done is closed, for so long at most. It reports whether it is.
func (c *circuit) await(done <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// waitFor returns a channel that is closed when something holds of the replica:
// by the step that is under way already, if it does then. c.mu is held.
func (c *circuit) waitFor(until func(*replica) bool) <-chan struct{} {
	w := waiter{until, make(chan struct{})}
	c.waiting = append(c.waiting, w)
	return w.done
}

// byHand moves or overrides the circuit, and waits until the storage has
// confirmed it or ctx is done. what tells what was done.
func (c *circuit) byHand(ctx context.Context, change Change, what string) error {
	var number uint64
	var done <-chan struct{}
	var trouble error
	c.step(func(r *replica, now time.Time) {
		trouble = r.trouble
		if number = r.byHand(change, now); number > 0 {
			done = c.waitFor(func(r *replica) bool { return r.confirmed(number) })
		}
	})
	if number == 0 {
		if trouble != nil {
			return fmt.Errorf("infuse: circuit %q was %s for this process alone: the storage is away: %w", c.name, what, trouble)
		}
		return nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		trouble = context.Cause(ctx)
	}
	confirmed := false
	c.look(func(r *replica) {
		confirmed = number <= r.landed
		trouble = cmp.Or(r.trouble, trouble)
	})
	if confirmed {
		return nil
	}
	return fmt.Errorf("infuse: the storage has not confirmed that circuit %q was %s, and may still hear of it: %w", c.name, what, trouble)
}

// look has f see the replica.
func (c *circuit) look(f func(*replica)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.replica)
}

func (c *circuit) attached() (yes bool) {
	c.look(func(r *replica) { yes = r.attached() })
	return yes
}

// read brings the circuit up to date from the storage. If there is no answer in
// time, the circuit is detached. A caller whose own context ends leaves it as it is.
func (c *circuit) read(ctx context.Context) {
	var news uint64
	c.look(func(r *replica) { news = r.news })
	rec, err := c.link.read(ctx, c)
	switch {
	case err == nil:
		c.step(func(r *replica, now time.Time) { r.hasRead(rec, news, now) })
	case err == errStorageTimeout: // the caller may have waited for a place
		c.unread(err)
	}
}

func (c *circuit) configured(s *settings) {
	c.step(func(r *replica, _ time.Time) { r.configured(s) })
	c.tell()
}

// stop ends the watching. It waits until the storage has heard everything, for
// StorageTimeout at most.
func (c *circuit) stop() {
	var done <-chan struct{}
	c.step(func(*replica, time.Time) {
		if !c.replica.stopped {
			c.replica.stopped = true
			done = c.waitFor(func(r *replica) bool { return r.idle() || r.trouble != nil })
		}
	})
	if done == nil {
		return
	}
	c.unwatch()
	heard := make(chan struct{})
	go func() {
		<-done
		c.background.Wait()
		close(heard)
	}()
	c.await(heard, c.storageTimeout())
	c.tell()
}

func (c *circuit) storageTimeout() time.Duration {
	return c.breaker.view.Load().settings.StorageTimeout
}

// linkTimeout is how long a request may take: a little less than a call waits,
// so that a call which waited in vain meets a circuit that is on its own.
func (c *circuit) linkTimeout() time.Duration { return c.storageTimeout() * 19 / 20 }

// patience returns a context for all that one call waits for: it ends with the
// call's own context, or with errStorageTimeout when StorageTimeout is over.
func (c *circuit) patience(ctx context.Context, began time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, began.Add(c.storageTimeout()), errStorageTimeout)
}

// tell tells the listeners what they are yet to hear. No lock is held.
func (c *circuit) tell() {
	c.events.drain(func(ev event) {
		for _, l := range c.breaker.view.Load().settings.Listeners {
			protected(func() { ev(l, c.breaker) })
		}
	})
}

// tellAside is tell where a slow listener would hold back the storage's news.
// After stop nothing runs aside: the next call tells.
func (c *circuit) tellAside() {
	if c.events.empty() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.replica.stopped {
		c.background.Go(c.tell)
	}
}
