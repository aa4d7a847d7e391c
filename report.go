package infuse

import (
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

// flight is a report that is yet to be sent, or under way.
type flight struct{ landed chan struct{} }

// report counts the result of an admitted call. After a failure it returns when
// the storage knows, or when the call may not wait any longer.
func (b *Breaker) report(a admission, r result) {
	reason := r.cause()
	b.mu.Lock()
	f, leads := b.count(a.generation, r, reason)
	waits := r.outcome == OutcomeFailure || b.config.Strict || b.local()
	if leads && !waits {
		b.spawn(b.sendReports)
	}
	b.mu.Unlock()
	b.tell()
	switch {
	case f == nil || !waits:
	case leads:
		b.awaited(a, b.leadReports)
	default:
		b.await(f.landed, a)
	}
}

// leadReports sends the next report, and leaves what comes after it to the
// background.
func (b *Breaker) leadReports() {
	if b.sendReport() {
		b.mu.Lock()
		b.spawn(b.sendReports)
		b.mu.Unlock()
	}
}

// count adds the result to the next report, and returns that report's flight:
// nil if there is nothing to send. leads tells that the caller is to see to
// it that it is sent. b.mu is held.
func (b *Breaker) count(generation int64, r result, reason error) (f *flight, leads bool) {
	if b.record.State != StateClosed || generation != b.record.Generation || b.fallsBackTo(FallbackClosed) || b.fallsBackTo(FallbackOpen) {
		return nil, false
	}
	if r.outcome == OutcomeFailure {
		b.cause = reason
	} else if b.record.Failures == 0 && b.pending == (row{}) && !b.reporting {
		return nil, false
	}
	if b.detached() {
		one := row{}
		one.add(r, b.config.FailMax)
		b.pending.add(r, b.config.FailMax)
		b.applyOwn(b.reportOf(one))
		return nil, false
	}
	b.pending.add(r, b.config.FailMax)
	if b.view.Load().fast {
		b.refresh()
	}
	if b.flight == nil {
		b.flight = &flight{make(chan struct{})}
	}
	leads = !b.reporting
	b.reporting = true
	return b.flight, leads
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
	for b.sendReport() {
	}
}

// sendReport sends what is pending. It returns whether more has come
// meanwhile; if not, reporting has ended.
func (b *Breaker) sendReport() (more bool) {
	b.mu.Lock()
	f, c := b.flight, b.reportOf(b.pending)
	empty := b.pending == row{} || b.detached()
	b.flight = nil
	if !empty {
		b.pending = row{}
	}
	b.mu.Unlock()
	if !empty {
		b.send(c)
	}
	b.mu.Lock()
	if b.detached() {
		b.dropFlight()
	}
	more = b.flight != nil
	b.reporting = more
	if !more {
		b.refresh()
	}
	b.mu.Unlock()
	b.tell()
	if f != nil {
		close(f.landed)
	}
	return more
}

// dropFlight lets go those who wait for a report that will not be sent now.
func (b *Breaker) dropFlight() {
	if b.flight != nil {
		close(b.flight.landed)
		b.flight = nil
	}
}
