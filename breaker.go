package infuse

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/clock"
)

// Breaker is a circuit breaker for one circuit: the calls to one service. A call runs
// only if the local and the shared circuit both allow it. All breakers with the same name
// and Storage have the same shared circuit. A process rejects a call only if its own last
// call failed, or if the circuit was opened manually; see docs/concepts.md for the rules.
//
// A Breaker decides from a snapshot of both circuits, which is updated in the background.
// A success in a closed circuit does no I/O, takes no lock, reads no clock and allocates
// nothing; nor does a rejection. Exceptions: a Listener or Classify that is called for
// each call, SlowCall, Strict, and a Ramp. No call waits longer for the storage than
// Config.StorageTimeout, and Call, Do and Acquire never return an error of the storage.
//
// Most callers use Call, or Do for a call that returns a value. Make a Breaker with New.
// All methods are safe for concurrent use. A Breaker that becomes unreachable is stopped
// eventually.
type Breaker struct {
	view    atomic.Pointer[view] // the snapshot; stored under the lock of the circuit
	cleanup runtime.Cleanup      // stops an unreachable Breaker
	circuit
}

// New returns a breaker for the named circuit. With a Storage it reads the record of the
// circuit in one round trip, and waits at most Config.StorageTimeout for it. The breaker
// receives changes of other processes until Stop.
//
// New returns an error for an invalid name, and for each invalid field of the Config. An
// unavailable storage is not an error.
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

// newBreaker returns a breaker whose listeners are not called until it is started.
func newBreaker(name string, s *settings, l *link) *Breaker {
	b := new(Breaker)
	b.init(name, s, l)
	if l != nil {
		b.cleanup = runtime.AddCleanup(b, func(unwatch func()) { go unwatch() }, b.unwatch)
	}
	return b
}

// Name returns the name of the circuit.
func (b *Breaker) Name() string { return b.name }

// Call runs fn if the circuit allows it, and counts the outcome. It returns the error of
// fn unchanged, or an *OpenError if fn did not run. With a Storage, a call may wait for
// it: after a failure and around a trial, at most Config.StorageTimeout altogether.
//
// The outcome is counted before Call returns. A panic of fn or of Config.Classify counts
// as a failure and continues to the caller. If fn ends the goroutine (runtime.Goexit), the
// call is ignored.
func (b *Breaker) Call(ctx context.Context, fn func(context.Context) error) (err error) {
	// Just small enough to be inlined: a rejection is a load and a branch. The view
	// has the error as an interface already.
	if err = b.view.Load().rejects; err != nil {
		return err
	}
	return b.run(ctx, fn)
}

// run is the hot path: it loads the view before and after fn. A success with the same
// fast view need not be counted (R44).
func (b *Breaker) run(ctx context.Context, fn func(context.Context) error) error {
	v := b.view.Load()
	if !v.fast || ctx.Err() != nil {
		return b.runCounted(ctx, v, fn)
	}
	returned := false // recover() == nil is also true after a Goexit
	defer func() {
		if !returned {
			b.panicked(ctx, v, recover())
		}
	}()
	err := fn(ctx)
	returned = true
	if err == nil && b.view.Load() == v {
		if !v.free {
			v.succeeded()
		}
		return nil
	}
	b.returned(ctx, v, err)
	return err
}

// returned ends a call of run whose outcome must be counted. It is not inlined: because of
// the defer, run keeps all its variables in memory, and is faster with few.
//
//go:noinline
func (b *Breaker) returned(ctx context.Context, v *view, err error) {
	a := v.admission()
	b.finish(ctx, &a, err)
}

// panicked ends a call of run that did not return.
//
//go:noinline
func (b *Breaker) panicked(ctx context.Context, v *view, value any) {
	a := v.admission()
	b.unwound(ctx, &a, value)
}

