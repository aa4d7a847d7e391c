package infuse

import "time"

// view is what calls meet: a pure function of the replica, in the form in
// which the hot path needs it. It never changes.
type view struct {
	rejects   error // the rejection of every call, where nobody is to be told of it; nil otherwise
	fast      bool  // every call runs, and a success that finds the same view need do nothing
	quiet     bool  // a success that finds the same view need not be counted
	admits    gate
	own       int64 // the generations of the calls that it admits
	shared    int64
	settings  *settings
	state     State
	local     bool       // the state is the own circuit's alone
	rejection *OpenError // nil where every call runs
}

// gate is what a view does with a call.
type gate uint8

const (
	admitsAll   gate = iota
	admitsNone       // rejects from the view
	admitsAsker      // one call asks for a trial, the others are rejected
)

// armedEarly is how much before its time a circuit counts as due in a view:
// the record has the last word, so a call at the very instant is not turned
// away by a timer that is about to fire.
const armedEarly = time.Millisecond

// view derives what calls meet.
func (r *replica) view(circuit string, now time.Time) view {
	v := view{settings: r.settings, shared: r.sharedSince(now), own: r.own.Since}
	if r.trouble != nil && r.settings.Fallback != FallbackLocal {
		return r.fallback(v, circuit)
	}
	own, fleet := r.own.at(now), r.fleet(now)
	v.local = r.linked && fleet.State == StateClosed && own.State != StateClosed
	if own.State == StateClosed && fleet.State == StateClosed {
		v.quiet = own.Failures == 0 && r.out.next.Calls == (Calls{}) && !r.awaitsSuccess()
		v.fast = v.quiet && !r.settings.hooked()
		return v
	}
	most := r.settings.MaxTrials
	blocking, until := fleet, fleet.blockedUntil(most, now)
	if o := own.blockedUntil(most, now); fleet.State == StateClosed || o.After(until) {
		blocking, until = own, o
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
	return v
}

// fallback is the view by Config.Fallback, where that does not leave it to the
// own circuit.
func (r *replica) fallback(v view, circuit string) view {
	if r.settings.Fallback == FallbackClosed {
		v.quiet, v.fast = true, !r.settings.hooked()
		return v
	}
	v.state, v.local, v.admits = StateOpen, true, admitsNone
	v.rejection = &OpenError{Circuit: circuit, State: StateOpen, Local: true, Cause: causeOf(r.trouble)}
	return v
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
	return &cause{text: rec.Cause}
}

// same reports whether calls meet the same in both.
func (v *view) same(w *view) bool {
	return v.fast == w.fast && v.quiet == w.quiet && v.admits == w.admits && v.own == w.own && v.shared == w.shared &&
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
