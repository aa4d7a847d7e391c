package infuse

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
	"weak"

	"github.com/infuse-go/infuse/internal/hostname"
	"github.com/infuse-go/infuse/internal/ordered"
	"github.com/infuse-go/infuse/internal/striped"
)

// circuit is the part of a Breaker that is the shell around a replica: the only lock
// of a circuit. An input goes in under the lock, by step; its effects are carried out
// after it. All decisions are the replica's. No user code runs under the lock: texts
// of errors are made before, listeners are called after.
//
// What notifies a Breaker holds it weakly, so that one that becomes unreachable is
// garbage.
type circuit struct {
	name    string
	link    *link // nil: there is no storage
	events  ordered.Queue[event]
	unwatch func() // does not refer to the circuit

	mu      sync.Mutex
	replica replica
	aside   *sync.WaitGroup  // listeners that are called in the background; nil: none were
	tally   *striped.Counter // successes that the replica does not know of yet; nil until some are counted
	counts  *striped.Counts
	alarm   *alarm        // nil: time alone changes nothing
	waiting *waiters      // nil: nobody waits
	readied chan struct{} // closed when the breaker becomes ready; nil if nobody waits for that
	since   since         // when the states began
	states  states        // as the listeners were notified
	invalid bool          // listeners were notified that the record cannot be read
	started bool          // listeners are notified
}

// alarm wakes a circuit when time alone changes something.
type alarm struct {
	at    time.Time
	timer *time.Timer
}

