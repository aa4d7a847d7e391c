package infuse

import (
	"cmp"
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

// link is the path of all circuits of this process to one storage. It makes their
// requests, bounds them, and decides whether the storage is available.
//
// The storage becomes unavailable when a request of an attached circuit fails (R36).
// Then one probe at a time reads from the storage, with growing pauses, until a probe
// succeeds (R38). A failure of a detached circuit does not affect other circuits.
//
// No code of a storage runs under a lock: see storage_call.go.
type link struct {
	storage Storage
	slots   slots
	changes ordered.Queue[func()] // of availability, for all circuits

	mu       sync.Mutex
	circuits map[weak.Pointer[Breaker]]struct{}
	audience *audience                // replaced when the last circuit leaves
	reads    map[*Breaker]*sharedRead // the last read of each circuit, until it ends

	why           error         // why the storage is unavailable; nil while it is available
	down          chan struct{} // closed when the storage becomes unavailable; nil without circuits
	downSince     time.Time
	upSince       time.Time
	notified      bool         // listeners were notified of the outage, and not yet of its end
	changeRefused bool         // since the storage became available, or since notifyAvailableIn last checked
	failures      int          // failed probes and the failure before them, since the storage was last stable
	probing       bool         // a probe is in flight
	hung          int          // probes that have not returned
	timer         *time.Timer  // of the next probe
	outages       int64        // their number
	unproven      atomic.Int64 // the outage after which no change was stored yet, or 0: the storage answers reads, but may refuse changes
}

const (
	maxHung      = 16               // probes that hang, before the pauses grow with each of them
	reasonWithin = 3 * time.Second  // how long listeners wait for a more specific error than a timeout: go-redis first tries again itself
	provenAfter  = time.Second      // how long a storage answers before listeners are notified, unless it has stored a change
	stableAfter  = 10 * time.Second // an available storage is stable after this time: the pauses of probes start again with the shortest
)

// links has the link of each storage in use. All breakers whose storages compare equal
// share a link. A storage that cannot be compared has a link for each New or Group.
var links = struct {
	sync.Mutex
	of map[Storage]*link
}{of: make(map[Storage]*link)}

// linkTo returns a link to a storage, or nil without a storage. A circuit uses the link
// that join returns.
func linkTo(s Storage) *link {
	if s == nil {
		return nil
	}
	return &link{
		storage: s, slots: make(slots, linkSlots),
		circuits: make(map[weak.Pointer[Breaker]]struct{}), audience: newAudience(), reads: make(map[*Breaker]*sharedRead),
	}
}

// join adds a circuit to the link, or to an older link to the same storage. It returns
// that link, and the error that made its storage unavailable, or nil.
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
	if l.why != nil && l.notified {
		l.notifyUnavailable(c)
	}
	return l, l.why
}

// leave undoes join. The last circuit that leaves ends the outage, the probes and the
// events of listeners.
func (l *link) leave(c weak.Pointer[Breaker]) {
	links.Lock()
	defer links.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.circuits, c)
	if len(l.circuits) > 0 {
		return
	}
	l.why, l.down, l.notified = nil, nil, false // the timers find no outage
	l.audience.over.Store(true)
	l.audience = newAudience()
	if isComparable(l.storage) && links.of[l.storage] == l {
		delete(links.of, l.storage)
	}
}

// watch watches the record of a circuit. unwatch ends the watching and leaves the link;
// it does not refer to the circuit. A panic of Watch continues to the caller of New.
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
	stop := watch(l.storage, name, observed, func(n notice) (reads bool) {
		c := c.Value()
		return c != nil && c.announced(n)
	})
	watches = true
	return func() {
		defer l.leave(c) // also if stop ends the goroutine
		_ = withoutPanic(stop)
	}
}

// Requests.

// send makes a request of a circuit, and passes the result to the circuit: the answer,
// also a late one, or an error if no answer arrives in time.
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
	unproven := l.unproven.Load()
	go l.request(c, q.Change, down, func() bool { return true }, failed, func(a answer) {
		switch {
		case a.err == nil:
			if a.verdict == VerdictChanged || a.verdict == VerdictApplied && q.counts() {
				if unproven != 0 && l.unproven.CompareAndSwap(unproven, 0) {
					l.mu.Lock()
					l.notifyAvailable()
					l.mu.Unlock()
				}
			}
			c.answered(q, a.record)
		case l.unproven.Load() != 0 && isStorageError(a.err) && !isStorageError(tryRead(l.storage, c.name, c.linkTimeout(), func(answer) {})):
			l.mu.Lock()
			l.changeRefused = true
			l.mu.Unlock()
			c.unanswered(q, a.err) // the storage stays available: it answers reads, and the next probe would succeed
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
		callStorage(l.storage, c.name, q, func(a answer) {
			defer free()
			timer.Stop()
			done(a)
		})
	}
}

// read reads the record, and waits for it until ctx is done. Callers that come before a
// read starts share it. A read without callers does not start.
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

// readAfter makes the read r, after the read before it.
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

// endRead passes the answer of a read to its callers. l.mu is held.
func (l *link) endRead(c *Breaker, r *sharedRead, a answer) {
	r.end(a)
	if l.reads[c] == r {
		delete(l.reads, c)
	}
}

// The availability of the storage.

// failed makes the storage unavailable after a failed request of an attached circuit,
// unless the record of the circuit is the reason (R36). During an outage, the error may
// be a better reason.
func (l *link) failed(c *Breaker, err error, matters func(*replica) bool) {
	counts := false
	c.inspect(func(r *replica) { counts = r.attached() && matters(r) })
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.why != nil:
		l.improveReason(err)
	case counts && isStorageError(err) && len(l.circuits) > 0:
		l.becomeUnavailable(err)
	}
}

