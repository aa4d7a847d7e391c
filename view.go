package infuse

import (
	"time"

	"github.com/infuse-go/infuse/internal/striped"
)

// view is the snapshot of a replica that calls use without a lock. It never changes,
// and depends on the replica only.
type view struct {
	rejects        error // the rejection of every call, if calls need no listener or counter; otherwise nil
	onlyCounts     bool  // every call is rejected and counted, without a listener
	plain          bool  // every call runs, without a hook before it
	quiet          bool  // a success with the same view is not reported
	fast           bool  // plain and quiet
	tallies        bool  // successes are tallied
	free           bool  // fast, and a success is neither tallied nor counted
	forced         bool  // there is an override
	tally          *striped.Counter
	counts         *striped.Counts // of all calls; nil without CountCalls
	admits         gate
	trialRequested bool      // the answer to a trial request is awaited
	readyAt        time.Time // when a trial may run, within readyEarly
	localSince     int64     // the generations of admitted calls
	sharedSince    int64
	settings       *settings
	state          State
	rejection      *OpenError // nil if every call runs
	cause          string     // of the rejection
	twin           *view      // the same view with the other setQuiet; nil until needed. Guarded by circuit.mu, unless shared
}

// ready reports whether a call would run, or could become a trial after readyIn.
func (v *view) ready() bool { return v.admits != admitsNone && !v.trialRequested || v.settings.DryRun }

// readyIn returns the time until readyAt.
func (v *view) readyIn() time.Duration {
	if v.readyAt.IsZero() || v.settings.DryRun {
		return 0
	}
	return time.Until(v.readyAt)
}

// gate is the answer of a view to a call.
type gate uint8

const (
	admitsAll  gate = iota
	admitsNone      // the view rejects each call
	admitsSome      // the replica decides on each call: a trial, or a ramp
)

// derive fills in v from the replica. Most calls need nothing but the view (R44).
func (v *view) derive(r *replica, circuit string, now time.Time) {
	v.settings, v.localSince, v.sharedSince = r.settings, r.local.Since, r.shared.Since
	o, b := r.override(now), r.blocking(now)
	blocked := b.local || b.shared
	v.forced = o != nil
	switch {
	case o != nil && o.State == StateOpen:
		v.reject(&OpenError{Circuit: circuit, State: StateOpen, Local: r.linked && o == r.local.Override, By: o.By, Reason: o.Reason, DueAt: o.Until}, keptCause{})
	case o == nil && r.storageErr != nil && r.settings.StorageDown == StorageDownReject:
		v.reject(&OpenError{Circuit: circuit, State: StateOpen, Local: true}, keptCause{r.storageErr, r.storageErr.Error()})
	case o == nil && r.storageErr != nil && r.settings.StorageDown == StorageDownAllow, o != nil && blocked:
		v.quiet = !r.failing // nothing is counted
	case !blocked:
		v.tallies = r.counting(now)
		v.quiet = r.isQuiet()
		if r.settings.Ramp > 0 && o == nil {
			v.onRamp(r, circuit, now)
		}
	default:
		v.block(r, &b, circuit, now)
	}
	v.plain = v.admits == admitsAll && !v.settings.hooked()
	v.setQuiet(v.quiet)
}

func (v *view) setQuiet(quiet bool) {
	v.quiet = quiet
	v.fast = v.plain && quiet
	v.free = v.fast && !v.tallies && !v.settings.CountCalls
}

// isQuiet reports whether a success changes nothing in a closed circuit.
func (r *replica) isQuiet() bool {
	return !(r.linked && r.failing) && !r.inherited && (r.local.Failures == 0 || !r.settings.streakCounts()) &&
		r.out.next.Calls == (Calls{}) && !r.awaitsSuccess() && !r.evaluatesRate()
}

func (v *view) reject(e *OpenError, c keptCause) {
	e.Cause = c.err
	v.admits, v.rejection, v.cause = admitsNone, e, c.short
	v.state = e.State
}

// block is derive for a circuit that rejects all calls but trials.
func (v *view) block(r *replica, b *blocking, circuit string, now time.Time) {
	e := &OpenError{Circuit: circuit, State: StateHalfOpen, Local: r.linked && !b.shared, By: b.record.By, DueAt: b.until}
	shared := r.effective(now)
	if b.local && r.local.State == StateOpen || b.shared && (shared.State != StateHalfOpen || shared.excludes(r.sourceIn(shared), now.Add(readyEarly))) {
		e.State = StateOpen
	}
	due := b.until.Sub(now) <= readyEarly
	if due || e.State == StateHalfOpen {
		e.DueAt = time.Time{}
	}
	if v.reject(e, r.causeOf(b.record)); due {
		v.admits, v.readyAt, v.trialRequested = admitsSome, b.until, r.trialRequested()
	}
}

