package infuse

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"
)

// link is the way to one storage, for all circuits that use it: all I/O, and
// every bound on it. Whether the storage is away is a circuit, too: the link's
// health is a Record under the same Apply, which opens at the first failure of
// an attached circuit and is tried by one probe at a time, at growing pauses.
//
// A failure of a circuit that is in trouble already says nothing of the others.
type link struct {
	storage Storage
	news    queue[func()] // up and down, told to all circuits in order

	mu       sync.Mutex
	health   Record
	why      error // why it is down
	failures int   // of probes, since the link was last up for long
	upSince  time.Time
	doubted  atomic.Int64 // the outage since which nothing was sent that was written, or 0: it answers reads, but may refuse changes
	circuits map[weak.Pointer[circuit]]struct{}
	busy     int         // requests that have a place
	waiting  []waiting   // for a place, first come first served
	hung     int         // probes that have not returned
	probed   time.Time   // when the last of them began
	timer    *time.Timer // of the next probe
}

// waiting is a request that has no place yet.
type waiting struct {
	run  func()
	late func(error)
}

// answer is what a storage says.
type answer struct {
	record  Record
	verdict Verdict // of a change
	err     error
}

const (
	linkPlaces   = 64                    // requests at a time: what a storage that hangs can hold
	placeHeld    = time.Minute           // for so long: a request that never returns does not keep its place for good
	requestTime  = 5 * time.Second       // a request goes on without those who waited: a client may need that to connect
	maxHung      = 16                    // probes that hang, before the pauses grow with each
	firstPause   = 50 * time.Millisecond // before the first probe; it doubles
	longestPause = time.Second           // up to this
	calmAfter    = 10 * time.Second      // a link that has been up for so long starts over
)

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

func newLink(s Storage) *link {
	return &link{storage: s, circuits: make(map[weak.Pointer[circuit]]struct{})}
}

// linkTo returns the link to a storage: the storage's own where it has one,
// so that all its circuits share it.
func linkTo(s Storage) *link {
	if s == nil {
		return nil
	}
	if owner, ok := s.(interface{ ownLink() *link }); ok {
		return owner.ownLink()
	}
	return newLink(s)
}

// join makes c one of those that are told when the link is down or up. It
// returns why it is down, or nil.
func (l *link) join(c weak.Pointer[circuit]) *trouble {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.circuits[c] = struct{}{}
	if err := l.downLocked(); err != nil {
		return troubleOf(err)
	}
	return nil
}

func (l *link) leave(c weak.Pointer[circuit]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.circuits, c)
	if len(l.circuits) == 0 {
		l.health = Record{} // the timer of a probe finds nobody
	}
}

// downLocked returns why the link is down, or nil. l.mu is held.
func (l *link) downLocked() error {
	if l.health.State == StateClosed {
		return nil
	}
	return l.why
}

// send makes a request of the circuit, and brings what becomes of it to the
// circuit: an answer, also a late one, or that there is none in time.
func (l *link) send(c *circuit, q *Change) {
	failed := func(err error) {
		l.failed(c, err, func(r *replica) bool { return r.awaits(q.Number) })
		c.unanswered(q, troubleOf(err))
	}
	doubted := l.doubted.Load()
	l.start(c, q, failed, func(a answer) {
		switch {
		case a.err == nil:
			if a.verdict == VerdictMoved || a.verdict == VerdictApplied && q.counts() {
				l.doubted.CompareAndSwap(doubted, 0)
			}
			c.answered(q, a.record)
		case l.doubted.Load() != 0 && !isTrouble(l.tryRead(c, func(answer) {})):
			c.unanswered(q, troubleOf(a.err)) // or the link would go up and down for as long as changes are refused
		default:
			failed(a.err)
		}
	})
}

