package infuse

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// guard stands between breakers and a storage that may be away: it bounds how
// long a call waits and how many goroutines wait behind the storage, and it is
// the one who knocks while the storage is away, for all breakers together.
//
// There is one guard a storage. A circuit whose trouble is not the others' (its
// record cannot be read, its key is forbidden, its slot of a Cluster has no
// master) goes on under another guard, of its own.
type guard struct {
	slots  chan struct{} // one for each goroutine that waits behind the storage
	forget func()        // called when nobody uses it any more; nil where the storage keeps it

	mu       sync.Mutex
	answered time.Time // when the storage last did
	members  map[*Breaker]struct{}
	away     error       // why the storage is away; nil while it is not
	knocks   int         // since it went away, or since it was last back for long
	backAt   time.Time   // when it last came back
	knocker  *Breaker    // the one whose request failed: it knows how to tell that this works again
	knocking *time.Timer // the next knock
}

const (
	guardSlots     = 64                    // goroutines that may hang behind a storage that hangs
	requestTimeout = 5 * time.Second       // a request goes on without those who waited: a client may need that to connect, or to find a new master
	firstKnock     = 50 * time.Millisecond // the pause before the first knock; it doubles
	lastKnock      = time.Second           // the longest pause
	calmAfter      = 10 * time.Second      // a storage that has been back for so long starts over
)

// errBusy is no verdict on the storage: it answers, but others were first.
var errBusy = errors.New("infuse: too many requests wait for the storage")

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

func newGuard() *guard {
	return &guard{slots: make(chan struct{}, guardSlots), members: make(map[*Breaker]struct{})}
}

// guards has the guards of the storages that bring none of their own, each for
// as long as a breaker uses it. It is package-wide because nothing else knows
// two breakers of a stranger's storage as such, and a guard for each breaker
// would bound nothing.
var guards = struct {
	sync.Mutex
	of map[Storage]*guard
}{of: make(map[Storage]*guard)}

// guardOf returns the storage's guard.
func guardOf(s Storage) *guard {
	if owner, ok := s.(interface{ storageGuard() *guard }); ok {
		return owner.storageGuard()
	}
	if _, memory := s.(*MemoryStorage); memory || !reflect.ValueOf(s).Comparable() {
		return newGuard() // memory is never away; the others cannot be known again
	}
	guards.Lock()
	defer guards.Unlock()
	g := guards.of[s]
	if g == nil {
		g = newGuard()
		g.forget = func() {
			guards.Lock()
			defer guards.Unlock()
			delete(guards.of, s)
		}
		guards.of[s] = g
	}
	return g
}

// answer is what a storage says.
type answer struct {
	record  Record
	verdict Verdict
	err     error
}

// ask runs a request aside and waits for it for at most the budget, or until
// ctx is done: neither need stop the request. An answer that nobody waits for
// any more goes to late, if there is one.
func (g *guard) ask(ctx context.Context, budget time.Duration, request func(context.Context) answer, late func(answer)) answer {
	if err := g.takeSlot(ctx, budget); err != nil {
		return answer{err: err}
	}
	timer := time.NewTimer(budget)
	defer timer.Stop()
	var settled atomic.Bool // by whoever comes first, the answer or the end of the wait
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-g.slots }()
		aside, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(budget, requestTimeout))
		defer cancel()
		a := protectedRequest(aside, request)
		g.note(a)
		if settled.CompareAndSwap(false, true) {
			answered <- a
		} else if late != nil {
			protectedRequest(aside, func(context.Context) answer { late(a); return a })
		}
	}()
	err := errStorageTimeout
	select {
	case a := <-answered:
		return a
	case <-timer.C:
	case <-ctx.Done():
		err = endOf(ctx)
	}
	if settled.CompareAndSwap(false, true) {
		return answer{err: err}
	}
	return <-answered
}

