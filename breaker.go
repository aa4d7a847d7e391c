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

// Breaker is a circuit breaker for one circuit: the calls to one service. Its
// state is its Storage's, and so is shared with all other breakers of the same
// name on that storage, also in other processes.
//
// A Breaker decides from its view of the circuit, which it keeps up to date in
// the background. A call in a closed circuit that succeeds does no I/O, takes
// no lock, reads no clock and allocates nothing; nor does a rejection. What a
// call waits for the storage, where it does, is bounded by
// Config.StorageTimeout, and no error of the storage ever reaches the caller
// of Call, Do or Acquire.
//
// All methods are safe for concurrent use. Make one with New.
type Breaker struct {
	// What every call reads comes first, on a cache line that is hardly written.
	view    atomic.Pointer[view] // what calls meet
	asking  atomic.Bool          // a call of this process asks for a trial
	name    string
	storage Storage
	guard   *guard // the storage's
	tokens  *tokenSource
	events  events

	stopWatching func()
	reattaching  sync.Mutex     // held over reattach
	background   sync.WaitGroup // what spawn has started

	mu        sync.Mutex
	config    *settings
	record    Record // the storage's as last known or, while that is away, moved on by this process
	known     int64  // the generation of the storage's record as last known
	cause     error  // of the last failure since the circuit was closed
	away      error  // why the storage is away; nil while it is not
	awaySince time.Time
	ownGuard  *guard // for trouble that is this circuit's alone; nil until there was any
	unsent    []Change
	pending   row           // outcomes that no report holds yet
	landing   chan struct{} // closed when the report that will hold them has arrived; nil while nobody waits for it
	reporting bool          // somebody is sending reports
	timer     *time.Timer
	joined    bool
	stopped   bool
}

// New returns a breaker for the named circuit. It reads the circuit's record,
// which is one round trip, and waits at most Config.StorageTimeout for it. The
// breaker watches its circuit until Stop.
//
// The error names what is wrong with the name or with a field of the Config; a
// storage that is away is not an error.
func New(name string, cfg Config) (*Breaker, error) {
	s, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	if s.Storage == nil {
		s.Storage = NewMemoryStorage()
	}
	b, err := newBreaker(name, s)
	if err != nil {
		return nil, err
	}
	b.events.start()
	b.tell()
	return b, nil
}

// newBreaker returns a breaker whose listeners hear nothing until its events
// are started.
func newBreaker(name string, s *settings) (*Breaker, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	b := &Breaker{name: name, config: s, storage: s.Storage, guard: guardOf(s.Storage), tokens: newTokenSource()}
	b.refresh()
	b.guard.join(b)
	b.stopWatching = b.storage.Watch(name, b.observe)
	if !b.isDetached() { // nobody waits for a storage that is known to be away
		ctx, cancel := patience(context.Background(), time.Now().Add(s.StorageTimeout))
		defer cancel()
		if a := b.load(ctx); a.err == nil {
			b.adopt(a.record)
		} else {
			b.failed(a.err)
		}
	}
	b.mu.Lock()
	b.joined = true
	b.mu.Unlock()
	return b, nil
}

// Name returns the circuit's name.
func (b *Breaker) Name() string { return b.name }

// Call runs fn, if the circuit lets it, and counts its outcome. It returns
// fn's error as it is, or an *OpenError if fn did not run.
//
// A failure is counted before Call returns. A panic of fn, or of
// Config.Classify, counts as a failure and goes on to the caller; if fn ends
// the goroutine (runtime.Goexit), the outcome is ignored.
func (b *Breaker) Call(ctx context.Context, fn func(context.Context) error) (err error) {
	// Just small enough to be inlined: a rejection is a load and a branch. The
	// view holds the error as an interface, so that none is made here.
	if err = b.view.Load().rejects; err != nil {
		return err
	}
	return b.run(ctx, fn)
}

// run is the hot path: a load of the view before fn, and one after it. As long
// as the view is the same and fast, a success is nobody's news.
func (b *Breaker) run(ctx context.Context, fn func(context.Context) error) error {
	v := b.view.Load()
	if !v.fast {
		return b.runAdmitted(ctx, fn) // apart, so that the defer below holds on to the view alone, and not to an admission
	}
	returned := false // and not recover() == nil, which a Goexit has too
	defer func() {
		if !returned {
			b.unwound(ctx, v.admission(), recover())
		}
	}()
	err := fn(ctx)
	returned = true
	if err == nil && b.view.Load() == v {
		return nil
	}
	b.finish(ctx, v.admission(), err)
	return err
}

