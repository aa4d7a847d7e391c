package infuse_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Record.Apply at its edges. What it does in the ordinary course is tested
// through breakers and storages; that it does the same in Lua, in lua_test.go.

var (
	noon      = time.UnixMilli(1_700_000_000_000)
	threeEach = infuse.Limits{
		FailMax: 3, ResetTimeout: time.Minute, SuccessThreshold: 3, MaxTrials: 3, TrialTimeout: time.Second,
	}
)

// openSince, halfOpenWith and closedWith are records in the generation 10.
func openSince(t time.Time) infuse.Record {
	return infuse.Record{State: infuse.StateOpen, Generation: 10, Failures: 3, DueAt: t.Add(time.Minute)}
}

func halfOpenWith(trials ...infuse.Trial) infuse.Record {
	return infuse.Record{State: infuse.StateHalfOpen, Generation: 10, Failures: 3, Trials: trials}
}

func closedWith(failures int, tokens ...string) infuse.Record {
	return infuse.Record{Generation: 10, Failures: failures, Tokens: tokens}
}

func TestARowOfOutcomesCountsAsIfEachHadBeenSentByItself(t *testing.T) {
	for _, row := range []struct {
		before, failures int
		cleared          bool
		after            int
		want             int // -1: it opens
	}{
		{before: 0, want: 0},
		{before: 2, want: 2},
		{before: 1, failures: 1, want: 2},
		{before: 2, failures: 1, want: -1},
		{before: 2, cleared: true, want: 0},
		{before: 2, cleared: true, after: 2, want: 2},
		{before: 2, cleared: true, after: 3, want: -1},
		{before: 1, failures: 1, cleared: true, after: 1, want: 1},
		{before: 1, failures: 2, cleared: true, after: 1, want: -1}, // open before the success came
	} {
		c := infuse.Change{
			Kind: infuse.ChangeReport, Token: "b", Seen: closedWith(0), Limits: threeEach,
			Failures: row.failures, Cleared: row.cleared, FailuresAfter: row.after,
		}
		var tokens []string
		if row.before > 0 {
			tokens = []string{"a"}
		}
		got, verdict := closedWith(row.before, tokens...).Apply(c, noon)
		if row.want < 0 {
			assert.Equal(t, infuse.VerdictMoved, verdict, "%+v", row)
			assert.Equal(t, infuse.StateOpen, got.State, "%+v", row)
			assert.Equal(t, noon.Add(time.Minute), got.DueAt)
			continue
		}
		assert.Equal(t, infuse.VerdictApplied, verdict, "%+v", row)
		assert.Equal(t, row.want, got.Failures, "%+v", row)
		assert.Equal(t, row.want == 0, len(got.Tokens) == 0, "tokens are kept with failures only: %+v", row)
	}
}

func TestOnlySoManyTokensAreRemembered(t *testing.T) {
	limits := threeEach
	limits.FailMax = 1000
	report := func(i int) infuse.Change {
		return infuse.Change{Kind: infuse.ChangeReport, Token: fmt.Sprint(i), Limits: limits, Failures: 1}
	}
	var r infuse.Record
	for i := range 300 {
		r, _ = r.Apply(report(i), noon)
	}
	require.Equal(t, 300, r.Failures)
	require.Len(t, r.Tokens, 256)
	for i := range 300 {
		next, verdict := r.Apply(report(i), noon)
		assert.Equal(t, infuse.VerdictApplied, verdict)
		if i >= 44 {
			assert.Equal(t, r, next, "the %dth once more", i)
		} else {
			assert.Equal(t, 301, next.Failures, "the %dth, forgotten", i)
		}
	}
}

func TestACircuitIsDueAtTheVeryMillisecond(t *testing.T) {
	acquire := infuse.Change{Kind: infuse.ChangeAcquire, Token: "a", Limits: threeEach}
	due := noon.Add(time.Minute)
	_, verdict := openSince(noon).Apply(acquire, due.Add(-time.Millisecond))
	require.Equal(t, infuse.VerdictRefused, verdict)
	r, verdict := openSince(noon).Apply(acquire, due)
	require.Equal(t, infuse.VerdictMoved, verdict)
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Equal(t, []infuse.Trial{{ID: "a", Deadline: due.Add(time.Second)}}, r.Trials)
}

