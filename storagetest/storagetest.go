// Package storagetest contains the tests that every infuse.Storage must pass. To test
// your own storage:
//
//	func TestMyStorage(t *testing.T) { storagetest.Run(t, newMyStorage) }
package storagetest

// This file contains Run, the helpers of the tests, and the tests of records, names and
// values.

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// Run tests a storage. It calls newStorage for each of its subtests; newStorage must
// return an empty storage.
func Run(t *testing.T, newStorage func(t *testing.T) infuse.Storage) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s infuse.Storage)
	}{
		{"a circuit without a record has the zero record", testZeroRecord},
		{"changes do what Record.Apply does", testChanges},
		{"returned records are copies", testCopies},
		{"similar names are different circuits", testNames},
		{"invalid names are errors", testBadNames},
		{"invalid sources are errors", testBadSources},
		{"extreme values are handled", testAwkwardValues},

		{"consecutive failures open a circuit as in pybreaker", testStreaks},
		{"reaching the threshold starts a suspicion with a score", testSuspicion},
		{"successes dismiss a suspicion", testDismissal},
		{"a report opens a suspect circuit and time does not", testOpening},
		{"a failed trial is confirmed by another process", testConfirmedTrials},

		{"a window counts the calls of all senders", testWindow},
		{"a suspicion of the rate is confirmed by another process", testRate},
		{"the open duration grows and shrinks", testGrowth},
		{"a record contains when it was closed", testClosedAt},

		{"concurrent failures are all counted", testConcurrentFailures},
		{"concurrent calls of a window are all counted", testConcurrentWindow},
		{"concurrent outcomes in a suspicion are all counted", testConcurrentSuspicion},
		{"concurrent failures at the threshold open the circuit once", testConcurrentThreshold},
		{"concurrent requests get at most MaxTrials trials", testConcurrentTrials},
		{"concurrently set states all apply", testConcurrentSetState},

		{"a sequence number counts once", testNumbers},
		{"a sequence number counts once although the streak has ended", testNumberAfterSuccess},
		{"a sequence number counts once although the state has changed", testNumberAfterTransitions},
		{"calls of an older generation are not counted", testOlderCalls},
		{"trials from before a transition keep their slots and are not counted", testStaleTrials},

		{"an open circuit is ready for a trial after its reset timeout and not before", testReady},
		{"reading changes no state", testReading},
		{"a lease ends at its deadline despite other requests", testLease},
		{"an ignored outcome frees its trial", testIgnored},
		{"later writes delay no deadline", testWaits},

		{"states are set manually", testSetState},
		{"an override applies until it expires or is removed", testOverride},
		{"a history contains the last transitions and overrides", testHistory},
		{"circuits with a record are listed", testCircuits},
		{"a lost record is restored from the sender's record", testLostRecord},
		{"a lost record that is ready for a trial is not restored", testLostAndReady},

		{"watchers are notified of transitions and freed trials", testWatch},
		{"watchers are notified of suspicions and dismissals", testWatchSuspicion},
		{"all watchers of a circuit are notified and no others", testWatchers},
		{"a stopped watcher is not notified any more", testStop},
		{"watchers never receive an older record after a newer one", testWatchOrder},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newStorage(t)) })
	}
}

const (
	patience = 30 * time.Second // for fast events, on a busy machine
	pace     = 5 * time.Millisecond
	long     = time.Hour // longer than any test

	refused = infuse.VerdictRefused
	applied = infuse.VerdictApplied
	moved   = infuse.VerdictChanged
)

// limits have timeouts that do not end during a test, and no suspicion.
var limits = infuse.Limits{FailMax: 3, ResetTimeout: long, SuccessThreshold: 2, MaxTrials: 1, TrialTimeout: long}

// circuit makes changes of one circuit, like a breaker that knows the last record that
// the storage returned.
type circuit struct {
	*testing.T
	storage infuse.Storage
	name    string
	limits  infuse.Limits
	seen    infuse.Record
	source  string
	number  uint64
}

func newCircuit(t *testing.T, s infuse.Storage) *circuit {
	return &circuit{T: t, storage: s, name: unique("circuit"), limits: limits, source: unique("source")}
}

func unique(what string) string { return fmt.Sprintf("%s-%x", what, rand.Uint64()) }

// complete sets the fields of all changes, and the next sequence number if there is none.
func (c *circuit) complete(change infuse.Change) infuse.Change {
	change.Seen, change.Limits, change.By = c.seen, c.limits, "test"
	if change.Source == "" {
		c.number++
		change.Source, change.Number = c.source, c.number
	}
	return change
}

