package infuse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// This file has the manual changes: of the state, and of the override.

// SetState sets the state manually, for all processes, whatever their own calls were. It
// clears their local circuits. Open rejects calls for Config.ResetTimeout from now;
// half-open makes the next call a trial; closed resets all counts of failures. SetState
// does one or two round trips, and waits at most Config.StorageTimeout for them.
//
// If ctx is done, or the state is invalid, SetState changes nothing and returns an error.
// Any other error means that the storage has not confirmed the change. The state of this
// process has then changed; the error says whether the change may still be applied to the
// other processes.
func (b *Breaker) SetState(ctx context.Context, to State) error {
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: circuit %q: SetState: %v is not a state", b.Name(), to)
	}
	return b.handle(ctx, Change{Manual: &ManualState{to}}, "set to "+to.String())
}

// Override forces the circuit open or closed for all processes, whatever the results of
// calls are, until it is removed or expires. It clears their local circuits, and replaces
// an earlier override. SetState changes only the underlying state meanwhile. An override
// applies while the storage is unavailable, too. If the storage loses it, a process with
// a copy restores it.
//
// Override does one or two round trips, and waits at most Config.StorageTimeout for them.
// If ctx is done, or the override is invalid, it changes nothing and returns an error. Any
// other error means that the storage has not confirmed the override. It then applies to
// this process; the error says whether it may still be applied to the other processes.
func (b *Breaker) Override(ctx context.Context, o Override) error {
	o.By = cmp.Or(o.By, b.settings().Instance)
	if err := o.check(time.Now()); err != nil {
		return fmt.Errorf("infuse: circuit %q: override rejected: %w", b.Name(), err)
	}
	o.By, o.Reason = presentable(o.By, maxTextLength), presentable(o.Reason, maxTextLength)
	return b.handle(ctx, Change{Override: &o}, "forced "+o.State.String())
}

// ClearOverride removes the override, for all processes. Without an override it changes
// nothing. by names the person who removes it. Default Config.Instance.
//
// ClearOverride does one or two round trips, and waits at most Config.StorageTimeout for
// them. If ctx is done, it changes nothing and returns an error. Any other error means
// that the storage has not confirmed the removal. The override is then removed in this
// process; the error says whether it may still be removed in the other processes.
func (b *Breaker) ClearOverride(ctx context.Context, by string) error {
	by = presentable(cmp.Or(by, b.settings().Instance), maxTextLength)
	return b.handle(ctx, Change{Override: &Override{By: by, Until: longAgo}}, "freed of its override")
}

// longAgo is the end of an override that removes the one before.
var longAgo = time.Unix(1, 0)

func (o *Override) check(now time.Time) error {
	switch {
	case o.State != StateOpen && o.State != StateClosed:
		return fmt.Errorf("Override.State is %v: must be open or closed", o.State)
	case !o.Until.IsZero() && !now.Before(o.Until):
		return fmt.Errorf("Override.Until is %v, which is in the past", o.Until)
	case o.Until.Sub(now) > maxTimeout:
		return fmt.Errorf("Override.Until is %v: must be at most %v ahead, or zero for no end", o.Until, maxTimeout)
	case strings.TrimSpace(o.Reason) == "":
		return errors.New("Override.Reason is empty: it is required, because every rejection shows it")
	case max(len(o.By), len(o.Reason)) > maxTextLength:
		return fmt.Errorf("Override.By or Override.Reason has more than %d bytes", maxTextLength)
	}
	return nil
}

// handle makes a manual change, and waits for StorageTimeout at most. Errors describe the
// change by done, such as "set to open".
func (b *Breaker) handle(ctx context.Context, c Change, done string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("infuse: circuit %q was not %s: %w", b.name, done, err)
	}
	ctx, cancel := b.withTimeout(ctx, time.Now())
	defer cancel()
	defer b.notifyListeners()
	return b.manual(ctx, c, done)
}

// manual changes the state or the override, and waits until the storage has confirmed the
// change or ctx is done (R34).
func (b *Breaker) manual(ctx context.Context, c Change, done string) error {
	var number uint64
	var acknowledged <-chan struct{}
	var why error
	b.step(func(r *replica, now time.Time) {
		why = r.storageErr
		if number = r.manual(c, now); number > 0 {
			acknowledged = b.wait(number)
		}
	})
	if number == 0 {
		if why != nil {
			return fmt.Errorf("infuse: circuit %q was %s in this process only, the storage is unavailable: %w", b.name, done, why)
		}
		return nil
	}
	select {
	case <-acknowledged:
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
	return fmt.Errorf("infuse: circuit %q was %s in this process; the storage has not confirmed the change, and may still apply it: %w", b.name, done, why)
}

// Announce sets the state of the circuit of a service, on behalf of the service: after
// its start it announces StateHalfOpen or StateClosed, and its callers send requests at
// once instead of waiting for their ResetTimeout. circuit is the name that the callers
// use for the service. StateOpen rejects their calls for the default ResetTimeout.
//
// Announce does one or two round trips to the storage, and waits for them until ctx is
// done. It returns an error of the storage, or for an invalid name or state. If ctx is done
// before the storage has confirmed the change, it returns an error, and the change may
// still be applied. It has no effect on callers that use another storage.
func Announce(ctx context.Context, s Storage, circuit string, to State) error {
	if isNil(s) {
		return errors.New("infuse: Announce: the storage is nil: it must be the storage of the callers")
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
	go callStorage(s, circuit, &change, func(a answer) { done <- a })
	select {
	case a := <-done:
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("infuse: Announce: the storage has not confirmed the change of circuit %q: %w", circuit, context.Cause(ctx))
	}
}