// when returns when the circuit wakes; zero: not by itself.
func (a *alarm) when() time.Time {
	if a == nil {
		return time.Time{}
	}
	return a.at
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

// release closes the channels up to that number, and returns nil if none is left.
func (w *waiters) release(acknowledged uint64) *waiters {
	n := 0
	for w != nil && n < len(*w) && (*w)[n].number <= acknowledged {
		close((*w)[n].done)
		n++
	}
	if w == nil || n == len(*w) {
		return nil
	}
	*w = (*w)[n:]
	return w
}

// wait returns a channel that is closed when the number is acknowledged. b.mu is held.
func (b *Breaker) wait(number uint64) <-chan struct{} {
	if b.waiting == nil {
		b.waiting = new(waiters)
	}
	return b.waiting.add(number)
}

// init has the circuit read its record, if the storage answers in time.
// Listeners are not notified until start.
func (b *Breaker) init(name string, s *settings, l *link) {
	b.name, b.link = name, l
	b.replica = newReplica(s, newSource(), l != nil, rand.Uint64())
	b.unwatch = func() {}
	b.events.Hold()
	b.step(func(*replica, time.Time) {}) // a link needs the view of all that have joined it
	if l == nil {
		return
	}
	weakly := weak.Make(b)
	var down error
	b.step(func(r *replica, now time.Time) { // under one lock, or the link could be up again before lost
		if b.link, down = l.join(weakly); down != nil {
			r.unavailable(down, now)
		}
	})
	b.unwatch = b.link.watch(weakly, name)
	if _, inMemory := l.storage.(*MemoryStorage); !inMemory && hostname.IsLoopback(name) {
		b.events.Add(warning(errLoopback))
	}
	if down == nil { // nobody waits for a storage that is known to be unavailable
		ctx, cancel := b.patience(context.Background(), time.Now())
		defer cancel()
		b.read(ctx)
	}
}

var errLoopback = errors.New("infuse: the circuit is named after a loopback host, which is another service on each machine, but its storage is shared: set Transport.Circuit, or use no Storage")

// start lets listeners be notified.
func (b *Breaker) start() {
	b.events.Release()
	b.mu.Lock()
	b.started = true
	b.mu.Unlock()
	b.tell()
}

// newSource returns a name that no other circuit has, in any process.
func newSource() string { return strconv.FormatUint(rand.Uint64(), 36) }

// step is the one way in: it takes the lock, gives the replica an input, and
// carries out what follows from that.
func (b *Breaker) step(input func(r *replica, now time.Time)) {
	b.mu.Lock()
	now := time.Now()
	b.replica.acquireEpisode()
	b.takeTally(now)
	input(&b.replica, now)
	change := b.follow(now)
	b.replica.releaseEpisode()
	b.mu.Unlock()
	if change != nil {
		b.link.send(b, change)
	}
}

// takeTally gives the replica the successes that were tallied since the last
// step. b.mu is held.
func (b *Breaker) takeTally(now time.Time) {
	if b.tally == nil {
		return
	}
	if n := b.tally.Take(); n > 0 {
		b.replica.acquireEpisode() // also for Stats
		b.replica.tallied(int(min(n, unlimited)), now)
	}
}

// follow brings everything in line with the replica: the view, the timer, those
// who wait, and the events. It returns what is to be sent, if anything is. b.mu
// is held.
func (b *Breaker) follow(now time.Time) *request {
	r := &b.replica
	change := r.outgoing(now)
	b.publish(now)
	b.arm(now)
	b.waiting = b.waiting.release(r.doneUpTo())
	if invalid := r.storageErr != nil && !isStorageError(r.storageErr); invalid != b.invalid { // the storage is available
		if b.invalid = invalid; invalid {
			b.events.Add(warning(r.storageErr))
		}
	}
	return change
}

// publish stores what calls meet from now on, if that has changed.
func (b *Breaker) publish(now time.Time) {
	old := b.view.Load()
	var fresh view
	fresh.derive(&b.replica, b.name, now)
	if old != nil && fresh.same(old) {
		b.setQuiet(old, fresh.quiet)
	} else if healthy := fresh.settings.healthy; healthy != nil && fresh.same(healthy) {
		b.view.Store(healthy)
		b.setQuiet(healthy, fresh.quiet)
		b.nowReady(healthy)
	} else {
		v := fresh
		if v.tallies && b.tally == nil {
			b.tally = new(striped.Counter)
		}
		if v.settings.CountCalls && b.counts == nil {
			b.counts = new(striped.Counts)
		}
		if v.tally = b.tally; v.settings.CountCalls {
			v.counts = b.counts
		}
		if v.admits == admitsNone && !v.settings.Strict && !v.settings.rejects && !v.settings.DryRun {
			if v.onlyCounts = v.settings.CountCalls; !v.onlyCounts {
				v.rejects = v.rejection
			}
		}
		b.view.Store(&v)
		b.nowReady(&v)
	}
	b.notify(now)
}

// nowReady wakes those who wait until the breaker is ready. b.mu is held.
func (b *Breaker) nowReady(v *view) {
	if b.readied != nil && v.ready() {
		close(b.readied)
		b.readied = nil
	}
}

// setQuiet stores the view, or its twin. A failure between two successes
// allocates none. b.mu is held.
func (b *Breaker) setQuiet(v *view, quiet bool) {
	if v.quiet == quiet {
		return
	}
	if v.twin == nil {
		w := *v
		w.twin = v
		w.setQuiet(quiet)
		v.twin = &w
	}
	b.view.Store(v.twin)
}

// becomesReady returns a channel that is closed when the breaker is ready.
func (b *Breaker) becomesReady() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	ready := b.readied
	if ready == nil {
		ready = make(chan struct{})
		if b.view.Load().ready() {
			close(ready)
		} else {
			b.readied = ready
		}
	}
	return ready
}

// states are those of the two circuits, as listeners are notified of them.
type states struct{ local, shared State }

// since is when the states of the two circuits began, in nanoseconds of Unix time.
type since struct{ local, shared int64 }

// states returns the state of each circuit. An override is one of the circuit that
// it was made for.
func (r *replica) states(now time.Time) states {
	s := states{r.local.State, r.lastShared().State}
	switch o := r.override(now); {
	case o == nil:
	case o == r.local.Override:
		s.local = o.State
	default:
		s.shared = o.State
	}
	return s
}

