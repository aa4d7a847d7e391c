package infuse

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
	"weak"
)

// circuit is the shell around a replica, and has the only lock of a circuit. An
// input goes in under the lock, by step; its effects are carried out after it.
// All decisions are the replica's. No user code runs under the lock: texts of
// errors are made before, listeners are called after.
//
// It is part of its Breaker. What notifies it holds it weakly, so that a breaker
// that becomes unreachable is garbage.
type circuit struct {
	name    string
	breaker *Breaker // of which this is a part
	link    *link    // nil: there is no storage
	events  queue[event]
	unwatch func() // does not refer to the circuit

	background sync.WaitGroup

	mu      sync.Mutex
	replica replica
	tally   *striped // successes that the replica does not know of yet; nil until some are counted
	counts  *callCounts
	since   time.Time // when the view's state began
	timer   *time.Timer
	armed   time.Time // when the timer fires; zero if it does not
	waiting waiters
	states  states // as the listeners were notified
	away    bool   // as the listeners were notified
	started bool   // listeners are notified
}

// waiters wait until the storage has acknowledged their sequence number, or will
// not for now. The numbers ascend.
type waiters []waiter

type waiter struct {
	number uint64
	done   chan struct{}
}

// add returns a channel that is closed when the number is acknowledged.
func (w *waiters) add(number uint64) <-chan struct{} {
	done := make(chan struct{})
	*w = append(*w, waiter{number, done})
	return done
}

func (w *waiters) release(acknowledged uint64) {
	n := 0
	for n < len(*w) && (*w)[n].number <= acknowledged {
		close((*w)[n].done)
		n++
	}
	if *w = (*w)[n:]; len(*w) == 0 {
		*w = nil
	}
}

// init has the circuit read its record, if the storage answers in time.
// Listeners are not notified until start.
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
	if down == nil { // nobody waits for a storage that is known to be unavailable
		ctx, cancel := c.patience(context.Background(), time.Now())
		defer cancel()
		c.read(ctx)
	}
}

// start lets listeners be notified.
func (c *circuit) start() {
	c.events.release()
	c.mu.Lock()
	c.states, c.started = c.replica.states(time.Now()), true
	c.mu.Unlock()
	c.tell()
}

// newSource returns a name that no other circuit has, in any process.
func newSource() string { return base36(rand.Uint64()) }

func base36(n uint64) string { return strconv.FormatUint(n, 36) }

// step is the one way in: it takes the lock, gives the replica an input, and
// carries out what follows from that.
func (c *circuit) step(input func(r *replica, now time.Time)) {
	c.mu.Lock()
	now := time.Now()
	c.takeTally(now)
	input(&c.replica, now)
	c.finish(now)
}

// takeTally gives the replica the successes that were tallied since the last
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
	r := &c.replica
	change := r.outgoing(now)
	c.publish(now)
	c.arm(now)
	c.waiting.release(r.acknowledged())
	if c.link != nil {
		if away := r.trouble != nil; away != c.away && !r.stopped {
			c.away = away
			if away {
				c.events.add(storageAway(r.trouble))
			} else {
				c.events.add(storageBack(now.Sub(r.since)))
			}
		}
	}
	return change
}

// publish stores what calls meet from now on, if that has changed.
func (c *circuit) publish(now time.Time) {
	old := c.breaker.view.Load()
	var fresh view
	fresh.derive(&c.replica, c.name, now)
	if old != nil && fresh.same(old) {
		c.setQuiet(old, fresh.quiet)
	} else {
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
		if old == nil || old.state != fresh.state {
			c.since = now
		}
	}
	c.notify(now)
}

// setQuiet stores the view, or its twin. A failure between two successes
// allocates none. c.mu is held.
func (c *circuit) setQuiet(v *view, quiet bool) {
	if v.quiet == quiet {
		return
	}
	if v.twin == nil {
		w := *v
		w.quiet, w.fast, w.twin = quiet, w.plain && quiet, v
		v.twin = &w
	}
	c.breaker.view.Store(v.twin)
}

// states are those of the two circuits, as listeners are notified of them.
type states struct{ local, shared State }

// states returns the state of each circuit. An override is one of the circuit that
// it was made for.
func (r *replica) states(now time.Time) states {
	s := states{r.local.State, r.shared.State}
	if r.standIn != nil {
		s.shared = r.standIn.State
	}
	switch o := r.override(now); {
	case o == nil:
	case o == r.local.Override:
		s.local = o.State
	default:
		s.shared = o.State
	}
	return s
}

