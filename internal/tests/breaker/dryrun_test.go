package breaker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// The rules of Config.DryRun: nothing is rejected, and all else works as without it.

// wouldReject counts the calls that WouldReject is called for.
func wouldReject(n *atomic.Int64) *infuse.Listener {
	return &infuse.Listener{WouldReject: func(_ context.Context, _ *infuse.Breaker, err *infuse.OpenError) {
		if errors.Is(err, infuse.ErrOpen) {
			n.Add(1)
		}
	}}
}

// R9.
func TestADryRunRejectsNothingAndCountsWhatItWouldReject(t *testing.T) {
	for kind, shared := range map[string]bool{"local": false, "shared": true} {
		for way, call := range hookWays {
			if call == nil {
				continue // the Transport has a test of its own
			}
			t.Run(kind+" "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var told atomic.Int64
					var transitions stateLog
					cfg := infuse.Config{FailMax: 2, ResetTimeout: time.Second, DryRun: true, CountCalls: true, Listeners: []*infuse.Listener{wouldReject(&told), transitions.Listener()}}
					if shared {
						cfg.Storage = infuse.NewMemoryStorage()
					}
					b := startBreaker(t, "prices", cfg)
					for range 2 {
						call(b, errUnhealthy)
					}
					require.Equal(t, infuse.StateOpen, b.State())
					require.True(t, b.Ready(), "a call runs")
					for range 7 {
						call(b, errUnhealthy)
					}
					call(b, nil) // a success is not counted either
					require.Equal(t, infuse.StateOpen, b.State())
					require.Equal(t, infuse.CallCounts{Failure: 2, WouldReject: 8}, b.Stats().Calls)
					require.EqualValues(t, 8, told.Load())

					time.Sleep(time.Second)
					call(b, errUnhealthy) // the trial
					require.Equal(t, infuse.StateOpen, b.State())
					time.Sleep(time.Second)
					call(b, nil)
					require.Equal(t, infuse.StateClosed, b.State())
					require.Equal(t, infuse.CallCounts{Success: 1, Failure: 3, WouldReject: 8}, b.Stats().Calls)
					require.Equal(t, []string{"closed>open", "open>half-open", "half-open>open", "open>half-open", "half-open>closed"}, transitions.All())
				})
			})
		}
	}
}

// One call in a half-open circuit is the trial, and the others run uncounted.
// R9.
func TestADryRunHasOneTrialAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Second, DryRun: true, CountCalls: true, Storage: infuse.NewMemoryStorage()})
		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		trial, err := b.Acquire(t.Context())
		require.NoError(t, err)
		for range 3 {
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		}
		require.Equal(t, infuse.StateHalfOpen, b.State())
		trial.Done(nil)
		require.Equal(t, infuse.StateClosed, b.State())
		require.Equal(t, infuse.CallCounts{Success: 1, WouldReject: 3}, b.Stats().Calls)
	})
}

// A process that tries it out shares its circuit with others that enforce it, and
// an override, a ramp and StorageDownReject reject nothing there.
// R9.
func TestADryRunSharesItsCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		cfg := infuse.Config{FailMax: 2, Storage: storage}
		enforces := startBreaker(t, "prices", cfg)
		cfg.DryRun = true
		tries := startBreaker(t, "prices", cfg)
		for range 2 {
			require.Equal(t, errUnhealthy, tries.Call(t.Context(), fails))
		}
		passSuspicion()
		require.Equal(t, errUnhealthy, enforces.Call(t.Context(), fails))
		require.Equal(t, errUnhealthy, enforces.Call(t.Context(), fails))
		require.ErrorIs(t, enforces.Call(t.Context(), fails), infuse.ErrOpen)
		require.NoError(t, tries.Call(t.Context(), succeeds))
		require.Equal(t, infuse.StateOpen, tries.State())
		require.Equal(t, infuse.StateOpen, tries.Stats().Shared.State)

		require.NoError(t, enforces.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "maintenance"}))
		synctest.Wait()
		require.NoError(t, tries.Call(t.Context(), succeeds))

		require.NoError(t, tries.Configure(infuse.Config{FailMax: 2}))
		require.ErrorIs(t, tries.Call(t.Context(), succeeds), infuse.ErrOpen, "switched off while it runs")
		require.NoError(t, enforces.Configure(infuse.Config{FailMax: 2, DryRun: true}))
		require.NoError(t, enforces.Call(t.Context(), succeeds), "switched on while it runs")
	})
}

// A successful call of a dry run in a closed circuit costs what it costs without.
func TestADryRunCostsAHealthyCallNothing(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{DryRun: true})
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = b.Call(context.Background(), succeeds) }))
}