// notify adds an event for each circuit whose state has changed. b.mu is held.
// R43.
func (b *Breaker) notify(now time.Time) {
	r := &b.replica
	before, after := b.states, r.states(now)
	if before.local != after.local || b.since.local == 0 {
		b.since.local = now.UnixNano()
	}
	if before.shared != after.shared || b.since.shared == 0 {
		b.since.shared = now.UnixNano()
	}
	b.states = after
	if before == after || !b.started {
		return
	}
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
		b.events.Add(stateChanged(t))
	}
	add(false, before.shared, after.shared, r.shared, r.shared.By)
	add(true, before.local, after.local, &r.local, r.settings.Instance)
}

// arm has the circuit wake when time alone changes something.
func (b *Breaker) arm(now time.Time) {
	at := b.replica.wakeAt(now)
	if at.Equal(b.alarm.when()) {
		return
	}
	if b.alarm != nil {
		b.alarm.timer.Stop()
		b.alarm = nil
	}
	if at.IsZero() {
		return
	}
	weakly := weak.Make(b) // a timer is no reason to keep a breaker
	set := &alarm{at: at}
	set.timer = time.AfterFunc(at.Sub(now), func() {
		if b := weakly.Value(); b != nil {
			b.step(func(*replica, time.Time) {
				if b.alarm == set { // it was not stopped too late
					b.alarm = nil
				}
			})
			b.tell()
		}
	})
	b.alarm = set
}

// Inputs from below.

func (b *Breaker) answered(q *request, rec Record) {
	b.step(func(r *replica, now time.Time) { r.answered(q, rec, now) })
	b.tellAside()
}

func (b *Breaker) unanswered(q *request, why error) {
	b.step(func(r *replica, now time.Time) { r.unanswered(q.Number, why, now) })
	b.tellAside()
}

// unread is for a caller whose read failed: of all callers of one read, the first
// detaches the circuit.
func (b *Breaker) readFailed(err error) {
	b.step(func(r *replica, now time.Time) {
		if r.attached() {
			r.readFailed(err, now)
		}
	})
	b.tellAside()
}

func (b *Breaker) unavailable(why error) {
	b.step(func(r *replica, now time.Time) { r.unavailable(why, now) })
	b.tellAside()
}

func (b *Breaker) availableAgain() {
	b.step(func(r *replica, _ time.Time) { r.availableAgain() })
}

// observed is what Storage.Watch calls.
func (b *Breaker) observed(rec Record) {
	b.step(func(r *replica, now time.Time) {
		if !b.replica.stopped {
			r.notified(rec, now)
		}
	})
	b.tellAside()
}

// announced is called with a notice of the storage. It returns whether the record is
// to be read.
func (b *Breaker) announced(n notice) (reads bool) {
	b.step(func(r *replica, _ time.Time) { reads = r.noticed(n) })
	b.tellAside()
	return reads
}

// Inputs from above.

// asks admits a call that the view alone does not admit. It waits for the
// storage until ctx is done at most.
func (b *Breaker) asks(ctx context.Context) (a admission, admitted bool) {
	var d decision
	var answered <-chan struct{}
	gone := ctx.Err() != nil // such a caller takes no trial from another
	b.step(func(r *replica, now time.Time) {
		switch a, d = r.arrived(now); {
		case d == waits && gone:
			a, d = r.resumed(a, now)
		case d == waits:
			answered = b.wait(r.enqueued)
		}
	})
	if d == waits {
		select {
		case <-answered:
		case <-ctx.Done():
		}
		b.step(func(r *replica, now time.Time) { a, d = r.resumed(a, now) })
	}
	a.view = b.view.Load()
	return a, d == admits
}

