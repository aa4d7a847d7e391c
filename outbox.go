package infuse

import (
	"math"
	"time"
)

// This file is what a replica has yet to tell the storage: what is noted for it,
// when that goes, and whether it has been heard. Like replica.go it is pure.

// outbox is what the storage is yet to hear.
type outbox struct {
	sent    Change // under way, or unanswered: it goes again under its number until it is answered
	under   bool   // a request is under way: sent, or a read if that is empty
	through uint64 // so many of the noted outcomes are in sent, or were before
	numbers uint64 // of changes, so far

	next    Change        // being filled
	counted Window        // for the failure rate: goes with next, but not before hold while the fleet is asked for it
	openFor time.Duration // the longest that the failures in next ask for
	hold    time.Time     // until then, successes alone do not go, nor does what was counted while the fleet is asked
	checkAt time.Time     // when what shared says goes to the storage, which may have lost it, or have heard what refutes it; zero if not
}

// tells reports whether outcomes say anything to the fleet: not once its circuit
// has opened, as far as is known.
func (r *replica) tells(now time.Time) bool {
	return r.linked && r.decides() && r.shared.at(now).State == StateClosed
}

// keep counts outcomes for the fleet's failure rate.
func (r *replica) keep(b Bucket) {
	if r.settings.FailureRate > 0 {
		w := &r.out.counted
		w.Width = r.settings.limits.width()
		w.put(b, w.Width)
		w.prune(b.Start)
	}
}

// note adds an outcome to what the storage is to hear, if it says anything.
func (r *replica) note(res *result, now time.Time) uint64 {
	if res.outcome == OutcomeIgnored || !r.tells(now) {
		return 0
	}
	if res.outcome == OutcomeFailure || r.counting(now) {
		r.keep(one(res.outcome, 1, now))
	}
	news := r.awaitsSuccess()
	if res.outcome == OutcomeFailure {
		news = r.shared.weighed() || r.settings.rowCounts()
		r.out.openFor = max(r.out.openFor, res.openFor)
	} else if r.shared.weighed() && r.out.hold.IsZero() {
		// In a large fleet a few are enough, and the others hear of them first.
		most := min(r.settings.Suspicion, r.shared.OpensAt.Sub(now)) / 4
		r.out.hold = now.Add(time.Duration(r.roll() * float64(most)))
	}
	if news {
		r.out.next.Calls.add(res.outcome)
	}
	if !news && !r.reportsRate() {
		return 0
	}
	r.noted++
	return r.noted
}

// reportsRate reports whether what was counted goes at once: a failure does,
// unless the fleet is asked. Then every process reports at times that do not
// depend on the outcomes, so that the storage hears of successes as of failures.
func (r *replica) reportsRate() bool {
	return failed(r.out.counted.Buckets) > 0 && (r.settings.Strict || !r.shared.rated())
}

// awaitsSuccess reports whether a success is news: there is a row of failures on
// record or about to be, and that counts.
func (r *replica) awaitsSuccess() bool {
	return r.shared.weighed() || r.settings.rowCounts() &&
		(r.shared.Failures > 0 || r.out.next.Calls.Failures > 0 || r.out.sent.Calls.Failures > 0)
}

// add appends an outcome.
func (c *Calls) add(o Outcome) {
	up := func(n *int) { *n = min(*n+1, math.MaxInt32) }
	if o == OutcomeSuccess {
		up(&c.Successes)
		c.Streak = 0
		return
	}
	up(&c.Failures)
	up(&c.Streak)
	if c.Successes == 0 {
		up(&c.Lead)
	}
}

// outgoing returns what is to go to the storage now, and takes it to be under
// way: a change, or a read if it has no number; nil if nothing is to go.
func (r *replica) outgoing(now time.Time) *Change {
	if r.out.counted.Buckets != nil && failed(r.out.counted.Buckets) == 0 && !r.counting(now) {
		r.out.counted = Window{}
	}
	switch {
	case !r.linked || r.out.under:
		return nil
	case r.trouble != nil && (!r.linkUp || now.Before(r.retryAt)):
		return nil
	case r.out.sent.Number > 0:
	case !r.fill(now) && r.trouble == nil:
		return nil
	}
	r.out.under = true
	sent := r.out.sent
	sent.news = r.news
	return &sent
}

