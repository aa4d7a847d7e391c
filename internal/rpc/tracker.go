// Package rpc is what grpcinfuse and connectinfuse share: how a call settles its
// permit, how long a rejection lasts, and how a host is named.
//
// Both modules have tags of their own, and a newer root may be built with an
// older one of them. So add to this package, but change or remove nothing that a
// released module uses.
package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
)

// EstablishedAfter is how long after its first message a stream is established,
// as a response is in the Transport of the root package.
const EstablishedAfter = 2 * time.Second

// Attempt is an admitted call.
type Attempt struct {
	Breaker *infuse.Breaker
	Permit  infuse.Permit
	Trial   bool
}

// Acquire admits a call, or returns the error of Breaker.Acquire.
func Acquire(ctx context.Context, b *infuse.Breaker) (Attempt, error) {
	permit, err := b.Acquire(ctx)
	if err != nil {
		return Attempt{}, err
	}
	return Attempt{b, permit, permit.Trial()}, nil
}

// Settle settles the permit by an outcome. A failure keeps its error, which
// becomes the Cause of an OpenError. An ignored call that its caller has
// cancelled is known by the context of the permit.
func Settle(permit infuse.Permit, outcome infuse.Outcome, err error) {
	if outcome == infuse.OutcomeFailure && err != nil {
		permit.Done(err)
	} else {
		permit.Settle(outcome)
	}
}

// Unwound settles the permit of a call that did not return, as Breaker.Call does:
// a panic is a failure and goes on, and runtime.Goexit, which recovers nil, is
// ignored.
//
//	returned := false
//	defer func() {
//		if !returned {
//			rpc.Unwound(permit, recover())
//		}
//	}()
func Unwound(permit infuse.Permit, panicked any) {
	permit.Panicked(panicked)
	if panicked != nil {
		panic(panicked)
	}
}

// Tracker tracks how a stream goes, and settles its permit once. Start it before
// any other method is called.
type Tracker struct {
	ctx              context.Context // of the call
	attempt          func() Attempt
	establishedAfter time.Duration
	opened           time.Time

	mu           sync.Mutex
	firstMessage time.Time // zero before it
	succeeded    bool      // the permit was a trial's, which has succeeded: only a failure counts from now on
	over         bool      // nothing counts any more
	failing      bool      // something has gone wrong, and the caller has not received the error yet
}

// Start begins the tracking. attempt returns the attempt that carries the stream:
// another one after a retry.
func (t *Tracker) Start(ctx context.Context, establishedAfter time.Duration, attempt func() Attempt) {
	t.ctx, t.attempt, t.establishedAfter, t.opened = ctx, attempt, establishedAfter, time.Now()
}

// IsTrial reports whether the stream is a trial.
func (t *Tracker) IsTrial() bool { return t.attempt().Trial }

// Message records that the caller received a message. The first one ends a trial.
func (t *Tracker) Message() {
	a := t.attempt()
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	if t.firstMessage.IsZero() {
		t.firstMessage = time.Now()
	} else {
		t.over = t.isEstablished()
	}
	t.succeeded = t.succeeded || a.Trial
	settles := t.over || a.Trial
	t.mu.Unlock()
	if settles {
		a.Permit.Settle(infuse.OutcomeSuccess)
	}
}

// isEstablished reports whether the stream is a success, however it ends. t.mu is
// held.
func (t *Tracker) isEstablished() bool {
	return !t.firstMessage.IsZero() && time.Since(t.firstMessage) >= t.establishedAfter
}

// HeadersStand records that a trial's headers came and that nothing went wrong
// since, for long enough.
func (t *Tracker) HeadersStand() {
	t.mu.Lock()
	succeeds := !t.over && !t.failing
	t.succeeded = t.succeeded || succeeds
	t.mu.Unlock()
	if succeeds {
		t.attempt().Permit.Settle(infuse.OutcomeSuccess)
	}
}

// Failing records that the next receive returns an error.
func (t *Tracker) Failing() {
	t.mu.Lock()
	t.failing = true
	t.mu.Unlock()
}

// Close settles a stream that its caller closes before its end. What the caller
// did not receive is no failure of the service.
func (t *Tracker) Close() {
	over, silent := t.finish()
	switch {
	case over:
	case silent:
		t.attempt().Permit.Settle(infuse.OutcomeIgnored)
	default:
		t.attempt().Permit.Settle(infuse.OutcomeSuccess)
	}
}

// Cancelled settles a stream whose caller receives nothing more, because it has
// cancelled the context or ended its goroutine.
func (t *Tracker) Cancelled() {
	if over, _ := t.finish(); !over {
		t.attempt().Permit.Settle(infuse.OutcomeIgnored)
	}
}

func (t *Tracker) finish() (over, silent bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	over, silent = t.over, t.firstMessage.IsZero()
	t.over = true
	return over, silent
}

// End settles a stream that has ended. truncated reports whether it had headers
// and may have been cut.
func (t *Tracker) End(outcome infuse.Outcome, err error, truncated func() bool) {
	t.mu.Lock()
	over, succeeded, established, silent := t.over, t.succeeded, t.isEstablished(), t.firstMessage.IsZero()
	t.over = true
	t.mu.Unlock()
	switch {
	case over:
		return
	case established:
		outcome = infuse.OutcomeSuccess
	case outcome == infuse.OutcomeFailure && silent && time.Since(t.opened) >= t.establishedAfter && truncated():
		outcome = infuse.OutcomeIgnored
	}
	if !succeeded {
		Settle(t.attempt().Permit, outcome, err)
	} else if outcome == infuse.OutcomeFailure {
		t.failAgain(func(p infuse.Permit) { Settle(p, infuse.OutcomeFailure, err) })
	}
}

// Unwound settles a stream one of whose methods did not return, as the function
// Unwound does a call.
func (t *Tracker) Unwound(panicked any) {
	if panicked == nil {
		t.Cancelled()
		return
	}
	t.Panicked(panicked)
	panic(panicked)
}

// Panicked counts a panic as a failure. It is enough for a goroutine of ours,
// where nobody could recover it.
func (t *Tracker) Panicked(value any) {
	t.mu.Lock()
	over, succeeded := t.over, t.succeeded
	t.over = true
	t.mu.Unlock()
	switch {
	case over:
	case succeeded:
		t.failAgain(func(p infuse.Permit) { p.Panicked(value) }) // Config.Classify could panic, too
	default:
		t.attempt().Permit.Panicked(value)
	}
}

// failAgain counts a failure of a stream whose trial has succeeded, in the
// circuit that the trial has closed. While that is not closed, more trials are
// needed, and each counts by itself.
func (t *Tracker) failAgain(settle func(infuse.Permit)) {
	b := t.attempt().Breaker
	if b.State() != infuse.StateClosed || t.ctx.Err() == context.Canceled {
		return
	}
	// A deadline may have passed, but not before the call: that would be ignored.
	if permit, rejected := b.Acquire(context.WithoutCancel(t.ctx)); rejected == nil {
		settle(permit)
	}
}
