package infuse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// This file has the manual changes: states and overrides.

// SetState sets the state manually. It applies to all processes, whatever their own
// calls were, and clears their local circuits. Open rejects calls for
// Config.ResetTimeout from now; half-open makes the next call a trial; closed
// forgets all failures. It waits at most Config.StorageTimeout.
//
// With a done context nothing changes. Any other error means that the storage has
// not confirmed the change. The state has then changed for this process; the error
// says whether it may still be applied for the others.
func (b *Breaker) SetState(ctx context.Context, to State) error {
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: moving circuit %q: %v is not a state", b.Name(), to)
	}
	return b.handle(ctx, Change{Manual: &ManualState{to}}, "moved to "+to.String())
}

// Override forces the circuit open or closed for all processes, whatever the
// results of calls are, until it is removed or expires. It clears their local
// circuits. Another override replaces it; SetState changes the underlying state. It
// also applies while the storage is unavailable, and a process that knows it
// restores it in a storage that lost it.
//
// It waits at most Config.StorageTimeout. With an invalid override or a done
// context nothing changes. Any other error means that the storage has not
// confirmed it: it then applies to this process, and the error says whether it may
// still be applied for the others.
func (b *Breaker) Override(ctx context.Context, o Override) error {
	o.By = cmp.Or(o.By, b.settings().Instance)
	if err := o.check(time.Now()); err != nil {
		return fmt.Errorf("infuse: overriding circuit %q: %w", b.Name(), err)
	}
	o.By, o.Reason = presentable(o.By, maxTextLength), presentable(o.Reason, maxTextLength)
	return b.handle(ctx, Change{Override: &o}, "held "+o.State.String())
}

// ClearOverride removes an override, for all processes; if there is none, nothing
// changes. by names the person who removes it, by default Config.Instance.
//
// It waits at most Config.StorageTimeout. With a done context nothing changes. Any
// other error means that the storage has not confirmed it: the override is then
// removed for this process, and the error says whether that may still be applied
// for the others.
func (b *Breaker) ClearOverride(ctx context.Context, by string) error {
	by = presentable(cmp.Or(by, b.settings().Instance), maxTextLength)
	return b.handle(ctx, Change{Override: &Override{By: by, Until: longAgo}}, "released")
}

// longAgo is the end of an override that removes another.
var longAgo = time.Unix(1, 0)

func (o *Override) check(now time.Time) error {
	switch {
	case o.State != StateOpen && o.State != StateClosed:
		return fmt.Errorf("Override.State is %v: must be open or closed", o.State)
	case !o.Until.IsZero() && !now.Before(o.Until):
		return fmt.Errorf("Override.Until is %v, which is over", o.Until)
	case o.Until.Sub(now) > maxTimeout:
		return fmt.Errorf("Override.Until is %v: at most %v ahead, or zero for until it is cleared", o.Until, maxTimeout)
	case strings.TrimSpace(o.Reason) == "":
		return errors.New("Override.Reason is empty: must say why, because every rejection shows it")
	case max(len(o.By), len(o.Reason)) > maxTextLength:
		return fmt.Errorf("Override.By or Reason is longer than %d bytes", maxTextLength)
	}
	return nil
}

// handle makes a manual change, and bounds the wait for it.
func (b *Breaker) handle(ctx context.Context, c Change, what string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("infuse: circuit %q was not %s, nothing was done: %w", b.Name(), what, err)
	}
	ctx, cancel := b.withTimeout(ctx, time.Now())
	defer cancel()
	defer b.notifyListeners()
	return b.manual(ctx, c, what)
}

// manual changes the state or the override, and waits until the storage has
// confirmed it or ctx is done. what describes what was done.
func (b *Breaker) manual(ctx context.Context, change Change, what string) error {
	var number uint64
	var done <-chan struct{}
	var why error
	b.step(func(r *replica, now time.Time) {
		why = r.storageErr
		if number = r.manual(change, now); number > 0 {
			done = b.wait(number)
		}
	})
	if number == 0 {
		if why != nil {
			return fmt.Errorf("infuse: circuit %q was %s for this process alone: the storage is unavailable: %w", b.name, what, why)
		}
		return nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		why = context.Cause(ctx)
	}
	confirmed := false
	b.inspect(func(r *replica) {
		confirmed = number <= r.acknowledged
		why = cmp.Or(r.storageErr, why)
	})
	if confirmed {
		return nil
	}
	return fmt.Errorf("infuse: the storage has not confirmed that circuit %q was %s, and may still receive it: %w", b.name, what, why)
}

// Announce sets the state of a service's circuit, on behalf of the service: when
// it has started, it announces StateHalfOpen (or StateClosed), and its callers try
// it at once instead of waiting for their ResetTimeout. circuit is the name that
// the callers use for the service. StateOpen rejects their calls for the default
// ResetTimeout.
//
// It does one or two round trips to the storage, and waits for them until ctx is
// done. The error is the storage's, or describes an invalid name or state. If
// callers share no storage with the service, it has no effect.
func Announce(ctx context.Context, s Storage, circuit string, to State) error {
	if isNil(s) {
		return errors.New("infuse: Announce needs a storage that the callers share, not nil")
	}
	if err := CheckName(circuit); err != nil {
		return err
	}
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: Announce: %v is not a state", to)
	}
	defaults, err := newSettings(Config{})
	if err != nil {
		return err
	}
	change := Change{Source: newSource(), Number: 1, Limits: defaults.limits, By: defaults.Instance, Manual: &ManualState{to}}
	done := make(chan answer, 1)
	go ask(s, circuit, &change, func(a answer) { done <- a })
	select {
	case a := <-done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("infuse: Announce: the storage has not confirmed it: %w", context.Cause(ctx))
	}
}
