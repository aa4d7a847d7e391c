// Package storagetest has the tests that every infuse.Storage must pass.
//
// A storage of your own is tested by one line:
//
//	func TestMyStorage(t *testing.T) { storagetest.Run(t, newMyStorage) }
package storagetest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Run tests a storage. It calls newStorage for each of its sub-tests, and wants
// an empty one.
func Run(t *testing.T, newStorage func(t *testing.T) infuse.Storage) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s infuse.Storage)
	}{
		{"a circuit without a record has the zero record", testZeroRecord},
		{"changes do what Record.Apply does", testChanges},
		{"a change of no known kind changes nothing", testUnknownKind},
		{"records that are handed out are copies", testCopies},
		{"names never meet", testNames},
		{"names that no circuit may have are errors", testBadNames},

		{"concurrent reports are all counted", testConcurrentReports},
		{"concurrent failures at the threshold open it once", testConcurrentThreshold},
		{"of many that ask at once as many get a trial as may run", testConcurrentAskers},

		{"a token counts once", testTokens},
		{"a report of an older generation is refused", testOlderReports},
		{"the end of an older generation's trial is refused", testOlderSettles},

		{"an open circuit is due after its reset timeout and not before", testDue},
		{"reading moves nothing", testReading},
		{"a lease ends at its deadline though others ask all the time", testLease},
		{"an ignored outcome frees its trial", testIgnored},

		{"moves by hand", testMoves},
		{"a lost record is put back from what the sender knows", testLostRecord},

		{"a watcher hears of transitions and freed trials", testWatch},
		{"all watchers of a circuit hear and those of others do not", testWatchers},
		{"a watcher that stopped hears nothing more", testStop},
		{"watchers never hear of an older record after a newer one", testWatchOrder},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newStorage(t)) })
	}
}

const (
	patience = 30 * time.Second // for what is to happen soon, on a busy machine
	pace     = 5 * time.Millisecond
	long     = time.Hour // for what is not to end during a test
)

// limits has timeouts that do not end during a test.
var limits = infuse.Limits{FailMax: 3, ResetTimeout: long, SuccessThreshold: 2, MaxTrials: 1, TrialTimeout: long}

// circuit makes changes of one circuit, in the manner of a breaker that has
// seen the record which the storage answered with last.
type circuit struct {
	*testing.T
	storage infuse.Storage
	name    string
	limits  infuse.Limits
	seen    infuse.Record
}

func newCircuit(t *testing.T, s infuse.Storage) *circuit {
	return &circuit{T: t, storage: s, name: unique("circuit"), limits: limits}
}

func unique(what string) string { return fmt.Sprintf("%s-%x", what, rand.Uint64()) }

// apply makes the change. Seen and Limits are filled in, and Token if there is none.
func (c *circuit) apply(change infuse.Change) infuse.Verdict {
	c.Helper()
	change.Seen, change.Limits = c.seen, c.limits
	if change.Token == "" {
		change.Token = unique("token")
	}
	record, verdict, err := c.storage.Apply(c.Context(), c.name, change)
	require.NoError(c, err)
	c.seen = record
	return verdict
}

func (c *circuit) load() infuse.Record {
	c.Helper()
	record, err := c.storage.Load(c.Context(), c.name)
	require.NoError(c, err)
	return record
}

func (c *circuit) fail(times int) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Kind: infuse.ChangeReport, Failures: times})
}

func (c *circuit) move(to infuse.State) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Kind: infuse.ChangeMove, To: to})
}

func (c *circuit) acquire(trial string) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Kind: infuse.ChangeAcquire, Token: trial})
}

func (c *circuit) settle(trial string, outcome infuse.Outcome) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Kind: infuse.ChangeSettle, Token: trial, Outcome: outcome})
}

// eventually waits for what is to happen soon. The condition runs on the
// test's own goroutine, and so may fail it.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(pace) {
		require.True(t, time.Now().Before(deadline), "it takes longer than %v until %s", patience, what)
	}
}

// requireSame compares records whose times may differ by what a storage's
// clock, or its way, adds; not in a test with timeouts that end.
func requireSame(t *testing.T, want, got infuse.Record, msg ...any) {
	t.Helper()
	require.Equal(t, withoutTimes(want), withoutTimes(got), msg...)
	requireAbout(t, want.DueAt, got.DueAt, msg...)
	for i := range want.Trials {
		requireAbout(t, want.Trials[i].Deadline, got.Trials[i].Deadline, msg...)
	}
}

func requireAbout(t *testing.T, want, got time.Time, msg ...any) {
	t.Helper()
	require.Equal(t, want.IsZero(), got.IsZero(), msg...)
	require.WithinDuration(t, want, got, patience, msg...)
}

func withoutTimes(r infuse.Record) string {
	trials := make([]string, len(r.Trials))
	for i, trial := range r.Trials {
		trials[i] = trial.ID
	}
	return fmt.Sprintf("%v generation %d, %d failures, %d successes, trials %q, tokens %q",
		r.State, r.Generation, r.Failures, r.Successes, trials, r.Tokens)
}

func testZeroRecord(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	require.Equal(t, withoutTimes(infuse.Record{}), withoutTimes(c.load()))
	require.True(t, c.load().DueAt.IsZero())
	require.Equal(t, infuse.VerdictApplied, c.apply(infuse.Change{Kind: infuse.ChangeSync}))
	require.Equal(t, withoutTimes(infuse.Record{}), withoutTimes(c.load()))
}

