// Package rpc contains the shared parts of grpcinfuse and connectinfuse: how calls and
// streams settle their permits, and texts, delays and names.
//
// Both modules have their own versions, and a program may combine a newer root with an
// older module. So do not change or remove an identifier that a released module uses.
package rpc

// This file contains the permits of calls, and the tracking of streams.

import (
	"context"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
)

// EstablishedAfter is the time from its first message after which a stream is
// established. infuse.Transport uses the same time for responses.
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

// Settle settles the permit with an outcome. The error of a failure becomes the Cause of
// an OpenError.
func Settle(permit infuse.Permit, outcome infuse.Outcome, err error) {
	if outcome == infuse.OutcomeFailure && err != nil {
		permit.Done(err)
	} else {
		permit.Settle(outcome)
	}
}

// Guard settles the permit of a call that did not return, like Breaker.Call: a panic is a
// failure and is propagated; runtime.Goexit is ignored. Defer it, and set *returned when
// the call has returned:
//
//	returned := false
//	defer rpc.Guard(permit, &returned)
func Guard(permit infuse.Permit, returned *bool) {
	if !*returned {
		Unwound(permit, recover())
	}
}

// Unwound is Guard for a call that did not return. It takes the recovered value.
func Unwound(permit infuse.Permit, panicked any) {
	permit.Panicked(panicked)
	if panicked != nil {
		panic(panicked)
	}
}

// Tracker tracks the progress of a stream, and settles its permit once. Call Start before
// any other method.
type Tracker struct {
	ctx              context.Context // of the call
	attempt          func() Attempt
	establishedAfter time.Duration
	opened           time.Time

	mu           sync.Mutex
	firstMessage time.Time // zero: none yet
	succeeded    bool      // a trial that has succeeded: from now on only a failure counts
	over         bool      // nothing counts any more
	failing      bool      // there is an error that the caller has not received yet
}

// Start starts the tracking. attempt returns the current attempt of the stream, which
// changes after a retry.
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

// isEstablished reports whether the stream is a success, however it ends. The caller
// holds t.mu.
func (t *Tracker) isEstablished() bool {
	return !t.firstMessage.IsZero() && time.Since(t.firstMessage) >= t.establishedAfter
}

// HeadersStand records that a trial has had headers for long enough. The trial succeeds
// if there was no error since.
func (t *Tracker) HeadersStand() {
	t.mu.Lock()
	succeeds := !t.over && !t.failing
	t.succeeded = t.succeeded || succeeds
	t.mu.Unlock()
	if succeeds {
		t.attempt().Permit.Settle(infuse.OutcomeSuccess)
	}
}

// Failing records that the next receive will return an error.
func (t *Tracker) Failing() {
	t.mu.Lock()
	t.failing = true
	t.mu.Unlock()
}

// Close settles a stream that its caller closes before its end: as a success after a
// message, otherwise as ignored.
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

// Cancelled settles a stream whose caller has cancelled the context or ended its
// goroutine.
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

// End settles a stream that has ended. truncated reports whether the stream had headers
// and may have been truncated.
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

// Guard settles a stream if one of its methods did not return: see the function Guard.
func (t *Tracker) Guard(returned *bool) {
	if *returned {
		return
	}
	panicked := recover()
	if panicked == nil {
		t.Cancelled()
		return
	}
	t.Panicked(panicked)
	panic(panicked)
}

// Panicked counts a panic as a failure, and does not propagate it.
func (t *Tracker) Panicked(value any) {
	t.mu.Lock()
	over, succeeded := t.over, t.succeeded
	t.over = true
	t.mu.Unlock()
	switch {
	case over:
	case succeeded:
		t.failAgain(func(p infuse.Permit) { p.Panicked(value) }) // not Done: Config.Classify could panic
	default:
		t.attempt().Permit.Panicked(value)
	}
}

// failAgain counts a failure of a stream whose trial has succeeded, if that trial has
// closed the circuit. A circuit that is not closed needs more trials, which count
// themselves.
func (t *Tracker) failAgain(settle func(infuse.Permit)) {
	b := t.attempt().Breaker
	if b.State() != infuse.StateClosed || t.ctx.Err() == context.Canceled {
		return
	}
	// Without cancellation: a call whose deadline passed before it began would be ignored.
	if permit, rejected := b.Acquire(context.WithoutCancel(t.ctx)); rejected == nil {
		settle(permit)
	}
}
