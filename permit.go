package infuse

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// admission is what a call was let in by.
type admission struct {
	view       *view
	generation int64
	trial      string        // the trial's ID; empty for a call in a closed circuit
	waited     time.Duration // for the storage, so far
}

// admission is what lets in a call that the view alone decides on.
func (v *view) admission() admission { return admission{view: v, generation: v.generation} }

// enter admits a call or rejects it.
func (b *Breaker) enter(ctx context.Context) (admission, *OpenError) {
	if v := b.view.Load(); v.fast {
		return v.admission(), nil
	}
	return b.admit(ctx)
}

// admit decides on a call for which the view says more than yes.
func (b *Breaker) admit(ctx context.Context) (admission, *OpenError) {
	v := b.view.Load()
	var began time.Time
	if v.settings.Strict {
		began = time.Now()
		v = b.read(ctx, began)
	}
	a, rejected := v.admission(), (*OpenError)(nil)
	switch v.admits {
	case admitsNone:
		rejected = &v.rejection
	case admitsAsker:
		a, rejected = b.askForTrial(ctx, began)
	}
	if !began.IsZero() {
		a.waited = time.Since(began)
	}
	told := false
	defer func() {
		if !told && a.trial != "" { // a listener has ended the goroutine
			b.count(a, result{outcome: OutcomeIgnored})
		}
	}()
	b.tell()
	if rejected != nil {
		v.settings.tellRejected(ctx, b, rejected)
	} else {
		v.settings.tellBeforeCall(ctx, b)
	}
	told = true
	return a, rejected
}

// read brings the view up to date from the storage: for Config.Strict.
func (b *Breaker) read(ctx context.Context, began time.Time) *view {
	if b.isDetached() {
		return b.view.Load()
	}
	ctx, cancel := patience(ctx, began.Add(b.settings().StorageTimeout))
	defer cancel()
	a := b.load(ctx)
	if a.err != nil {
		b.failed(a.err)
		return b.view.Load()
	}
	defer b.tell()
	b.mu.Lock()
	if !b.knowsBetter(a.record) {
		// The view of this very record: news that are under way may be older.
		defer b.mu.Unlock()
		b.adoptLocked(a.record)
		return b.view.Load()
	}
	b.mu.Unlock()
	b.putBack(ctx)
	return b.view.Load()
}

// askForTrial asks the storage for a trial. One call of the process asks at a
// time; the others are rejected. began is when the call began to wait for the
// storage, if it has.
func (b *Breaker) askForTrial(ctx context.Context, began time.Time) (admission, *OpenError) {
	if !b.asking.CompareAndSwap(false, true) {
		return b.admitted(b.view.Load())
	}
	defer b.asking.Store(false)
	if v := b.view.Load(); v.admits != admitsAsker && !v.settings.Strict { // another has asked meanwhile
		return b.admitted(v)
	}
	if began.IsZero() {
		began = time.Now()
	}
	ctx, cancel := patience(ctx, began.Add(b.settings().StorageTimeout))
	defer cancel()
	b.mu.Lock()
	c := b.change(ChangeAcquire)
	b.mu.Unlock()
	c.Token = b.tokens.next()
	record, verdict := b.exchange(ctx, c)
	v := b.view.Load()
	if verdict != VerdictRefused {
		return admission{view: v, generation: record.Generation, trial: c.Token, waited: time.Since(began)}, nil
	}
	b.mu.Lock()
	movedOn := b.away == nil && v.generation != record.Generation
	b.mu.Unlock()
	if movedOn { // since the storage answered: the answer counts
		if record.State == StateClosed {
			return admission{view: v, generation: record.Generation, waited: time.Since(began)}, nil
		}
		return admission{}, &OpenError{Circuit: b.name, State: record.State, Cause: v.rejection.Cause, dueAt: record.DueAt}
	}
	return b.admitted(v)
}

// admitted admits to a closed circuit, and rejects from any other.
func (b *Breaker) admitted(v *view) (admission, *OpenError) {
	if v.admits == admitsAll {
		return v.admission(), nil
	}
	return admission{}, &v.rejection
}

// finish classifies the error of an admitted call, and counts its outcome.
func (b *Breaker) finish(ctx context.Context, a admission, err error) {
	if err == nil && b.isQuiet(a.view) {
		return
	}
	b.settle(ctx, a, result{outcome: b.classify(ctx, a, err), err: err})
}

// isQuiet reports whether a success of a call that v admitted is nobody's news.
func (b *Breaker) isQuiet(v *view) bool { return v.fast && b.view.Load() == v }

func (b *Breaker) classify(ctx context.Context, a admission, err error) Outcome {
	returned := false
	defer func() {
		if !returned {
			b.unwound(ctx, a, recover())
		}
	}()
	outcome := a.view.settings.classify(ctx, b.name, err)
	returned = true
	return outcome
}

// result is how an admitted call ended.
type result struct {
	outcome Outcome
	err     error         // of a failure
	openFor time.Duration // if it opens the circuit: at least so long, as the service has asked (Retry-After)
}

