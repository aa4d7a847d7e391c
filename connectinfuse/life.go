package connectinfuse

import (
	"context"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
)

// life is what a stream has shown of the service so far, and the permit that it
// settles. A permit is settled once, whoever comes first.
type life struct {
	ctx     context.Context // of the call
	breaker *infuse.Breaker
	permit  infuse.Permit
	proof   time.Duration
	opened  time.Time

	mu       sync.Mutex
	first    time.Time // when the first message came; zero before
	tried    bool      // the permit was a trial's, which has succeeded: only a failure counts
	over     bool      // what comes later counts for nothing
	doubtful bool      // something has gone wrong, and the caller has yet to ask what
}

// message notes that a message has come.
func (l *life) message(trial bool) {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return
	}
	if l.first.IsZero() {
		l.first = time.Now()
	} else {
		l.over = l.isProved()
	}
	l.tried = l.tried || trial
	settles := l.over || trial
	l.mu.Unlock()
	if settles {
		l.permit.Settle(infuse.OutcomeSuccess)
	}
}

// isProved reports whether the stream is a success, whatever comes. l.mu is held.
func (l *life) isProved() bool { return !l.first.IsZero() && time.Since(l.first) >= l.proof }

// stood notes that a trial's headers have stood for long enough.
func (l *life) stood() {
	l.mu.Lock()
	succeeds := !l.over && !l.doubtful
	l.tried = l.tried || succeeds
	l.mu.Unlock()
	if succeeds {
		l.permit.Settle(infuse.OutcomeSuccess)
	}
}

// doubt notes that the next Receive is going to say what has gone wrong.
func (l *life) doubt() {
	l.mu.Lock()
	l.doubtful = true
	l.mu.Unlock()
}

// leave settles a stream that its caller closes before its end. What the caller
// has not asked for is no failure of the service.
func (l *life) leave() {
	l.mu.Lock()
	over, silent := l.over, l.first.IsZero()
	l.over = true
	l.mu.Unlock()
	switch {
	case over:
	case silent:
		l.permit.Settle(infuse.OutcomeIgnored)
	default:
		l.permit.Settle(infuse.OutcomeSuccess)
	}
}

// end settles a stream that has ended. wasCut tells whether it had headers, and may
// have been cut.
func (l *life) end(outcome infuse.Outcome, err error, wasCut func() bool) {
	l.mu.Lock()
	over, tried, proved, silent := l.over, l.tried, l.isProved(), l.first.IsZero()
	l.over = true
	l.mu.Unlock()
	switch {
	case over:
		return
	case proved:
		outcome = infuse.OutcomeSuccess
	case outcome == infuse.OutcomeFailure && silent && time.Since(l.opened) >= l.proof && wasCut():
		outcome = infuse.OutcomeIgnored
	}
	if !tried {
		settle(l.permit, outcome, err)
	} else if outcome == infuse.OutcomeFailure {
		l.failAgain(err)
	}
}

// failAgain counts a failure of a stream whose trial has succeeded, in the
// circuit that it has closed. Where that is not closed, more trials are needed,
// and each is judged by itself.
func (l *life) failAgain(err error) {
	if l.breaker.State() != infuse.StateClosed || l.ctx.Err() == context.Canceled {
		return
	}
	// A deadline may have passed, but not before the call: that would be ignored.
	if permit, rejected := l.breaker.Acquire(context.WithoutCancel(l.ctx)); rejected == nil {
		settle(permit, infuse.OutcomeFailure, err)
	}
}
