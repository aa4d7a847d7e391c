package pybreakerstorage

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// This file tests Go and Python alternately. The tests send the commands that Python
// would send.

var manyLimits = infuse.Limits{FailMax: 1_000_000, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Minute}

// oneFailure has no sequence number: it counts each time that it is applied.
var oneFailure = infuse.Change{Limits: manyLimits, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}}

// mixed is a circuit that Go and Python share.
type mixed struct{ *replay }

func newMixed(t *testing.T) mixed {
	t.Parallel()
	return mixed{newReplay(t, redistest.Start(t).Client(), 0, time.Minute)}
}

func (m mixed) apply(c infuse.Change) (infuse.Record, infuse.Verdict) {
	m.Helper()
	if c.Limits == (infuse.Limits{}) {
		c.Limits = manyLimits
	}
	record, verdict, err := m.storages[0].Apply(m.Context(), m.namespace, c)
	require.NoError(m, err)
	return record, verdict
}

func (m mixed) move(to infuse.State) { m.apply(infuse.Change{Manual: &infuse.ManualState{To: to}}) }

// opens opens the circuit like Python with a clock that is off by that many seconds.
func (m mixed) opens(off int64) {
	m.set("opened_at", m.second()+off)
	m.set("success_counter", 0)
	m.set("state", "open")
}

func TestFailuresOfBothAreCounted(t *testing.T) {
	m := newMixed(t)
	const each = 200
	var both sync.WaitGroup
	both.Go(func() {
		for range each {
			m.client.Incr(t.Context(), m.key("fail_counter"))
		}
	})
	for range each {
		m.apply(oneFailure)
	}
	both.Wait()
	require.Equal(t, 2*each, m.load(1).Failures)
	require.Equal(t, int64(2*each), m.number("fail_counter"))
}

func TestPythonSuccessEndsTheStreak(t *testing.T) {
	m := newMixed(t)
	for range 4 {
		m.apply(oneFailure)
	}
	m.set("fail_counter", 0)
	require.Zero(t, m.load(0).Failures)
	m.set("fail_counter", 2)
	require.Equal(t, 2, m.load(1).Failures)
	m.set("fail_counter", 3)
	require.Equal(t, 3, m.load(1).Failures)
	m.apply(infuse.Change{Calls: infuse.Calls{Successes: 1}, Seen: m.load(0)})
	require.Equal(t, "0", m.value("fail_counter"))
}

var suspecting = infuse.Limits{FailMax: 3, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Minute, Suspicion: 10 * time.Second}

func suspect(m mixed) infuse.Record {
	record, _ := m.apply(infuse.Change{Seen: m.load(0), Limits: suspecting, Calls: infuse.Calls{Failures: 3, Lead: 3, Streak: 3}})
	require.True(m, record.Suspect())
	return record
}

func TestPythonReceivesAnOpening(t *testing.T) {
	m := newMixed(t)
	suspect(m)
	require.Equal(t, "closed", m.value("state"))
	require.Equal(t, "3", m.value("fail_counter"))
	m.apply(infuse.Change{Seen: m.load(0), Limits: suspecting, Calls: oneFailure.Calls})
	require.Equal(t, "4", m.value("fail_counter"), "at least as many as opening needs")
	m.wait(11 * time.Second)
	require.Equal(t, infuse.StateClosed, m.load(1).State, "time opens nothing")
	m.apply(infuse.Change{Seen: m.load(0), Limits: suspecting, Calls: infuse.Calls{Failures: 2, Lead: 2, Streak: 2}})
	before := m.load(1)
	require.Equal(t, infuse.StateOpen, before.State)
	require.Equal(t, "open", m.value("state"))
	require.InDelta(t, m.second(), m.number("opened_at"), 1)
	require.Equal(t, before.Generation, m.load(0).Generation)
}