func (c *circuit) apply(change infuse.Change) infuse.Verdict {
	c.Helper()
	record, verdict, err := c.storage.Apply(c.Context(), c.name, c.complete(change))
	noError(c.T, err)
	c.seen = record
	return verdict
}

func (c *circuit) load() infuse.Record {
	c.Helper()
	record, err := c.storage.Load(c.Context(), c.name)
	noError(c.T, err)
	return record
}

// calls returns the change for outcomes in order: f for a failure, s for a success.
func calls(outcomes string) infuse.Change {
	var c infuse.Calls
	for _, outcome := range outcomes {
		switch {
		case outcome == 's':
			c.Successes++
			c.Streak = 0
			continue
		case c.Successes == 0:
			c.Lead++
		}
		c.Failures++
		c.Streak++
	}
	return infuse.Change{Calls: c, Cause: "failed"}
}

func (c *circuit) calls(outcomes string) infuse.Verdict {
	c.Helper()
	return c.apply(calls(outcomes))
}

func (c *circuit) setState(to infuse.State) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Manual: &infuse.ManualState{To: to}})
}

func (c *circuit) requestTrial(trial string) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{RequestTrial: trial})
}

func settle(trial string, outcome infuse.Outcome) infuse.Change {
	return infuse.Change{Settled: []infuse.Settlement{{ID: trial, Outcome: outcome}}}
}

func (c *circuit) settle(trial string, outcome infuse.Outcome) infuse.Verdict {
	c.Helper()
	return c.apply(settle(trial, outcome))
}

// eventually waits for a condition. The condition runs on the goroutine of the test, so it
// may fail the test.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(pace) {
		check(t, time.Now().Before(deadline), "it takes longer than %v until %s", patience, what)
	}
}