// settle counts the result of an admitted call.
func (b *Breaker) settle(ctx context.Context, a admission, r result) {
	defer b.count(a, r) // also if a listener ends the goroutine
	a.view.settings.tellOutcome(ctx, b, r)
}

func (b *Breaker) count(a admission, r result) {
	if a.trial != "" {
		b.settleTrial(a, r)
	} else if r.outcome != OutcomeIgnored {
		b.report(a, r)
	}
}

// unwound settles a call that did not return. The panic goes on with the stack
// of where it began: it is still below this one.
func (b *Breaker) unwound(ctx context.Context, a admission, panicked any) {
	if panicked == nil { // runtime.Goexit
		b.settle(ctx, a, result{outcome: OutcomeIgnored})
		return
	}
	b.settle(ctx, a, result{outcome: OutcomeFailure, err: panicError{panicked}})
	panic(panicked)
}

// settleTrial ends a trial, in the storage or, while that is away, in the
// breaker's own record, and then the storage hears of it later.
func (b *Breaker) settleTrial(a admission, r result) {
	reason := r.cause()
	b.mu.Lock()
	if a.generation != b.record.Generation {
		b.mu.Unlock()
		return // the circuit has moved on
	}
	if reason != nil {
		b.cause = reason
	}
	c := b.change(ChangeSettle)
	c.Seen.Generation = a.generation
	c.Token, c.Outcome = a.trial, r.outcome
	c.Limits.ResetTimeout = max(c.Limits.ResetTimeout, r.openFor)
	detached := b.detached()
	if detached {
		if a.generation == b.known {
			b.keep(c)
		}
		if b.decidesItself() {
			b.applyOwn(c)
		}
	}
	b.mu.Unlock()
	if !detached {
		b.awaited(a, func(ctx context.Context) { b.send(ctx, c) })
		b.mu.Lock()
		if len(b.unsent) > 0 && !b.reporting && !b.detached() {
			b.sendOn() // it had to wait
		}
		b.mu.Unlock()
	}
	b.tell()
}

// awaited runs f, which asks the storage, and waits for it as long as the call
// may. For a call that has waited before, f has its full time all the same:
// what is left of the call's is no measure of the storage.
func (b *Breaker) awaited(a admission, f func(context.Context)) {
	if b.local() {
		f(context.Background())
		return
	}
	if a.waited == 0 {
		ctx, cancel := patience(context.Background(), time.Now().Add(b.settings().StorageTimeout))
		defer cancel()
		f(ctx)
		return
	}
	done := make(chan struct{})
	b.mu.Lock()
	running := b.spawn(func() {
		defer close(done)
		f(context.Background())
	})
	b.mu.Unlock()
	if !running {
		f(context.Background())
		return
	}
	b.await(done, a)
}

// await waits until done is closed, but no longer than the call may still wait
// for the storage.
func (b *Breaker) await(done <-chan struct{}, a admission) {
	timer := time.NewTimer(b.settings().StorageTimeout - a.waited)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// Permit is the right to make one call, from Acquire. It is a value: copies
// are the same permit. The zero Permit is settled.
type Permit struct {
	ticket *ticket
	number uint64
}

// ticket settles a permit once without an allocation for each: it is used
// again for the next permit, under the next number. It holds what the permit
// stands for, so that a permit is small enough to be handed around.
type ticket struct {
	number    atomic.Uint64
	breaker   *Breaker
	ctx       context.Context
	admission admission
	_         [64]byte // keeps another processor's ticket off its cache line
}

var tickets = sync.Pool{New: func() any { return new(ticket) }}

// Acquire is the first half of Call, for a call that a func cannot hold. Every
// permit is to be settled with Done, when the call has ended; one that is not
// frees itself: in a closed circuit at once, a trial after
// Config.TrialTimeout. The error is an *OpenError.
//
// ctx is the call's: Done classifies by it.
func (b *Breaker) Acquire(ctx context.Context) (Permit, error) {
	v := b.view.Load()
	if v.rejects != nil {
		return Permit{}, v.rejects
	}
	a := v.admission()
	if !v.fast {
		var rejected *OpenError
		if a, rejected = b.admit(ctx); rejected != nil {
			return Permit{}, rejected
		}
	}
	t := tickets.Get().(*ticket)
	t.breaker, t.ctx, t.admission = b, ctx, a
	return Permit{ticket: t, number: t.number.Load()}, nil
}

// Done classifies the call's error and counts its outcome; a failure before
// it returns, as Call. Later calls of Done do nothing.
func (p Permit) Done(err error) {
	t := p.ticket
	if t == nil || !t.number.CompareAndSwap(p.number, p.number+1) {
		return
	}
	b, ctx, a := t.breaker, t.ctx, t.admission
	t.ctx = nil // the pool is not to keep anybody's request alive
	tickets.Put(t)
	b.finish(ctx, a, err)
}
