package infuse

import "time"

// view is what calls meet: a pure function of the replica, in the form in
// which the hot path needs it. It never changes.
type view struct {
	rejects    error // the rejection of every call, where nobody is to be told of it; nil otherwise
	onlyCounts bool  // every call is rejected and counted, and nobody is to be told
	plain      bool  // every call runs, and nothing else is to be done for it before
	quiet      bool  // a success that finds the same view is no news: at most it is tallied
	fast       bool  // both
	tallies    bool  // it is tallied
	held       bool  // by an override
	tally      *striped
	counts     *callCounts // of all calls; nil where nobody asks
	admits     gate
	own        int64 // the generations of the calls that it admits
	shared     int64
	settings   *settings
	state      State
	local      bool       // the state is the own circuit's alone
	rejection  *OpenError // nil where every call runs
}

// gate is what a view does with a call.
type gate uint8

const (
	admitsAll   gate = iota
	admitsNone       // rejects from the view
	admitsAsker      // each call asks the replica: for a trial, or on a ramp
)

// armedEarly is how much before its time a circuit counts as due in a view:
// the record has the last word, so a call at the very instant is not turned
// away by a timer that is about to fire.
const armedEarly = time.Millisecond

// derive makes v what calls meet. It is a func of the replica alone.
func (v *view) derive(r *replica, circuit string, now time.Time) {
	v.settings, v.own, v.shared = r.settings, r.own.Since, r.sharedSince(now)
	held := r.override(now)
	v.held = held != nil
	if held != nil && held.State == StateOpen {
		v.heldOpen(r, held, circuit)
		return
	}
	if held == nil && r.trouble != nil && r.settings.Fallback != FallbackLocal {
		v.fallBack(r, circuit)
		return
	}
	own, fleet := r.own.at(now), r.met(now)
	if held != nil && (own.State != StateClosed || fleet.State != StateClosed) { // nothing is counted then
		v.admitAll(true)
		return
	}
	if own.State == StateClosed && fleet.State == StateClosed {
		quiet := (own.Failures == 0 || !r.settings.rowCounts()) && r.out.next.Calls == (Calls{}) && !r.awaitsSuccess()
		v.tallies = r.counting(now)
		if r.settings.Ramp > 0 && held == nil {
			v.onRamp(r, own, r.ramping(now), circuit, now)
		}
		v.admitAll(quiet)
		return
	}
	v.local = r.linked && fleet.State == StateClosed
	most := r.settings.MaxTrials
	blocking, until := fleet, fleet.blockedUntil(most, now)
	if o := own.blockedUntil(most, now); fleet.State == StateClosed || o.After(until) {
		blocking, until = own, o
	}
	if alone := r.aloneFrom(now); alone.After(until) {
		until = alone
	}
	if v.admits = admitsNone; until.Sub(now) <= armedEarly {
		v.admits, until = admitsAsker, time.Time{}
	}
	v.state = blocking.State
	if fleet.State == StateOpen {
		v.state = StateOpen
	}
	v.rejection = &OpenError{Circuit: circuit, State: v.state, Local: v.local, By: blocking.By, Cause: r.causeOf(blocking)}
	if v.state == StateOpen {
		v.rejection.DueAt = until
	}
}

// admitAll is the end of derive where every call runs, or every one that a ramp
// lets run.
func (v *view) admitAll(quiet bool) {
	v.quiet, v.plain = quiet, v.admits == admitsAll && !v.settings.hooked()
	v.fast = v.plain && v.quiet
}

// onRamp is derive in a closed circuit that does not yet let every call run.
func (v *view) onRamp(r *replica, own, fleet *Record, circuit string, now time.Time) {
	until, fleets := own.rampEnds(r.settings.Ramp), fleet.rampEnds(r.settings.Ramp)
	local := r.linked && !now.Before(fleets)
	if fleets.After(until) {
		until = fleets
	}
	if now.Before(until) {
		v.admits = admitsAsker
		v.rejection = &OpenError{Circuit: circuit, State: StateClosed, Local: local, DueAt: until}
	}
}

// heldOpen is derive under an override that lets no call run.
func (v *view) heldOpen(r *replica, o *Override, circuit string) {
	v.state, v.admits, v.local = StateOpen, admitsNone, r.linked && o == r.own.Override
	v.rejection = &OpenError{Circuit: circuit, State: StateOpen, Local: v.local, By: o.By, Reason: o.Reason, DueAt: o.Until}
}

// fallBack is derive by Config.Fallback, where that does not leave it to the
// own circuit.
func (v *view) fallBack(r *replica, circuit string) {
	if r.settings.Fallback == FallbackClosed {
		v.admitAll(true)
		return
	}
	v.state, v.local, v.admits = StateOpen, true, admitsNone
	v.rejection = &OpenError{Circuit: circuit, State: StateOpen, Local: true, Cause: causeOf(r.trouble)}
}

// causeOf returns what opened a circuit: the error itself where this process
// has met it, or else its text.
func (r *replica) causeOf(rec *Record) error {
	if rec.Cause == "" {
		return nil
	}
	if r.cause != nil && textOf(r.cause) == rec.Cause {
		return r.cause
	}
	return &cause{text: rec.Cause, short: rec.Cause}
}

// succeeded counts a success that is no news.
func (v *view) succeeded() {
	if v.tallies {
		v.tally.add()
	}
	if v.counts != nil {
		v.counts.add(int(OutcomeSuccess))
	}
}

// same reports whether calls meet the same in both.
func (v *view) same(w *view) bool {
	return v.plain == w.plain && v.quiet == w.quiet && v.tallies == w.tallies && v.held == w.held && v.admits == w.admits && v.own == w.own && v.shared == w.shared &&
		v.settings == w.settings && v.state == w.state && v.local == w.local &&
		v.rejection.same(w.rejection)
}

func (e *OpenError) same(f *OpenError) bool {
	if e == nil || f == nil {
		return e == f
	}
	return e.Circuit == f.Circuit && e.State == f.State && e.Local == f.Local && e.By == f.By && e.Reason == f.Reason &&
		e.DueAt.Equal(f.DueAt) && textOf(e.Cause) == textOf(f.Cause)
}
