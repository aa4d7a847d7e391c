package infuse

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

// Limits with a MaxResetTimeout and no ResetTimeout never return.
func TestGrownWithoutAResetTimeout(t *testing.T) {
	done := make(chan bool)
	go func() {
		l := rating
		l.ResetTimeout, l.MaxResetTimeout = 0, time.Minute
		Record{}.Apply(Change{Limits: l, Counted: []Bucket{{Start: noon, Calls: 10, Failures: 10}}}, noon)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
		t.Fatal("an endless loop")
	}
}

// An hour of calm is forgotten by a move to open.
func TestCalmIsForgottenByAMove(t *testing.T) {
	l := Limits{FailMax: 1, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, MaxResetTimeout: time.Hour}
	now, n := noon, 0
	r := Record{}
	apply := func(c Change) { c.Limits = l; r, _ = r.Apply(c, now) }
	trial := func(o Outcome) {
		now = r.DueAt
		n++
		apply(Change{Ask: "a"})
		apply(Change{Settled: []Settlement{{ID: "a", Outcome: o}}, Seen: r})
	}
	apply(Change{Calls: Calls{Failures: 1, Lead: 1, Streak: 1}})
	for range 5 {
		trial(OutcomeFailure)
	}
	trial(OutcomeSuccess)
	require.Equal(t, StateClosed, r.State)
	require.Equal(t, 32*time.Second, r.OpenTime)
	now = now.Add(24 * time.Hour)
	require.Equal(t, time.Second, r.grown(&l, now), "after a day of calm")
	apply(Change{Move: &Move{StateOpen}})
	trial(OutcomeFailure)
	require.LessOrEqual(t, r.OpenTime, 2*time.Second, "after a day of calm and a move")
}
