package infuse

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Record.Apply at its edges, and the rules of suspicion. What it does in the
// ordinary course is tested through breakers, storages and the simulated fleet.

var (
	noon      = time.UnixMilli(1_700_000_000_000)
	threeEach = Limits{FailMax: 3, ResetTimeout: time.Minute, SuccessThreshold: 3, MaxTrials: 3, TrialTimeout: time.Second}
	asking    = Limits{FailMax: 5, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: 30 * time.Second, Suspicion: 50 * time.Millisecond}
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

func TestManyOutcomesCountAsOneByOne(t *testing.T) {
	for _, before := range []string{"", "f", "ff", "fs"} {
		for _, batch := range []string{"f", "ff", "fff", "s", "sf", "sff", "fs", "fsf", "ffs", "fffs", "ssff", "fsff", "sfs"} {
			together := Record{}.then(calls(threeEach, before), noon).then(calls(threeEach, batch), noon)
			single := Record{}
			for _, o := range before + batch {
				if single.State == StateClosed {
					single = single.then(calls(threeEach, string(o)), noon)
				}
			}
			assert.Equal(t, single.State, together.State, "%q, then %q", before, batch)
			if single.State == StateClosed {
				assert.Equal(t, single.Failures, together.Failures, "%q, then %q", before, batch)
			}
		}
	}
}

func TestACircuitIsDueAtTheVeryMillisecond(t *testing.T) {
	open := Record{}.then(calls(threeEach, "fff"), noon)
	due := noon.Add(time.Minute)
	_, verdict := open.Apply(Change{Ask: "a", Limits: threeEach}, due.Add(-time.Millisecond))
	require.Equal(t, VerdictRefused, verdict)
	r, verdict := open.Apply(Change{Ask: "a", Limits: threeEach}, due)
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, StateHalfOpen, r.State)
	require.Equal(t, []Trial{{ID: "a", Deadline: due.Add(time.Second)}}, r.Trials)
	again, verdict := r.Apply(Change{Ask: "a", Limits: threeEach}, due.Add(time.Millisecond))
	require.Equal(t, VerdictApplied, verdict)
	require.Equal(t, r.Trials, again.Trials, "asking twice neither takes two places nor prolongs the one")
}

func TestALeaseEndsAtTheVeryMillisecond(t *testing.T) {
	limits := threeEach
	limits.MaxTrials = 1
	r := Record{}.then(Change{Move: &Move{StateHalfOpen}, Limits: limits}, noon).then(Change{Ask: "a", Limits: limits}, noon)
	_, verdict := r.Apply(Change{Ask: "b", Limits: limits}, after(999))
	require.Equal(t, VerdictRefused, verdict)
	next, verdict := r.Apply(Change{Ask: "b", Limits: limits}, after(1000))
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, "b", next.Trials[0].ID)
	_, verdict = next.Apply(Change{Settled: []Settlement{{ID: "a"}}, Seen: next, Limits: limits}, after(1001))
	require.Equal(t, VerdictRefused, verdict, "it did not die: its late success counts for nothing")
}

// A trial failed while another ran, the circuit came due, and there were more
// trials at a time than MaxTrials.
func TestATrialKeepsItsPlaceAcrossTransitions(t *testing.T) {
	limits := threeEach
	limits.MaxTrials = 2
	limits.TrialTimeout = time.Hour
	r := Record{}.then(Change{Move: &Move{StateHalfOpen}, Limits: limits}, noon)
	r = r.then(Change{Ask: "a", Limits: limits}, noon).then(Change{Ask: "b", Limits: limits}, noon)
	r = r.then(Change{Settled: []Settlement{{ID: "a", Outcome: OutcomeFailure}}, Limits: limits}, noon)
	require.Equal(t, StateOpen, r.State)
	r = r.then(Change{Ask: "c", Limits: limits}, after(60_000))
	require.Equal(t, StateHalfOpen, r.State)
	_, verdict := r.Apply(Change{Ask: "d", Limits: limits}, after(60_000))
	require.Equal(t, VerdictRefused, verdict, "b still runs")
	next := r.then(Change{Settled: []Settlement{{ID: "b", Outcome: OutcomeFailure}}, Limits: limits}, after(60_001))
	require.Equal(t, StateHalfOpen, next.State, "b is of an older generation")
	require.Len(t, next.Trials, 1)

	moved := r.then(Change{Move: &Move{StateHalfOpen}, Limits: limits}, after(60_002))
	require.Equal(t, r.Trials, moved.Trials, "half-open once more keeps its trials")
	require.Equal(t, r.Since, moved.Since)
}