// fill makes what is to be said the next change, if it may go yet.
func (r *replica) fill(now time.Time) bool {
	next, held := &r.out.next, now.Before(r.out.hold) && !(r.settings.Strict && r.reportsRate())
	asked := r.isRateAsked(now)
	urgent := next.Calls.Failures > 0 || r.pressing() || r.checks(now)
	if !urgent && (held || next.Calls.Successes == 0 && !(asked && r.out.counted.Buckets != nil)) {
		if asked && !held {
			r.out.hold = r.nextHold(now)
		}
		return false
	}
	r.out.numbers++
	c, through := *next, r.noted
	alone := next.Override != nil && (next.Calls != (Calls{}) || r.out.counted.Buckets != nil)
	if alone { // so that it need not wait until failures pause: the rest follows
		c, through = Change{Override: next.Override}, r.out.through
	}
	c.Source, c.Number = r.source, r.out.numbers
	c.Seen, c.Limits = r.shared, r.settings.limits
	c.By, c.Cause = r.settings.Instance, textOf(r.cause)
	c.OpenFor = r.openFor(now)
	if !alone && (!asked || !held) {
		c.Counted, r.out.counted, r.out.hold = r.out.counted.middles(now), Window{}, r.nextHold(now)
	}
	r.out.sent, r.out.through = c, through
	if alone {
		next.Override = nil
		return true
	}
	r.out.next, r.out.openFor = Change{}, 0
	return true
}

// isRateAsked reports whether the fleet is asked for its failure rate, and this
// process has one to tell.
func (r *replica) isRateAsked(now time.Time) bool {
	return r.settings.FailureRate > 0 && r.shared.rated() && now.Before(r.shared.OpensAt)
}

// nextHold is until when what was counted is held back while the fleet is asked
// for its failure rate. It is often at first, and later once a bucket, and once
// more before the end.
func (r *replica) nextHold(now time.Time) time.Time {
	if !r.isRateAsked(now) {
		return time.Time{}
	}
	pause := max(now.Sub(r.shared.SuspectAt), r.settings.Suspicion/2)
	pause = time.Duration((1 + r.roll()) / 2 * float64(min(pause, r.settings.limits.width())))
	if last := r.shared.OpensAt.Add(-time.Duration(r.roll() * float64(r.settings.Suspicion))); last.After(now) && last.Before(now.Add(pause)) {
		return last
	}
	return now.Add(pause)
}

// openFor is for how long the calls in next open the fleet's circuit: as long
// as the own one stays open, if it does, so that both are due together.
func (r *replica) openFor(now time.Time) time.Duration {
	if own := r.own.at(now); own.State == StateOpen {
		return max(own.DueAt.Sub(now), time.Millisecond)
	}
	if r.out.openFor > 0 {
		return max(r.settings.ResetTimeout, r.out.openFor)
	}
	return 0
}

// heard reports whether the storage has heard of the outcome of that number,
// or will not for now.
func (r *replica) heard(number uint64) bool {
	return number <= r.landed || r.trouble != nil || number > r.out.through && !r.pending()
}

// pending reports whether something is yet to be said.
func (r *replica) pending() bool { return r.out.next.Calls != (Calls{}) || r.pressing() }

// pressing reports whether there is something beside outcomes of calls that is to
// be said at once.
func (r *replica) pressing() bool {
	n := &r.out.next
	return r.reportsRate() || len(n.Settled) > 0 || n.Move != nil || n.Override != nil || n.Ask != ""
}

// idle reports whether the storage has heard everything.
func (r *replica) idle() bool { return !r.pending() && r.out.sent.Number == 0 }