// becomeUnavailable starts an outage, and stops all waiting for reads and slots. l.mu
// is held.
func (l *link) becomeUnavailable(err error) {
	if time.Since(l.upSince) > stableAfter {
		l.failures = 0
	}
	l.why, l.changeRefused = err, false
	if !l.notified { // otherwise the last outage continues
		l.downSince = time.Now()
	}
	switch {
	case l.notified || explains(err):
		l.notifyUnavailable(l.everyCircuit()...)
	default:
		outage := l.outages + 1
		time.AfterFunc(reasonWithin, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.why != nil && l.outages == outage && !l.notified {
				l.notifyUnavailable(l.everyCircuit()...)
			}
		})
	}
	close(l.down)
	l.outages++
	l.unproven.Store(l.outages)
	clear(l.reads) // their callers also wait for down
	l.failures++
	l.probeIn(l.pause())
	l.notifyCircuits(func(c *Breaker) { c.unavailable(err) })
}

// improveReason replaces the reason of the outage by an error that explains more: after
// a timeout, the storage may refuse connections. l.mu is held.
func (l *link) improveReason(err error) {
	if l.why != nil && explains(err) {
		l.why = err
		if !l.notified {
			l.notifyUnavailable(l.everyCircuit()...)
		}
	}
}

// notifyUnavailable notifies the listeners of these circuits of an outage: each once,
// also those whose circuits join during the outage. l.mu is held.
func (l *link) notifyUnavailable(circuits ...weak.Pointer[Breaker]) {
	l.notified = true
	l.audience.unavailable(l.why, circuits)
}

// notifyAvailable notifies the listeners that were notified of the outage, unless it
// continues. l.mu is held.
func (l *link) notifyAvailable() {
	if l.why == nil && l.notified {
		l.notified = false
		l.audience.available(l.upSince.Sub(l.downSince))
	}
}

// notifyAvailableIn calls notifyAvailable after the wait, or later, after stableAfter
// without a refused change: the circuit whose change was refused may be garbage, and
// send no other. l.mu is held.
func (l *link) notifyAvailableIn(wait time.Duration) {
	up, weakly := l.upSince, weak.Make(l)
	time.AfterFunc(wait, func() {
		l := weakly.Value()
		if l == nil {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case !l.notified || !l.upSince.Equal(up):
		case l.changeRefused:
			l.changeRefused = false
			l.notifyAvailableIn(stableAfter)
		default:
			l.notifyAvailable()
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

// reason returns why the storage is unavailable, for a circuit that err detached. It is
// err if the link has no better reason, or is nil.
func (l *link) reason(err error) error {
	if l == nil || !isStorageError(err) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.why, err)
}

// notifyCircuits calls change with all circuits, in the background and in order. l.mu is
// held.
func (l *link) notifyCircuits(change func(*Breaker)) {
	all := l.everyCircuit()
	l.changes.Add(func() {
		for _, weakly := range all {
			if c := weakly.Value(); c != nil {
				change(c)
			}
		}
	})
	go l.changes.Drain(func(notify func()) { notify() })
}

// pause returns the time until the next probe (R38). l.mu is held.
func (l *link) pause() time.Duration {
	return backoff(l.failures, rand.Float64()) + time.Duration(max(0, l.hung-maxHung))*slotHeld
}

// probeIn sets the timer of the next probe of this outage. l.mu is held.
func (l *link) probeIn(pause time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	outage, weakly := l.outages, weak.Make(l) // the timer must not keep the storage
	l.timer = time.AfterFunc(pause, func() {
		if l := weakly.Value(); l != nil {
			l.probe(outage)
		}
	})
}

// probe reads the record of one circuit. It sends no change, because a change that hangs
// in the network could arrive much later.
func (l *link) probe(outage int64) {
	l.mu.Lock()
	if l.why == nil || l.outages != outage || l.probing {
		l.mu.Unlock()
		return
	}
	c := l.anyCircuit()
	if c == nil { // all are garbage, and will leave
		l.probeIn(longestPause)
		l.mu.Unlock()
		return
	}
	l.probing = true
	l.hung++
	l.mu.Unlock()
	l.probed(tryRead(l.storage, c.name, c.linkTimeout(), l.probeReturned))
}

// probeReturned receives the answer of a probe. A late answer causes another probe: at
// once if it is a success.
func (l *link) probeReturned(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hung--
	l.improveReason(a.err)
	switch {
	case l.why == nil || l.probing:
	case isStorageError(a.err):
		l.probeIn(l.pause())
	default:
		l.probeIn(0)
	}
}

// probed ends a probe, with the error of its answer, or with errStorageTimeout.
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
		if !l.notified {
			l.notifyUnavailable(l.everyCircuit()...)
		}
		l.why, l.down, l.upSince = nil, make(chan struct{}), time.Now()
		l.notifyAvailableIn(provenAfter) // if it refuses changes, the outage continues
		l.notifyCircuits((*Breaker).availableAgain)
	}
}

// everyCircuit returns the circuits of the link. l.mu is held.
func (l *link) everyCircuit() []weak.Pointer[Breaker] { return slices.Collect(maps.Keys(l.circuits)) }

// anyCircuit returns a random circuit for the next probe, because the record of one
// circuit may be unreadable. l.mu is held.
func (l *link) anyCircuit() *Breaker {
	for weakly := range l.circuits {
		if c := weakly.Value(); c != nil {
			return c
		}
	}
	return nil
}
