package main

// This file contains the commands that change a circuit: override, remove-override and
// set-state.

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

func override(ctx context.Context, j *job) error {
	until, err := parseUntil(j.until, time.Now())
	if err != nil {
		return err
	}
	to := states[j.args[1]]
	return j.change(ctx, j.requireUsed, func(b *infuse.Breaker) error {
		return b.Override(ctx, infuse.Override{State: to, By: j.by, Reason: j.reason, Until: until})
	}, func(c *circuit) string {
		if c.Override == nil {
			return "the override was set, but has already expired or been removed"
		}
		return c.overrideText(time.Now())
	})
}

func checkOverride(o *options, args []string) error {
	if s, ok := states[args[1]]; !ok || s == infuse.StateHalfOpen {
		return usageErrorf("invalid state %s: want open or closed", shownWord(args[1]))
	}
	if strings.TrimSpace(o.reason) == "" {
		return usageErrorf("-reason is required: rejections show it")
	}
	if len(o.reason) > 200 {
		return usageErrorf("-reason has %d bytes: at most 200 are allowed", len(o.reason))
	}
	_, err := parseUntil(o.until, time.Now())
	return err
}

var states = map[string]infuse.State{"closed": infuse.StateClosed, "open": infuse.StateOpen, "half-open": infuse.StateHalfOpen}

const untilRemoved = "removed"

// parseUntil reads a duration from now, a time of day, a full time, or "removed".
func parseUntil(text string, now time.Time) (time.Time, error) {
	const most = 366 * 24 * time.Hour
	var until time.Time
	d, notDuration := time.ParseDuration(text)
	clock, notClock := time.ParseInLocation("15:04", text, now.Location())
	full, notFull := time.Parse(time.RFC3339, text)
	switch {
	case text == "":
		return until, usageErrorf("-until is required, for example 2h, 17:30, %s, or %s", now.Add(2*time.Hour).Format(time.RFC3339), untilRemoved)
	case text == untilRemoved:
		return until, nil
	case notDuration == nil:
		until = now.Add(d)
	case notClock == nil:
		until = time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), 0, 0, now.Location())
		if !until.After(now) {
			until = until.AddDate(0, 0, 1)
		}
	case notFull == nil:
		until = full
	default:
		return until, usageErrorf("invalid -until %s: want for example 2h, 17:30, %s, or %s", shownWord(text), now.Add(2*time.Hour).Format(time.RFC3339), untilRemoved)
	}
	if ahead := until.Sub(now); ahead <= 0 || ahead > most {
		return until, usageErrorf("invalid -until %s: want a time in the future, at most %d days, or %s", shownWord(text), int(most.Hours())/24, untilRemoved)
	}
	return until, nil
}

func removeOverride(ctx context.Context, j *job) error {
	before, err := readCircuit(ctx, j.storage, j.args[0])
	if err != nil {
		return err
	}
	if before.Override == nil && before.State != unreadable {
		if unused, _ := j.unused(ctx, before); unused {
			return j.notFound(ctx, before)
		}
		return j.done(before, "no override to remove")
	}
	return j.change(ctx, nil, func(b *infuse.Breaker) error { return b.ClearOverride(ctx, j.by) },
		func(c *circuit) string { return "override removed, the state is " + c.condition() })
}

func setState(ctx context.Context, j *job) error {
	to := states[j.args[1]]
	return j.change(ctx, j.requireUsed, func(b *infuse.Breaker) error { return b.SetState(ctx, to) },
		func(c *circuit) string {
			text := "set to " + cmp.Or(c.Underlying, c.State) + " by " + cut(plain(oneLine(j.by)), 60)
			text += c.nextTrial(time.Now())
			if c.Override != nil {
				text += ", still " + c.overrideText(time.Now())
			}
			return text
		})
}

// nextTrial is the end of a sentence: when the circuit is ready for a trial, if it is open.
func (c *circuit) nextTrial(now time.Time) string {
	switch trial := c.trialIn(now); trial {
	case "-":
		return ""
	case ready:
		return ", ready for a trial"
	default:
		return ", next trial in " + trial
	}
}

func checkSetState(o *options, args []string) error {
	if _, ok := states[args[1]]; !ok {
		return usageErrorf("invalid state %s: want closed, open or half-open", shownWord(args[1]))
	}
	if o.openFor < time.Millisecond || o.openFor > 366*24*time.Hour {
		return usageErrorf("-for is %v: must be from 1ms to 366 days", o.openFor)
	}
	return nil
}

// change makes a manual change if the circuit passes the check, and prints the result.
func (j *job) change(ctx context.Context, check func(context.Context, *circuit) error, make func(*infuse.Breaker) error, result func(*circuit) string) error {
	name := j.args[0]
	// Read the circuit first: an error of Redis has more detail than one of a breaker.
	before, err := readCircuit(ctx, j.storage, name)
	if err != nil {
		return err
	}
	if check != nil {
		if err := check(ctx, before); err != nil {
			return err
		}
	}
	b, err := infuse.New(name, infuse.Config{
		Storage: j.storage, StorageTimeout: j.timeout, Instance: oneLine(j.by),
		ResetTimeout: cmp.Or(j.openFor, time.Minute),
	})
	if err != nil {
		return err
	}
	err = make(b)
	b.Stop()
	if err != nil {
		return err
	}
	c, err := readCircuit(ctx, j.storage, name)
	if err != nil {
		return fmt.Errorf("the change was made, but the circuit cannot be read: %w", err)
	}
	return j.done(c, result(c))
}

func (j *job) done(c *circuit, text string) error {
	if j.json {
		c.History = nil
		return writeJSON(j.stdout, c, "  ")
	}
	_, err := fmt.Fprintf(j.stdout, "circuit %s: %s\n", quoted(c.Circuit), text)
	return err
}