// read reads the record for a caller that waits, until ctx is done. A caller
// that did not get a place in time says nothing of the storage.
func (l *link) read(ctx context.Context, c *circuit) (Record, error) {
	answered := make(chan answer, 1)
	hand := func(a answer) {
		select {
		case answered <- a:
		default: // it is late
		}
	}
	l.start(c, &Change{}, func(err error) { hand(answer{err: err}) }, hand)
	select {
	case <-ctx.Done():
		return Record{}, context.Cause(ctx)
	case a := <-answered:
		if a.err != nil {
			l.failed(c, a.err, func(*replica) bool { return true })
			c.unread(troubleOf(a.err))
		}
		return a.record, a.err
	}
}

// failed takes the link down after a failure of an attached circuit, unless the
// trouble is that circuit's alone.
func (l *link) failed(c *circuit, err error, matters func(*replica) bool) {
	counts := false
	c.look(func(r *replica) { counts = r.attached() && matters(r) })
	if counts && isTrouble(err) {
		l.down(err)
	}
}

// start makes a request as soon as it has a place. late is called where no
// answer has come in time, which counts from then.
func (l *link) start(c *circuit, q *Change, late func(error), done func(answer)) {
	l.mu.Lock()
	if err := l.downLocked(); err != nil && len(l.circuits) > 0 {
		l.mu.Unlock()
		late(err)
		return
	}
	defer l.mu.Unlock()
	run := func() {
		timer := time.AfterFunc(c.linkTimeout(), func() { late(errStorageTimeout) })
		free := l.place()
		l.ask(c.name, q, func(got answer) {
			defer free()
			timer.Stop()
			done(got)
		})
	}
	if l.busy >= linkPlaces {
		l.waiting = append(l.waiting, waiting{run, late})
		return
	}
	l.busy++
	go run()
}

// place returns a func that gives the place of a request to the next one, once.
// It is called in any case after placeHeld.
func (l *link) place() (free func()) {
	once := sync.OnceFunc(l.next)
	timer := time.AfterFunc(placeHeld, once)
	return func() {
		timer.Stop()
		once()
	}
}

// next lets the request that waited for longest go.
func (l *link) next() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.busy--
		return
	}
	first := l.waiting[0]
	l.waiting = l.waiting[1:]
	go first.run()
}

// ask has the storage make a change, or reads if the change has no number, and
// hands the answer on. A storage that panics, or that ends its goroutine, is
// one that fails.
func (l *link) ask(circuit string, q *Change, done func(answer)) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	a := answer{err: errors.New("infuse: the storage ended the goroutine")}
	defer func() {
		if r := recover(); r != nil {
			a.err = fmt.Errorf("infuse: the storage panicked: %v", r)
		}
		done(a)
	}()
	if q.Number == 0 {
		a.record, a.err = l.storage.Load(ctx, circuit)
	} else {
		a.record, a.verdict, a.err = l.storage.Apply(ctx, circuit, *q)
	}
}

// isTrouble reports whether an error is the storage's, and not that of one
// circuit's record.
func isTrouble(err error) bool {
	var unreadable *RecordError
	return err != nil && !errors.As(err, &unreadable)
}

// The health of the link.

func (l *link) limits() Limits {
	return Limits{
		FailMax: 1, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: placeHeld,
		ResetTimeout: backoff(l.failures, rand.Float64()),
	}
}

// backoff is the pause before the n-th attempt, give or take half, so that
// processes which lost a storage together do not come back together.
func backoff(n int, roll float64) time.Duration {
	pause := min(firstPause<<min(max(n-1, 0), 10), longestPause)
	return pause/2 + time.Duration(roll*float64(pause))
}

// down opens the link's circuit, after a failure of an attached circuit.
func (l *link) down(err error) {
	l.mu.Lock()
	if l.health.State != StateClosed || len(l.circuits) == 0 {
		l.mu.Unlock()
		return
	}
	now := time.Now()
	if now.Sub(l.upSince) > calmAfter {
		l.failures = 0
	}
	l.why = err
	l.settle(Change{Calls: Calls{Failures: 1, Lead: 1, Streak: 1}}, now)
	l.doubted.Store(l.health.Opened)
	waiting := l.waiting
	l.waiting = nil
	why := troubleOf(err)
	l.tell(func(c *circuit) { c.lost(why) })
	l.mu.Unlock()
	for _, w := range waiting {
		w.late(err)
	}
	go l.news.drain(func(tell func()) { tell() })
}

