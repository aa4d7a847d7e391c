package infuse

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/infuse-go/infuse/internal/ordered"
)

// link is the path to one storage, for all circuits of this process that use it:
// all their I/O, every bound on it, and whether the storage is available.
//
// The storage becomes unavailable when a request of an attached circuit fails. It
// is then read by one probe at a time, with growing pauses, until a probe succeeds.
// A failure of a detached circuit changes nothing for the others.
//
// No code of a storage runs under a lock: see storage_call.go.
type link struct {
	storage Storage
	slots   slots
	news    ordered.Queue[func()] // changes of availability, for all circuits, in order

	mu       sync.Mutex
	circuits map[weak.Pointer[Breaker]]struct{}
	audience *audience                // replaced when the last circuit leaves
	reads    map[*Breaker]*sharedRead // the last read of each circuit, until it ends

	why      error         // the storage is unavailable because of this error; nil while it is available
	down     chan struct{} // closed when the storage becomes unavailable; nil without circuits
	since    time.Time     // of that
	told     bool          // listeners were notified of it, and not yet of its end
	refused  bool          // a change was refused since the storage became available, or since tellAvailableIn looked
	failures int           // failed probes and the failure before them, since the storage was last established
	upSince  time.Time
	probing  bool        // a probe is under way
	hung     int         // probes that have not returned
	timer    *time.Timer // of the next probe
	outages  int64
	doubted  atomic.Int64 // the outage after which no change has been written, or 0: the storage answers reads, but may refuse changes
}

const (
	maxHung         = 16               // probes that hang, before the pauses grow with each of them
	explainedWithin = 3 * time.Second  // how long listeners wait for a better reason: go-redis first tries again itself
	provenAfter     = time.Second      // how long a storage answers before listeners are notified, unless it has stored a change
	calmAfter       = 10 * time.Second // a storage that has been available for this time is established
)

// links has the link of each storage that a circuit uses. Breakers share a link
// if their storages compare equal, whoever makes them. A storage that cannot be
// compared has one link for each New or Group.
var links = struct {
	sync.Mutex
	of map[Storage]*link
}{of: make(map[Storage]*link)}

// linkTo returns a link to a storage. Which link a circuit uses is known once it
// has joined.
func linkTo(s Storage) *link {
	if s == nil {
		return nil
	}
	return &link{
		storage: s, slots: make(slots, linkSlots),
		circuits: make(map[weak.Pointer[Breaker]]struct{}), audience: newAudience(), reads: make(map[*Breaker]*sharedRead),
	}
}