func TestALeaseEndsAtTheVeryMillisecond(t *testing.T) {
	limits := threeEach
	limits.MaxTrials = 1
	r := halfOpenWith(infuse.Trial{ID: "a", Deadline: noon})
	other := infuse.Change{Kind: infuse.ChangeAcquire, Token: "b", Limits: limits}
	_, verdict := r.Apply(other, noon.Add(-time.Millisecond))
	require.Equal(t, infuse.VerdictRefused, verdict)
	next, verdict := r.Apply(other, noon)
	require.Equal(t, infuse.VerdictApplied, verdict, "no transition")
	require.Equal(t, "b", next.Trials[0].ID)

	late := infuse.Change{Kind: infuse.ChangeSettle, Token: "a", Seen: r, Limits: limits}
	_, verdict = r.Apply(late, noon)
	require.Equal(t, infuse.VerdictRefused, verdict)
}

func TestAskingTwiceForOneTrialNeitherTakesTwoNorProlongsIt(t *testing.T) {
	r := halfOpenWith(infuse.Trial{ID: "a", Deadline: noon.Add(time.Second)})
	next, verdict := r.Apply(infuse.Change{Kind: infuse.ChangeAcquire, Token: "a", Limits: threeEach}, noon.Add(time.Second/2))
	require.Equal(t, infuse.VerdictApplied, verdict)
	require.Equal(t, r, next)
}

func TestReopeningClearsTheSuccesses(t *testing.T) {
	r := halfOpenWith(infuse.Trial{ID: "a", Deadline: noon.Add(time.Second)})
	r.Successes = 2
	failed, _ := r.Apply(infuse.Change{Kind: infuse.ChangeSettle, Token: "a", Seen: r, Limits: threeEach, Outcome: infuse.OutcomeFailure}, noon)
	require.Equal(t, infuse.StateOpen, failed.State)
	require.Zero(t, failed.Successes)
	moved, _ := r.Apply(infuse.Change{Kind: infuse.ChangeMove, Token: "m", Seen: r, Limits: threeEach, To: infuse.StateHalfOpen}, noon)
	require.Zero(t, moved.Successes)
	require.Empty(t, moved.Trials)
}

func TestEveryTransitionRaisesTheGenerationWhateverTheClockSays(t *testing.T) {
	open := infuse.Change{Kind: infuse.ChangeMove, Token: "m", Limits: threeEach, To: infuse.StateOpen}
	for name, generations := range map[string]struct{ recorded, seen, want int64 }{
		"the clock is ahead":        {recorded: 10, seen: 10, want: noon.UnixMilli()},
		"the record is ahead":       {recorded: noon.UnixMilli() + 5, want: noon.UnixMilli() + 6},
		"what was seen is ahead":    {recorded: 0, seen: noon.UnixMilli() + 8, want: noon.UnixMilli() + 9},
		"all are the same":          {recorded: noon.UnixMilli(), seen: noon.UnixMilli(), want: noon.UnixMilli() + 1},
		"a record was just made":    {recorded: 0, seen: 0, want: noon.UnixMilli()},
		"what was seen is outdated": {recorded: noon.UnixMilli() + 5, seen: 3, want: noon.UnixMilli() + 6},
	} {
		open.Seen.Generation = generations.seen
		r, verdict := infuse.Record{Generation: generations.recorded}.Apply(open, noon)
		assert.Equal(t, infuse.VerdictMoved, verdict, name)
		assert.Equal(t, generations.want, r.Generation, name)
	}
}

func TestWhatTheSenderKnowsReplacesWhatTheStorageLost(t *testing.T) {
	sync := infuse.Change{Kind: infuse.ChangeSync, Limits: threeEach}
	trial := infuse.Trial{ID: "a", Deadline: noon.Add(time.Second)}

	sync.Seen = halfOpenWith(trial, infuse.Trial{ID: "dead", Deadline: noon})
	sync.Seen.Tokens = []string{"the sender's"}
	r, verdict := infuse.Record{}.Apply(sync, noon)
	require.Equal(t, infuse.VerdictMoved, verdict)
	require.Equal(t, halfOpenWith(trial), r, "with the leases that run, without tokens")

	sync.Seen = openSince(noon)
	r, verdict = halfOpenWith(trial).Apply(sync, noon)
	require.Equal(t, infuse.VerdictApplied, verdict, "not newer")
	require.Equal(t, halfOpenWith(trial), r)

	sync.Seen = infuse.Record{Generation: 11, Failures: 2}
	r, _ = closedWith(1, "x").Apply(sync, noon)
	require.Equal(t, closedWith(1, "x"), r, "between two closed states nothing is lost")

	sync.Seen = infuse.Record{Generation: 11}
	r, verdict = openSince(noon).Apply(sync, noon)
	require.Equal(t, infuse.VerdictMoved, verdict)
	require.Equal(t, infuse.Record{Generation: 11}, r)
}