// settle makes a change of the health and, unless the link is up then, sets the
// timer of the next probe. l.mu is held.
func (l *link) settle(c Change, now time.Time) {
	c.Seen.Generation = l.health.Generation
	c.Limits = l.limits()
	l.health.apply(&c, now)
	if l.health.State == StateOpen {
		l.failures++
	}
	if l.health.State != StateClosed {
		l.probeIn(max(0, l.health.DueAt.Sub(now)))
	}
}

// tell queues news for all circuits. l.mu is held.
func (l *link) tell(news func(*circuit)) {
	all := slices.Collect(maps.Keys(l.circuits))
	l.news.add(func() {
		for _, weakly := range all {
			if c := weakly.Value(); c != nil {
				news(c)
			}
		}
	})
}

// probeIn sets the timer of the next probe: of this outage, and of no later
// one. l.mu is held.
func (l *link) probeIn(pause time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	outage := l.health.Generation
	l.timer = time.AfterFunc(pause, func() { l.probe(outage) })
}

// probe reads the record of one circuit: a change that hangs behind the storage
// may still be made, and by then be out of date.
func (l *link) probe(outage int64) {
	l.mu.Lock()
	now := time.Now()
	held := time.Duration(max(0, l.hung-maxHung)) * placeHeld
	switch wait := held - now.Sub(l.probed); {
	case l.health.Generation != outage || len(liveTrials(l.health.Trials, now)) > 0:
		l.mu.Unlock()
		return // it is over, or another probe is under way
	case wait > 0:
		l.probeIn(wait)
		l.mu.Unlock()
		return
	}
	c := l.anyCircuit()
	if c == nil { // all are garbage, and about to leave
		l.probeIn(longestPause)
		l.mu.Unlock()
		return
	}
	l.health.apply(&Change{Ask: probeID, Limits: l.limits()}, now)
	l.hung++
	l.probed = now
	l.mu.Unlock()

	l.probeEnded(l.tryRead(c, func(a answer) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.hung--
		l.returned(a.err)
	}))
}

// tryRead reads the circuit's record, and waits no longer than a call would.
// done is told of the answer, late or not.
func (l *link) tryRead(c *circuit, done func(answer)) error {
	answered := make(chan error, 1)
	go l.ask(c.name, &Change{}, func(a answer) {
		done(a)
		answered <- a.err
	})
	late := time.NewTimer(c.linkTimeout())
	defer late.Stop()
	select {
	case err := <-answered:
		return err
	case <-late.C:
		return errStorageTimeout
	}
}

// anyCircuit returns one at random, whose record is read next: one that has a
// trouble of its own does not keep the others waiting. l.mu is held.
func (l *link) anyCircuit() *circuit {
	for weakly := range l.circuits {
		if c := weakly.Value(); c != nil {
			return c
		}
	}
	return nil
}

const probeID = "probe"

// returned takes notice of a probe that may be late. One that succeeded is a
// reason to try at once, and any is room for another. l.mu is held.
func (l *link) returned(err error) {
	if l.health.State == StateOpen && !isTrouble(err) {
		l.health.apply(&Change{Move: &Move{StateHalfOpen}}, time.Now())
	}
	if l.health.State != StateClosed {
		l.probeIn(max(0, time.Until(l.health.DueAt)))
	}
}

func (l *link) probeEnded(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	outcome := OutcomeSuccess
	if isTrouble(err) {
		outcome = OutcomeFailure
	}
	l.settle(Change{Settled: []Settlement{{ID: probeID, Outcome: outcome}}}, now)
	if l.health.State == StateClosed {
		l.upSince = now
		l.tell((*circuit).back)
		go l.news.drain(func(tell func()) { tell() })
	}
}