// ended counts the outcome of an admitted call. After a failure, and after a
// trial, it waits until the storage has acknowledged it, or for as long as the call
// may.
func (b *Breaker) ended(a *admission, res *result) {
	if b.link == nil && b.countAlone(a, res.outcome) {
		return
	}
	if res.outcome == OutcomeFailure {
		defer b.countWaiting(a, res) // also if a method of the error ends the goroutine
		res.cause = keptCause{errUnreadable, errUnreadable.Error()}
		res.cause = keepCause(res.err)
		return
	}
	b.countWaiting(a, res)
}

// countAlone counts an outcome from which nothing follows but the count: without
// a storage, such as an isolated failure between successes.
func (b *Breaker) countAlone(a *admission, o Outcome) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.replica.onlyCounts(a, o) {
		return false
	}
	b.setQuiet(b.view.Load(), b.replica.local.Failures == 0)
	return true
}

func (b *Breaker) countWaiting(a *admission, res *result) {
	var done <-chan struct{}
	b.step(func(r *replica, now time.Time) {
		number := r.ended(a, *res, now)
		if number > 0 && (res.outcome != OutcomeSuccess || a.trial != "" || r.settings.Strict || r.stopped) {
			done = b.wait(number)
		}
	})
	if done != nil {
		b.await(done, b.storageTimeout()-a.waited)
	}
}

// await waits until done is closed, for so long at most.
// R35.
func (b *Breaker) await(done <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// look has f see the replica.
func (b *Breaker) look(f func(*replica)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.replica)
}

func (b *Breaker) attached() (yes bool) {
	b.look(func(r *replica) { yes = r.attached() })
	return yes
}

// read brings the circuit up to date from the storage. If there is no answer in
// time, the circuit is detached. A caller whose own context ends leaves it as it is.
func (b *Breaker) read(ctx context.Context) {
	var news uint64
	b.look(func(r *replica) { news = r.received })
	rec, err := b.link.read(ctx, b)
	switch {
	case err == nil:
		b.step(func(r *replica, now time.Time) { r.hasRead(rec, news, now) })
	case err == errStorageTimeout: // the caller may have waited for a place
		b.readFailed(err)
	}
}

func (b *Breaker) configured(s *settings) {
	b.step(func(r *replica, _ time.Time) { r.configured(s) })
	b.tell()
}

// stop ends the watching. It waits until the storage has received everything, for
// StorageTimeout at most.
// R46.
func (b *Breaker) stop() {
	var done <-chan struct{}
	var aside *sync.WaitGroup
	b.step(func(r *replica, _ time.Time) {
		if !r.stopped {
			r.stopped, aside = true, b.aside
			done = b.wait(r.enqueued)
		}
	})
	if done == nil {
		return
	}
	listeners := b.link.listeners()
	b.unwatch()
	received := make(chan struct{})
	go func() {
		<-done
		if aside != nil {
			aside.Wait()
		}
		listeners.wait()
		close(received)
	}()
	b.await(received, b.storageTimeout())
	b.tell()
}

func (b *Breaker) storageTimeout() time.Duration {
	return b.view.Load().settings.StorageTimeout
}

// linkTimeout is how long a request may take: a little less than a call waits,
// so that a call which waited in vain meets a detached circuit.
func (b *Breaker) linkTimeout() time.Duration { return b.storageTimeout() * 19 / 20 }

// patience returns a context for all that one call waits for: it ends with the
// call's own context, or with errStorageTimeout when StorageTimeout is over.
func (b *Breaker) patience(ctx context.Context, began time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, began.Add(b.storageTimeout()), errStorageTimeout)
}

// tell notifies the listeners of what they do not know yet. No lock is held.
func (b *Breaker) tell() {
	b.events.Drain(func(ev event) {
		for _, l := range b.view.Load().settings.Listeners {
			protected(func() { ev(l, b) })
		}
	})
}

// tellAside is tell where a slow listener would hold back the storage's
// notifications. After stop nothing runs aside: the next call notifies.
func (b *Breaker) tellAside() {
	if b.events.Empty() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.replica.stopped {
		if b.aside == nil {
			b.aside = new(sync.WaitGroup)
		}
		b.aside.Go(b.tell)
	}
}
