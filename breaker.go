package infuse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Breaker is a circuit breaker for one circuit: the calls to one service. A
// call runs if both the circuit of this process and the fleet's, which all
// breakers of that name on one Storage share, let it.
//
// A Breaker decides from its view of the circuit, which it keeps up to date in
// the background. A call in a closed circuit that succeeds does no I/O, takes
// no lock, reads no clock and allocates nothing, unless a Listener or a
// Classify asks for each call, there is a SlowCall, or it is on a Ramp; nor does a
// rejection. What a call waits for the
// storage, where it does, is bounded by Config.StorageTimeout, and no error of
// the storage ever reaches the caller of Call, Do or Acquire.
//
// Most callers want Call, or Do for a call with a value. All methods are safe
// for concurrent use. Make a Breaker with New. One that nothing refers to any
// more is stopped in time.
type Breaker struct {
	view    atomic.Pointer[view] // what calls meet; the circuit stores it under its lock
	cleanup runtime.Cleanup      // ends the watching where nobody calls Stop
	circuit
}

// New returns a breaker for the named circuit. With a Storage it reads the
// circuit's record, which is one round trip, and waits at most
// Config.StorageTimeout for it. The breaker watches its circuit until Stop.
//
// The error names what is wrong with the name or with a field of the Config; a
// storage that is away is not an error.
func New(name string, cfg Config) (*Breaker, error) {
	s, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	b := newBreaker(name, s, linkTo(s.Storage))
	b.start()
	return b, nil
}