// join adds c to the circuits of the link, or of the link that circuits use for
// the same storage already. It returns that link, and why its storage is
// unavailable, or nil.
func (l *link) join(c weak.Pointer[Breaker]) (*link, error) {
	if isComparable(l.storage) {
		links.Lock()
		defer links.Unlock()
		if used := links.of[l.storage]; used != nil {
			l = used
		} else {
			links.of[l.storage] = l
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.circuits[c] = struct{}{}
	if l.down == nil {
		l.down = make(chan struct{})
	}
	if l.why != nil && l.told {
		l.tellUnavailable(c)
	}
	return l, l.why
}

// leave undoes join. The last circuit to leave ends the outage, the probes and the
// events.
func (l *link) leave(c weak.Pointer[Breaker]) {
	links.Lock()
	defer links.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.circuits, c)
	if len(l.circuits) > 0 {
		return
	}
	l.why, l.down, l.told = nil, nil, false // the timers find no outage
	l.audience.over.Store(true)
	l.audience = newAudience()
	if isComparable(l.storage) && links.of[l.storage] == l {
		delete(links.of, l.storage)
	}
}

// watch has the storage report changes of the circuit's record. unwatch ends
// that, and leaves the link; it does not refer to the circuit. A panic of Watch
// goes on to the caller of New.
func (l *link) watch(c weak.Pointer[Breaker], name string) (unwatch func()) {
	watches := false
	defer func() {
		if !watches {
			l.leave(c)
		}
	}()
	observed := func(rec Record) {
		if c := c.Value(); c != nil {
			c.observed(rec)
		}
	}
	var stop func()
	if s, ok := l.storage.(announcer); ok && s.announces() == l.storage { // not a storage in another one, which has a Watch of its own
		stop = s.watchAnnounced(name, observed, func(n notice) (reads bool) {
			c := c.Value()
			return c != nil && c.announced(n)
		})
	} else {
		stop = l.storage.Watch(name, observed)
	}
	watches = true
	return func() {
		defer l.leave(c) // also if stop ends the goroutine
		_ = withoutPanic(stop)
	}
}

// Requests.

// send makes a request of the circuit, and brings the result to the circuit: an
// answer, also a late one, or an error if there is none in time.
func (l *link) send(c *Breaker, q *request) {
	failed := func(err error) {
		l.failed(c, err, func(r *replica) bool { return r.awaits(q.Number) })
		c.unanswered(q, err)
	}
	l.mu.Lock()
	why, down := l.why, l.down
	l.mu.Unlock()
	if why != nil {
		failed(why)
		return
	}
	doubted := l.doubted.Load()
	go l.request(c, q.Change, down, func() bool { return true }, failed, func(a answer) {
		switch {
		case a.err == nil:
			if a.verdict == VerdictChanged || a.verdict == VerdictApplied && q.counts() {
				if doubted != 0 && l.doubted.CompareAndSwap(doubted, 0) {
					l.mu.Lock()
					l.tellAvailable()
					l.mu.Unlock()
				}
			}
			c.answered(q, a.record)
		case l.doubted.Load() != 0 && isStorageError(a.err) && !isStorageError(l.tryRead(c, func(answer) {})):
			l.mu.Lock()
			l.refused = true
			l.mu.Unlock()
			c.unanswered(q, a.err) // or the link would go up and down for as long as changes are refused
		default:
			failed(a.err)
		}
	})
}

// request makes a request when a slot is free and begins agrees. It calls late if the
// storage becomes unavailable before, or if no answer arrives in time, which counts
// from the start of the request. It calls done with the answer, also a late one.
func (l *link) request(c *Breaker, q *Change, down <-chan struct{}, begins func() bool, late func(error), done func(answer)) {
	free, taken := l.slots.take(down)
	switch {
	case !taken:
		late(l.reason(errStorageTimeout))
	case !begins():
		free()
	default:
		timer := time.AfterFunc(c.linkTimeout(), func() { late(errStorageTimeout) })
		ask(l.storage, c.name, q, func(a answer) {
			defer free()
			timer.Stop()
			done(a)
		})
	}
}

// tryRead reads the record of the circuit, and waits for it as long as a call would. It
// calls done with the answer, also a late one.
func (l *link) tryRead(c *Breaker, done func(answer)) error {
	return tryRead(l.storage, c.name, c.linkTimeout(), done)
}

// sharedRead is one read of a record, for all callers that asked for it before it
// started.
type sharedRead struct {
	callers int  // that wait for it
	started bool // the storage is asked
	over    bool // it has ended
	ended   chan struct{}
	answer  answer
}

// readsAtOnce is how many reads of one circuit may be under way if the storage
// is slow. Each starts when the one before it has ended, or after this part of
// linkTimeout: a caller that just missed a read need not wait for two of them.
const readsAtOnce = 10

// read reads the record for a caller that waits, until ctx is done. The callers
// that ask before a read starts share it. A read without callers does not start.
func (l *link) read(ctx context.Context, c *Breaker) (Record, error) {
	l.mu.Lock()
	if why := l.why; why != nil {
		l.mu.Unlock()
		c.readFailed(why)
		return Record{}, why
	}
	r := l.reads[c]
	if r == nil || r.started {
		before := r
		r = &sharedRead{ended: make(chan struct{})}
		l.reads[c] = r
		go l.readAfter(c, r, before, l.down)
	}
	r.callers++
	down := l.down
	l.mu.Unlock()
	var a answer
	select {
	case <-r.ended:
		a = r.answer
	case <-down:
		a.err = l.reason(errStorageTimeout)
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		r.callers--
		return Record{}, context.Cause(ctx)
	}
	if a.err != nil {
		c.readFailed(a.err)
	}
	return a.record, a.err
}

// readAfter makes the read r of a circuit after the read before it.
func (l *link) readAfter(c *Breaker, r, before *sharedRead, down <-chan struct{}) {
	if before != nil {
		pause := time.NewTimer(c.linkTimeout() / readsAtOnce)
		defer pause.Stop()
		select {
		case <-before.ended:
		case <-pause.C:
		case <-down:
			return
		}
	}
	begins := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		r.started = l.reads[c] == r && r.callers > 0
		if !r.started {
			l.endRead(c, r, answer{err: errStorageTimeout})
		}
		return r.started
	}
	ends := func(a answer) {
		if a.err != nil {
			l.failed(c, a.err, func(*replica) bool { return true })
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.endRead(c, r, a)
	}
	l.request(c, &Change{}, down, begins, func(err error) { ends(answer{err: err}) }, ends)
}

// endRead gives the answer of a read to its callers. l.mu is held.
func (l *link) endRead(c *Breaker, r *sharedRead, a answer) {
	if r.over {
		return // the answer is late
	}
	r.over, r.answer = true, a
	close(r.ended)
	if l.reads[c] == r {
		delete(l.reads, c)
	}
}

// The availability of the storage.

// failed makes the storage unavailable after a failure of an attached circuit,
// unless the circuit's record is the reason. A late failure may still explain
// why the storage is unavailable.
func (l *link) failed(c *Breaker, err error, matters func(*replica) bool) {
	counts := false
	c.look(func(r *replica) { counts = r.attached() && matters(r) })
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.why != nil:
		l.explain(err)
	case counts && isStorageError(err) && len(l.circuits) > 0:
		l.lose(err)
	}
}