func TestPythonDecidesASuspicion(t *testing.T) {
	m := newMixed(t)
	began := suspect(m)
	m.client.Incr(t.Context(), m.key("fail_counter"))
	require.Equal(t, 4, m.load(0).Score)
	m.set("fail_counter", 0)
	after := m.load(0)
	require.False(t, after.Suspect(), "a success dismisses it")
	require.Zero(t, after.Failures)
	require.Greater(t, after.Generation, began.Generation)

	m.move(infuse.StateClosed)
	suspect(m)
	m.opens(0)
	require.Equal(t, infuse.StateOpen, m.load(1).State)
}

func TestPythonStateCountsAsSetManually(t *testing.T) {
	m := newMixed(t)
	m.move(infuse.StateHalfOpen)
	running, verdict := m.apply(infuse.Change{RequestTrial: "trial"})
	require.Equal(t, infuse.VerdictChanged, verdict)

	m.set("success_counter", 0)
	m.set("fail_counter", 0)
	m.set("state", "closed")
	closed := m.load(1)
	require.Equal(t, infuse.StateClosed, closed.State)
	require.Equal(t, byPython, closed.By)
	require.Greater(t, closed.Generation, running.Generation)
	require.True(t, closed.Trials[0].Stale)

	m.apply(infuse.Change{Seen: running, Settled: []infuse.Settlement{{ID: "trial", Outcome: infuse.OutcomeFailure}}})
	require.Equal(t, "closed", m.value("state"), "a circuit that Python closed is neither opened by an earlier trial nor restored")

	m.opens(0)
	_, verdict = m.apply(infuse.Change{Seen: closed, Limits: manyLimits, Calls: oneFailure.Calls})
	require.Equal(t, infuse.VerdictRefused, verdict)
	require.Equal(t, "0", m.value("fail_counter"), "a call from before the opening is not counted")
}

func TestTrialsOfGoAreLimitedDespitePython(t *testing.T) {
	m := newMixed(t)
	m.opens(-100)
	require.Equal(t, infuse.StateOpen, m.load(0).State)
	m.set("success_counter", 0)
	m.set("state", "half-open") // a trial of Python
	_, verdict := m.apply(infuse.Change{RequestTrial: "one"})
	require.Equal(t, infuse.VerdictChanged, verdict)
	_, verdict = m.apply(infuse.Change{RequestTrial: "two"})
	require.Equal(t, infuse.VerdictRefused, verdict)
}

// A wrong clock of Python neither keeps the circuit open for long nor makes it ready for
// a trial too early.
func TestPythonsClock(t *testing.T) {
	for name, test := range map[string]struct {
		known   bool // Go had written before
		off     int64
		dueFrom time.Duration // from now
	}{
		"right":                   {true, 0, time.Minute},
		"ahead":                   {true, 3600, time.Minute},
		"behind":                  {true, -3600, time.Minute},
		"right, and Go is new":    {false, -20, 40 * time.Second},
		"ahead, and Go is new":    {false, 3600, time.Minute},
		"long ago, and Go is new": {false, -3600, -59 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMixed(t)
			if test.known {
				m.apply(oneFailure)
			}
			m.opens(test.off)
			require.WithinDuration(t, time.Now().Add(test.dueFrom), m.load(0).DueAt, 3*time.Second)
		})
	}
}

// Infuse for Python writes its keys in any order, so the state may come first.
func TestOpenedAtAfterState(t *testing.T) {
	m := newMixed(t)
	m.apply(oneFailure)
	m.set("opened_at", m.second()-3600)
	m.load(0)
	const later = time.Hour
	m.wait(later)
	m.set("state", "open")
	require.WithinDuration(t, time.Now().Add(later+time.Minute), m.load(0).DueAt, 3*time.Second)
	m.set("opened_at", m.second())
	require.WithinDuration(t, time.Now().Add(later+time.Minute), m.load(0).DueAt, 3*time.Second)
}

