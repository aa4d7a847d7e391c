package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// TestMain makes the test's own program a process of a fleet, too.
func TestMain(m *testing.M) {
	worker.Serve(jobs)
	os.Exit(m.Run())
}

// The fleets in small: what is counted is what was done.

func TestAFleetOfProcessesCallsAndStaysClosed(t *testing.T) {
	redistest.Require(t)
	s := steady{size: 4, rate: 50, errors: 0.05, processes: 2}
	o, err := s.run(time.Second, 0, 1)
	require.NoError(t, err)
	require.Zero(t, o.openings)
	require.InDelta(t, 200, o.calls(), 100)
	require.Equal(t, o.Healthy.Calls, o.Healthy.Ran+o.Healthy.Local+o.Healthy.Fleet)
	require.Len(t, s.row(o), len(steadyHead))
}

func TestOneThatIsCutOffStopsByItself(t *testing.T) {
	redistest.Require(t)
	s := steady{size: 4, rate: 50, sick: 1}
	o, err := s.run(time.Second, 0, 1)
	require.NoError(t, err)
	require.Equal(t, []int64{failMax}, o.SickRan)
	require.Positive(t, o.Sick.Local)
	require.Zero(t, o.Healthy.Local+o.Healthy.Fleet)
	require.Equal(t, "pass", verdict(nil))
}

// A harness that could not tell an opening from none would prove nothing.
func TestAnOpeningOfTheFleetIsSeen(t *testing.T) {
	redistest.Require(t)
	s := steady{size: 4, rate: 50, errors: 1}
	o, err := s.run(time.Second, 0, 1)
	require.NoError(t, err)
	require.Equal(t, 1, o.openings)
	require.NotEmpty(t, o.suspicions)
	require.True(t, strings.HasPrefix(s.misses(o), "**FAIL**: 1 openings"))
}

func TestEveryRoundOfAnOutageIsMeasured(t *testing.T) {
	redistest.Require(t)
	for _, o := range []outage{{size: 4, rate: 50, errors: 1}} {
		rounds, c, err := o.run(2, 1)
		require.NoError(t, err)
		require.Len(t, rounds, 2)
		for _, r := range rounds {
			require.Len(t, r.members, o.size)
			require.Greater(t, r.fleet, suspicion/2)
			require.Positive(t, r.asked)
		}
		require.Len(t, o.row(rounds, c), len(outageHead))
	}
}

// quick is a rate that decides within a second, also by time alone.
var quick = rule{FailureRate: 0.5, Window: time.Second}

func TestAFleetUnderItsRateIsCountedBesideLocalBreakers(t *testing.T) {
	redistest.Require(t)
	s := steady{size: 4, rate: 50, errors: 0.2, processes: 2, rule: half}
	o, err := s.run(time.Second, 0, 1)
	require.NoError(t, err)
	require.Zero(t, o.openings)
	require.Equal(t, o.Healthy.Calls, o.Healthy.Ran+o.Healthy.Local+o.Healthy.Fleet)
	require.Positive(t, o.Healthy.Failed)
	require.Positive(t, o.sent)
	require.Zero(t, o.Healthy.Peer.Rejected)
	require.Len(t, s.rateRow(o), len(rateHead))
}

func TestOneThatIsCutOffOpensAtMinCallsAsALocalBreakerDoes(t *testing.T) {
	redistest.Require(t)
	s := steady{size: 4, rate: 50, sick: 1, rule: half}
	o, err := s.run(1500*time.Millisecond, 0, 1)
	require.NoError(t, err)
	require.Equal(t, []int64{minCalls}, o.SickRan)
	require.Equal(t, int64(1), o.Sick.Peer.Opened)
	require.Zero(t, o.Healthy.Local+o.Healthy.Fleet)
}

func TestAnOnsetIsMeasuredFromTheChangeOn(t *testing.T) {
	redistest.Require(t)
	s := onsetOf(steady{size: 8, rate: 50, errors: 1, processes: 2})
	s.rule = quick
	r, err := s.once(1)
	require.NoError(t, err)
	require.Greater(t, r.fleet, suspicion)
	require.Less(t, r.fleet, never)
	require.Less(t, r.all, never)
	require.Positive(t, r.ran)
	require.Positive(t, r.sent)
	require.Len(t, s.onsetRow([]onsetRound{r}), len(onsetHead))
}

func TestAnOnsetThatNobodyNoticesIsAMiss(t *testing.T) {
	s := onsetOf(steady{size: 8, rate: 50, errors: 1})
	row := s.onsetRow([]onsetRound{{fleet: never, all: 300 * time.Millisecond}})
	require.Equal(t, "**FAIL**: the fleet opens never", row[len(row)-1])
}

func TestARampIsSeen(t *testing.T) {
	redistest.Require(t)
	o := outage{size: 4, rate: 50, errors: 1, takes: 20 * time.Millisecond,
		rule: rule{FailMax: failMax, ResetTimeout: 300 * time.Millisecond, Ramp: time.Second}}
	all, err := o.recoveries(1, 1)
	require.NoError(t, err)
	require.Len(t, all, 1)
	r := all[0]
	require.True(t, r.opened.Before(r.closed))
	require.Positive(t, r.trials())
	offered, ran := 0, 0
	for _, s := range r.slots() {
		if s.from >= 0 && s.from < o.rule.Ramp {
			offered, ran = offered+s.offered, ran+s.ran
		}
	}
	require.Positive(t, ran)
	require.Less(t, ran, offered)
	require.Len(t, r.row("1"), len(rampHead))
}

// A check that could not fail would prove nothing.
func TestMoreThanTheShareIsAMiss(t *testing.T) {
	closed := time.Now()
	at := func(d time.Duration, n int) (all []entry) {
		for range n {
			all = append(all, entry{closed.Add(d), true})
		}
		return all
	}
	r := recovery{outage: ramp, opened: closed.Add(-time.Second), closed: closed, moves: []move{{closed, infuse.StateClosed}}}
	r.journal = append(at(-200*time.Millisecond, 1), at(0, 9)...) // of 9 calls 1.17 are allowed, and 8 beside
	require.Empty(t, r.misses())
	r.journal = append(r.journal, at(0, 1)...)
	require.Equal(t, []string{"10 calls after 0s in place of 1 and 8"}, r.misses())
	r.journal = append(at(-200*time.Millisecond, 2), at(ramp.rule.Ramp, 50)...)
	require.Equal(t, []string{"2 trials"}, r.misses())
	var b strings.Builder
	r.picture(&b)
	require.Contains(t, b.String(), "\n    3000       closed           50     50.0   50  #########################|\n")
}