// lose makes the storage unavailable. Whoever waits for a read or for a place
// stops waiting. l.mu is held.
func (l *link) lose(err error) {
	if time.Since(l.upSince) > calmAfter {
		l.failures = 0
	}
	l.why, l.refused = err, false
	if !l.told { // otherwise the outage goes on
		l.since = time.Now()
	}
	switch {
	case l.told || explains(err):
		l.tellUnavailable(l.everyCircuit()...)
	default:
		outage := l.outages + 1
		time.AfterFunc(explainedWithin, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.why != nil && l.outages == outage && !l.told {
				l.tellUnavailable(l.everyCircuit()...)
			}
		})
	}
	close(l.down)
	l.outages++
	l.doubted.Store(l.outages)
	clear(l.reads) // their callers wait for down, too
	l.failures++
	l.probeIn(l.pause())
	l.tell(func(c *Breaker) { c.unavailable(err) })
}

// explain takes an error for the reason of an outage if it is a better one: a
// storage that did not answer in time may say later that it refuses connections.
// l.mu is held.
func (l *link) explain(err error) {
	if l.why != nil && explains(err) {
		l.why = err
		if !l.told {
			l.tellUnavailable(l.everyCircuit()...)
		}
	}
}

// tellUnavailable notifies the listeners of these circuits of an outage: each once,
// also those whose circuits join during the outage. l.mu is held.
func (l *link) tellUnavailable(circuits ...weak.Pointer[Breaker]) {
	l.told = true
	l.audience.unavailable(l.why, func(yield func(*Listener) bool) {
		for _, weakly := range circuits {
			if b := weakly.Value(); b != nil {
				for _, listener := range b.settings().Listeners {
					if !yield(listener) {
						return
					}
				}
			}
		}
	})
}

// tellAvailable notifies the listeners that were notified of the outage, unless it
// continues. l.mu is held.
func (l *link) tellAvailable() {
	if l.why == nil && l.told {
		l.told = false
		l.audience.available(l.upSince.Sub(l.since))
	}
}