func TestEveryStepRaisesTheGeneration(t *testing.T) {
	var r Record
	generation := int64(0)
	for i, c := range []Change{
		calls(asking, "fffff"), calls(asking, "ss"), {Move: &Move{StateOpen}}, {Move: &Move{StateHalfOpen}},
		{Move: &Move{StateHalfOpen}}, {Move: &Move{StateClosed}}, {Move: &Move{StateClosed}},
	} {
		c.Limits = asking
		r = r.then(c, noon.Add(-time.Duration(i)*time.Hour)) // whatever the clock says
		require.Greater(t, r.Generation, generation, "%d", i)
		generation = r.Generation
	}
}

func TestTheFleetIsAskedBeforeItOpens(t *testing.T) {
	r := Record{}.then(calls(asking, "ffff"), noon)
	require.Zero(t, r.OpensAt)
	r = r.then(calls(asking, "f"), after(1))
	require.Equal(t, StateClosed, r.State)
	require.Equal(t, after(51), r.OpensAt, "at least Suspicion")
	require.Equal(t, 5, r.Balance)
	require.Equal(t, StateClosed, r.At(after(50)).State)

	open := r.At(after(51))
	require.Equal(t, StateOpen, open.State)
	require.Equal(t, after(60_001), open.DueAt, "counted from when the limit was reached")
	require.Greater(t, open.Generation, r.Generation)
	require.Equal(t, 5, open.Failures)
}

func TestASuspicionLastsAsTheRowDid(t *testing.T) {
	for row, want := range map[int]int{0: 50, 10: 50, 20: 60, 1000: 3000, 20_000: 30_000} {
		r := Record{}.then(calls(asking, "f"), noon).then(calls(asking, "ffff"), after(row))
		require.Equal(t, after(row+want), r.OpensAt, "of a row of %d ms", row)
	}
}

func TestSuccessesRefuteASuspicion(t *testing.T) {
	suspect := Record{}.then(calls(asking, "fffff"), noon)
	refuted := suspect.then(calls(asking, "s"), after(1))
	require.Equal(t, 1, refuted.Balance)
	refuted = refuted.then(calls(asking, "f"), after(2)).then(calls(asking, "s"), after(3))
	require.Equal(t, StateClosed, refuted.State)
	require.Zero(t, refuted.OpensAt)
	require.Zero(t, refuted.Failures)
	require.Greater(t, refuted.Generation, suspect.At(after(51)).Generation, "above the one with which it would have opened")
	require.Equal(t, suspect.Since, refuted.Since, "calls that run count")

	calm := refuted.then(calls(asking, "ffffff"), after(10))
	require.Zero(t, calm.OpensAt, "above suspicion for as long as one lasts")
	require.Equal(t, 6, calm.Failures)
	require.NotZero(t, calm.then(calls(asking, "f"), after(53)).OpensAt)
	require.Zero(t, calm.then(calls(asking, "s"), after(53)).Failures)
}

// A storage that had paused heard of the successes after the suspicion was over,
// and opened the circuit of a healthy service.
func TestWhatComesLateIsHeard(t *testing.T) {
	suspect := Record{}.then(calls(asking, "fffff"), noon)
	opened := suspect.At(after(200))
	require.Equal(t, StateOpen, opened.State)

	refuted, verdict := suspect.Apply(knowing(suspect, asking, "ss"), after(200))
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, StateClosed, refuted.At(after(200)).State)
	require.Zero(t, refuted.OpensAt)
	require.Greater(t, refuted.Generation, opened.Generation, "those that have opened hear of it")

	failed, verdict := suspect.Apply(knowing(suspect, asking, "ff"), after(200))
	require.Equal(t, VerdictApplied, verdict)
	require.Equal(t, opened.State, failed.At(after(200)).State)
	require.Equal(t, opened.Generation, failed.At(after(200)).Generation)
	require.Equal(t, opened.DueAt, failed.At(after(200)).DueAt)
	refuted, _ = failed.Apply(knowing(suspect, asking, "ss"), after(200))
	require.Zero(t, refuted.OpensAt)

	late := knowing(suspect, asking, "f")
	late.OpenFor = time.Minute
	prolonged, _ := suspect.Apply(late, after(200))
	require.Equal(t, StateOpen, prolonged.At(after(200)).State)
}