// runCounted is run for all other calls: the view does not admit the call by itself, or
// the call must be counted.
func (b *Breaker) runCounted(ctx context.Context, v *view, fn func(context.Context) error) error {
	if v.onlyCounts {
		v.counts.Add(rejectedCalls)
		return v.rejection
	}
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

// Do is Call for a func that returns a value. A rejected call returns the zero value and
// an *OpenError.
func Do[T any](ctx context.Context, b *Breaker, fn func(context.Context) (T, error)) (T, error) {
	var value T
	err := b.Call(ctx, func(ctx context.Context) (err error) {
		value, err = fn(ctx)
		return err
	})
	return value, err
}

// State returns the state that a call of this process meets now. It is open if the
// local circuit is open, or if the shared circuit is open and rejects this process. If the
// shared circuit is open and the last call of this process succeeded, State returns closed;
// Record returns the shared state. While the storage is unavailable, Config.StorageDown
// decides.
//
// State does no I/O and changes nothing: an open circuit stays open until a call becomes
// its trial.
func (b *Breaker) State() State { return b.view.Load().state }

// Ready reports whether a call would run now, or could become the trial. It does no I/O,
// and reserves nothing: another call may become the trial first. A consumer can stop
// taking work while Ready is false (see Wait). Do not connect it to the readiness of a
// service: without calls there is no trial.
func (b *Breaker) Ready() bool {
	v := b.view.Load()
	return v.ready() && v.readyIn() <= 0
}

// Wait waits until the breaker is Ready, or until ctx is done: then it returns the error of
// ctx. It does no I/O. If several callers wait for one trial, all are woken; the call of
// one becomes the trial, and the calls of the others are rejected. During a Ramp, Wait
// returns at once, and calls may still be rejected.
func (b *Breaker) Wait(ctx context.Context) error {
	if !b.view.Load().ready() {
		select {
		case <-b.becomesReady():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if left := b.view.Load().readyIn(); left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// Stats returns the last known state of the breaker. It does no I/O, but takes a lock: do
// not call it for each call.
func (b *Breaker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, now := b.view.Load(), time.Now()
	b.takeTally(now)
	r := &b.replica
	s := Stats{State: v.state, DryRun: v.settings.DryRun, StorageErr: b.link.reason(r.storageErr)}
	if b.counts != nil {
		n := b.counts.Sum()
		s.Calls = CallCounts{n[OutcomeSuccess], n[OutcomeFailure], n[OutcomeIgnored], n[rejectedCalls], n[wouldRejectCalls]}
	}
	s.Local = r.local.stats(b.states.local, time.Unix(0, b.since.local), &r.settings.local, now)
	if r.linked {
		s.Shared = r.lastShared().stats(b.states.shared, time.Unix(0, b.since.shared), &r.settings.limits, now)
	}
	if v.state == StateOpen {
		s.DueAt = r.nextTrialAt(now)
	}
	if o := r.override(now); o != nil {
		override := *o
		s.Override = &override
	}
	return s
}

// Record reads the shared record of the circuit from the storage, in one round trip, and
// waits at most Config.StorageTimeout for it. It returns the error of the storage, or of
// ctx. Without a storage it returns the local record, without I/O.
func (b *Breaker) Record(ctx context.Context) (Record, error) {
	if b.link == nil {
		var local Record
		b.inspect(func(r *replica) { local = r.local.At(time.Now()).clone() })
		return local, nil
	}
	ctx, cancel := b.withTimeout(ctx, time.Now())
	defer cancel()
	r, err := b.link.read(ctx, b)
	if err != nil {
		return Record{}, fmt.Errorf("infuse: reading circuit %q: %w", b.Name(), err)
	}
	return r, nil
}

// Configure replaces all settings; omitted fields get their defaults. It keeps the state.
// An open circuit stays open until the time that was set when it opened, limited by the
// new settings. The Storage cannot be changed: it must be nil or the same. Configure does
// no I/O. If a field is invalid, it returns an error that names the field, and changes
// nothing.
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

// Stop stops the breaker: it receives no more changes of other processes. Stop changes no
// state. It waits until the storage has received all reports, and Listeners all events, at
// most Config.StorageTimeout. Further calls of Stop have no effect.
//
// A stopped breaker still runs calls, with the last known state, and reports them to the
// storage. When a report fails, it stops reporting, and uses its local circuit from then
// on.
func (b *Breaker) Stop() {
	b.stop()
	b.cleanup.Stop()
}

func (b *Breaker) settings() *settings { return b.view.Load().settings }

// Admission and outcome.

// admission returns the admission of a call that the view admits by itself.
func (v *view) admission() admission {
	return admission{view: v, local: v.localSince, shared: v.sharedSince}
}

// enter admits a call, and sets a, or rejects it.
func (b *Breaker) enter(ctx context.Context, a *admission) (rejected *OpenError) {
	late := isLate(ctx)
	if v := b.view.Load(); v.plain {
		a.view, a.local, a.shared = v, v.localSince, v.sharedSince
	} else {
		*a, rejected = b.admit(ctx)
	}
	a.late = late
	return rejected
}

// isLate reports whether the deadline of a call has passed. Before the call begins, this is
// no failure of the service (R1).
func isLate(ctx context.Context) bool { return ctx.Err() == context.DeadlineExceeded }

// admit decides on a call that the view does not admit by itself, and calls the listeners.
// With DryRun every call runs (R9).
func (b *Breaker) admit(ctx context.Context) (admission, *OpenError) {
	a, rejected := b.decide(ctx)
	notified := false
	defer func() {
		if !notified && rejected == nil { // a listener has ended the goroutine
			b.settle(ctx, &a, &result{outcome: OutcomeIgnored})
		}
	}()
	b.notifyListeners()
	switch v := b.view.Load(); {
	case rejected == nil:
		notifyBeforeCall(ctx, a.view.settings.Listeners, b)
		if a.view.settings.SlowCall > 0 {
			a.began = clock.Now()
		}
	case v.settings.DryRun:
		v.countCall(wouldRejectCalls)
		notifyWouldReject(ctx, v.settings.Listeners, b, rejected)
		a, rejected = admission{view: v, dry: true}, nil
	default:
		v.countCall(rejectedCalls)
		notifyRejected(ctx, v.settings.Listeners, b, rejected)
	}
	notified = true
	return a, rejected
}

// decide admits or rejects a call, by the view or by the replica.
func (b *Breaker) decide(ctx context.Context) (admission, *OpenError) {
	v := b.view.Load()
	var began time.Time
	if v.settings.Strict || v.admits == admitsSome {
		began = time.Now()
		var cancel context.CancelFunc
		ctx, cancel = b.withTimeout(ctx, began)
		defer cancel()
	}
	reads := v.settings.Strict && (v.admits != admitsSome || v.state == StateClosed) // the answer to a request for a trial has the record
	for tries := 1; ; tries++ {
		if reads {
			v = b.refreshed(ctx)
		}
		a, admitted := v.admission(), v.admits == admitsAll
		if v.admits == admitsSome {
			a, admitted = b.requestAdmission(ctx)
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
		reads = true // the record has changed meanwhile, or another call has requested the trial
	}
}

// refreshed returns the view after a read of the shared record (R45), or the present view
// if ctx is done.
func (b *Breaker) refreshed(ctx context.Context) *view {
	if b.attached() && ctx.Err() == nil {
		b.read(ctx)
	}
	return b.view.Load()
}

// maxTries is how often a Strict call tries. If the storage's clock is behind the clock of
// this process, the answer may be the same each time.
const maxTries = 3

// rejection returns the error of a call that was not admitted (R8).
func (b *Breaker) rejection() *OpenError {
	v := b.view.Load()
	if v.admits == admitsAll { // the circuit has closed meanwhile
		return &OpenError{Circuit: b.Name(), State: StateHalfOpen}
	}
	return v.rejection
}

// finish classifies the error of an admitted call, and counts its outcome.
func (b *Breaker) finish(ctx context.Context, a *admission, err error) {
	if a.dry {
		return
	}
	outcome := OutcomeSuccess
	switch {
	case err != nil && a.late && a.view.settings.Classify == nil:
		outcome = OutcomeIgnored
	case err != nil || a.view.settings.Classify != nil:
		outcome = b.classify(ctx, a, err)
	}
	b.settle(ctx, a, &result{outcome: outcome, err: err})
}

// isSlow reports whether the call has taken longer than Config.SlowCall (R2).
func (a *admission) isSlow() bool {
	return a.began != 0 && clock.Now()-a.began > a.view.settings.SlowCall
}

// slowResult returns the result of a slow call that would be a success otherwise.
func (a *admission) slowResult() result {
	return result{outcome: OutcomeFailure, err: slowError(a.view.settings.SlowCall)}
}

// isQuiet reports whether a success of the call changes nothing in the replica.
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

// settle counts the result of an admitted call (R3).
func (b *Breaker) settle(ctx context.Context, a *admission, r *result) {
	if a.dry {
		return
	}
	if r.outcome > OutcomeIgnored {
		r.outcome = OutcomeIgnored // an unknown outcome
	}
	if (r.outcome == OutcomeSuccess || r.outcome == OutcomeIgnored && isCancelled(ctx)) && a.isSlow() {
		*r = a.slowResult() // also if the caller of a hanging service cancels
	}
	a.view.countCall(int(r.outcome))
	if a.view.plain {
		b.count(a, r)
		return
	}
	defer b.count(a, r) // also if a listener ends the goroutine
	notifyOutcome(ctx, a.view.settings.Listeners, b, r.outcome, r.err)
}

func (b *Breaker) count(a *admission, r *result) {
	switch {
	case r.outcome != OutcomeSuccess || !b.isQuiet(a):
		b.ended(a, r)
		b.notifyListeners()
	case a.view.tallies:
		a.view.tally.Add()
	}
}

// unwound settles a call that did not return. A panic continues: its first stack is still
// part of the trace.
func (b *Breaker) unwound(ctx context.Context, a *admission, panicked any) {
	r := unwoundResult(ctx, panicked)
	b.settle(ctx, a, &r)
	if panicked != nil {
		panic(panicked)
	}
}

// unwoundResult returns the result of a call that did not return, for the value of recover.
func unwoundResult(ctx context.Context, panicked any) result {
	switch {
	case panicked == nil: // runtime.Goexit
		return result{outcome: OutcomeIgnored}
	case panicked == http.ErrAbortHandler && isCancelled(ctx): // httputil.ReverseProxy panics with it when its client is gone
		return result{outcome: OutcomeIgnored, err: http.ErrAbortHandler}
	}
	return result{outcome: OutcomeFailure, err: panicError{panicked}}
}