// newBreaker returns a breaker whose listeners hear nothing until it is started.
func newBreaker(name string, s *settings, l *link) *Breaker {
	b := new(Breaker)
	b.circuit.init(b, name, s, l)
	b.cleanup = runtime.AddCleanup(b, func(unwatch func()) { go unwatch() }, b.unwatch)
	return b
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
// as the view is the same and fast, a success need not be counted.
func (b *Breaker) run(ctx context.Context, fn func(context.Context) error) error {
	v := b.view.Load()
	if v.onlyCounts {
		v.counts.add(rejectedCalls)
		return v.rejection
	}
	if !v.fast || ctx.Err() != nil {
		return b.runCounted(ctx, v, fn) // apart, so that the defer below holds on to the view alone, and not to an admission
	}
	returned := false // and not recover() == nil, which a Goexit has too
	defer func() {
		if !returned {
			a := v.admission()
			b.unwound(ctx, &a, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	if err == nil && b.view.Load() == v {
		v.succeeded()
		return nil
	}
	a := v.admission()
	b.finish(ctx, &a, err)
	return err
}

// runCounted is run for a call that has more to do than to run, or that the
// view cannot admit by itself.
func (b *Breaker) runCounted(ctx context.Context, v *view, fn func(context.Context) error) error {
	a := v.admission()
	if !v.plain {
		var rejected *OpenError
		if a, rejected = b.admit(ctx); rejected != nil {
			return rejected
		}
	}
	a.late = isLate(ctx)
	returned := false
	defer func() {
		if !returned {
			b.unwound(ctx, &a, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	b.finish(ctx, &a, err)
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

// State returns the circuit's state as this process knows it: open where
// either the fleet's circuit or that of this process is. It does no I/O, and
// never moves the circuit: an open circuit stays open until a call becomes its
// trial. While the storage is away it is the state by Config.Fallback.
func (b *Breaker) State() State { return b.view.Load().state }

// Failures returns how many calls have failed in a row, as this process knows: its
// own or, where those are more, the fleet's. It does no I/O.
func (b *Breaker) Failures() int { return b.Stats().Failures }

// Stats are what this process knows of a circuit. Fields may be added.
type Stats struct {
	State    State
	Local    bool                                                 // the circuit of this process alone is not closed
	Failures int                                                  // in a row: of this process or, if those are more, of the fleet
	Since    time.Time                                            // when this process saw State begin
	Override *Override                                            // what holds the circuit; nil if nothing does
	Calls    struct{ Success, Failure, Ignored, Rejected uint64 } // if Config.CountCalls
	Away     error                                                // why the storage is away; nil while it is not
}

// Stats returns what this process knows of the circuit. It does no I/O.
func (b *Breaker) Stats() Stats {
	v := b.view.Load()
	s := Stats{State: v.state, Local: v.local}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.takeTally(now)
	r := &b.replica
	if b.counts != nil {
		n := b.counts.sum()
		s.Calls.Success, s.Calls.Failure, s.Calls.Ignored, s.Calls.Rejected = n[OutcomeSuccess], n[OutcomeFailure], n[OutcomeIgnored], n[rejectedCalls]
	}
	s.Failures = max(r.own.Failures, r.shared.Failures)
	s.Away, s.Since = r.trouble, b.since
	if o := r.override(now); o != nil {
		held := *o
		s.Override = &held
	}
	return s
}

// Record reads the fleet's record of the circuit from the storage, in one
// round trip, and waits at most Config.StorageTimeout for it. Without a storage
// it is the record of this process, and there is no I/O.
func (b *Breaker) Record(ctx context.Context) (Record, error) {
	if b.link == nil {
		var own Record
		b.look(func(r *replica) { own = r.own.At(time.Now()).clone() })
		return own, nil
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	r, err := b.link.read(ctx, &b.circuit)
	if err != nil {
		return Record{}, fmt.Errorf("infuse: reading circuit %q: %w", b.Name(), err)
	}
	return r, nil
}

// Move moves the circuit by hand, for all processes, and clears the circuit
// that each process has of its own. Open rejects calls for Config.ResetTimeout
// from now; half-open lets the next call be a trial; closed forgets all
// failures. It waits at most Config.StorageTimeout.
//
// A done context is refused, and nothing moves. Any other error means that the
// storage has not confirmed the move. The circuit has then moved for this
// process; the error says whether the others may still hear of it.
func (b *Breaker) Move(ctx context.Context, to State) error {
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: moving circuit %q: %v is not a state", b.Name(), to)
	}
	return b.handle(ctx, Change{Move: &Move{to}}, "moved to "+to.String())
}

// Override holds the circuit open or closed for all processes, until it is
// cleared or over, whatever its calls come to, and clears the circuit that each
// process has of its own. Another override replaces it; Move moves the circuit
// behind it. It holds while the storage is away, and a storage that has lost it
// is told again by a process that knows it.
//
// It waits at most Config.StorageTimeout. An override that cannot be and a done
// context are refused, and nothing changes. Any other error means that the
// storage has not confirmed it: it then holds for this process, and the error says
// whether the others may still hear of it.
func (b *Breaker) Override(ctx context.Context, o Override) error {
	o.By = cmp.Or(o.By, b.settings().Instance)
	if err := o.check(time.Now()); err != nil {
		return fmt.Errorf("infuse: overriding circuit %q: %w", b.Name(), err)
	}
	o.By, o.Reason = presentable(o.By, maxTextLength), presentable(o.Reason, maxTextLength)
	return b.handle(ctx, Change{Override: &o}, "held "+o.State.String())
}

// ClearOverride ends an override, for all processes; where there is none,
// nothing changes. by names the person who ends it: Config.Instance if empty.
//
// It waits at most Config.StorageTimeout. A done context is refused. Any other
// error means that the storage has not confirmed it: the override has then ended
// for this process, and the error says whether the others may still hear of it.
func (b *Breaker) ClearOverride(ctx context.Context, by string) error {
	by = presentable(cmp.Or(by, b.settings().Instance), maxTextLength)
	return b.handle(ctx, Change{Override: &Override{By: by, Until: longAgo}}, "released")
}

// longAgo is the end of an override that clears another.
var longAgo = time.Unix(1, 0)

func (o *Override) check(now time.Time) error {
	switch {
	case o.State != StateOpen && o.State != StateClosed:
		return fmt.Errorf("Override.State is %v: must be open or closed", o.State)
	case !o.Until.IsZero() && !now.Before(o.Until):
		return fmt.Errorf("Override.Until is %v, which is over", o.Until)
	case o.Until.Sub(now) > maxTimeout:
		return fmt.Errorf("Override.Until is %v: at most %v ahead, or zero for until it is cleared", o.Until, maxTimeout)
	case max(len(o.By), len(o.Reason)) > maxTextLength:
		return fmt.Errorf("Override.By or Reason is longer than %d bytes", maxTextLength)
	}
	return nil
}

// handle makes a change by hand, and bounds what it waits for.
func (b *Breaker) handle(ctx context.Context, c Change, what string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("infuse: circuit %q was not %s, nothing was done: %w", b.Name(), what, err)
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	defer b.tell()
	return b.byHand(ctx, c, what)
}

// bounded returns a context for one request that a caller has asked for.
func (b *Breaker) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.settings().StorageTimeout, errStorageTimeout)
}

// Configure replaces all settings, those that cfg leaves out by their defaults,
// and keeps the circuit as it is; what is open stays so until the time that was
// set when it opened. The Storage cannot be changed: it must be nil or the same.
// It does no I/O. Where a field is invalid, the error names it, and nothing has
// changed.
func (b *Breaker) Configure(cfg Config) error {
	s, err := newSettings(cfg)
	if err != nil {
		return err
	}
	if err := s.keep(b.settings().Storage); err != nil {
		return err
	}
	b.configured(s)
	return nil
}

// keep refuses another storage than the one that is in use.
func (s *settings) keep(storage Storage) error {
	if s.Storage != nil && !(reflect.ValueOf(s.Storage).Comparable() && s.Storage == storage) {
		return fmt.Errorf("infuse: Config.Storage is another %T: a breaker keeps the storage that it was made with", s.Storage)
	}
	s.Storage = storage
	return nil
}

// Stop ends the watching: the breaker does not hear of other processes any
// more. It moves no circuit. It waits for the reports that are under way, for
// Config.StorageTimeout at most. More than one Stop does nothing more.
//
// A stopped breaker still works, from what it knows, and still reports its calls
// to the storage: those that were under way, too. When a report fails, it stops
// reporting, and its own circuit decides alone from then on.
func (b *Breaker) Stop() {
	b.stop()
	b.cleanup.Stop()
}

func (b *Breaker) settings() *settings { return b.view.Load().settings }

// Admission and outcome.

// admission is what lets in a call that the view alone decides on.
func (v *view) admission() admission { return admission{view: v, own: v.own, shared: v.shared} }

// enter admits a call, as a says then, or rejects it.
func (b *Breaker) enter(ctx context.Context, a *admission) (rejected *OpenError) {
	late := isLate(ctx)
	if v := b.view.Load(); v.plain {
		a.view, a.own, a.shared = v, v.own, v.shared
	} else {
		*a, rejected = b.admit(ctx)
	}
	a.late = late
	return rejected
}

// isLate reports whether the deadline of a call has passed: before it begins,
// that is no fault of the service.
func isLate(ctx context.Context) bool { return ctx.Err() == context.DeadlineExceeded }

// admit decides on a call that the view cannot admit by itself.
func (b *Breaker) admit(ctx context.Context) (admission, *OpenError) {
	a, rejected := b.decide(ctx)
	told := false
	defer func() {
		if !told && rejected == nil { // a listener has ended the goroutine
			b.settle(ctx, &a, result{outcome: OutcomeIgnored})
		}
	}()
	b.tell()
	if rejected != nil {
		if counts := b.view.Load().counts; counts != nil {
			counts.add(rejectedCalls)
		}
		b.settings().tellRejected(ctx, b, rejected)
	} else {
		a.view.settings.tellBeforeCall(ctx, b)
		if a.view.settings.SlowCall > 0 {
			a.began = monotonic()
		}
	}
	told = true
	return a, rejected
}

func (b *Breaker) decide(ctx context.Context) (admission, *OpenError) {
	v := b.view.Load()
	var began time.Time
	if v.settings.Strict || v.admits == admitsAsker {
		began = time.Now()
		var cancel context.CancelFunc
		ctx, cancel = b.patience(ctx, began)
		defer cancel()
	}
	if v.settings.Strict && (v.admits != admitsAsker || v.state == StateClosed) { // what asks for a trial is answered with what there is
		v = b.refreshed(ctx)
	}
	for tries := 1; ; tries++ {
		a, admitted := v.admission(), v.admits == admitsAll
		if v.admits == admitsAsker {
			a, admitted = b.asks(ctx)
		}
		switch {
		case admitted && began.IsZero():
			return a, nil
		case admitted:
			a.waited = time.Since(began)
			return a, nil
		case v.admits == admitsNone:
			return a, v.rejection
		case v.state == StateClosed || !v.settings.Strict || !b.attached() || tries == maxTries:
			return a, b.rejection()
		}
		// The circuit has moved since it was asked, or another call was asking.
		v = b.refreshed(ctx)
	}
}

// refreshed returns the view after a read of the fleet's record. Where that is
// open only because the record was suspect and time has passed since, it is read
// again: the suspicion may have been refuted meanwhile.
func (b *Breaker) refreshed(ctx context.Context) (v *view) {
	unsure := true
	for tries := 0; unsure && tries < maxTries; tries++ {
		if b.attached() {
			_ = b.read(ctx) // whatever it says is in the view
		}
		b.look(func(r *replica) {
			v = b.view.Load()
			unsure = r.attached() && r.shared.suspect() && v.state == StateOpen && !v.local
		})
	}
	return v
}

// maxTries bounds how often a Strict call asks anew. The storage's clock may be
// behind this process's for a moment, and then it says the same again.
const maxTries = 3

// rejection is what a call is told that was not admitted.
func (b *Breaker) rejection() *OpenError {
	v := b.view.Load()
	if v.admits == admitsAll { // it was open or half-open a moment ago
		return &OpenError{Circuit: b.Name(), State: StateHalfOpen}
	}
	return v.rejection
}

// finish classifies the error of an admitted call, and counts its outcome.
func (b *Breaker) finish(ctx context.Context, a *admission, err error) {
	outcome := OutcomeSuccess
	switch {
	case err != nil && a.late && a.view.settings.Classify == nil:
		outcome = OutcomeIgnored
	case err != nil || a.view.settings.Classify != nil:
		outcome = b.classify(ctx, a, err)
	}
	b.settle(ctx, a, result{outcome: outcome, err: err})
}

// isSlow reports whether the call takes longer than Config.SlowCall allows.
func (a *admission) isSlow() bool {
	return a.began != 0 && monotonic()-a.began > a.view.settings.SlowCall
}

// slowResult is that of a call which is slow and would be a success otherwise.
func (a *admission) slowResult() result {
	return result{outcome: OutcomeFailure, err: slowError(a.view.settings.SlowCall)}
}

// slowError is the cause where a call took longer than that.
type slowError time.Duration

func (e slowError) Error() string { return fmt.Sprintf("slower than %v", time.Duration(e)) }

// isQuiet reports whether a success of the call need not be counted.
func (b *Breaker) isQuiet(a *admission) bool {
	return a.view.quiet && a.trial == "" && b.view.Load() == a.view
}

func (b *Breaker) classify(ctx context.Context, a *admission, err error) Outcome {
	returned := false
	defer func() {
		if !returned {
			b.unwound(ctx, a, recover())
		}
	}()
	outcome := a.view.settings.classify(ctx, b.Name(), err)
	returned = true
	return outcome
}

// settle counts the result of an admitted call.
func (b *Breaker) settle(ctx context.Context, a *admission, r result) {
	if r.outcome > OutcomeIgnored {
		r.outcome = OutcomeIgnored // no outcome that there is
	}
	if (r.outcome == OutcomeSuccess || r.outcome == OutcomeIgnored && isCancelled(ctx)) && a.isSlow() {
		r = a.slowResult() // a service that hangs is seen, although its callers give up
	}
	if a.view.counts != nil {
		a.view.counts.add(int(r.outcome))
	}
	if a.view.plain {
		b.count(a, &r)
		return
	}
	defer b.count(a, &r) // also if a listener ends the goroutine
	a.view.settings.tellOutcome(ctx, b, r)
}

func (b *Breaker) count(a *admission, r *result) {
	switch {
	case r.outcome != OutcomeSuccess || !b.isQuiet(a):
		b.ended(a, r)
		b.tell()
	case a.view.tallies:
		a.view.tally.add()
	}
}

// unwound settles a call that did not return. The panic goes on with the stack
// of where it began: it is still below this one.
func (b *Breaker) unwound(ctx context.Context, a *admission, panicked any) {
	if panicked == nil { // runtime.Goexit
		b.settle(ctx, a, result{outcome: OutcomeIgnored})
		return
	}
	if panicked == http.ErrAbortHandler && isCancelled(ctx) { // as httputil.ReverseProxy ends when its client is gone
		b.settle(ctx, a, result{outcome: OutcomeIgnored, err: http.ErrAbortHandler})
		panic(panicked)
	}
	b.settle(ctx, a, result{outcome: OutcomeFailure, err: panicError{panicked}})
	panic(panicked)
}

// Permit is the right to make one call, from Acquire. It is a value: copies
// are the same permit. The zero Permit is settled.
type Permit struct {
	ticket *ticket
	number uint64
}

// ticket settles a permit once without an allocation for each: it is used
// again for the next permit, under the next number. It holds what the permit
// stands for, so that a permit is small enough to be handed around.
type ticket struct {
	number    atomic.Uint64
	breaker   *Breaker
	ctx       context.Context
	admission admission
	_         [64]byte // keeps another processor's ticket off its cache line
}

var tickets = sync.Pool{New: func() any { return new(ticket) }}

// Acquire is the first half of Call, for a call that a func cannot hold. The
// error is an *OpenError, and the permit is then the zero Permit. ctx is the
// call's: Done classifies by it.
//
// Settle each permit with Done or Settle when its call has ended. A permit that
// is never settled counts for nothing. That of a trial keeps other trials out
// until Config.TrialTimeout is over; any other holds nothing.
func (b *Breaker) Acquire(ctx context.Context) (Permit, error) {
	v := b.view.Load()
	if v.rejects != nil {
		return Permit{}, v.rejects
	}
	a := v.admission()
	if !v.plain {
		var rejected *OpenError
		if a, rejected = b.admit(ctx); rejected != nil {
			return Permit{}, rejected
		}
	}
	a.late = isLate(ctx)
	t := tickets.Get().(*ticket)
	t.breaker, t.ctx, t.admission = b, ctx, a
	return Permit{ticket: t, number: t.number.Load()}, nil
}

// Done classifies the call's error and counts its outcome; a failure before
// it returns, as Call. Once a permit is settled, Done and Settle do nothing.
func (p Permit) Done(err error) {
	if b, ctx, a, ok := p.take(); ok {
		b.finish(ctx, &a, err)
	}
}

// Settle is Done for a caller with a verdict of its own, in place of
// Config.Classify: for a call whose outcome is no error.
func (p Permit) Settle(o Outcome) {
	b, ctx, a, ok := p.take()
	if !ok {
		return
	}
	r := result{outcome: o}
	if o == OutcomeFailure {
		r.err = errSettled
	}
	b.settle(ctx, &a, r)
}

var errSettled = errors.New("infuse: settled as a failure")

// take returns what the permit stands for, once.
func (p Permit) take() (*Breaker, context.Context, admission, bool) {
	t := p.ticket
	if t == nil || !t.number.CompareAndSwap(p.number, p.number+1) {
		return nil, nil, admission{}, false
	}
	b, ctx, a := t.breaker, t.ctx, t.admission
	t.ctx, t.breaker = nil, nil // the pool is not to keep anybody's request alive
	tickets.Put(t)
	return b, ctx, a, true
}

// Announce moves the circuit of a service, for the service itself: when it has
// come up, it announces StateHalfOpen (or StateClosed), and its callers try it at
// once in place of waiting out their ResetTimeout. circuit is the name that the
// callers have for the service. StateOpen keeps them away for the default
// ResetTimeout.
//
// It does one or two round trips to the storage, and waits for them until ctx
// is done. The error is the storage's, or that of a name or a state that cannot
// be. Where callers share no storage with the service, it reaches nobody.
func Announce(ctx context.Context, s Storage, circuit string, to State) error {
	if s == nil {
		return errors.New("infuse: Announce needs a storage that the callers share, not nil")
	}
	if err := CheckName(circuit); err != nil {
		return err
	}
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: Announce: %v is not a state", to)
	}
	defaults, err := newSettings(Config{})
	if err != nil {
		return err
	}
	change := Change{Source: newSource(), Number: 1, Limits: defaults.limits, By: defaults.Instance, Move: &Move{to}}
	done := make(chan answer, 1)
	go newLink(s).ask(circuit, &change, func(a answer) { done <- a })
	select {
	case a := <-done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("infuse: Announce: the storage has not confirmed it: %w", context.Cause(ctx))
	}
}
