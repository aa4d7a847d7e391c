package infuse

import (
	"cmp"
	"math"
	"time"
)

// This file is the reports of a replica: pending, in flight and acknowledged. Like
// replica.go it is pure.

// request is a change to send, or a read if its Number is 0. It never changes.
type request struct {
	*Change
	received uint64 // replica.received when it was sent
}

// outbox has the reports that the storage has not acknowledged.
type outbox struct {
	sent     *Change // in flight or timed out; sent again under its number until answered (R13). nil: none
	inFlight bool    // a request is in flight: a read if sent is nil

	next       draft
	counted    Window    // for the failure rate
	delayUntil time.Time // until then successes alone wait, and counted calls while the failure rate is evaluated
	checkAt    time.Time // when to send a change that finds lost data; zero: not
	suspicion  int64     // the generation of a suspicion that it was notified of and has not read (R15); 0: none
}

// draft is the content of the next change.
type draft struct {
	Settled      []Settlement
	Calls        Calls
	OpenFor      time.Duration // the longest Retry-After of its failures
	Manual       *ManualState
	Override     *Override
	RequestTrial string
}

func (d *draft) change() Change {
	return Change{Settled: d.Settled, Calls: d.Calls, OpenFor: d.OpenFor, Manual: d.Manual, Override: d.Override, RequestTrial: d.RequestTrial}
}

// acts reports whether the draft has more than outcomes of calls.
func (d *draft) acts() bool { return acts(d.Settled, d.Manual, d.Override, d.RequestTrial) }

// empty reports whether there is nothing to report and no answer to wait for.
func (o *outbox) empty() bool {
	next := &o.next
	return o.sent == nil && !o.inFlight && len(o.counted.Buckets) == 0 && o.delayUntil.IsZero() && o.checkAt.IsZero() && o.suspicion == 0 &&
		next.Calls == (Calls{}) && next.OpenFor == 0 && !next.acts()
}

// sentNumber returns the number of the change that was sent, or 0.
func (o *outbox) sentNumber() uint64 {
	if o.sent == nil {
		return 0
	}
	return o.sent.Number
}

// sentCalls returns the outcomes in the change that was sent.
func (o *outbox) sentCalls() Calls {
	if o.sent == nil {
		return Calls{}
	}
	return o.sent.Calls
}

// reports reports whether outcomes are evidence for the shared circuit.
func (r *replica) reportsOutcomes() bool {
	return r.linked && r.countsOutcomes() && (r.shared.State == StateClosed || r.shared.hasEvidence())
}

// countForRate counts calls for the shared failure rate.
func (r *replica) countForRate(b Bucket) {
	if r.settings.FailureRate > 0 {
		w := &r.out.counted
		w.Width = r.settings.limits.width()
		w.put(b, w.Width)
		w.prune(b.Start)
	}
}

// enqueue adds an outcome to the next change if it is evidence (R10). It returns the
// sequence number to wait for, or 0 if nothing is sent at once.
func (r *replica) enqueue(a *admission, res *result, now time.Time) uint64 {
	if res.outcome == OutcomeIgnored || !r.reportsOutcomes() {
		return 0
	}
	reported := false
	if res.outcome == OutcomeFailure {
		if !r.countsLocally(a) || r.hasSuppliedAll(r.shared) {
			return 0
		}
		r.countForRate(one(true, 1, now))
		r.out.next.OpenFor = max(r.out.next.OpenFor, res.openFor)
		if reported = r.shared.scored() || r.settings.streakCounts(); reported {
			r.supplied++
		}
	} else {
		if r.counting(now) || r.evaluatesRate() {
			r.countForRate(one(false, 1, now))
		}
		if reported = r.awaitsSuccess(); reported {
			r.successReported(now)
		}
	}
	if reported {
		r.out.next.Calls.add(res.outcome)
	}
	if !reported && !r.sendsRate() {
		return 0
	}
	r.enqueued++
	return r.enqueued
}

// successReported takes a success off the evidence that this process has supplied.
// With a score, the report may wait for up to Suspicion/4 (R15): in a large fleet a
// few successes are enough.
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

// sendsRate reports whether counted calls are sent at once: after a failure, unless
// the failure rate is being evaluated. Then the times of reports do not depend on
// results, so successes arrive as soon as failures (R21).
func (r *replica) sendsRate() bool {
	return failed(r.out.counted.Buckets) > 0 && (r.settings.Strict || !r.shared.Rated)
}

// awaitsSuccess reports whether a success is evidence: there is a score, or there are
// consecutive failures on record or in pending reports, or a notice of a suspicion
// (R10).
func (r *replica) awaitsSuccess() bool {
	return r.shared.scored() || r.shared.State == StateClosed && r.settings.streakCounts() &&
		(r.shared.Failures > 0 || r.out.suspicion > 0 || r.out.next.Calls.Failures > 0 || r.out.sentCalls().Failures > 0)
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

// outgoing returns the request to send now, which is then in flight, or nil.
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
	r.out.inFlight, r.out.suspicion = true, 0
	if r.out.sent == nil {
		return &request{new(Change), r.received}
	}
	return &request{r.out.sent, r.received}
}

// prepare makes the next change from the pending reports, and reports whether it may
// be sent now. A process that has received no record reads one first (R12).
func (r *replica) prepare(now time.Time) bool {
	if r.received == 0 && r.storageErr != nil && r.out.next.Manual == nil && r.out.next.Override == nil {
		return false
	}
	next, delayed, rated := &r.out.next, now.Before(r.out.delayUntil) && !r.sendsRate(), r.isRated()
	urgent := next.Calls.Failures > 0 || next.acts() || r.sendsRate() || r.checkDue(now)
	if !urgent && (delayed || next.Calls.Successes == 0 && !(rated && r.out.counted.Buckets != nil)) {
		return false
	}
	c, upTo := next.change(), r.enqueued
	switch {
	case next.Override != nil && (next.Calls != (Calls{}) || r.out.counted.Buckets != nil):
		// It is sent first: it must not wait until failures pause.
		c, upTo = Change{Override: next.Override}, r.sentUpTo
		next.Override = nil
	case rated && delayed:
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
	r.out.sent, r.sentUpTo = &c, upTo
	return true
}

// nextDelay returns when counted calls may be sent while the failure rate is evaluated:
// soon at first, and later after up to a tenth of the window, because in a large fleet a
// few reports are enough. Zero if the rate is not evaluated.
func (r *replica) nextDelay(now time.Time) time.Time {
	if !r.isRated() {
		return time.Time{}
	}
	pause := min(max(now.Sub(r.shared.SuspectAt), r.settings.Suspicion/2), r.settings.limits.width())
	return now.Add(time.Duration((1 + r.roll()) / 2 * float64(pause)))
}

// doneUpTo returns the sequence number up to which no call waits any longer: the
// storage has acknowledged it, or is unavailable.
func (r *replica) doneUpTo() uint64 {
	next := &r.out.next
	idle := r.out.sent == nil && next.Calls == (Calls{}) && !next.acts() && !r.sendsRate()
	_, manual := r.out.manual()
	if replaces := manual && !isStorageError(r.storageErr); r.storageErr != nil && !replaces || idle {
		return r.enqueued
	}
	return r.acknowledged
}

// manual returns the manual changes that the storage has not acknowledged.
func (o *outbox) manual() (c Change, some bool) {
	if c.Manual, c.Override = o.next.Manual, o.next.Override; o.sent != nil {
		c.Manual, c.Override = cmp.Or(c.Manual, o.sent.Manual), cmp.Or(c.Override, o.sent.Override)
	}
	return c, c.Manual != nil || c.Override != nil
}
