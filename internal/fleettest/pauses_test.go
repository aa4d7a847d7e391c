package fleettest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A Redis that pauses in a suspicion opens nothing: the successes that it receives
// later dismiss it.
func TestARedisThatPausesInASuspicionOpensNothing(t *testing.T) {
	t.Parallel()
	quietRedis()
	s := redistest.Start(t)
	cfg := infuse.Config{Suspicion: 100 * time.Millisecond, ResetTimeout: time.Hour, StorageTimeout: patience}
	cfg.Storage = host(t, s)
	one := startBreaker(t, "prices", cfg)
	cfg.Storage = host(t, s)
	two := startBreaker(t, "prices", cfg)
	for i := range 5 { // neither has enough consecutive failures to open its local circuit
		require.ErrorIs(t, []*infuse.Breaker{one, two}[i%2].Call(t.Context(), fails), errUnhealthy)
	}
	require.Eventually(t, func() bool { return one.Stats().Shared.Suspect && two.Stats().Shared.Suspect }, patience, pace, "notified of the suspicion")

	s.Pause()
	for range 4 {
		require.NoError(t, two.Call(t.Context(), succeeds))
	}
	time.Sleep(300 * time.Millisecond)
	require.Equal(t, infuse.StateClosed, one.State())
	s.Resume()
	require.Eventually(t, func() bool { return !recordOf(t, one).Suspect() }, patience, pace)
	require.Equal(t, infuse.StateClosed, one.State())
	require.Equal(t, infuse.StateClosed, two.State())
	require.Zero(t, recordOf(t, one).Opened)
}
