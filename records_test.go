package infuse

import (
	"os"
	"slices"
	"time"
)

// What the tests of records share.

// long reports whether tests may take minutes.
func long() bool { return os.Getenv("CI") == "true" }

var (
	noon   = time.UnixMilli(1_700_000_000_000)
	asking = Limits{FailMax: 5, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: 30 * time.Second, Suspicion: 50 * time.Millisecond}
)

func after(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }

// calls returns a change with outcomes, oldest first: f or s.
func calls(limits Limits, outcomes string) Change {
	c := Change{Limits: limits}
	for _, o := range outcomes {
		c.Calls.add(map[rune]Outcome{'f': OutcomeFailure, 's': OutcomeSuccess}[o])
	}
	return c
}

// then applies a change of a sender that is up to date.
func (r Record) then(c Change, now time.Time) Record {
	c.Seen, c.Counted = r, slices.Clone(c.Counted)
	for i := range c.Counted {
		if c.Counted[i].Start.IsZero() {
			c.Counted[i].Start = now
		}
	}
	next, _ := r.Apply(c, now)
	return next
}
