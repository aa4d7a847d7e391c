package infuse

import (
	"cmp"
	goflag "flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The rules of a record are scripts in testdata/state, one rule a file. The indented
// lines after a command are its results. To write them anew:
//
//	go test -run TestState -update .
//
// A command ends with its time, for example "at 10ms", if that differs from the time of
// the command before. The senders are a, b, c…; without "seen", each has received the
// present record.
//
//	limits [SENDER] FailMax=5 Suspicion=50ms …  of this sender; of all without one
//	apply SENDER fffs [open=2m]                 outcomes, oldest first: f failed, s succeeded
//	count SENDER 10 4                           10 calls of which 4 failed, for the failure rate
//	request SENDER ID                           a trial
//	settle SENDER ID success|failure|ignored [open=2m]
//	set SENDER closed|open|half-open
//	override SENDER closed|open [for=1h]
//	clear SENDER                                removes the override
//	evaluate SENDER                             a change that reports nothing
//	again                                       the last change once more, as after a lost answer
//	waits SENDER                                until when this sender may run no trial
//	show                                        the record
//	keep NAME                                   keeps the record under this name
//	failover NAME                               the storage has that record again
//	seen SENDER NAME                            that record is the last one that the sender received
//	lose                                        the storage loses the record
//	later 1h                                    all times of the record are later: the storage's clock was set back
//	rewrite                                     encodes and parses the record
//	read JSON                                   parses a record
var updateScripts = goflag.Bool("update", false, "write the results of testdata/state anew")

func TestState(t *testing.T) {
	runScripts(t, "testdata/state/*.txt", func() func(*testing.T, string) []string { return newScript().run })
}

// runScripts runs the commands of each file, and compares their results.
func runScripts(t *testing.T, pattern string, begin func() (run func(t *testing.T, line string) []string)) {
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			got := runScript(t, string(text), begin())
			if *updateScripts {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
				return
			}
			require.Equal(t, string(text), got)
		})
	}
}

// script is the state of a script.
type script struct {
	now     time.Time
	record  Record
	limits  map[string]Limits
	kept    map[string]Record
	seen    map[string]string
	numbers uint64
	last    Change
}

func newScript() *script {
	return &script{
		now: noon, limits: map[string]Limits{"": usual}, kept: map[string]Record{"nothing": {}}, seen: map[string]string{},
	}
}

func runScript(t *testing.T, text string, run func(t *testing.T, line string) []string) string {
	var out strings.Builder
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "    "): // an old result
			continue
		case line == "" || line[0] == '#':
			fmt.Fprintln(&out, line)
			continue
		}
		fmt.Fprintln(&out, line)
		for _, result := range run(t, line) {
			fmt.Fprintln(&out, "    "+result)
		}
	}
	return out.String()
}

// run runs a command.
func (s *script) run(t *testing.T, line string) []string {
	command, at, timed := strings.Cut(line, " at ")
	if timed {
		s.now = noon.Add(durationOf(t, at))
	}
	if text, is := strings.CutPrefix(line, "read "); is {
		r, err := ParseRecord([]byte(text), s.now)
		if err != nil {
			return []string{"refused: " + err.Error()}
		}
		s.record = r
		return []string{s.text()}
	}
	words := append(strings.Fields(command), "", "", "")
	who, what, how := words[1], words[2], words[3]
	c := Change{Source: who}
	switch words[0] {
	case "limits":
		if strings.Contains(who, "=") {
			who = ""
		}
		l, known := s.limits[who]
		if !known {
			l = s.limits[""]
		}
		for _, word := range strings.Fields(command)[1:] {
			if key, value, is := strings.Cut(word, "="); is {
				l.set(t, key, value)
			}
		}
		s.limits[who] = l
		return nil
	case "keep":
		s.kept[who] = s.record
		return nil
	case "seen":
		s.seen[who] = what
		return nil
	case "lose", "failover":
		s.record = s.kept[cmp.Or(who, "nothing")]
		return []string{s.text()}
	case "later":
		s.record = s.record.translated(s.now, s.now.Add(durationOf(t, who)))
		return []string{s.text()}
	case "show":
		s.record = s.record.At(s.now)
		return []string{s.text()}
	case "rewrite":
		r, err := ParseRecord(AppendRecord(nil, s.record, s.now), s.now)
		require.NoError(t, err)
		s.record = r
		return []string{s.text()}
	case "waits":
		l := s.limitsOf(who)
		until, waits := s.record.blockedUntil(&l, who, s.now), "for nothing"
		if s.record.State != StateClosed && !until.IsZero() {
			waits = "until " + clockOf(until)
		}
		return []string{waits}
	case "again":
		c = s.last
	case "apply":
		c.Calls = calls(Limits{}, what).Calls
		c.OpenFor = option(t, how, "open")
	case "count":
		c.Counted = []Bucket{{Start: s.now, Calls: numberOf(t, what), Failures: numberOf(t, how)}}
	case "request":
		c.RequestTrial = what
	case "settle":
		c.Settled = []Settlement{{what, outcomeOf(t, how), option(t, words[4], "open")}}
	case "set":
		c.Manual = &ManualState{stateOf(t, what)}
	case "override":
		c.Override = &Override{State: stateOf(t, what), By: who, Reason: "maintenance"}
		if d := option(t, how, "for"); d > 0 {
			c.Override.Until = s.now.Add(d)
		}
	case "clear":
		c.Override = &Override{Until: s.now}
	case "evaluate":
	default:
		require.FailNow(t, "unknown command", line)
	}
	if words[0] != "again" {
		s.numbers++
		c.Number, c.Limits, c.By, c.Cause = s.numbers, s.limitsOf(who), who, "refused"
		c.Seen = s.record
		if name, is := s.seen[who]; is {
			c.Seen = s.kept[name]
		}
		s.last = c
	}
	var verdict Verdict
	s.record, verdict = s.record.Apply(c, s.now)
	return []string{[]string{"refused", "applied", "changed"}[verdict] + ": " + s.text()}
}

