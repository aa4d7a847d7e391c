package main

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func simulate(t *testing.T, kind fleetKind, members int, w weather) (found tally) {
	w.Rate, w.Seed = 20, 1
	synctest.Test(t, func(t *testing.T) {
		var err error
		found, err = simulation{kind.name, members, w}.run()
		require.NoError(t, err)
	})
	return found
}

// The same calls come to the same openings of single processes, whatever the
// breaker; those of gobreaker's shared mode are the fleet's.
func TestASimulatedFleetThatIsWellOpensAsALocalBreakerDoes(t *testing.T) {
	w := weather{Errors: 0.3, For: 30 * time.Second}
	local := simulate(t, localFleet, 10, w)
	require.Positive(t, local.OpenedAlone)
	require.Positive(t, local.rejected())
	require.Zero(t, local.OpenedByAll)
	require.InDelta(t, 6000, local.calls(), 400)

	ours := simulate(t, infuseFleet, 10, weather{Errors: 0.1, For: 30 * time.Second})
	require.Equal(t, local.calls(), ours.calls())
	require.Equal(t, simulate(t, localFleet, 10, weather{Errors: 0.1, For: 30 * time.Second}).OpenedAlone, ours.OpenedAlone)
	require.Zero(t, ours.OpenedByAll)

	shared := simulate(t, gobreakerFleet, 10, w)
	require.Positive(t, shared.OpenedByAll)
	require.Zero(t, shared.OpenedAlone)
	require.Equal(t, local.calls(), shared.calls())
}

func TestASimulatedOutageEndsWhenAllReject(t *testing.T) {
	w := weather{Onset: 500 * time.Millisecond, For: 2500 * time.Millisecond}
	ours := simulate(t, infuseFleet, 100, w)
	require.EqualValues(t, 1, ours.OpenedByAll)
	require.Less(t, ours.Last, time.Second, "each needs one failed call of its own")
	require.Greater(t, ours.Last, 40*time.Millisecond)
	require.InDelta(t, 130, ours.Unhealthy, 70)

	shared := simulate(t, gobreakerFleet, 100, w)
	require.EqualValues(t, 1, shared.OpenedByAll)
	require.EqualValues(t, fewFailures, shared.Unhealthy)

	local := simulate(t, localFleet, 100, w)
	require.EqualValues(t, 100, local.OpenedAlone)
	require.EqualValues(t, 100*fewFailures, local.Unhealthy)
	require.Greater(t, local.Last, ours.Last)
}
