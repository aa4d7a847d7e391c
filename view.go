package infuse

import (
	"context"
	"slices"
	"time"
)

// view is what a breaker knows of its circuit, in the form in which calls need
// it. It never changes: whatever happens makes a new one. See Breaker.refresh.
type view struct {
	rejects    error // the rejection of every call, where nobody is to be told of it; nil otherwise
	fast       bool  // every call runs, and a success needs no word: nothing to report, nobody to tell
	admits     admits
	generation int64 // of the calls that it admits
	settings   *settings
	state      State // as State returns it: the fallback's while the storage is away
	failures   int
	rejection  OpenError // what its rejected calls return
}

// admits is what a view does with a call.
type admits uint8

const (
	admitsAll   admits = iota
	admitsNone         // rejects from the view
	admitsAsker        // one call asks for a trial, the others are rejected
)

// armedEarly is how much before its time a circuit counts as due in a view:
// the storage has the last word, so a call at the very instant is not turned
// away by a timer that is about to fire.
const armedEarly = time.Millisecond

// refresh derives the view from the record, the settings and the storage's
// absence. b.mu is held.
func (b *Breaker) refresh() {
	old := b.view.Load()
	v := &view{
		settings:   b.config,
		generation: b.record.Generation,
		state:      b.record.State,
		failures:   b.record.Failures,
	}
	var blockedUntil time.Time
	switch {
	case b.fallsBackTo(FallbackClosed):
		v.state = StateClosed
	case b.fallsBackTo(FallbackOpen):
		v.state, v.admits = StateOpen, admitsNone
	case v.state == StateOpen:
		v.admits, blockedUntil = admitsNone, b.record.DueAt
		v.rejection.dueAt = b.record.DueAt
	case v.state == StateHalfOpen:
		v.admits, blockedUntil = admitsAsker, b.record.slotFreeAt(b.config.MaxTrials)
	}
	b.rearm(v, blockedUntil)
	v.rejection.Circuit, v.rejection.State, v.rejection.Cause = b.name, v.state, b.cause
	if b.fallsBackTo(FallbackOpen) {
		v.rejection.Cause = b.away
	}
	v.fast = v.admits == admitsAll && v.failures == 0 && b.pending == row{} && !b.config.Strict &&
		len(b.config.Listeners) == 0 && b.config.Classify == nil
	if v.admits == admitsNone && !b.config.Strict && len(b.config.Listeners) == 0 {
		v.rejects = &v.rejection
	}
	b.view.Store(v)
	if old != nil && b.joined && old.state != v.state {
		b.events.add(stateChange(b, old.state, v.state))
	}
}

// rearm settles whether a blocked view is due, and sees to it that it becomes
// due in time: a rejection then reads no clock.
func (b *Breaker) rearm(v *view, blockedUntil time.Time) {
	if b.timer != nil {
		b.timer.Stop()
	}
	if blockedUntil.IsZero() {
		return
	}
	left := time.Until(blockedUntil) - armedEarly
	if left <= 0 {
		v.admits, v.rejection.dueAt = admitsAsker, time.Time{}
		return
	}
	v.admits = admitsNone
	b.timer = time.AfterFunc(left, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.view.Load() == v {
			b.refresh()
		}
	})
}

// slotFreeAt is when, at the latest, another trial may run in a half-open
// circuit; zero when one may run now.
func (r Record) slotFreeAt(maxTrials int) time.Time {
	live := liveTrials(r.Trials, time.Now())
	if len(live) < maxTrials {
		return time.Time{}
	}
	first := live[0].Deadline
	for _, t := range live {
		if t.Deadline.Before(first) {
			first = t.Deadline
		}
	}
	return first
}

// fallsBackTo reports whether the storage is away and calls go by f.
func (b *Breaker) fallsBackTo(f Fallback) bool {
	return b.away != nil && !b.stopped && b.config.Fallback == f
}

// detached reports whether the breaker is on its own. b.mu is held.
func (b *Breaker) detached() bool { return b.away != nil }

func (b *Breaker) isDetached() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.detached()
}

// adopt makes a record that the storage answered with the breaker's own,
// unless a newer one is known already.
func (b *Breaker) adopt(r Record) {
	b.mu.Lock()
	b.adoptLocked(r)
	b.mu.Unlock()
	b.tell()
}

func (b *Breaker) adoptLocked(r Record) {
	if b.detached() && r.Generation <= b.known || b.knowsBetter(r) {
		return
	}
	b.replace(r)
}

// knowsBetter reports whether this process has seen a newer record than r.
// Between two closed ones there is nothing to know. b.mu is held.
func (b *Breaker) knowsBetter(r Record) bool {
	return r.Generation < b.known && (r.State != StateClosed || b.record.State != StateClosed)
}

// replace makes r the record, as the storage has it. b.mu is held.
func (b *Breaker) replace(r Record) {
	if r.State == StateClosed {
		// The storage may have forgotten the generation of a healthy circuit.
		r.Generation = max(r.Generation, b.known)
	}
	if r.Generation != b.record.Generation {
		b.pending = row{} // of an older generation
		if r.State == StateClosed {
			b.cause = nil
		}
	}
	b.record, b.known = r, r.Generation
	b.refresh()
}

// observe is what Storage.Watch calls.
func (b *Breaker) observe(r Record) {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return
	}
	r = r.within(b.config, time.Now())
	sameTrials := r.State == StateHalfOpen && r.Generation == b.record.Generation
	switch {
	case r.Generation > b.known || sameTrials:
		b.adoptLocked(r)
	case b.knowsBetter(r):
		// The storage has lost what this process knows: it is put back, unless
		// somebody was faster or the loss was a race with an answer under way.
		b.spawn(func() { b.putBack(context.Background()) })
	}
	if b.local() {
		b.mu.Unlock()
		b.tell()
		return
	}
	b.spawn(b.tell) // a slow listener must not hold back the storage's news
	b.mu.Unlock()
}

// within bounds what a record that somebody has sent can make calls wait for:
// an hour, or what the breaker's own settings ask for.
func (r Record) within(s *settings, now time.Time) Record {
	if latest := now.Add(max(s.ResetTimeout, maxRetryAfter)); r.DueAt.After(latest) {
		r.DueAt = latest
	}
	latest := now.Add(max(s.TrialTimeout, maxRetryAfter))
	for i, t := range r.Trials {
		if t.Deadline.After(latest) {
			r.Trials = slices.Clone(r.Trials)
			r.Trials[i].Deadline = latest
		}
	}
	return r
}

func (b *Breaker) putBack(ctx context.Context) {
	if b.isDetached() {
		return // reattach does it
	}
	b.mu.Lock()
	c := b.change(ChangeSync)
	b.mu.Unlock()
	b.exchange(ctx, c)
	b.tell()
}

// tell tells the listeners what they are yet to hear. No lock is held.
func (b *Breaker) tell() { b.events.tell(b.view.Load().settings.Listeners) }
