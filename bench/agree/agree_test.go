package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// TestMain makes the test's own program a process of a fleet, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == workerFlag {
		exit(work(os.Stdin, os.Stdout))
	}
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
	for _, o := range []outage{{size: 4, rate: 50, errors: 1}, {size: 6, errors: 1}} {
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
