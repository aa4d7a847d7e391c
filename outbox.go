package infuse

import (
	"cmp"
	"math"
	"time"
)

// This file is what a replica has yet to report to the storage, when that is sent,
// and whether it was acknowledged. Like replica.go it is pure.

// request is a change that is sent, or a read if it has no number. The change never
// changes.
type request struct {
	*Change
	received uint64 // records that were received before
}

// outbox is what the storage has yet to receive.
type outbox struct {
	sent     *Change // in flight, or timed out: it is sent again under its number until it is answered. nil: none
	inFlight bool    // a request is in flight: sent, or a read if that is nil

	next       draft
	counted    Window    // for the failure rate: goes with next, but not before hold while that is evaluated
	delayUntil time.Time // until then, successes alone are not sent, nor is what was counted while the failure rate is evaluated
	checkAt    time.Time // when the storage is to be asked whether it has lost the shared record; zero if not
}

// draft is what the next change is to report.
type draft struct {
	Settled      []Settlement
	Calls        Calls
	OpenFor      time.Duration // the longest that its failures ask for
	Manual       *ManualState
	Override     *Override
	RequestTrial string
}

func (d *draft) change() Change {
	return Change{Settled: d.Settled, Calls: d.Calls, OpenFor: d.OpenFor, Manual: d.Manual, Override: d.Override, RequestTrial: d.RequestTrial}
}

// acts reports whether the draft has more than outcomes of calls.
func (d *draft) acts() bool {
	return len(d.Settled) > 0 || d.Manual != nil || d.Override != nil || d.RequestTrial != ""
}

// empty reports whether there is nothing to report, and no answer to come.
func (o *outbox) empty() bool {
	next := &o.next
	return o.sent == nil && !o.inFlight && len(o.counted.Buckets) == 0 && o.delayUntil.IsZero() && o.checkAt.IsZero() &&
		next.Calls == (Calls{}) && next.OpenFor == 0 && !next.acts()
}

// sentNumber is the number of the change that was sent, or 0.
func (o *outbox) sentNumber() uint64 {
	if o.sent == nil {
		return 0
	}
	return o.sent.Number
}

// sentCalls are the outcomes in the change that was sent.
func (o *outbox) sentCalls() Calls {
	if o.sent == nil {
		return Calls{}
	}
	return o.sent.Calls
}

// reports reports whether outcomes are evidence for the fleet.
func (r *replica) reports() bool {
	return r.linked && r.countsOutcomes() && (r.shared.State == StateClosed || r.shared.hasEvidence())
}

// keep counts outcomes for the fleet's failure rate.
func (r *replica) countForRate(b Bucket) {
	if r.settings.FailureRate > 0 {
		w := &r.out.counted
		w.Width = r.settings.limits.width()
		w.put(b, w.Width)
		w.prune(b.Start)
	}
}

// note adds an outcome to what is reported, if it is evidence. It returns the
// sequence number to wait for, or 0 if nothing is sent at once.
// R10.
func (r *replica) enqueue(a *admission, res *result, now time.Time) uint64 {
	if res.outcome == OutcomeIgnored || !r.reports() {
		return 0
	}
	sent := false
	if res.outcome == OutcomeFailure {
		if !r.countsLocally(a) || r.hasSuppliedAll(r.shared) {
			return 0
		}
		r.countForRate(one(res.outcome == OutcomeFailure, 1, now))
		r.out.next.OpenFor = max(r.out.next.OpenFor, res.openFor)
		if sent = r.shared.scored() || r.settings.streakCounts(); sent {
			r.supplied++
		}
	} else {
		if r.counting(now) || r.evaluatesRate() {
			r.countForRate(one(res.outcome == OutcomeFailure, 1, now))
		}
		if sent = r.awaitsSuccess(); sent {
			r.successReported(now)
		}
	}
	if sent {
		r.out.next.Calls.add(res.outcome)
	}
	if !sent && !r.sendsRate() {
		return 0
	}
	r.enqueued++
	return r.enqueued
}

// successReported takes a success from the evidence of this process. In a large
// fleet a few successes are enough, and the others hear of them first: so it may
// wait for a quarter of Suspicion.
func (r *replica) successReported(now time.Time) {
	if !r.shared.scored() {
		r.supplied = 0
		return
	}
	r.supplied = max(0, r.supplied-evidence.success)
	if r.out.delayUntil.IsZero() {
		r.out.delayUntil = now.Add(time.Duration(r.roll() * float64(r.settings.Suspicion) / 4))
	}
}

