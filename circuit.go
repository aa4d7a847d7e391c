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

// circuit is the shell of a Breaker around its replica, which makes all decisions. It
// has the only lock of a circuit: step passes an input to the replica under the lock,
// and carries out the effects after it. No user code runs under the lock: texts of
// errors are made before, listeners are called after.
//
// The link, the storage and timers hold a Breaker weakly, because an unreachable
// Breaker must become garbage.
type circuit struct {
	name    string
	link    *link // nil: there is no storage
	events  ordered.Queue[event]
	unwatch func() // does not refer to the circuit

	mu         sync.Mutex
	replica    replica
	background *sync.WaitGroup  // calls of notifyListeners in the background; nil: there was none
	tally      *striped.Counter // successes that the replica has not received; nil until one is counted
	counts     *striped.Counts
	alarm      *alarm        // nil: time alone changes nothing
	waiting    *waiters      // nil: nobody waits
	readied    chan struct{} // closed when the breaker becomes ready; nil: nobody waits for that
	since      since         // when the states began
	states     states        // that listeners were notified of
	invalid    bool          // listeners were notified that the record cannot be read
	started    bool          // listeners are notified
}

// since is when the states of the two circuits began, in nanoseconds of Unix time.
type since struct{ local, shared int64 }

// alarm steps a circuit when time alone changes its state.
type alarm struct {
	at    time.Time
	timer *time.Timer
}

// when returns the time of the alarm; zero: there is none.
func (a *alarm) when() time.Time {
	if a == nil {
		return time.Time{}
	}
	return a.at
}

// wait returns a channel that is closed when the number is acknowledged. b.mu is held.
func (b *Breaker) wait(number uint64) <-chan struct{} {
	if b.waiting == nil {
		b.waiting = new(waiters)
	}
	return b.waiting.add(number)
}

// init joins the link and reads the record, if the storage answers in time (R12).
// Listeners are not notified until start.
func (b *Breaker) init(name string, s *settings, l *link) {
	b.name, b.link = name, l
	b.replica = newReplica(s, newSource(), l != nil, rand.Uint64())
	b.unwatch = func() {}
	b.events.Hold()
	b.step(func(*replica, time.Time) {}) // a link reads the views of its circuits
	if l == nil {
		return
	}
	weakly := weak.Make(b)
	var down error
	b.step(func(r *replica, now time.Time) { // under the lock, or availableAgain could come before unavailable
		if b.link, down = l.join(weakly); down != nil {
			r.unavailable(down, now)
		}
	})
	b.unwatch = b.link.watch(weakly, name)
	if _, inMemory := l.storage.(*MemoryStorage); !inMemory && hostname.IsLoopback(name) {
		b.events.Add(warning(errLoopback))
	}
	if down == nil { // nobody waits for an unavailable storage (R36)
		ctx, cancel := b.withTimeout(context.Background(), time.Now())
		defer cancel()
		b.read(ctx)
	}
}

var errLoopback = errors.New("infuse: the circuit has the name of a loopback host, which is another service on each machine, but its storage is shared: set Transport.Circuit, or use no Storage")

// start notifies the listeners, from now on.
func (b *Breaker) start() {
	b.events.Release()
	b.mu.Lock()
	b.started = true
	b.mu.Unlock()
	b.notifyListeners()
}

// newSource returns a random name for one Breaker, which no other has in any process.
func newSource() string { return strconv.FormatUint(rand.Uint64(), 36) }

// step is the only way to the replica: it passes an input under the lock, and carries
// out the effects.
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

// takeTally passes the tallied successes since the last step to the replica. b.mu is
// held.
func (b *Breaker) takeTally(now time.Time) {
	if b.tally == nil {
		return
	}
	if n := b.tally.Take(); n > 0 {
		b.replica.acquireEpisode() // also for Stats
		b.replica.tallied(int(min(n, unlimited)), now)
	}
}

// follow carries out the effects of a step: it updates the view, the timer and the
// events, and releases waiters. It returns the request to send, or nil. b.mu is held.
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

// publish stores a new view, if calls are treated differently now. b.mu is held.
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
	b.addTransitions(now)
}

// nowReady wakes the callers of Wait if the breaker is ready. b.mu is held.
func (b *Breaker) nowReady(v *view) {
	if b.readied != nil && v.ready() {
		close(b.readied)
		b.readied = nil
	}
}

// setQuiet stores the view, or its twin, which differs in quiet only. So an isolated
// failure allocates no view. b.mu is held.
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

// addTransitions adds an event for each circuit whose state has changed (R43). b.mu is
// held.
func (b *Breaker) addTransitions(now time.Time) {
	before, after := b.states, b.replica.states(now)
	if before.local != after.local || b.since.local == 0 {
		b.since.local = now.UnixNano()
	}
	if before.shared != after.shared || b.since.shared == 0 {
		b.since.shared = now.UnixNano()
	}
	b.states = after
	if before != after && b.started {
		b.replica.transitions(before, now, func(t Transition) { b.events.Add(stateChanged(t)) })
	}
}

// arm sets the alarm to the next time at which time alone changes the state. b.mu is
// held.
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
	weakly := weak.Make(b) // the timer must not keep the breaker
	set := &alarm{at: at}
	set.timer = time.AfterFunc(at.Sub(now), func() {
		if b := weakly.Value(); b != nil {
			b.step(func(*replica, time.Time) {
				if b.alarm == set { // or it was stopped too late
					b.alarm = nil
				}
			})
			b.notifyListeners()
		}
	})
	b.alarm = set
}

// Inputs of the link and the storage.

