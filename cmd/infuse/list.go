package main

// This file contains the command list.

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func list(ctx context.Context, j *job) error {
	all, err := names(ctx, j.storage)
	if err != nil {
		return err
	}
	circuits := make([]*circuit, len(all))
	err = each(len(all), func(i int) (err error) {
		circuits[i], err = readCircuit(ctx, j.storage, all[i])
		return err
	})
	if err != nil {
		return err
	}
	circuits = slices.DeleteFunc(circuits, func(c *circuit) bool { return !c.OnRecord }) // the record has expired since names
	if len(circuits) == 0 {
		if err := j.nothingFound(ctx); err != nil {
			return err
		}
	}
	slices.SortFunc(circuits, func(a, b *circuit) int {
		return cmp.Or(cmp.Compare(a.urgency(), b.urgency()), strings.Compare(a.Circuit, b.Circuit))
	})
	if j.json {
		for _, c := range circuits {
			c.History = nil
		}
		return writeJSON(j.stdout, circuits, "  ")
	}
	if len(circuits) == 0 {
		_, err := fmt.Fprintf(j.stdout, "no circuit has a record with the prefix %q: no recent failures, no overrides\n", j.prefix)
		return err
	}
	return j.table(circuits, time.Now())
}

func (j *job) table(circuits []*circuit, now time.Time) error {
	t := tabwriter.NewWriter(j.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CIRCUIT\tSTATE\tSINCE\tTRIAL IN\tBY\tCAUSE\tOVERRIDE")
	for _, c := range circuits {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cut(quoted(c.Circuit), 48), c.condition(), c.age(now), c.trialIn(now),
			orDash(cut(plain(c.By), 32)), orDash(cut(plain(cmp.Or(c.Cause, c.Error)), 48)), orDash(cut(c.overrideText(now), 72)))
	}
	return t.Flush()
}

// age returns when the state began, and how long ago.
func (c *circuit) age(now time.Time) string {
	if c.Since == nil {
		return "-"
	}
	return fmt.Sprintf("%s (%s)", clock(*c.Since, now), brief(max(0, now.Sub(*c.Since))))
}

// trialIn returns the time until the circuit is ready for a trial.
func (c *circuit) trialIn(now time.Time) string {
	switch {
	case c.Due == nil:
		return "-"
	case !now.Before(*c.Due):
		return ready
	}
	return brief(c.Due.Sub(now))
}

const ready = "ready"

// overrideText describes the override; empty if there is none.
func (c *circuit) overrideText(now time.Time) string {
	o := c.Override
	if o == nil {
		return ""
	}
	return fmt.Sprintf("forced %s by %s until %s: %s", o.State, cut(plain(o.By), 32), o.end(now), plain(o.Reason))
}