func TestMissingKeysAreRestored(t *testing.T) {
	m := newMixed(t)
	m.move(infuse.StateOpen)
	want := m.load(0)
	m.client.Del(t.Context(), m.key("state"), m.key("fail_counter"), m.key("success_counter"), m.key("opened_at"))
	require.Equal(t, want.Generation, m.load(1).Generation)
	require.Equal(t, "open", m.value("state"))

	opened := m.value("opened_at")
	time.Sleep(5 * time.Millisecond) // a new record's generation is the time
	m.client.Del(t.Context(), m.key(extraKey))
	require.Equal(t, infuse.StateOpen, m.load(1).State, "Python's keys contain the state")
	require.Equal(t, opened, m.value("opened_at"))
	require.Greater(t, m.load(1).Generation, want.Generation)
}

func TestFirstRead(t *testing.T) {
	m := newMixed(t)
	m.set("state", "half-open")
	m.set("success_counter", 2)
	m.set("fail_counter", 1)
	r := m.load(0)
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Equal(t, 2, r.Successes)
	m.set("success_counter", 3)
	require.Equal(t, 3, m.load(1).Successes)
	require.Greater(t, m.load(0).Generation, r.Generation, "watchers must be notified")
}

// A write between read and save is not overwritten.
func TestConflictingWrite(t *testing.T) {
	m := newMixed(t)
	m.move(infuse.StateOpen)
	for name, write := range map[string]func(){
		"Go":                      func() { m.move(infuse.StateOpen) },
		"Python, state":           func() { m.set("state", "closed") },
		"Python, fail_counter":    func() { m.client.Incr(t.Context(), m.key("fail_counter")) },
		"Python, opened_at":       func() { m.set("opened_at", m.second()+100) },
		"Python, success counter": func() { m.client.Incr(t.Context(), m.key("success_counter")) },
	} {
		s, keys := m.storages[0], Pybreaker.keys(m.namespace)
		f, _, err := s.run(t.Context(), keys)
		require.NoError(t, err)
		c, err := s.merged(f)
		require.NoError(t, err)
		next, _ := c.record.Apply(infuse.Change{Limits: manyLimits, Manual: &infuse.ManualState{To: infuse.StateHalfOpen}}, c.readAt)
		write()
		saved, err := s.save(t.Context(), keys, c, next)
		require.NoError(t, err)
		require.False(t, saved, name)
		m.move(infuse.StateOpen)
	}
}

func TestReadingWritesNothing(t *testing.T) {
	m := newMixed(t)
	require.Equal(t, infuse.Record{}, m.load(0))
	m.apply(infuse.Change{})
	require.Zero(t, m.client.DBSize(t.Context()).Val())
	m.apply(oneFailure)
	version := m.client.HGet(t.Context(), m.key(extraKey), "v").Val()
	m.load(0)
	m.load(1)
	require.Equal(t, version, m.client.HGet(t.Context(), m.key(extraKey), "v").Val())
}

// A value that this package does not write made each read write again.
func TestReadingUnusualValuesWritesOnce(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	for _, c := range []struct {
		layout     Layout
		key, value string
	}{
		{Pybreaker, "orders:pybreaker:opened_at", "0"},
		{Pybreaker, "orders:pybreaker:fail_counter", "-03"},
		{Pybreaker, "orders:pybreaker:opened_at", "99999999999"},
		{Infuse, "infuse:orders:success_counter", "4"},
	} {
		client.FlushAll(t.Context())
		client.Set(t.Context(), c.key, c.value, 0)
		s, err := New(client, Options{Layout: c.layout})
		require.NoError(t, err)
		_, _, err = s.Apply(t.Context(), "orders", oneFailure)
		require.NoError(t, err)
		extra := c.layout.keys("orders")[0]
		version := client.HGet(t.Context(), extra, "v").Val()
		require.NotEmpty(t, version)
		_, err = s.Load(t.Context(), "orders")
		require.NoError(t, err)
		require.Equal(t, version, client.HGet(t.Context(), extra, "v").Val(), c.key)
	}
}