// runAdmitted is run where the view does not say yes to every call.
func (b *Breaker) runAdmitted(ctx context.Context, fn func(context.Context) error) error {
	a, rejected := b.admit(ctx)
	if rejected != nil {
		return rejected
	}
	returned := false
	defer func() {
		if !returned {
			b.unwound(ctx, a, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	b.finish(ctx, a, err)
	return err
}

// Do is Call for a function that returns a value. A rejected call returns the
// zero value.
func Do[T any](ctx context.Context, b *Breaker, fn func(context.Context) (T, error)) (T, error) {
	var value T
	err := b.Call(ctx, func(ctx context.Context) (err error) {
		value, err = fn(ctx)
		return err
	})
	return value, err
}

// State returns the circuit's state as this process knows it. It does no I/O,
// and never moves the circuit: an open circuit stays open until a call becomes
// its trial. While the storage is away it is the state by Config.Fallback.
func (b *Breaker) State() State { return b.view.Load().state }

// Failures returns the failures in a row as this process knows them
// (pybreaker's fail_counter). It does no I/O.
func (b *Breaker) Failures() int { return b.view.Load().failures }

// Record reads the circuit's record from the storage, in one round trip, and
// waits at most Config.StorageTimeout for it.
func (b *Breaker) Record(ctx context.Context) (Record, error) {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	a := b.load(ctx)
	if a.err != nil {
		b.notice(ctx, a.err)
		return Record{}, fmt.Errorf("infuse: reading circuit %q: %w", b.name, a.err)
	}
	return a.record, nil
}

// Open opens the circuit by hand, for all processes: calls are rejected for
// Config.ResetTimeout from now. It waits at most Config.StorageTimeout. Where
// it returns an error, the storage was not told: the circuit is open for this
// process and, as after failures, for the others once the storage is back.
func (b *Breaker) Open(ctx context.Context) error { return b.move(ctx, StateOpen) }

// HalfOpen makes the circuit half-open by hand, so that the next call becomes
// a trial. It waits as Open does. Where it returns an error, this holds for
// this process, and until the storage is back.
func (b *Breaker) HalfOpen(ctx context.Context) error { return b.move(ctx, StateHalfOpen) }

// Close closes the circuit by hand and forgets its failures. It waits and
// fails as HalfOpen does. It does not end the breaker: that is Stop.
func (b *Breaker) Close(ctx context.Context) error { return b.move(ctx, StateClosed) }

func (b *Breaker) move(ctx context.Context, to State) error {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	b.mu.Lock()
	c := b.change(ChangeMove)
	b.mu.Unlock()
	c.To, c.Token = to, b.tokens.next()
	a := b.ask(ctx, c)
	if a.err == nil {
		b.adopt(a.record)
		return nil
	}
	b.notice(ctx, a.err)
	defer b.tell()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.detached() {
		b.applyOwn(c)
	}
	return fmt.Errorf("infuse: moving circuit %q to %v: the storage was not told: %w", b.name, to, a.err)
}

// bounded returns a context for one request that a caller has asked for.
func (b *Breaker) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.settings().StorageTimeout, errStorageTimeout)
}

// notice takes the storage to be away after an error that is not the caller's own.
func (b *Breaker) notice(ctx context.Context, err error) {
	if err == errStorageTimeout || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		b.failed(err)
	}
}

// Configure changes the settings and keeps the circuit as it is; what is open
// stays so until the time that was set when it opened. The Storage cannot be
// changed: it must be nil or the same.
func (b *Breaker) Configure(cfg Config) error {
	s, err := newSettings(cfg)
	if err != nil {
		return err
	}
	if s.Storage != nil && !(reflect.TypeOf(s.Storage).Comparable() && s.Storage == b.storage) {
		return fmt.Errorf("infuse: Config.Storage is another %T: a breaker keeps the storage that it was made with", s.Storage)
	}
	s.Storage = b.storage
	b.mu.Lock()
	b.config = s
	b.refresh()
	b.mu.Unlock()
	b.tell()
	return nil
}

// Stop ends the watching. It waits for the reports that are under way, for
// Config.StorageTimeout at most. A stopped breaker still works, from its own
// view: it does not hear of other processes any more, but the storage still
// hears of its calls, and so of those that were under way. Once the storage has
// failed it, it goes on for this process alone.
func (b *Breaker) Stop() {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return
	}
	b.stopped = true
	b.refresh()
	ownGuard := b.ownGuard
	b.mu.Unlock()
	b.stopWatching()
	b.guard.leave(b)
	if ownGuard != nil {
		ownGuard.leave(b)
	}
	done := make(chan struct{})
	go func() {
		b.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(b.settings().StorageTimeout):
	}
	b.tell()
}

func (b *Breaker) settings() *settings { return b.view.Load().settings }

// change returns a change of the kind, with what the breaker knows. b.mu is held.
func (b *Breaker) change(kind ChangeKind) Change {
	c := Change{Kind: kind, Seen: b.record, Limits: b.config.limits()}
	if b.record.Generation != b.known { // moved while the storage was away: the trials are this process's own
		c.Seen.Generation, c.Seen.Successes, c.Seen.Trials = b.known, 0, nil
	}
	return c
}

// spawn runs f in the background, unless the breaker has stopped: then nothing
// goes on without a caller. b.mu is held.
func (b *Breaker) spawn(f func()) (running bool) {
	if b.stopped {
		return false
	}
	b.background.Go(f)
	return true
}