// tellAvailableIn calls tellAvailable after this time without a refused change. A
// circuit whose change was refused may be gone: then its change is never stored.
// l.mu is held.
func (l *link) tellAvailableIn(wait time.Duration) {
	up, weakly := l.upSince, weak.Make(l)
	time.AfterFunc(wait, func() {
		l := weakly.Value()
		if l == nil {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case !l.told || !l.upSince.Equal(up):
		case l.refused:
			l.refused = false
			l.tellAvailableIn(calmAfter)
		default:
			l.tellAvailable()
		}
	})
}

// listeners returns the audience. A nil link has none.
func (l *link) listeners() *audience {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.audience
}

// reason returns why the storage is unavailable, as far as is known by now, for a
// circuit that is detached because of trouble. A nil link has no better reason.
func (l *link) reason(trouble error) error {
	if l == nil || !isStorageError(trouble) {
		return trouble
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != nil {
		return l.why
	}
	return trouble
}

// tell reports to all circuits, in the background. l.mu is held.
func (l *link) tell(news func(*Breaker)) {
	all := l.everyCircuit()
	l.news.Add(func() {
		for _, weakly := range all {
			if c := weakly.Value(); c != nil {
				news(c)
			}
		}
	})
	go l.news.Drain(func(tell func()) { tell() })
}

// pause is the time until the next probe. l.mu is held.
func (l *link) pause() time.Duration {
	return backoff(l.failures, rand.Float64()) + time.Duration(max(0, l.hung-maxHung))*slotHeld
}

// probeIn sets the timer of the next probe of this outage. l.mu is held.
func (l *link) probeIn(pause time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	outage, weakly := l.outages, weak.Make(l) // a timer is no reason to keep a storage
	l.timer = time.AfterFunc(pause, func() {
		if l := weakly.Value(); l != nil {
			l.probe(outage)
		}
	})
}

// probe reads the record of one circuit: a change that hangs behind the storage
// may still be made, and be out of date by then.
func (l *link) probe(outage int64) {
	l.mu.Lock()
	if l.why == nil || l.outages != outage || l.probing {
		l.mu.Unlock()
		return
	}
	c := l.anyCircuit()
	if c == nil { // all are garbage, and about to leave
		l.probeIn(longestPause)
		l.mu.Unlock()
		return
	}
	l.probing = true
	l.hung++
	l.mu.Unlock()
	l.probed(l.tryRead(c, l.probeReturned))
}

// probeReturned takes the answer of a probe, which may be late. One that
// succeeded is a reason to probe at once, and any makes room for another.
func (l *link) probeReturned(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hung--
	l.explain(a.err)
	switch {
	case l.why == nil || l.probing:
	case isStorageError(a.err):
		l.probeIn(l.pause())
	default:
		l.probeIn(0)
	}
}

// probed ends a probe: with its answer, or because that was late.
func (l *link) probed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probing = false
	switch {
	case l.why == nil: // no circuit is left
	case isStorageError(err):
		l.failures++
		l.probeIn(l.pause())
	default:
		if !l.told {
			l.tellUnavailable(l.everyCircuit()...)
		}
		l.why, l.down, l.upSince = nil, make(chan struct{}), time.Now()
		l.tellAvailableIn(provenAfter) // it may refuse changes, and then the outage goes on
		l.tell((*Breaker).availableAgain)
	}
}

// everyCircuit returns the circuits of the link. l.mu is held.
func (l *link) everyCircuit() []weak.Pointer[Breaker] { return slices.Collect(maps.Keys(l.circuits)) }

// anyCircuit returns a circuit at random, whose record is read next: one that
// has a problem of its own does not keep the others waiting. l.mu is held.
func (l *link) anyCircuit() *Breaker {
	for weakly := range l.circuits {
		if c := weakly.Value(); c != nil {
			return c
		}
	}
	return nil
}
