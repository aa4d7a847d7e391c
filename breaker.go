package infuse

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/clock"
	"github.com/infuse-go/infuse/internal/striped"
)

// Breaker is a circuit breaker for one circuit: the calls to one service. A call
// runs only if the local and the shared circuit both allow it. All breakers of
// that name on one Storage share the latter. It rejects a call only if the last
// call of this process failed, or if it was opened manually.
//
// A Breaker decides from a snapshot of both, which is updated in the background.
// A call in a closed circuit that succeeds does no I/O, takes no lock, reads no
// clock and allocates nothing, unless a Listener or a Classify is called for each
// call, there is a SlowCall, or the circuit is on its Ramp. Nor does a rejection.
// No call waits longer for the storage than Config.StorageTimeout, and no error
// of the storage ever reaches the caller of Call, Do or Acquire.
//
// Most callers want Call, or Do for a call with a value. All methods are safe
// for concurrent use. Make a Breaker with New. A Breaker that becomes unreachable
// is stopped eventually.
type Breaker struct {
	view    atomic.Pointer[view] // what calls meet; the circuit stores it under its lock
	cleanup runtime.Cleanup      // ends the watching where nobody calls Stop
	circuit
}

// New returns a breaker for the named circuit. With a Storage it reads the
// circuit's record, which is one round trip, and waits at most
// Config.StorageTimeout for it. The breaker watches its circuit until Stop.
//
// The error describes an invalid name or field of the Config. An unavailable
// storage is not an error.
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

// Name returns the circuit's name.
func (b *Breaker) Name() string { return b.name }

// Call runs fn, if the circuit allows it, and counts its outcome. It returns
// fn's error unchanged, or an *OpenError if fn did not run.
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

// run is the hot path: it loads the view before and after fn. If the view is the
// same and fast, a success need not be counted.
func (b *Breaker) run(ctx context.Context, fn func(context.Context) error) error {
	v := b.view.Load()
	if !v.fast || ctx.Err() != nil {
		return b.runCounted(ctx, v, fn)
	}
	returned := false // and not recover() == nil, which a Goexit has too
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

// returned ends a call of run about which there is more to do. It is not inlined:
// with the defer, run keeps all its variables in memory, and is faster with few.
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

// runCounted is run for a call that has more to do than to run, or that the
// view cannot admit by itself.
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

// State returns the state that a call of this process meets now: open if the
// local circuit is open, or if the shared circuit is open and rejects this
// process. If the shared circuit is open and the last call of this process
// succeeded, it is closed; Record returns the shared state.
//
// It does no I/O and changes nothing: an open circuit stays open until a call
// becomes its trial. While the storage is unavailable, Config.StorageDown decides.
func (b *Breaker) State() State { return b.view.Load().state }

// Ready reports whether a call would run now, or could become the trial. It does no
// I/O, and uses up nothing: another call may be faster. While it is false, a consumer
// can stop taking work (see Wait). A service must not become unready by it: without
// calls there is no trial.
func (b *Breaker) Ready() bool {
	v := b.view.Load()
	return v.ready() && v.readyIn() <= 0
}

// Wait waits until the breaker is Ready, or until ctx is done, and returns the error
// of ctx then. It does no I/O. Each waiter is woken once: of those that wait for one
// trial, one gets it, and the calls of the others are rejected. On a Ramp it does not
// wait: the share of calls decides.
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

// Stats is the last known state of a breaker. Fields may be added.
type Stats struct {
	State      State     // as Breaker.State: the state that a call of this process meets
	DueAt      time.Time // while State is open: when a trial may run; in the past: ready for one. Zero if that is unknown
	DryRun     bool      // Config.DryRun: calls run whatever State is
	Local      CircuitStats
	Shared     CircuitStats // zero without a storage
	Override   *Override    // nil: none
	Calls      CallCounts   // if Config.CountCalls
	StorageErr error        // why the shared circuit does not apply; nil while it does
}

// CircuitStats is the last known state of one circuit, the local or the shared one.
type CircuitStats struct {
	State    State
	Suspect  bool                          // only the shared circuit: closed, and collecting evidence
	Failures int                           // consecutive failures; while open, as many as it took; 0 while the circuit collects evidence
	Window   struct{ Calls, Failures int } // in Config.Window, if there is a Config.FailureRate and there were failures
	Since    time.Time                     // when this process saw State begin
	DueAt    time.Time                     // while open: when a trial may run
	By       string                        // the instance that opened it, or reported the last failure
	Cause    string                        // of the opening
}

// CallCounts are the numbers of calls by their outcome, since the breaker was made.
type CallCounts struct {
	Success, Failure, Ignored, Rejected uint64
	WouldReject                         uint64 // ran only because of Config.DryRun; in no other count
}

// These kinds of calls are counted beside those that have an Outcome.
const (
	rejectedCalls    = striped.Kinds - 2
	wouldRejectCalls = striped.Kinds - 1
)

// Stats returns the last known state of the breaker. It does no I/O.
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
		held := *o
		s.Override = &held
	}
	return s
}

// stats returns what users see of a record.
func (r *Record) stats(state State, since time.Time, l *Limits, now time.Time) CircuitStats {
	c := CircuitStats{State: state, Suspect: r.suspect(), Since: since, By: r.By, Cause: r.Cause}
	if !r.hasEvidence() {
		c.Failures = r.Failures
	}
	calls := sum(r.Window.last(l.Window, now))
	c.Window.Calls, c.Window.Failures = calls.Calls, calls.Failures
	if state == StateOpen && r.State == StateOpen {
		c.DueAt = r.dueAt(l)
	}
	return c
}

