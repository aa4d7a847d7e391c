package infuse

import "time"

// This file is how a circuit comes back: how long it stays open, and which share
// of the calls runs after it has closed. Like state.go it is pure.

// grown is how long the circuit stays open if it opens now: twice as long as the
// last time that it remembers, up to MaxResetTimeout. 0 where the open time does
// not grow.
func (r *Record) grown(l *Limits, now time.Time) time.Duration {
	if l.MaxResetTimeout == 0 {
		return 0
	}
	last := r.remembered(l, now)
	if last == 0 {
		return l.ResetTimeout
	}
	return min(2*last, l.MaxResetTimeout)
}

// remembered is the last open time, halved for every such time that the circuit
// has been closed since, as Envoy's outlier detection does; 0 once it is below
// ResetTimeout.
func (r *Record) remembered(l *Limits, now time.Time) time.Duration {
	last, calm := r.OpenTime, time.Duration(0)
	if r.State == StateClosed {
		calm = now.Sub(r.ClosedAt)
	}
	for ; last > 0 && last >= l.ResetTimeout && calm >= last; last /= 2 {
		calm -= last
	}
	if last < l.ResetTimeout {
		return 0
	}
	return last
}

// remembersUntil is when the last open time plays no part any more.
func (r *Record) remembersUntil() time.Time { return r.ClosedAt.Add(2 * r.OpenTime) }

// firstShare is the share of calls that runs when a ramp begins.
const firstShare = 0.1

// share is the share of calls that runs in a closed circuit: less than 1 while
// it is on its ramp.
func (r *Record) share(ramp time.Duration, now time.Time) float64 {
	if !now.Before(r.rampEnds(ramp)) {
		return 1
	}
	return firstShare + (1-firstShare)*float64(max(0, now.Sub(r.ClosedAt)))/float64(ramp)
}

// rampEnds is when all calls run again: zero where they do.
func (r *Record) rampEnds(ramp time.Duration) time.Time {
	if ramp == 0 || r.ClosedAt.IsZero() || r.State != StateClosed {
		return time.Time{}
	}
	return r.ClosedAt.Add(ramp)
}