func check(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	if !ok {
		t.Fatalf(format, args...)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	check(t, err == nil, "%v", err)
}

// equal fails if want and got differ.
func equal[T comparable](t *testing.T, want, got T, what ...any) {
	t.Helper()
	check(t, want == got, "want %v, got %v %s", want, got, fmt.Sprint(what...))
}

// same compares records whose times may differ by clock errors and delays. Do not use it
// with timeouts that end during the test.
func same(t *testing.T, want, got infuse.Record, what ...any) {
	t.Helper()
	equal(t, withoutTimes(want), withoutTimes(got), what...)
	about(t, want.DueAt, got.DueAt, what...)
	about(t, want.SuspectAt, got.SuspectAt, what...)
	about(t, want.RetryAt, got.RetryAt, what...)
	about(t, want.DismissedAt, got.DismissedAt, what...)
	about(t, want.ClosedAt, got.ClosedAt, what...)
	for i := range want.Trials {
		about(t, want.Trials[i].Started, got.Trials[i].Started, what...)
		about(t, want.Trials[i].Deadline, got.Trials[i].Deadline, what...)
	}
}

func about(t *testing.T, want, got time.Time, what ...any) {
	t.Helper()
	near := want.IsZero() == got.IsZero() && got.Sub(want).Abs() <= patience
	check(t, near, "want about %v, got %v %s", want, got, fmt.Sprint(what...))
}

func withoutTimes(r infuse.Record) string {
	trials := make([]string, len(r.Trials))
	for i, trial := range r.Trials {
		trials[i] = fmt.Sprintf("%s stale %v", trial.ID, trial.Stale)
	}
	return fmt.Sprintf("%v generation %d, since %d, opened %d, moved %d, %d failures, threshold %d, score %d, rated %v, witness %q, %d successes, trials %q, by %q, cause %q",
		r.State, r.Generation, r.Since, r.Opened, r.Manual, r.Failures, r.Threshold, r.Score, r.Rated, r.Witness, r.Successes, trials, r.By, r.Cause)
}

func testZeroRecord(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	same(t, infuse.Record{}, c.load())
	equal(t, applied, c.apply(infuse.Change{}))
	same(t, infuse.Record{}, c.load())
}

// testChanges applies changes of all kinds, with and without a suspicion. The storage
// must do the same as Record.Apply on its previous record.
func testChanges(t *testing.T, s infuse.Storage) {
	for _, suspicion := range []time.Duration{0, time.Millisecond, long} {
		testChangesOf(t, s, suspicion)
	}
}

func testChangesOf(t *testing.T, s infuse.Storage, suspicion time.Duration) {
	ask := func(trial string) infuse.Change { return infuse.Change{RequestTrial: trial} }
	move := func(to infuse.State) infuse.Change { return infuse.Change{Manual: &infuse.ManualState{To: to}} }
	const success, failure, ignored = infuse.OutcomeSuccess, infuse.OutcomeFailure, infuse.OutcomeIgnored
	c := newCircuit(t, s)
	c.limits.MaxTrials, c.limits.Suspicion = 2, suspicion
	for i, change := range []infuse.Change{
		calls("f"),
		calls("f"),
		calls("sf"),
		calls("fs"),
		calls("f"),
		{},
		ask("early"),
		calls("ff"), // opens
		calls("fs"),
		ask("undue"),
		settle("undue", success),
		move(infuse.StateHalfOpen),
		ask("a"),
		ask("a"),
		ask("b"),
		ask("third"),
		settle("b", ignored),
		settle("b", failure),
		ask("c"),
		settle("a", success),
		ask("d"),
		settle("d", success), // closes
		settle("c", failure),
		calls("ff"),
		move(infuse.StateClosed),
		move(infuse.StateOpen),
		move(infuse.StateOpen),
		move(infuse.StateHalfOpen),
		ask("e"),
		move(infuse.StateHalfOpen),
		settle("e", failure), // opens
		move(infuse.StateClosed),
		calls("sff"),
		calls("f"), // opens
		move(infuse.StateHalfOpen),
		ask("f"),
		ask("g"),
		{Settled: []infuse.Settlement{{ID: "f", Outcome: success}, {ID: "g", Outcome: success}}, Calls: calls("f").Calls, RequestTrial: "h"},
		{Calls: calls("fff").Calls, OpenFor: 2 * long, Cause: "with a Retry-After"},
		move(infuse.StateClosed),
		calls("fff"), // suspect
		calls("ff"),
		calls("f"), // opens
		calls("fs"),
		calls("s"), // dismissed
		calls("ffff"),
		move(infuse.StateHalfOpen),
		ask("i"),
		settle("i", failure),
		ask("j"), // the same process waits
		from("another", ask("k")),
		from("another", settle("k", failure)), // opens
		calls("s"),
		calls("ss"), // dismissed
		calls("fff"),
		move(infuse.StateClosed),
	} {
		step := fmt.Sprintf("in step %d with a suspicion of %v: %+v", i, suspicion, change)
		change = c.complete(change)
		time.Sleep(2 * suspicion % long) // not near the end of a short suspicion
		before := c.load()
		want, wantVerdict := before.Apply(change, time.Now())
		got, verdict, err := s.Apply(t.Context(), c.name, change)
		noError(t, err)
		equal(t, wantVerdict, verdict, step)
		if want.Generation != before.Generation {
			check(t, got.Generation > before.Generation, "the generation decreases from %d to %d %s", before.Generation, got.Generation, step)
			want = renumbered(want, got.Generation)
		}
		same(t, want, got, step)
		same(t, got, c.load(), step)
		c.seen = got
	}
}

// from returns the change with the source of another process.
func from(source string, c infuse.Change) infuse.Change {
	c.Source, c.Number = source, 0
	return c
}

// renumbered replaces the current generation of the record, which depends on the storage's clock.
func renumbered(r infuse.Record, generation int64) infuse.Record {
	for _, g := range []*int64{&r.Since, &r.Opened, &r.Manual} {
		if *g == r.Generation {
			*g = generation
		}
	}
	r.Generation = generation
	return r
}

// testCopies writes to the slices of all records that it receives.
func testCopies(t *testing.T, s infuse.Storage) {
	spoil := func(r infuse.Record) {
		for i := range r.Trials {
			r.Trials[i] = infuse.Trial{ID: "spoilt"}
		}
		_ = append(r.Trials, infuse.Trial{ID: "spoilt"})
	}
	c := newCircuit(t, s)
	c.setState(infuse.StateHalfOpen)
	c.requestTrial("trial")
	known := c.load()
	want := withoutTimes(known)
	check(t, strings.Contains(want, "trial stale"), "no trial in %s", want)
	spoil(c.seen)
	equal(t, want, withoutTimes(c.load()), "after the trial was granted")
	spoil(c.load())
	equal(t, want, withoutTimes(c.load()), "after a load")
	c.seen = c.load()
	c.requestTrial("refused")
	spoil(c.seen)
	c.seen = infuse.Record{}
	c.apply(infuse.Change{})
	equal(t, want, withoutTimes(c.seen), "after a change that was refused")

	var heard infuse.Record
	defer s.Watch(c.name, func(r infuse.Record) { spoil(r) })()
	known.Generation++
	want = withoutTimes(known)
	heard, _, err := s.Apply(t.Context(), c.name, infuse.Change{Seen: known, Limits: limits})
	noError(t, err)
	spoil(known)
	spoil(heard)
	equal(t, want, withoutTimes(c.load()), "after a sync with what the sender knows")
}

// awkwardNames returns valid names that an encoding could confuse.
func awkwardNames() []string {
	longest := strings.Repeat("n", infuse.MaxNameLength-1)
	return []string{
		"a", "A", "a ", " a", "a\t", "a\n", "a\r\n", "\na", "a+", "a%20", "a%0A", "a\x00", "a\x00b",
		"{a", "a}", "{a}", "}a{", "{{a}}", "{}", "{", "}", "a{b}c", "a{b}d", "%7Ba%7D",
		"a:b", "a/b", "a/../b", "b", ".", "..", "/", "\\", "a*", "*", "?", "[a]", "'", `"`, "`", "$a", ";", "--", "#",
		"ä", "a\u0308", "日本", "🙂", "\u200b", "a\u200b", "\xff", "\xfe", "a\xff", "�",
		longest + "1", longest + "2", strings.Repeat("{", infuse.MaxNameLength), strings.Repeat("\xff", infuse.MaxNameLength),
		strings.Repeat(" ", infuse.MaxNameLength), strings.Repeat("é", infuse.MaxNameLength/2),
	}
}

func testNames(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.FailMax = 1_000_000
	names := awkwardNames()
	for i, name := range names {
		c.name, c.seen = name, infuse.Record{}
		c.calls(strings.Repeat("f", i+1))
	}
	for i, name := range names {
		c.name = name
		equal(t, i+1, c.load().Failures, name)
	}
}

func testBadNames(t *testing.T, s infuse.Storage) {
	for _, name := range []string{"", strings.Repeat("n", infuse.MaxNameLength+1)} {
		_, err := s.Load(t.Context(), name)
		check(t, err != nil, "Load of a name of %d bytes", len(name))
		_, _, err = s.Apply(t.Context(), name, infuse.Change{Limits: limits, Calls: calls("f").Calls})
		check(t, err != nil, "Apply to a name of %d bytes", len(name))
		s.Watch(name, func(infuse.Record) { t.Errorf("notified for a name of %d bytes", len(name)) })()
	}
}

func testBadSources(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	for _, bad := range []string{"", "a b", "a:b", "é", "a\x00", strings.Repeat("s", 65)} {
		for what, change := range map[string]infuse.Change{
			"source":     {Source: bad, Number: 1, Calls: calls("f").Calls},
			"trial's ID": {RequestTrial: bad, Manual: &infuse.ManualState{To: infuse.StateHalfOpen}},
		} {
			if what != "source" && bad == "" {
				continue // no trial is requested
			}
			change.Limits = limits
			_, _, err := s.Apply(t.Context(), c.name, change)
			check(t, err != nil, "Apply with the %s %q", what, bad)
		}
	}
	same(t, infuse.Record{}, c.load())
	c.source = strings.Repeat("s", 64)
	equal(t, applied, c.calls("f"))
}

// testAwkwardValues checks that a record stays readable, whatever texts a change contains.
func testAwkwardValues(t *testing.T, s infuse.Storage) {
	for _, text := range []string{
		strings.Repeat("\xff", 1000), strings.Repeat("é", 101), "x" + strings.Repeat("日", 100), strings.Repeat("<\x00\"", 1000), " ", "\n",
	} {
		c := newCircuit(t, s)
		change := c.complete(calls("fff"))
		change.By, change.Cause = text, text
		_, verdict, err := s.Apply(t.Context(), c.name, change)
		noError(t, err)
		equal(t, moved, verdict)
		equal(t, infuse.StateOpen, c.load().State)
		check(t, len(c.load().Cause) <= len(text), "%q became %q", text, c.load().Cause)
	}

	c := newCircuit(t, s)
	c.limits.FailMax = 1<<31 - 1
	for range 3 {
		c.apply(infuse.Change{Calls: infuse.Calls{Failures: 1 << 30, Lead: 1 << 30, Streak: 1 << 30}})
	}
	equal(t, infuse.StateOpen, c.load().State, "after more failures than can be counted")

	c = newCircuit(t, s)
	c.limits.MaxTrials = 1024
	c.setState(infuse.StateHalfOpen)
	c.seen.Trials = nil
	for i := range 1024 {
		c.seen.Trials = append(c.seen.Trials, infuse.Trial{ID: fmt.Sprintf("%064d", i), Started: time.Now(), Deadline: time.Now().Add(long)})
	}
	c.seen.Generation++
	equal(t, moved, c.apply(infuse.Change{}))
	equal(t, 1024, len(c.load().Trials), "the maximum number of trials, with the longest IDs")
	equal(t, refused, c.requestTrial("another"))
}
