package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"
)

func show(ctx context.Context, j *job) error {
	c, err := look(ctx, j.storage, j.args[0])
	if err != nil {
		return err
	}
	if j.json {
		return writeJSON(j.stdout, c, "  ")
	}
	if !c.OnRecord && len(c.History) == 0 {
		_, err := fmt.Fprintf(j.stdout, "circuit %s has no record: it is closed, and no process has told of a failure lately\n", quoted(c.Circuit))
		return err
	}
	return j.card(c, time.Now())
}

// card prints all that is known of a circuit.
func (j *job) card(c *circuit, now time.Time) error {
	t := tabwriter.NewWriter(j.stdout, 0, 0, 2, ' ', 0)
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, text)
		}
	}
	state := c.condition()
	if c.Behind != "" {
		state = fmt.Sprintf("held %s; behind that it is %s", c.State, c.Behind)
	}
	row("circuit", quoted(c.Circuit))
	row("state", state)
	if c.Since != nil {
		row("since", c.age(now))
	}
	switch due := c.dueIn(now); due {
	case "-":
	case "now":
		row("trial due", "now: the next call is a trial")
	default:
		row("trial due", "in "+due)
	}
	row("failures", fmt.Sprint(c.Failures))
	if c.Trials > 0 {
		row("trials", fmt.Sprint(c.Trials, " running"))
	}
	row("by", plain(c.By))
	row("cause", plain(c.Cause))
	row("override", c.hold(now))
	row("error", plain(c.Error))
	if len(c.History) > 0 {
		fmt.Fprintln(t, "history\tthe newest first")
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
