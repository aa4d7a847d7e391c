package main

// This file contains the command show.

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"
)

func show(ctx context.Context, j *job) error {
	c, err := readCircuit(ctx, j.storage, j.args[0])
	if err != nil {
		return err
	}
	unused, err := j.unused(ctx, c)
	switch {
	case err != nil && !isReply(err):
		return err
	case unused:
		return j.notFound(ctx, c)
	}
	if j.json {
		return writeJSON(j.stdout, c, "  ")
	}
	if !c.OnRecord && len(c.History) == 0 {
		_, err := fmt.Fprintf(j.stdout, "circuit %s has no record: it is closed, and no process reported a failure recently\n", quoted(c.Circuit))
		return err
	}
	return j.card(c, time.Now())
}

// notFound returns the error for a circuit that no process uses.
func (j *job) notFound(ctx context.Context, c *circuit) error {
	return fmt.Errorf("circuit %s not found: no record, no history, and no process subscribes to it%s", quoted(c.Circuit), j.others(ctx))
}

// card prints all fields of the circuit, and its history.
func (j *job) card(c *circuit, now time.Time) error {
	t := tabwriter.NewWriter(j.stdout, 0, 0, 2, ' ', 0)
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, text)
		}
	}
	state := c.condition()
	if c.Underlying != "" {
		state = fmt.Sprintf("forced %s; the underlying state is %s", c.State, c.Underlying)
	}
	row("circuit", quoted(c.Circuit))
	row("state", state)
	if c.Since != nil {
		row("since", c.age(now))
	}
	switch trial := c.trialIn(now); trial {
	case "-":
	case ready:
		row("trial", "ready: the next call that would be rejected becomes a trial")
	default:
		row("trial", "in "+trial)
	}
	row("failures", fmt.Sprint(c.Failures))
	if c.Trials > 0 {
		row("trials", fmt.Sprint(c.Trials, " in progress"))
	}
	row("by", plain(c.By))
	row("cause", plain(c.Cause))
	row("override", c.overrideText(now))
	row("error", plain(c.Error))
	if len(c.History) > 0 {
		fmt.Fprintln(t, "history\tnewest first")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range c.History {
		e := &c.History[i]
		what, why := e.line(now)
		if _, err := fmt.Fprintf(j.stdout, "  %s  %-21s  %s\n", e.At.Local().Format(eventTime), what, why); err != nil {
			return err
		}
	}
	return nil
}

const eventTime = "2006-01-02 15:04:05.000"
