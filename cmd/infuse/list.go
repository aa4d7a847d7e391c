package main

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
		circuits[i], err = look(ctx, j.storage, all[i])
		return err
	})
	if err != nil {
		return err
	}
	circuits = slices.DeleteFunc(circuits, func(c *circuit) bool { return !c.OnRecord }) // its record has ended meanwhile
	slices.SortFunc(circuits, func(a, b *circuit) int {
		return cmp.Or(cmp.Compare(a.urgency(), b.urgency()), strings.Compare(a.Circuit, b.Circuit))
	})
	if j.json {
		for _, c := range circuits {
			c.History = nil
		}
		return writeJSON(j.stdout, circuits, "  ")
	}
	return j.table(circuits, time.Now())
}

func (j *job) table(circuits []*circuit, now time.Time) error {
	if len(circuits) == 0 {
		_, err := fmt.Fprintf(j.stdout, "no circuit has a record with the prefix %q: none has failed lately, and none is held\n", cmp.Or(j.prefix, "infuse:"))
		return err
	}
	t := tabwriter.NewWriter(j.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CIRCUIT\tSTATE\tSINCE\tDUE IN\tBY\tCAUSE\tOVERRIDE")
	for _, c := range circuits {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cut(quoted(c.Circuit), 48), c.condition(), c.age(now), c.dueIn(now),
			orDash(cut(plain(c.By), 32)), orDash(cut(plain(cmp.Or(c.Cause, c.Error)), 48)), orDash(cut(c.hold(now), 72)))
	}
	return t.Flush()
}

// age tells since when the circuit has its state.
func (c *circuit) age(now time.Time) string {
	if c.Since == nil {
		return "-"
	}
	return fmt.Sprintf("%s (%s)", clock(*c.Since, now), brief(max(0, now.Sub(*c.Since))))
}

// dueIn tells how long it is until a trial may run.
func (c *circuit) dueIn(now time.Time) string {
	switch {
	case c.Due == nil:
		return "-"
	case !now.Before(*c.Due):
		return "now"
	}
	return brief(c.Due.Sub(now))
}

// hold tells of the override.
func (c *circuit) hold(now time.Time) string {
	if c.Override == nil {
		return ""
	}
	h := c.Override
	return fmt.Sprintf("%s by %s until %s: %s", h.State, cut(plain(h.By), 32), h.end(now), plain(h.Reason))
}
