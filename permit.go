package infuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// This file has the permits of Breaker.Acquire.

// Permit is the right to make one call, from Acquire. It is a value: copies
// are the same permit. The zero Permit is settled.
type Permit struct {
	ticket *ticket
	number uint64
	trial  bool
}

// ticket settles a permit once without an allocation for each: it is used
// again for the next permit, under the next number. It holds what the permit
// stands for, so that a permit is small enough to be handed around.
type ticket struct {
	number    atomic.Uint64
	breaker   *Breaker
	ctx       context.Context
	view      *view     // that let the call in by itself; nil if it did not
	admission admission // if there is no view
	_         [64]byte  // keeps another processor's ticket off its cache line
}

var tickets = sync.Pool{New: func() any { return new(ticket) }}

// Acquire is the first half of Call, for a call that a func cannot hold. The
// error is an *OpenError, and the permit is then the zero Permit. ctx is the
// call's: Done classifies by it.
//
// Settle each permit with Done, Settle or Panicked when its call has ended. A permit
// that is never settled is not counted. If it is that of a trial, its slot is free
// after Config.TrialTimeout; any other has no effect.
func (b *Breaker) Acquire(ctx context.Context) (Permit, error) {
	v := b.view.Load()
	if v.rejects != nil {
		return Permit{}, v.rejects
	}
	if !v.plain || ctx.Err() != nil {
		return b.acquire(ctx)
	}
	t := tickets.Get().(*ticket)
	t.breaker, t.ctx, t.view = b, ctx, v
	return Permit{ticket: t, number: t.number.Load()}, nil
}

// acquire is Acquire for a call that the view cannot admit by itself.
func (b *Breaker) acquire(ctx context.Context) (Permit, error) {
	var a admission
	if rejected := b.enter(ctx, &a); rejected != nil {
		return Permit{}, rejected
	}
	t := tickets.Get().(*ticket)
	t.breaker, t.ctx, t.admission = b, ctx, a
	return Permit{t, t.number.Load(), a.trial != ""}, nil
}

// Trial reports whether the call is the trial of a circuit that was open: its outcome
// decides. It is false once the permit is settled.
func (p Permit) Trial() bool {
	return p.trial && p.ticket.number.Load() == p.number
}

// Done classifies the call's error and counts its outcome; a failure before
// it returns, as Call. Once a permit is settled, Done, Settle and Panicked
// do nothing.
func (p Permit) Done(err error) {
	t := p.take()
	if t == nil {
		return
	}
	if v := t.view; err == nil && v != nil && v.free && t.breaker.view.Load() == v {
		t.free()
		return
	}
	t.done(err)
}

func (t *ticket) done(err error) {
	b, ctx, a := t.settled()
	b.finish(ctx, &a, err)
}

// Settle is Done for a caller with a verdict of its own, in place of
// Config.Classify: for a call whose outcome is no error.
func (p Permit) Settle(o Outcome) {
	r := result{outcome: o}
	if o == OutcomeFailure {
		r.err = errSettled
	}
	p.settle(func(context.Context) result { return r })
}

// Panicked settles the permit of a call that did not return, as Call does. A panic
// is a failure, and value, which recover returned, is its cause. With a nil value
// the goroutine ended (runtime.Goexit), and the call is not counted. Panicked does
// not panic: pass the value on yourself.
func (p Permit) Panicked(value any) {
	p.settle(func(ctx context.Context) result { return unwoundResult(ctx, value) })
}

func (p Permit) settle(of func(context.Context) result) {
	t := p.take()
	if t == nil {
		return
	}
	b, ctx, a := t.settled()
	r := of(ctx)
	b.settle(ctx, &a, &r)
}

var errSettled = errors.New("infuse: settled as a failure")

// take returns the ticket, once.
// R3.
func (p Permit) take() *ticket {
	if t := p.ticket; t != nil && t.number.CompareAndSwap(p.number, p.number+1) {
		return t
	}
	return nil
}

// settled returns what the ticket held, and frees it.
func (t *ticket) settled() (b *Breaker, ctx context.Context, a admission) {
	if b, ctx = t.breaker, t.ctx; t.view != nil {
		a = t.view.admission()
	} else {
		a = t.admission
	}
	t.free()
	return b, ctx, a
}

// free has the ticket used again. The pool is not to keep anybody's request alive.
func (t *ticket) free() {
	t.breaker, t.ctx, t.view = nil, nil, nil
	tickets.Put(t)
}