func (b *Breaker) answered(q *request, rec Record) {
	b.step(func(r *replica, now time.Time) { r.answered(q, rec, now) })
	b.notifyInBackground()
}

func (b *Breaker) unanswered(q *request, why error) {
	b.step(func(r *replica, now time.Time) { r.unanswered(q.Number, why, now) })
	b.notifyInBackground()
}

// readFailed detaches the circuit (R36). The callers of one read all call it: only the
// first has an effect.
func (b *Breaker) readFailed(err error) {
	b.step(func(r *replica, now time.Time) {
		if r.attached() {
			r.readFailed(err, now)
		}
	})
	b.notifyInBackground()
}

func (b *Breaker) unavailable(why error) {
	b.step(func(r *replica, now time.Time) { r.unavailable(why, now) })
	b.notifyInBackground()
}

func (b *Breaker) availableAgain() {
	b.step(func(r *replica, _ time.Time) { r.availableAgain() })
}

// observed is the func that Storage.Watch calls.
func (b *Breaker) observed(rec Record) {
	b.step(func(r *replica, now time.Time) {
		if !b.replica.stopped {
			r.notified(rec, now)
		}
	})
	b.notifyInBackground()
}

// announced receives a notice of the storage. It reports whether the storage must read
// the record.
func (b *Breaker) announced(n notice) (reads bool) {
	b.step(func(r *replica, _ time.Time) { reads = r.noticed(n) })
	b.notifyInBackground()
	return reads
}

// Inputs of calls and of users.

// requestAdmission asks the replica for the admission of a call: for a trial, or on a
// ramp. It waits for the storage until ctx is done (R27).
func (b *Breaker) requestAdmission(ctx context.Context) (a admission, admitted bool) {
	var d decision
	var answered <-chan struct{}
	gone := ctx.Err() != nil // such a caller must not take the trial from another
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

// ended counts the outcome of an admitted call (R3). After a failure, and after a
// trial, it waits until the storage has acknowledged the report, for StorageTimeout at
// most, less the time that the call has waited already (R10, R35).
func (b *Breaker) ended(a *admission, res *result) {
	if b.link == nil && b.countOnly(a, res.outcome) {
		return
	}
	if res.outcome == OutcomeFailure {
		defer b.countAndWait(a, res) // also if a method of the error ends the goroutine
		res.cause = keptCause{errUnreadable, errUnreadable.Error()}
		res.cause = keepCause(res.err)
		return
	}
	b.countAndWait(a, res)
}

// countOnly counts an outcome without a step, if it changes nothing but the count:
// without a storage, such as an isolated failure between successes.
func (b *Breaker) countOnly(a *admission, o Outcome) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.replica.onlyCounts(a, o) {
		return false
	}
	b.setQuiet(b.view.Load(), b.replica.local.Failures == 0)
	return true
}

func (b *Breaker) countAndWait(a *admission, res *result) {
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

// await waits until done is closed, for the duration most at most (R35).
func (b *Breaker) await(done <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// inspect calls f with the replica, under the lock.
func (b *Breaker) inspect(f func(*replica)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.replica)
}

func (b *Breaker) attached() (yes bool) {
	b.inspect(func(r *replica) { yes = r.attached() })
	return yes
}

// read reads the record. If the storage does not answer in time, the circuit is
// detached. If the context of the caller itself ends, nothing changes.
func (b *Breaker) read(ctx context.Context) {
	var received uint64
	b.inspect(func(r *replica) { received = r.received })
	rec, err := b.link.read(ctx, b)
	switch {
	case err == nil:
		b.step(func(r *replica, now time.Time) { r.hasRead(rec, received, now) })
	case err == errStorageTimeout: // the caller may have waited for a slot
		b.readFailed(err)
	}
}

func (b *Breaker) configured(s *settings) {
	b.step(func(r *replica, _ time.Time) { r.configured(s) })
	b.notifyListeners()
}

// stop ends the watching (R46). It waits until the storage has received all reports,
// and listeners all events, for StorageTimeout at most.
func (b *Breaker) stop() {
	var done <-chan struct{}
	var background *sync.WaitGroup
	b.step(func(r *replica, _ time.Time) {
		if !r.stopped {
			r.stopped, background = true, b.background
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
		if background != nil {
			background.Wait()
		}
		listeners.wait()
		close(received)
	}()
	b.await(received, b.storageTimeout())
	b.notifyListeners()
}

func (b *Breaker) storageTimeout() time.Duration {
	return b.view.Load().settings.StorageTimeout
}

// linkTimeout is the timeout of a request. It is a little less than StorageTimeout:
// when a call has waited in vain, its circuit must be detached already.
func (b *Breaker) linkTimeout() time.Duration { return b.storageTimeout() * 19 / 20 }

// withTimeout returns a context for everything that one call waits for: it ends with
// the context of the call, or with errStorageTimeout after StorageTimeout (R35).
func (b *Breaker) withTimeout(ctx context.Context, began time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, began.Add(b.storageTimeout()), errStorageTimeout)
}

// notifyListeners delivers the events that were added. No lock is held.
func (b *Breaker) notifyListeners() {
	b.events.Drain(func(ev event) {
		for _, l := range b.view.Load().settings.Listeners {
			protected(func() { ev(l, b) })
		}
	})
}

// notifyInBackground is notifyListeners for inputs of the storage, which a slow
// listener must not delay. After stop it does nothing: the next call notifies.
func (b *Breaker) notifyInBackground() {
	if b.events.Empty() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.replica.stopped {
		if b.background == nil {
			b.background = new(sync.WaitGroup)
		}
		b.background.Go(b.notifyListeners)
	}
}