// onRamp is derive for a closed circuit on a ramp.
func (v *view) onRamp(r *replica, circuit string, now time.Time) {
	local, shared := r.local.rampEnds(r.settings.Ramp), r.shared.rampEnds(r.settings.Ramp)
	until := local
	if shared.After(until) {
		until = shared
	}
	if now.Before(until) {
		v.admits = admitsSome
		v.rejection = &OpenError{Circuit: circuit, State: StateClosed, Local: r.linked && !now.Before(shared), DueAt: until}
	}
}

// causeOf returns the cause of an opening: the error itself if it is an error of this
// process, otherwise its text.
func (r *replica) causeOf(rec *Record) keptCause {
	switch rec.Cause {
	case "":
		return keptCause{}
	case r.cause.short:
		return r.cause
	}
	return keptCause{&cause{text: rec.Cause, short: rec.Cause}, rec.Cause}
}

// succeeded counts a success that is not reported.
func (v *view) succeeded() {
	if v.tallies {
		v.tally.Add()
	}
	v.countCall(int(OutcomeSuccess))
}

// countCall counts a call for Stats.Calls.
func (v *view) countCall(kind int) {
	if v.counts != nil {
		v.counts.Add(kind)
	}
}

// shareView makes one view for all healthy circuits with these settings.
func (s *settings) shareView() {
	if s.CountCalls {
		return // each circuit has its own counters
	}
	r := newReplica(s, "", false, 0)
	v, noisy := new(view), new(view)
	v.derive(&r, "", time.Time{})
	*noisy = *v
	noisy.setQuiet(false)
	v.twin, noisy.twin = noisy, v
	s.healthy = v
}

// same reports whether v and w admit and reject the same calls. It ignores readyAt
// and the fields of setQuiet.
func (v *view) same(w *view) bool {
	return v.plain == w.plain && v.tallies == w.tallies && v.forced == w.forced && v.admits == w.admits && v.trialRequested == w.trialRequested &&
		v.localSince == w.localSince && v.sharedSince == w.sharedSince &&
		v.settings == w.settings && v.state == w.state && v.cause == w.cause &&
		v.rejection.same(w.rejection)
}

// same compares all but the causes.
func (e *OpenError) same(f *OpenError) bool {
	if e == nil || f == nil {
		return e == f
	}
	return e.Circuit == f.Circuit && e.State == f.State && e.Local == f.Local && e.By == f.By && e.Reason == f.Reason &&
		e.DueAt.Equal(f.DueAt)
}

// states are the states of the two circuits, as listeners are notified of them.
type states struct{ local, shared State }

// states returns the state of each circuit. An override belongs to the circuit that it
// was made for.
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

// transitions calls add for each circuit whose state has changed since before.
func (r *replica) transitions(before states, now time.Time, add func(Transition)) {
	after, o := r.states(now), r.override(now)
	transition := func(local bool, from, to State, rec *Record, origin string) {
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
		add(t)
	}
	transition(false, before.shared, after.shared, r.shared, r.shared.By)
	transition(true, before.local, after.local, &r.local, r.settings.Instance)
}

// Stats is the last known state of a breaker. Fields may be added.
type Stats struct {
	State      State     // as Breaker.State: the state that a call of this process meets
	DueAt      time.Time // while State is open: when a trial may run; in the past: a trial may run now. Zero: unknown
	DryRun     bool      // Config.DryRun: every call runs, whatever State is
	Local      CircuitStats
	Shared     CircuitStats // zero without a storage
	Override   *Override    // nil: none
	Calls      CallCounts   // zero without Config.CountCalls
	StorageErr error        // why the shared circuit does not apply; nil while it applies
}

// CircuitStats is the last known state of one circuit, the local or the shared one.
type CircuitStats struct {
	State    State
	Suspect  bool                          // only the shared circuit: closed, while evidence is collected
	Failures int                           // consecutive failures; while open, the failures that opened it; 0 while evidence is collected
	Window   struct{ Calls, Failures int } // in Config.Window; 0 without Config.FailureRate, and without failures
	Since    time.Time                     // when this process saw State begin
	DueAt    time.Time                     // while open: when a trial may run
	By       string                        // the instance that opened the circuit, or reported the last failure
	Cause    string                        // the error that opened the circuit
}

// CallCounts are the numbers of calls by outcome, since the breaker was made.
type CallCounts struct {
	Success, Failure, Ignored, Rejected uint64
	WouldReject                         uint64 // calls that ran only because of Config.DryRun; in no other count
}

// These kinds of calls are counted beside the three Outcomes.
const (
	rejectedCalls    = striped.Kinds - 2
	wouldRejectCalls = striped.Kinds - 1
)

// stats returns the part of a record that users see.
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