// notify adds an event for each circuit whose state has changed. c.mu is held.
func (c *circuit) notify(now time.Time) {
	if !c.started {
		return
	}
	r := &c.replica
	before, after := c.states, r.states(now)
	if before == after {
		return
	}
	c.states = after
	o := r.override(now)
	add := func(local bool, from, to State, rec *Record, origin string) {
		if from == to {
			return
		}
		t := Transition{From: from, To: to, Local: local, Origin: origin, At: now}
		if to == StateOpen {
			t.Cause = rec.Cause
		}
		if o != nil && o == rec.Override {
			t.Origin, t.Cause = o.By, o.Reason
		}
		c.events.add(stateChanged(t))
	}
	add(false, before.shared, after.shared, &r.shared, r.shared.By)
	add(true, before.local, after.local, &r.local, r.settings.Instance)
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

func (c *circuit) unanswered(q *Change, why error) {
	c.step(func(r *replica, now time.Time) { r.unanswered(q.Number, why, now) })
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

func (c *circuit) lost(why error) {
	c.step(func(r *replica, now time.Time) { r.lost(why, now) })
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
	var answered <-chan struct{}
	gone := ctx.Err() != nil // such a caller takes no trial from another
	c.step(func(r *replica, now time.Time) {
		switch a, d = r.asked(now); {
		case d == waits && gone:
			a, d = r.goesOn(a, now)
		case d == waits:
			answered = c.waiting.add(r.noted)
		}
	})
	if d == waits {
		select {
		case <-answered:
		case <-ctx.Done():
		}
		c.step(func(r *replica, now time.Time) { a, d = r.goesOn(a, now) })
	}
	a.view = c.breaker.view.Load()
	return a, d == admits
}

// ended counts the outcome of an admitted call. After a failure, and after a
// trial, it waits until the storage has acknowledged it, or for as long as the call
// may.
func (c *circuit) ended(a *admission, res *result) {
	if c.link == nil && c.countAlone(a, res.outcome) {
		return
	}
	if res.outcome == OutcomeFailure {
		defer c.count(a, res) // also if a method of the error ends the goroutine
		res.cause = keptCause{errUnreadable, errUnreadable.Error()}
		res.cause = keepCause(res.err)
		return
	}
	c.count(a, res)
}

// countAlone counts an outcome from which nothing follows but the count: without
// a storage, such as an isolated failure between successes.
func (c *circuit) countAlone(a *admission, o Outcome) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.replica.countsAlone(a, o) {
		return false
	}
	c.setQuiet(c.breaker.view.Load(), c.replica.local.Failures == 0)
	return true
}

func (c *circuit) count(a *admission, res *result) {
	c.mu.Lock()
	now := time.Now()
	c.takeTally(now)
	r := &c.replica
	number := r.ended(a, *res, now)
	var done <-chan struct{}
	if number > 0 && (res.outcome != OutcomeSuccess || a.trial != "" || r.settings.Strict || r.stopped) {
		done = c.waiting.add(number)
	}
	c.finish(now)
	if done != nil {
		c.await(done, c.storageTimeout()-a.waited)
	}
}

// await waits until done is closed, for so long at most.
func (c *circuit) await(done <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// manual changes the state or the override, and waits until the storage has
// confirmed it or ctx is done. what describes what was done.
func (c *circuit) manual(ctx context.Context, change Change, what string) error {
	var number uint64
	var done <-chan struct{}
	var why error
	c.step(func(r *replica, now time.Time) {
		why = r.trouble
		if number = r.manual(change, now); number > 0 {
			done = c.waiting.add(number)
		}
	})
	if number == 0 {
		if why != nil {
			return fmt.Errorf("infuse: circuit %q was %s for this process alone: the storage is unavailable: %w", c.name, what, why)
		}
		return nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		why = context.Cause(ctx)
	}
	confirmed := false
	c.look(func(r *replica) {
		confirmed = number <= r.landed
		why = cmp.Or(r.trouble, why)
	})
	if confirmed {
		return nil
	}
	return fmt.Errorf("infuse: the storage has not confirmed that circuit %q was %s, and may still receive it: %w", c.name, what, why)
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

// stop ends the watching. It waits until the storage has received everything, for
// StorageTimeout at most.
func (c *circuit) stop() {
	var done <-chan struct{}
	c.step(func(r *replica, _ time.Time) {
		if !r.stopped {
			r.stopped = true
			done = c.waiting.add(r.noted)
		}
	})
	if done == nil {
		return
	}
	c.unwatch()
	received := make(chan struct{})
	go func() {
		<-done
		c.background.Wait()
		close(received)
	}()
	c.await(received, c.storageTimeout())
	c.tell()
}

func (c *circuit) storageTimeout() time.Duration {
	return c.breaker.view.Load().settings.StorageTimeout
}

// linkTimeout is how long a request may take: a little less than a call waits,
// so that a call which waited in vain meets a detached circuit.
func (c *circuit) linkTimeout() time.Duration { return c.storageTimeout() * 19 / 20 }

// patience returns a context for all that one call waits for: it ends with the
// call's own context, or with errStorageTimeout when StorageTimeout is over.
func (c *circuit) patience(ctx context.Context, began time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, began.Add(c.storageTimeout()), errStorageTimeout)
}

// tell notifies the listeners of what they do not know yet. No lock is held.
func (c *circuit) tell() {
	c.events.drain(func(ev event) {
		for _, l := range c.breaker.view.Load().settings.Listeners {
			protected(func() { ev(l, c.breaker) })
		}
	})
}

// tellAside is tell where a slow listener would hold back the storage's
// notifications. After stop nothing runs aside: the next call notifies.
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