// Record reads the shared record of the circuit from the storage, in one round
// trip, and waits at most Config.StorageTimeout for it. Without a storage it
// returns the local record, without I/O.
func (b *Breaker) Record(ctx context.Context) (Record, error) {
	if b.link == nil {
		var own Record
		b.inspect(func(r *replica) { own = r.local.At(time.Now()).clone() })
		return own, nil
	}
	ctx, cancel := b.withTimeout(ctx, time.Now())
	defer cancel()
	r, err := b.link.read(ctx, b)
	if err != nil {
		return Record{}, fmt.Errorf("infuse: reading circuit %q: %w", b.Name(), err)
	}
	return r, nil
}

// Configure replaces all settings, those that cfg leaves out by their defaults,
// and keeps the state. A circuit that is open stays open until the time that was
// set when it opened, as far as the new settings allow. The Storage cannot be
// changed: it must be nil or the same. It does no I/O. If a field is invalid, the
// error names it, and nothing changes.
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

// Stop ends the watching: the breaker receives no more changes of other
// processes. It changes no state. It waits for the reports in flight, for
// Config.StorageTimeout at most. Further calls of Stop have no effect.
//
// A stopped breaker still works, with the last known state, and still reports its
// calls to the storage, also those in flight. When a report fails, it stops
// reporting, and uses its local circuit from then on.
func (b *Breaker) Stop() {
	b.stop()
	b.cleanup.Stop()
}

func (b *Breaker) settings() *settings { return b.view.Load().settings }

// Admission and outcome.

// admission is what lets in a call that the view alone decides on.
func (v *view) admission() admission {
	return admission{view: v, local: v.localSince, shared: v.sharedSince}
}

// enter admits a call, as a says then, or rejects it.
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

// isLate reports whether the deadline of a call has passed: before it begins,
// that is no fault of the service.
func isLate(ctx context.Context) bool { return ctx.Err() == context.DeadlineExceeded }

// admit decides on a call that the view cannot admit by itself.
// R9.
func (b *Breaker) admit(ctx context.Context) (admission, *OpenError) {
	a, rejected := b.decide(ctx)
	told := false
	defer func() {
		if !told && rejected == nil { // a listener has ended the goroutine
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
	told = true
	return a, rejected
}

func (b *Breaker) decide(ctx context.Context) (admission, *OpenError) {
	v := b.view.Load()
	var began time.Time
	if v.settings.Strict || v.admits == admitsSome {
		began = time.Now()
		var cancel context.CancelFunc
		ctx, cancel = b.withTimeout(ctx, began)
		defer cancel()
	}
	reads := v.settings.Strict && (v.admits != admitsSome || v.state == StateClosed) // what asks for a trial is answered with what there is
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
		reads = true // the circuit has moved since it was asked, or another call was asking
	}
}

// refreshed returns the view after a read of the shared record. A caller whose
// context has ended does not wait, and gets the view as it is.
// R45.
func (b *Breaker) refreshed(ctx context.Context) *view {
	if b.attached() && ctx.Err() == nil {
		b.read(ctx)
	}
	return b.view.Load()
}

// maxTries bounds how often a Strict call asks anew. The storage's clock may be
// behind this process's for a moment, and then it says the same again.
const maxTries = 3

// rejection is what a call is told that was not admitted.
// R8.
func (b *Breaker) rejection() *OpenError {
	v := b.view.Load()
	if v.admits == admitsAll { // it was open or half-open a moment ago
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

// isSlow reports whether the call takes longer than Config.SlowCall allows.
// R2.
func (a *admission) isSlow() bool {
	return a.began != 0 && clock.Now()-a.began > a.view.settings.SlowCall
}

// slowResult is that of a call which is slow and would be a success otherwise.
func (a *admission) slowResult() result {
	return result{outcome: OutcomeFailure, err: slowError(a.view.settings.SlowCall)}
}

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
// R3.
func (b *Breaker) settle(ctx context.Context, a *admission, r *result) {
	if a.dry {
		return
	}
	if r.outcome > OutcomeIgnored {
		r.outcome = OutcomeIgnored // no outcome that there is
	}
	if (r.outcome == OutcomeSuccess || r.outcome == OutcomeIgnored && isCancelled(ctx)) && a.isSlow() {
		*r = a.slowResult() // a service that hangs is seen, although its callers give up
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

// unwound settles a call that did not return. The panic goes on with the stack
// of where it began: it is still below this one.
func (b *Breaker) unwound(ctx context.Context, a *admission, panicked any) {
	r := unwoundResult(ctx, panicked)
	b.settle(ctx, a, &r)
	if panicked != nil {
		panic(panicked)
	}
}

// unwoundResult is that of a call that did not return: what recover returned
// decides.
func unwoundResult(ctx context.Context, panicked any) result {
	switch {
	case panicked == nil: // runtime.Goexit
		return result{outcome: OutcomeIgnored}
	case panicked == http.ErrAbortHandler && isCancelled(ctx): // httputil.ReverseProxy panics so when its client is gone
		return result{outcome: OutcomeIgnored, err: http.ErrAbortHandler}
	}
	return result{outcome: OutcomeFailure, err: panicError{panicked}}
}