func TestOnceSomethingIsDoneAnOpeningIsFinal(t *testing.T) {
	suspect := Record{}.then(calls(asking, "fffff"), noon)
	for name, c := range map[string]Change{
		"a trial":               {Ask: "trial"},
		"a trial that is over":  {Settled: []Settlement{{ID: "gone"}}},
		"an override":           {Override: &Override{State: StateOpen, Until: after(90_000)}},
		"a sender has seen it":  {Seen: suspect.At(after(50))},
		"a move to where it is": {Move: &Move{StateOpen}},
	} {
		c.Limits = asking
		at := after(60_001) // a trial is due
		if c.Seen.State == StateOpen {
			at = after(200)
		}
		done, verdict := suspect.Apply(c, at)
		require.Equal(t, VerdictMoved, verdict, name)
		require.NotEqual(t, StateClosed, done.State, name)
		_, verdict = done.Apply(knowing(suspect, asking, "ssssssss"), at)
		require.Equal(t, VerdictRefused, verdict, name)
	}
	asked := Change{Ask: "early", Limits: asking, Seen: suspect}
	_, verdict := suspect.Apply(asked, after(200))
	require.Equal(t, VerdictMoved, verdict)

	asked.Source, asked.Number = "a", 1
	suspect.remember(&asked)
	again, _ := suspect.Apply(asked, after(200))
	require.Equal(t, suspect.OpensAt, again.OpensAt, "what was done before is not done now")
}

func TestManyFailuresOpenEarly(t *testing.T) {
	r := Record{}.then(calls(asking, "f"), noon).then(calls(asking, "ffff"), after(1000))
	require.Equal(t, after(4000), r.OpensAt)
	r = r.then(calls(asking, "fffffffffffffff"), after(1010))
	require.Equal(t, StateClosed, r.State, "not before Suspicion")
	require.Equal(t, after(1050), r.OpensAt)
	r = Record{}.then(calls(asking, "f"), noon).then(calls(asking, "ffff"), after(1000))
	r = r.then(calls(asking, "fffffffffffffff"), after(1200))
	require.Equal(t, StateOpen, r.State)
	require.Equal(t, after(61_000), r.DueAt)
}

// A report was applied, its answer lost, and another's success cleared the row:
// sent again, it counted again.
func TestAChangeSentTwiceCountsOnce(t *testing.T) {
	limits := threeEach
	limits.FailMax = 1000
	number := uint64(0)
	next := func(source string, c Change) Change {
		number++
		c.Source, c.Number, c.Limits = source, number, limits
		return c
	}
	report := next("a", calls(limits, "ff"))
	open, shut := next("a", Change{Move: &Move{StateOpen}}), next("a", Change{Move: &Move{StateClosed}})
	for name, steps := range map[string][]Change{
		"across a success":     {report, next("b", calls(limits, "s"))},
		"across a transition":  {open, next("b", Change{Move: &Move{StateClosed}})},
		"a move to closed":     {shut, next("b", Change{Move: &Move{StateOpen}})},
		"across many failures": append([]Change{report}, slices.Repeat([]Change{{}}, 300)...),
	} {
		r := Record{}
		for i, c := range steps {
			if c.Number == 0 {
				c = next(fmt.Sprint("c", i), calls(limits, "f"))
			}
			r = r.then(c, noon)
		}
		again, verdict := r.Apply(steps[0], after(1))
		require.Equal(t, VerdictApplied, verdict, name)
		require.Equal(t, r.State, again.State, name)
		require.Equal(t, r.Failures, again.Failures, name)
	}
}

func TestSourcesAreBounded(t *testing.T) {
	var r Record
	limits := threeEach
	limits.FailMax = 10_000
	for i := range 2 * maxHeard {
		c := calls(limits, "f")
		c.Source, c.Number = fmt.Sprint("s", i), 1
		r = r.then(c, noon)
	}
	require.Equal(t, 2*maxHeard, r.Failures)
	require.Len(t, r.heard, maxHeard)
}

func TestWhatTheSenderKnowsReplacesWhatWasLost(t *testing.T) {
	open := Record{}.then(Change{Move: &Move{StateOpen}, Limits: threeEach}, noon)
	half := open.then(Change{Ask: "a", Limits: threeEach}, after(60_000))
	shut := half.then(Change{Move: &Move{StateClosed}, Limits: threeEach}, after(60_001))

	got, verdict := Record{}.Apply(Change{Seen: open, Limits: threeEach}, after(1000))
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, open.DueAt, got.DueAt)
	got, _ = Record{}.Apply(Change{Seen: half, Limits: threeEach}, after(60_500))
	require.Len(t, got.Trials, 1)
	got, _ = open.Apply(Change{Seen: shut, Limits: threeEach}, after(1000))
	require.Equal(t, StateClosed, got.State, "an old snapshot")

	// An idle process came back long after, and took a healthy circuit back to
	// open.
	got, _ = Record{}.Apply(Change{Seen: open, Limits: threeEach}, after(60_000))
	require.Equal(t, StateClosed, got.State)
	got, _ = Record{}.Apply(Change{Seen: half, Limits: threeEach}, after(61_000))
	require.Equal(t, StateClosed, got.State)

	// Redis's clock stepped back, a newcomer's opening had the lower
	// generation, and an old process undid it.
	newer := Record{}.then(Change{Move: &Move{StateOpen}, Limits: threeEach}, noon.Add(time.Second))
	closedLater := shut
	closedLater.Generation += 5000
	got, _ = newer.Apply(Change{Seen: closedLater, Limits: threeEach}, after(1001))
	require.Equal(t, StateOpen, got.State)
}