func TestARefusedChangeLeavesTheRecordAsItIs(t *testing.T) {
	dead := infuse.Trial{ID: "dead", Deadline: noon}
	for name, refused := range map[string]struct {
		record infuse.Record
		change infuse.Change
	}{
		"a report in an open circuit": {openSince(noon), infuse.Change{Kind: infuse.ChangeReport, Failures: 1, Seen: openSince(noon)}},
		"a report in a half-open one": {halfOpenWith(dead), infuse.Change{Kind: infuse.ChangeReport, Failures: 1, Seen: halfOpenWith()}},
		"a report of an older closed": {closedWith(1, "x"), infuse.Change{Kind: infuse.ChangeReport, Failures: 1}},
		"a trial of a closed circuit": {closedWith(1, "x"), infuse.Change{Kind: infuse.ChangeAcquire, Token: "a"}},
		"a trial before it is due":    {openSince(noon), infuse.Change{Kind: infuse.ChangeAcquire, Token: "a"}},
		"the end of no trial":         {halfOpenWith(dead), infuse.Change{Kind: infuse.ChangeSettle, Token: "b", Seen: halfOpenWith()}},
		"the end of a dead trial":     {halfOpenWith(dead), infuse.Change{Kind: infuse.ChangeSettle, Token: "dead", Seen: halfOpenWith()}},
		"a change of no known kind":   {halfOpenWith(dead), infuse.Change{Kind: 99, Token: "a"}},
	} {
		refused.change.Limits = threeEach
		r, verdict := refused.record.Apply(refused.change, noon)
		assert.Equal(t, infuse.VerdictRefused, verdict, name)
		assert.Equal(t, refused.record, r, name)
	}
}

// Records are values: who holds one must not see it change under a later Apply.
func TestApplyNeverWritesToTheSlicesOfTheRecord(t *testing.T) {
	trials := make([]infuse.Trial, 0, 8)
	trials = append(trials, infuse.Trial{ID: "a", Deadline: noon}, infuse.Trial{ID: "b", Deadline: noon.Add(time.Second)})
	tokens := append(make([]string, 0, 8), "x", "y")
	seen := halfOpenWith(trials...)
	seen.Generation = 20
	for _, r := range []infuse.Record{halfOpenWith(trials...), closedWith(1, tokens...), openSince(noon.Add(-time.Hour))} {
		for kind := range infuse.ChangeMove + 1 {
			for _, id := range []string{"a", "b", "new"} {
				for _, s := range []infuse.Record{{Generation: 10}, seen} {
					c := infuse.Change{Kind: kind, Token: id, Seen: s, Limits: threeEach, Failures: 1, To: infuse.StateOpen}
					r.Apply(c, noon)
				}
			}
		}
	}
	whole := trials[:cap(trials)]
	require.Equal(t, []string{"a", "b", ""}, []string{whole[0].ID, whole[1].ID, whole[2].ID})
	require.Equal(t, []string{"x", "y", ""}, slices.Clone(tokens[:3]))
}

func TestNumbersThatMeanNothingArePrintedAsSuch(t *testing.T) {
	assert.Equal(t, "closed open half-open State(3)",
		fmt.Sprint(infuse.StateClosed, " ", infuse.StateOpen, " ", infuse.StateHalfOpen, " ", infuse.State(3)))
	assert.Equal(t, "success failure ignored Outcome(3)",
		fmt.Sprint(infuse.OutcomeSuccess, " ", infuse.OutcomeFailure, " ", infuse.OutcomeIgnored, " ", infuse.Outcome(3)))
}
