package main

import (
	"cmp"
	"context"
	"errors"
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
	return j.change(ctx, func(b *infuse.Breaker) error {
		return b.Override(ctx, infuse.Override{State: to, By: j.by, Reason: j.reason, Until: until})
	}, func(c *circuit) string {
		if c.Override == nil {
			return "the override was made, and is over or cleared"
		}
		return "held " + c.hold(time.Now())
	})
}

func checkOverride(o *options, args []string) error {
	if s, ok := states[args[1]]; !ok || s == infuse.StateHalfOpen {
		return misused("%q is no state that a circuit can be held in: open or closed", args[1])
	}
	if strings.TrimSpace(o.reason) == "" {
		return misused("-reason is not given: every rejection shows it, so that nobody has to ask")
	}
	if len(o.reason) > 200 {
		return misused("-reason has %d bytes: at most 200 are allowed", len(o.reason))
	}
	_, err := parseUntil(o.until, time.Now())
	return err
}

var states = map[string]infuse.State{"closed": infuse.StateClosed, "open": infuse.StateOpen, "half-open": infuse.StateHalfOpen}

const untilCleared = "cleared"

// parseUntil reads a duration from now, a time of day, a full time, or "cleared".
func parseUntil(text string, now time.Time) (time.Time, error) {
	const most = 366 * 24 * time.Hour
	var until time.Time
	d, notDuration := time.ParseDuration(text)
	clock, notClock := time.ParseInLocation("15:04", text, now.Location())
	full, notFull := time.Parse(time.RFC3339, text)
	switch {
	case text == "":
		return until, misused("-until is not given: 2h, 17:30, %s, or %s", now.Add(2*time.Hour).Format(time.RFC3339), untilCleared)
	case text == untilCleared:
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
		return until, misused("-until is %q: must be like 2h, 17:30, %s, or %s", text, now.Add(2*time.Hour).Format(time.RFC3339), untilCleared)
	}
	if ahead := until.Sub(now); ahead <= 0 || ahead > most {
		return until, misused("-until is %s: must be ahead, by at most %d days, or %s", text, int(most.Hours())/24, untilCleared)
	}
	return until, nil
}

func clearOverride(ctx context.Context, j *job) error {
	before, err := look(ctx, j.storage, j.args[0])
	if err != nil {
		return err
	}
	if before.Override == nil && before.State != unreadable {
		return j.done(before, "is not held: nothing was changed")
	}
	return j.change(ctx, func(b *infuse.Breaker) error { return b.ClearOverride(ctx, j.by) },
		func(c *circuit) string { return "released: it is " + c.condition() })
}

func move(ctx context.Context, j *job) error {
	to := states[j.args[1]]
	return j.change(ctx, func(b *infuse.Breaker) error { return b.SetState(ctx, to) },
		func(c *circuit) string {
			text := "moved to " + cmp.Or(c.Behind, c.State)
			if due := c.dueIn(time.Now()); due != "-" {
				text += ", a trial may run in " + due
			}
			if c.Override != nil {
				text += ", but held " + c.hold(time.Now())
			}
			return text
		})
}

func checkMove(o *options, args []string) error {
	if _, ok := states[args[1]]; !ok {
		return misused("%q is not a state: closed, open or half-open", args[1])
	}
	if o.openFor < time.Millisecond || o.openFor > 366*24*time.Hour {
		return misused("-for is %v: must be from 1ms to 366 days", o.openFor)
	}
	return nil
}

// change makes a change by hand, and prints what the circuit is then.
func (j *job) change(ctx context.Context, make func(*infuse.Breaker) error, told func(*circuit) string) error {
	name := j.args[0]
	// Whether Redis answers is found out first: its own error says more than a
	// breaker's, which bounds what it waits for.
	_, err := j.storage.Load(ctx, name)
	if broken := (*infuse.RecordError)(nil); err != nil && !errors.As(err, &broken) {
		return err
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
	c, err := look(ctx, j.storage, name)
	if err != nil {
		return fmt.Errorf("the change was made, but the circuit cannot be read: %w", err)
	}
	return j.done(c, told(c))
}

func (j *job) done(c *circuit, told string) error {
	if j.json {
		c.History = nil
		return writeJSON(j.stdout, c, "  ")
	}
	_, err := fmt.Fprintf(j.stdout, "circuit %s %s\n", quoted(c.Circuit), told)
	return err
}