// Redis's clock stepped back an hour, and what was open stayed so for an hour.
func TestAWaitNeverGrows(t *testing.T) {
	open := Record{}.then(Change{Move: &Move{StateOpen}, Limits: threeEach}, noon)
	stored := open
	stored.DueAt = stored.DueAt.Add(time.Hour)
	got, verdict := stored.Apply(Change{Seen: open, Ask: "a", Limits: threeEach}, after(60_000))
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, StateHalfOpen, got.State)
	stored = got
	stored.Trials = []Trial{{ID: "a", Deadline: after(60_000).Add(time.Hour)}}
	stored, _ = stored.Apply(Change{Seen: got, Limits: threeEach}, after(60_500))
	require.Equal(t, got.Trials, stored.Trials)
}

func TestARefusedChangeChangesNothing(t *testing.T) {
	open := Record{}.then(Change{Move: &Move{StateOpen}, Limits: threeEach}, noon)
	for _, c := range []Change{
		calls(threeEach, "fff"),
		{Ask: "a"},
		{Settled: []Settlement{{ID: "a", Outcome: OutcomeFailure}}},
	} {
		c.Limits, c.Source, c.Number = threeEach, "s", 1
		got, verdict := open.Apply(c, after(1))
		require.Equal(t, VerdictRefused, verdict)
		require.Equal(t, open, got)
	}
}

func TestApplyNeverWritesToTheSlicesOfItsRecord(t *testing.T) {
	limits := threeEach
	limits.MaxTrials = 8
	r := Record{}.then(Change{Move: &Move{StateHalfOpen}, Limits: limits, Source: "s", Number: 1}, noon)
	r.Trials = append(make([]Trial, 0, 8), Trial{ID: "a", Deadline: after(1000)}, Trial{ID: "b", Deadline: after(10)})
	before := slices.Clone(r.Trials)
	heard := slices.Clone(r.heard)
	for i, c := range []Change{
		{Ask: "c"}, {Settled: []Settlement{{ID: "a"}}}, {Move: &Move{StateOpen}}, {Ask: "d"},
	} {
		c.Limits, c.Source, c.Number = limits, "s", uint64(i+2)
		r.Apply(c, after(20))
		require.Equal(t, before, r.Trials[:2:2])
		require.Equal(t, Trial{}, r.Trials[:3][2])
		require.Equal(t, heard, r.heard)
	}
}

func TestNumbersThatMeanNothingArePrintedAsSuch(t *testing.T) {
	require.Equal(t, "State(9)", State(9).String())
	require.Equal(t, "Outcome(9)", Outcome(9).String())
}

// A Retry-After that came during a suspicion was lost to the processes that had
// not heard of it: what they sent next took it for a clock that was set back.
func TestARetryAfterDuringASuspicionIsPushed(t *testing.T) {
	suspect := Record{}.then(calls(asking, "fffff"), noon)
	busy := calls(asking, "f")
	busy.OpenFor = 10 * time.Minute
	later, verdict := suspect.Apply(busy, after(1))
	require.Equal(t, VerdictMoved, verdict)
	require.Equal(t, after(600_001), later.DueAt)

	late := calls(asking, "f")
	late.Seen = suspect
	later, verdict = later.Apply(late, after(2))
	require.Equal(t, VerdictApplied, verdict)
	require.Equal(t, after(600_001), later.DueAt, "the sender does not know it yet")
}

// A suspicion that ended while the storage was away left the view as it was.
// Outcomes of calls that it admitted counted for nothing, here as well.
func TestAReplicaWakesWhenASuspicionEndsWhileItIsOnItsOwn(t *testing.T) {
	r, _ := suspicious(t)
	r.lost(errStorageTimeout, after(10))
	r.back() // a request that was refused is tried again later
	require.Equal(t, after(50), r.wakeAt(after(49)))
}