// testChanges goes through changes of all kinds. Each is made by the storage
// and, on the record that the storage had before, by Record.Apply.
func testChanges(t *testing.T, s infuse.Storage) {
	report := func(failures int, cleared bool, after int) infuse.Change {
		return infuse.Change{Kind: infuse.ChangeReport, Failures: failures, Cleared: cleared, FailuresAfter: after}
	}
	acquire := func(trial string) infuse.Change {
		return infuse.Change{Kind: infuse.ChangeAcquire, Token: trial}
	}
	settle := func(trial string, outcome infuse.Outcome) infuse.Change {
		return infuse.Change{Kind: infuse.ChangeSettle, Token: trial, Outcome: outcome}
	}
	move := func(to infuse.State) infuse.Change {
		return infuse.Change{Kind: infuse.ChangeMove, To: to}
	}
	c := newCircuit(t, s)
	c.limits.MaxTrials = 2
	for i, change := range []infuse.Change{
		report(1, false, 0),
		report(1, false, 0),
		report(0, true, 1),
		report(1, true, 0),
		report(1, false, 0),
		{Kind: infuse.ChangeSync},
		acquire("early"),
		report(2, false, 0), // opens
		report(1, true, 0),
		acquire("undue"),
		settle("undue", infuse.OutcomeSuccess),
		move(infuse.StateHalfOpen),
		acquire("a"),
		acquire("a"),
		acquire("b"),
		acquire("third"),
		settle("b", infuse.OutcomeIgnored),
		settle("b", infuse.OutcomeFailure),
		acquire("c"),
		settle("a", infuse.OutcomeSuccess),
		acquire("d"),
		settle("d", infuse.OutcomeSuccess), // closes
		settle("c", infuse.OutcomeFailure),
		report(2, false, 0),
		move(infuse.StateClosed),
		move(infuse.StateOpen),
		move(infuse.StateOpen),
		move(infuse.StateHalfOpen),
		acquire("e"),
		settle("e", infuse.OutcomeFailure), // opens
		move(infuse.StateClosed),
		report(0, true, 2),
		report(0, false, 1), // opens
		move(infuse.StateClosed),
	} {
		step := fmt.Sprintf("step %d: %+v", i, change)
		change.Seen, change.Limits = c.seen, c.limits
		if change.Token == "" {
			change.Token = unique("token")
		}
		before := c.load()
		want, wantVerdict := before.Apply(change, time.Now())
		got, verdict, err := s.Apply(t.Context(), c.name, change)
		require.NoError(t, err, step)
		require.Equal(t, wantVerdict, verdict, step)
		if want.Generation != before.Generation {
			require.Greater(t, got.Generation, before.Generation, step)
			want.Generation = got.Generation // follows the storage's clock
		}
		requireSame(t, want, got, step)
		requireSame(t, got, c.load(), step)
		c.seen = got
	}
}

func testUnknownKind(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.fail(2)
	change := infuse.Change{Kind: infuse.ChangeMove + 1, Token: unique("token"), Seen: c.seen, Limits: limits}
	_, verdict, _ := s.Apply(t.Context(), c.name, change) // with an error, or without
	require.Equal(t, infuse.VerdictRefused, verdict)
	requireSame(t, c.seen, c.load())
}

// testCopies writes to the slices of all records that it is given.
func testCopies(t *testing.T, s infuse.Storage) {
	spoil := func(r infuse.Record) {
		for i := range r.Trials {
			r.Trials[i] = infuse.Trial{ID: "spoilt"}
		}
		for i := range r.Tokens {
			r.Tokens[i] = "spoilt"
		}
		_ = append(r.Trials, infuse.Trial{ID: "spoilt"})
		_ = append(r.Tokens, "spoilt")
	}
	c := newCircuit(t, s)
	c.fail(1)
	want := withoutTimes(c.load())
	require.Contains(t, want, c.seen.Tokens[0])
	spoil(c.seen)
	require.Equal(t, want, withoutTimes(c.load()), "after a report")

	c.move(infuse.StateHalfOpen)
	c.acquire("trial")
	want = withoutTimes(c.load())
	require.Contains(t, want, "trial")
	spoil(c.seen)
	require.Equal(t, want, withoutTimes(c.load()), "after an acquire")
	spoil(c.load())
	require.Equal(t, want, withoutTimes(c.load()), "after a load")
	c.acquire("refused")
	spoil(c.seen)
	require.Equal(t, want, withoutTimes(c.load()), "after a change that was refused")

	known := c.load()
	known.Generation++
	known.Tokens = nil
	want = withoutTimes(known)
	change := infuse.Change{Kind: infuse.ChangeSync, Seen: known, Limits: limits}
	got, _, err := s.Apply(t.Context(), c.name, change)
	require.NoError(t, err)
	spoil(known)
	spoil(got)
	require.Equal(t, want, withoutTimes(c.load()), "after a sync with what the sender knows")
}

// awkwardNames are circuits' names that an encoding may take for each other, or
// for something else.
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
		c.fail(i + 1)
	}
	for i, name := range names {
		c.name = name
		assert.Equal(t, i+1, c.load().Failures, "%q", name)
	}
}

func testBadNames(t *testing.T, s infuse.Storage) {
	for _, name := range []string{"", strings.Repeat("n", infuse.MaxNameLength+1)} {
		_, err := s.Load(t.Context(), name)
		assert.Error(t, err, "Load of a name of %d bytes", len(name))
		_, _, err = s.Apply(t.Context(), name, infuse.Change{Kind: infuse.ChangeReport, Token: "t", Limits: limits, Failures: 1})
		assert.Error(t, err, "Apply to a name of %d bytes", len(name))
		s.Watch(name, func(infuse.Record) { t.Errorf("heard of a name of %d bytes", len(name)) })()
	}
}
