package infuse

import (
	"context"
	"time"
)

// Outcomes of calls that were admitted while the circuit was closed travel to
// the storage in reports. At most one report is under way for a circuit;
// outcomes that come meanwhile go together in the next.

// row is a run of outcomes, oldest first: failures, then perhaps a success and
// failures after it. More need not be known to count as if each outcome had
// been sent by itself.
type row struct {
	failures int
	cleared  bool
	after    int
	openFor  time.Duration // the longest that a failure asks for: see result
}

func (w *row) add(r result, failMax int) {
	run := &w.failures
	if w.cleared {
		run = &w.after
	}
	switch {
	case *run >= failMax:
		// It opens the circuit: what comes after is of an older generation.
	case r.outcome == OutcomeFailure:
		*run++
		w.openFor = max(w.openFor, r.openFor)
	case r.outcome == OutcomeSuccess:
		w.cleared, w.after, w.openFor = true, 0, 0
	}
}

// report counts the result of an admitted call. After a failure it returns when
// the storage knows, or when the call may not wait any longer.
func (b *Breaker) report(a admission, r result) {
	reason := r.cause()
	b.mu.Lock()
	counted, leads := b.enqueue(a.generation, r, reason)
	waits := counted && (r.outcome == OutcomeFailure || b.config.Strict || b.local() || b.stopped)
	var landed <-chan struct{}
	switch {
	case waits && !leads:
		landed = b.nextLanding()
	case leads && !waits:
		b.sendOn()
	}
	b.mu.Unlock()
	b.tell()
	switch {
	case landed != nil:
		b.await(landed, a)
	case waits:
		b.awaited(a, b.leadReports)
	}
}

// leadReports sends the next report, and leaves what comes after it to the
// background.
func (b *Breaker) leadReports(ctx context.Context) {
	if b.sendReport(ctx) {
		b.mu.Lock()
		b.sendOn()
		b.mu.Unlock()
	}
}

// sendOn has what is left to send sent in the background. b.mu is held.
func (b *Breaker) sendOn() {
	b.reporting = b.spawn(b.sendReports)
}

// enqueue adds the result to the next report, unless it is nobody's news. leads
// tells that the caller is to see to it that the report is sent. b.mu is held.
func (b *Breaker) enqueue(generation int64, r result, reason error) (counted, leads bool) {
	if b.record.State != StateClosed || generation != b.record.Generation || b.detached() && !b.decidesItself() {
		return false, false
	}
	if r.outcome == OutcomeFailure {
		b.cause = reason
	} else if b.record.Failures == 0 && b.pending == (row{}) && !b.reporting {
		return false, false
	}
	if b.detached() {
		one := row{}
		one.add(r, b.config.FailMax)
		b.pending.add(r, b.config.FailMax)
		b.applyOwn(b.reportOf(one))
		return false, false
	}
	b.pending.add(r, b.config.FailMax)
	if b.view.Load().fast {
		b.refresh()
	}
	leads = !b.reporting
	b.reporting = true
	return true, leads
}

// nextLanding is closed when the report that is pending has arrived. It is
// made for those who wait, and so not where nobody does. b.mu is held.
func (b *Breaker) nextLanding() <-chan struct{} {
	if b.landing == nil {
		b.landing = make(chan struct{})
	}
	return b.landing
}

// reportOf returns the row as a change. b.mu is held.
func (b *Breaker) reportOf(w row) Change {
	c := b.change(ChangeReport)
	c.Token = b.tokens.next()
	c.Seen = Record{Generation: b.known}
	c.Failures, c.Cleared, c.FailuresAfter = w.failures, w.cleared, w.after
	c.Limits.ResetTimeout = max(c.Limits.ResetTimeout, w.openFor)
	return c
}

// sendReports sends until nothing is left to send.
func (b *Breaker) sendReports() {
	for b.sendReport(context.Background()) {
	}
}

// sendReport sends what is pending. It returns whether more has come
// meanwhile; if not, reporting has ended.
func (b *Breaker) sendReport(ctx context.Context) (more bool) {
	b.mu.Lock()
	landing := b.landing
	b.landing = nil
	c, some := b.nextReport()
	b.mu.Unlock()
	if some {
		b.send(ctx, c)
	}
	b.mu.Lock()
	more = !b.detached() && (b.pending != row{} || len(b.unsent) > 0)
	b.reporting = more
	if !more {
		b.dropLanding()
		if v := b.view.Load(); !v.fast && v.failures == 0 {
			b.refresh() // it may have been slow for the report's sake alone
		}
	}
	b.mu.Unlock()
	told := false
	defer func() {
		land(landing)
		if more && !told { // a listener has ended the goroutine
			b.mu.Lock()
			b.sendOn()
			b.mu.Unlock()
		}
	}()
	b.tell()
	told = true
	return more
}

// nextReport takes what is to be sent next: first what had to wait. b.mu is held.
func (b *Breaker) nextReport() (c Change, some bool) {
	switch {
	case b.detached():
		return c, false
	case len(b.unsent) > 0:
		c, b.unsent = b.unsent[0], b.unsent[1:]
	case b.pending != row{}:
		c, b.pending = b.reportOf(b.pending), row{}
	default:
		return c, false
	}
	return c, true
}

// dropLanding lets go those who wait for a report that will not be sent now.
// b.mu is held.
func (b *Breaker) dropLanding() {
	land(b.landing)
	b.landing = nil
}

func land(landing chan struct{}) {
	if landing != nil {
		close(landing)
	}
}
