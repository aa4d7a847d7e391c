package infuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// This file has Acquire, the form of Call for calls that are no func.

// Permit is the right to make one call, from Acquire. A copy of it is the same permit. The
// zero Permit is settled. All methods are safe for concurrent use.
type Permit struct {
	ticket *ticket
	number uint64
	trial  bool
}

// ticket has the contents of a permit, which keeps the permit itself small. It is used
// again for other permits, under another number: so a permit is settled once, without an
// allocation.
type ticket struct {
	number    atomic.Uint64
	breaker   *Breaker
	ctx       context.Context
	view      *view // that admitted the call by itself; nil: there is an admission
	admission admission
	_         [64]byte // no two tickets share a cache line
}

var tickets = sync.Pool{New: func() any { return new(ticket) }}

// Acquire admits a call as Call does, for a call that does not fit into a func. If the
// call is rejected, the error is an *OpenError, and the permit is the zero Permit. ctx is
// the context of the call: its result is classified by it. Acquire waits for the storage
// only as Call does before it runs a func.
//
// Settle each permit with Done, Settle or Panicked when its call has ended. A permit that
// is never settled is not counted. If it is the permit of a trial, the trial slot is free
// after Config.TrialTimeout; otherwise it has no effect.
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

// Trial reports whether the call is a trial, whose outcome can close or reopen the
// circuit. It is false when the permit is settled.
func (p Permit) Trial() bool {
	return p.trial && p.ticket.number.Load() == p.number
}

// Done classifies the error of the call, and counts its outcome before it returns, as
// Call does; it waits for the storage as Call does. If the permit is settled already,
// Done, Settle and Panicked do nothing.
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

// Settle is Done with an outcome in place of an error: the caller has classified the call
// itself, and Config.Classify is not called.
func (p Permit) Settle(o Outcome) {
	r := result{outcome: o}
	if o == OutcomeFailure {
		r.err = errSettled
	}
	p.settle(func(context.Context) result { return r })
}

// Panicked settles the permit of a call that did not return. value is the result of
// recover. A panic counts as a failure with the value as its cause. A nil value means
// that the goroutine ended (runtime.Goexit), and the call is ignored. Panicked does not
// panic: panic again with the value yourself.
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

// take returns the ticket for the first caller, and nil for others (R3).
func (p Permit) take() *ticket {
	if t := p.ticket; t != nil && t.number.CompareAndSwap(p.number, p.number+1) {
		return t
	}
	return nil
}

// settled returns the contents of the ticket, and frees it.
func (t *ticket) settled() (b *Breaker, ctx context.Context, a admission) {
	if b, ctx = t.breaker, t.ctx; t.view != nil {
		a = t.view.admission()
	} else {
		a = t.admission
	}
	t.free()
	return b, ctx, a
}

// free returns the ticket to the pool, which must not keep a request alive.
func (t *ticket) free() {
	t.breaker, t.ctx, t.view = nil, nil, nil
	tickets.Put(t)
}