func (s *script) limitsOf(who string) Limits {
	if l, is := s.limits[who]; is {
		return l
	}
	return s.limits[""]
}

// clockOf returns a time in the form of scripts.
func clockOf(at time.Time) string { return at.Sub(noon).Round(time.Millisecond).String() }

func (s *script) text() string { return textOfRecord(&s.record) }

// textOfRecord returns a record in one line.
func textOfRecord(r *Record) string {
	parts := []string{r.State.String()}
	add := func(is bool, format string, args ...any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	if r.suspect() {
		parts[0] = "suspect"
	}
	add(r.Failures > 0 && !r.scored(), "failures %d", r.Failures)
	add(r.scored(), "score %d of %d", r.Score, 2*r.Threshold)
	add(r.Rated, "rated")
	calls := sum(r.Window.Buckets)
	add(calls.Calls > 0, "%d calls of which %d failed", calls.Calls, calls.Failures)
	add(r.Successes > 0, "successes %d", r.Successes)
	add(!r.SuspectAt.IsZero(), "since %s", clockOf(r.SuspectAt))
	add(!r.DueAt.IsZero() && r.State != StateHalfOpen, "due %s", clockOf(r.DueAt))
	add(r.Witness != "", "witness %s", r.Witness)
	add(!r.RetryAt.IsZero(), "who waits until %s", clockOf(r.RetryAt))
	for _, trial := range r.Trials {
		add(true, "trial %s until %s", trial.ID, clockOf(trial.Deadline))
		add(trial.Stale, "stale")
	}
	add(r.OpenDuration > 0, "open duration %v", r.OpenDuration)
	add(!r.DismissedAt.IsZero(), "dismissed %s", clockOf(r.DismissedAt))
	add(!r.ClosedAt.IsZero(), "closed %s", clockOf(r.ClosedAt))
	if o := r.Override; o != nil {
		add(true, "forced %v by %s", o.State, o.By)
		add(!o.Until.IsZero(), "until %s", clockOf(o.Until))
	}
	add(r.State != StateClosed || r.suspect(), "by %s", cmp.Or(r.By, "nobody"))
	return strings.Join(parts, ", ")
}

// set sets a field by its name.
func (l *Limits) set(t *testing.T, key, value string) {
	switch field := l.field(key).(type) {
	case *int:
		if *field = unlimited; value != "none" {
			*field = numberOf(t, value)
		}
	case *float64:
		f, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		*field = f
	case *time.Duration:
		*field = durationOf(t, value)
	default:
		require.FailNow(t, "unknown limit", key)
	}
}

func (l *Limits) field(key string) any {
	return map[string]any{
		"FailMax": &l.FailMax, "ResetTimeout": &l.ResetTimeout, "SuccessThreshold": &l.SuccessThreshold, "MaxTrials": &l.MaxTrials,
		"TrialTimeout": &l.TrialTimeout, "Suspicion": &l.Suspicion, "FailureRate": &l.FailureRate, "Window": &l.Window,
		"MinCalls": &l.MinCalls, "MaxResetTimeout": &l.MaxResetTimeout, "MaxRetryAfter": &l.MaxRetryAfter,
	}[key]
}

func numberOf(t *testing.T, text string) int {
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

func durationOf(t *testing.T, text string) time.Duration {
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// option returns the duration of an option such as "open=2m", or 0.
func option(t *testing.T, text, name string) time.Duration {
	value, is := strings.CutPrefix(text, name+"=")
	if !is {
		require.Empty(t, text)
		return 0
	}
	return durationOf(t, value)
}

func stateOf(t *testing.T, text string) State {
	for s := range StateHalfOpen + 1 {
		if s.String() == text {
			return s
		}
	}
	require.FailNow(t, "unknown state", text)
	return 0
}

func outcomeOf(t *testing.T, text string) Outcome {
	for o := range OutcomeIgnored + 1 {
		if o.String() == text {
			return o
		}
	}
	require.FailNow(t, "unknown outcome", text)
	return 0
}

// Helpers of the tests of records.

// long reports whether tests may take minutes.
func long() bool { return os.Getenv("CI") == "true" }

var (
	noon  = time.UnixMilli(1_700_000_000_000)
	usual = Limits{FailMax: 5, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: 30 * time.Second, Suspicion: 50 * time.Millisecond}
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

// then applies a change of a sender that has seen the record.
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
		t.Fatal("Apply does not return")
	}
}