// A key of the wrong type made the storage unavailable for all circuits.
func TestKeyOfAnotherType(t *testing.T) {
	m := newMixed(t)
	for _, key := range []string{"state", extraKey} {
		m.client.Del(t.Context(), m.key("state"), m.key(extraKey))
		require.NoError(t, m.client.LPush(t.Context(), m.key(key), "x").Err())
		_, err := m.storages[0].Load(t.Context(), m.namespace)
		var unreadable *infuse.RecordError
		require.ErrorAs(t, err, &unreadable, key)
		_, _, err = m.storages[0].Apply(t.Context(), m.namespace, oneFailure)
		require.ErrorAs(t, err, &unreadable, key)
	}
}

func TestInvalidRecordIsAnErrorUntilReplaced(t *testing.T) {
	m := newMixed(t)
	for key, value := range map[string]string{"state": "ajar", "fail_counter": "many", "opened_at": "1e9"} {
		m.set(key, value)
		_, err := m.storages[0].Load(t.Context(), m.namespace)
		var garbage *infuse.RecordError
		require.ErrorAs(t, err, &garbage, key)
		_, _, err = m.storages[0].Apply(t.Context(), m.namespace, oneFailure)
		require.ErrorAs(t, err, &garbage, key)
		m.move(infuse.StateOpen)
		require.Equal(t, infuse.StateOpen, m.load(1).State)
	}
	m.client.HSet(t.Context(), m.key(extraKey), "r", "{")
	_, err := m.storages[0].Load(t.Context(), m.namespace)
	require.ErrorContains(t, err, "is not JSON of a record")
}

func TestInfusesKeys(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	s, err := New(client, Options{Layout: Infuse, Namespace: func(circuit string) string { return "development:" + circuit }})
	require.NoError(t, err)
	_, _, err = s.Apply(t.Context(), "inventory", infuse.Change{Limits: manyLimits, Manual: &infuse.ManualState{To: infuse.StateOpen}})
	require.NoError(t, err)
	keys, err := client.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	base := "infuse:development:inventory:"
	require.ElementsMatch(t, []string{base + "state", base + "fail_counter", base + "opened_at", base + extraKey}, keys)

	// A Python process starts.
	client.Set(t.Context(), base+"fail_counter", 0, 0)
	client.Set(t.Context(), base+"state", "closed", 0)
	record, err := s.Load(t.Context(), "inventory")
	require.NoError(t, err)
	require.Equal(t, infuse.StateClosed, record.State)

	client.Set(t.Context(), base+"opened_at", client.Time(t.Context()).Val().Unix(), 0)
	client.Set(t.Context(), base+"state", "open", 0)
	record, err = s.Load(t.Context(), "inventory")
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(15*time.Second), record.DueAt, 3*time.Second)
}

func TestNamesOfKeys(t *testing.T) {
	require.Equal(t, "orders:pybreaker:state", Pybreaker.keys("orders")[1])
	require.Equal(t, "pybreaker:state", Pybreaker.keys("")[1])
	require.Equal(t, "infuse:a:b:opened_at", Infuse.keys("a:b")[4])
	require.Equal(t, "infuse:state", Infuse.keys("")[1])
	require.Equal(t, "infuse", Infuse.String())
	require.Equal(t, "Layout(7)", Layout(7).String())
}

func TestInvalidOptions(t *testing.T) {
	_, err := New(nil, Options{Layout: 9, ResetTimeout: -1, PollInterval: time.Microsecond})
	for _, wrong := range []string{"client is nil", "Layout(9)", "Options.ResetTimeout is -1ns", "Options.PollInterval is 1µs"} {
		require.ErrorContains(t, err, wrong)
	}
}

func TestUnavailableServerIsAnError(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s, err := New(server.Client(), Options{})
	require.NoError(t, err)
	server.Kill()
	_, err = s.Load(t.Context(), "orders")
	require.Error(t, err)
}