// takeSlot waits until a request may be made: for the budget, and on as long as
// the storage answers others.
func (g *guard) takeSlot(ctx context.Context, budget time.Duration) error {
	select {
	case g.slots <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(budget)
	defer timer.Stop()
	for {
		var err error
		select {
		case g.slots <- struct{}{}:
			return nil
		case <-timer.C:
			err = errStorageTimeout
		case <-ctx.Done():
			err = endOf(ctx)
		}
		g.mu.Lock()
		answers := time.Since(g.answered) < budget
		g.mu.Unlock()
		switch {
		case !answers || err != errStorageTimeout:
			return err
		case ctx.Err() != nil:
			return errBusy
		}
		timer.Reset(budget)
	}
}

// note takes notice of what the storage has answered.
func (g *guard) note(a answer) {
	if a.err != nil {
		return
	}
	g.mu.Lock()
	g.answered = time.Now()
	g.mu.Unlock()
}

// patience returns a context for all requests that one call waits for: it ends
// at the deadline, and not when the caller loses interest.
func patience(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(context.WithoutCancel(ctx), deadline, errStorageTimeout)
}

// endOf returns why ctx has ended.
func endOf(ctx context.Context) error {
	if context.Cause(ctx) == errStorageTimeout {
		return errStorageTimeout
	}
	return ctx.Err()
}

// protectedRequest makes a storage that panics one that fails: the panic would
// be on a goroutine where no caller could recover it.
func protectedRequest(ctx context.Context, request func(context.Context) answer) (a answer) {
	defer func() {
		if r := recover(); r != nil {
			a = answer{err: fmt.Errorf("infuse: the storage panicked: %v", r)}
		}
	}()
	return request(ctx)
}

// join makes b a member. The lock is held while it is detached, so that no
// knock can be answered in between.
func (g *guard) join(b *Breaker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[b] = struct{}{}
	if g.away != nil {
		b.detach(g.away)
	}
}

func (g *guard) leave(b *Breaker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.members, b)
	if len(g.members) == 0 {
		if g.forget != nil {
			g.forget()
		}
		g.away = nil
		if g.knocking != nil {
			g.knocking.Stop()
		}
		return
	}
	if g.knocker == b {
		for g.knocker = range g.members {
			break
		}
	}
}

// fail tells the guard that b's request failed: every member goes on by itself
// until a knock is answered. The lock is held while they are detached, so that
// no knock can be answered in between.
func (g *guard) fail(b *Breaker, err error) {
	g.mu.Lock()
	var others []*Breaker
	if _, joined := g.members[b]; joined {
		if g.away == nil {
			if time.Since(g.backAt) > calmAfter {
				g.knocks = 0
			}
			g.away, g.knocker = err, b
			g.scheduleKnock()
			others = g.others(b)
		}
	}
	b.detach(err)
	for _, other := range others {
		other.detach(err)
	}
	g.mu.Unlock()
	for _, m := range append(others, b) {
		go m.tell() // a slow listener must hold back neither the call nor the others
	}
}

func (g *guard) isAway() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.away != nil
}

// another returns a member that is not in trouble of its own, other than b if
// there is one.
func (g *guard) another(b *Breaker) *Breaker {
	for m := range g.members {
		if m != b && !m.isIsolated() {
			return m
		}
	}
	return b
}

// others returns the members but b.
func (g *guard) others(b *Breaker) []*Breaker {
	members := make([]*Breaker, 0, len(g.members))
	for m := range g.members {
		if m != b {
			members = append(members, m)
		}
	}
	return members
}

func (g *guard) scheduleKnock() {
	pause := min(firstKnock<<min(g.knocks, 10), lastKnock)
	g.knocks++
	g.knocking = time.AfterFunc(jittered(pause), g.knock)
}

// knock asks whether the storage answers, and asks again for what failed. When
// that works, every member meets the storage again, one after the other.
func (g *guard) knock() {
	g.mu.Lock()
	knocker, away := g.knocker, g.away != nil
	prober := knocker
	if g.knocks%2 == 0 { // in turns with another, in case the trouble is the knocker's alone
		prober = g.another(knocker)
	}
	g.mu.Unlock()
	if !away {
		return
	}

	// A read first: what hangs behind a storage may still be done when that
	// comes back, and a change would by then be out of date.
	err := prober.probe()
	if err == nil && prober != knocker {
		if own := knocker.probe(); own != nil {
			knocker.isolate(own)
		}
	}
	if err == nil && !knocker.isIsolated() {
		err = knocker.reattach(g)
	}

	g.mu.Lock()
	if g.away == nil {
		g.mu.Unlock()
		return
	}
	if err != nil {
		g.scheduleKnock()
		g.mu.Unlock()
		return
	}
	g.away, g.backAt = nil, time.Now()
	members := append(g.others(knocker), knocker) // who may have failed again since
	g.mu.Unlock()
	for _, m := range members {
		if m.isIsolated() {
			continue
		}
		if err := m.reattach(g); err != nil {
			g.fail(m, err)
			return
		}
	}
}