// reportsRate reports whether what was counted is sent at once: a failure is,
// unless the failure rate is evaluated. Then every process reports at times that do
// not depend on the outcomes, so that the storage receives successes as soon as
// failures.
// R21.
func (r *replica) sendsRate() bool {
	return failed(r.out.counted.Buckets) > 0 && (r.settings.Strict || !r.shared.Rated)
}

// awaitsSuccess reports whether a success is evidence: there is a score, or there
// are consecutive failures on record or about to be.
// R10.
func (r *replica) awaitsSuccess() bool {
	return r.shared.scored() || r.shared.State == StateClosed && r.settings.streakCounts() &&
		(r.shared.Failures > 0 || r.out.next.Calls.Failures > 0 || r.out.sentCalls().Failures > 0)
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

// outgoing returns what is to be sent now, and takes it to be in flight; nil if
// nothing is to be sent.
func (r *replica) outgoing(now time.Time) *request {
	if r.out.counted.Buckets != nil && failed(r.out.counted.Buckets) == 0 && !r.counting(now) && !r.evaluatesRate() {
		r.out.counted = Window{}
	}
	switch {
	case !r.linked || r.out.inFlight:
		return nil
	case r.storageErr != nil && (r.stopped || !r.linkUp || now.Before(r.retryAt)):
		return nil
	case r.out.sent != nil:
	case !r.prepare(now) && r.storageErr == nil:
		return nil
	}
	r.out.inFlight = true
	if r.out.sent == nil {
		return &request{new(Change), r.received}
	}
	return &request{r.out.sent, r.received}
}

// fill makes what is to be reported the next change, if it may be sent yet. A process
// that has received no record yet reads it first: see limitEvidence.
// R12.
func (r *replica) prepare(now time.Time) bool {
	if r.received == 0 && r.storageErr != nil && r.out.next.Manual == nil && r.out.next.Override == nil {
		return false
	}
	next, held, rated := &r.out.next, now.Before(r.out.delayUntil) && !r.sendsRate(), r.isRated()
	urgent := next.Calls.Failures > 0 || next.acts() || r.sendsRate() || r.checkDue(now)
	if !urgent && (held || next.Calls.Successes == 0 && !(rated && r.out.counted.Buckets != nil)) {
		return false
	}
	c, through := next.change(), r.enqueued
	switch {
	case next.Override != nil && (next.Calls != (Calls{}) || r.out.counted.Buckets != nil):
		// So that it need not wait until failures pause: the rest follows.
		c, through = Change{Override: next.Override}, r.sentUpTo
		next.Override = nil
	case rated && held:
		*next = draft{}
	default:
		c.Counted, r.out.counted, r.out.delayUntil = r.out.counted.middles(now), Window{}, r.nextDelay(now)
		*next = draft{}
	}
	r.changes++
	c.Source, c.Number = r.source, r.changes
	c.Seen, c.Limits = *r.shared, r.settings.limits
	c.By, c.Cause = r.settings.Instance, r.cause.short
	if c.OpenFor > 0 {
		c.OpenFor = max(r.settings.ResetTimeout, c.OpenFor)
	}
	r.out.sent, r.sentUpTo = &c, through
	return true
}

// nextHold is until when what was counted is held back while the failure rate is
// evaluated: shortly at first, and later for a bucket. Zero while it is not. In a
// large fleet a few reports are enough, and the others receive the result first.
func (r *replica) nextDelay(now time.Time) time.Time {
	if !r.isRated() {
		return time.Time{}
	}
	pause := min(max(now.Sub(r.shared.SuspectAt), r.settings.Suspicion/2), r.settings.limits.width())
	return now.Add(time.Duration((1 + r.roll()) / 2 * float64(pause)))
}

// acknowledged is the sequence number up to which nobody has to wait any more:
// the storage has received it, or will not for now.
func (r *replica) doneUpTo() uint64 {
	next := &r.out.next
	idle := r.out.sent == nil && next.Calls == (Calls{}) && !next.acts() && !r.sendsRate()
	_, manual := r.out.manual()
	if replaces := manual && !isStorageError(r.storageErr); r.storageErr != nil && !replaces || idle {
		return r.enqueued
	}
	return r.acknowledged
}

// manual returns the manual changes that the storage has not acknowledged. One of
// them replaces a record that cannot be read.
func (o *outbox) manual() (c Change, some bool) {
	if c.Manual, c.Override = o.next.Manual, o.next.Override; o.sent != nil {
		c.Manual, c.Override = cmp.Or(c.Manual, o.sent.Manual), cmp.Or(c.Override, o.sent.Override)
	}
	return c, c.Manual != nil || c.Override != nil
}
