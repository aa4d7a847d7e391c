package breaker_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

func hold(state infuse.State, until time.Time) infuse.Override {
	return infuse.Override{State: state, By: "ann", Reason: "maintenance", Until: until}
}

// R33.
func TestAnOverrideHoldsForTheFleet(t *testing.T) {
	for name, storage := range storages(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			var mu sync.Mutex
			var told []infuse.Transition
			listener := &infuse.Listener{StateChange: func(_ *infuse.Breaker, tr infuse.Transition) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, tr)
			}}
			cfg := patiently(infuse.Config{Storage: storage})
			one := startBreaker(t, "prices", cfg)
			cfg.Listeners = []*infuse.Listener{listener}
			other := startBreaker(t, "prices", cfg)

			require.NoError(t, one.Override(ctx, hold(infuse.StateOpen, time.Now().Add(time.Hour))))
			eventuallyState(t, infuse.StateOpen, one, other)
			rejection := requireRejected(t, other)
			require.Equal(t, "ann", rejection.By)
			require.Equal(t, "maintenance", rejection.Reason)
			require.False(t, rejection.Local)
			require.InDelta(t, time.Hour, rejection.RetryAfter(), float64(time.Minute))
			require.EqualError(t, rejection, `infuse: circuit "prices" is forced open: "maintenance"`)
			require.NoError(t, one.Override(ctx, hold(infuse.StateOpen, time.Time{})))
			require.Eventually(t, func() bool { return requireRejected(t, other).DueAt.IsZero() }, patience, pace)
			require.EqualError(t, requireRejected(t, other), `infuse: circuit "prices" is forced open: "maintenance"`)
			require.Equal(t, "ann", other.Stats().Override.By)
			require.Equal(t, "maintenance", recordOf(t, one).Override.Reason)
			require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 1 }, patience, pace)
			require.Equal(t, "ann", told[0].Origin)
			require.Equal(t, "maintenance", told[0].Cause)

			// Held closed: every call runs, and outcomes are counted.
			require.NoError(t, other.Override(ctx, hold(infuse.StateClosed, time.Time{})))
			eventuallyState(t, infuse.StateClosed, one, other)
			for range 20 {
				require.ErrorIs(t, one.Call(ctx, fails), errUnhealthy)
			}
			requireState(t, infuse.StateClosed, one)
			require.NotZero(t, recordOf(t, one).By)

			require.NoError(t, one.ClearOverride(ctx, "bob"))
			require.Nil(t, recordOf(t, one).Override)
			require.Nil(t, one.Stats().Override)
			require.Eventually(t, func() bool { return other.Stats().Override == nil }, patience, pace)
			require.NoError(t, one.ClearOverride(ctx, "bob"), "once more")

			// One that is over lets calls run again, by time alone.
			require.NoError(t, one.SetState(ctx, infuse.StateClosed))
			require.NoError(t, one.Override(ctx, hold(infuse.StateOpen, time.Now().Add(300*time.Millisecond))))
			requireState(t, infuse.StateOpen, one)
			eventuallyState(t, infuse.StateClosed, one, other)
			require.NoError(t, other.Call(ctx, succeeds))
			require.Nil(t, recordOf(t, one).Override)
		})
	}
}

func TestAnOverrideWithoutAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := startBreaker(t, "prices", infuse.Config{StorageDown: infuse.StorageDownReject})
		require.NoError(t, b.Override(ctx, infuse.Override{State: infuse.StateOpen, Reason: "upgrade", Until: time.Now().Add(time.Minute)}))
		rejection := requireRejected(t, b)
		require.NotEmpty(t, rejection.By, "the instance")
		time.Sleep(time.Minute - time.Millisecond)
		requireRejected(t, b)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.NoError(t, b.Call(ctx, succeeds))

		// Behind an override the circuit is what it was.
		trip(t, b)
		require.NoError(t, b.Override(ctx, hold(infuse.StateClosed, time.Time{})))
		requireState(t, infuse.StateClosed, b)
		for range 100 {
			require.ErrorIs(t, b.Call(ctx, fails), errUnhealthy)
		}
		require.Zero(t, allocations(func() { _ = b.Call(context.Background(), succeeds) }))
		require.NoError(t, b.ClearOverride(ctx, ""))
		requireState(t, infuse.StateOpen, b)
		time.Sleep(time.Minute)
		require.NoError(t, b.Call(ctx, succeeds), "the trial")
		requireState(t, infuse.StateClosed, b)
	})
}

func TestAnOverrideIsChecked(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	for want, o := range map[string]infuse.Override{
		"Override.State is half-open: must be open or closed": {State: infuse.StateHalfOpen},
		"which is in the past":                                {State: infuse.StateOpen, Until: time.Now().Add(-time.Second)},
		"ahead, or zero":                                      {State: infuse.StateOpen, Until: time.Now().AddDate(2, 0, 0)},
		"Override.Reason is empty":                            {State: infuse.StateOpen, By: "ann"},
		"Override.Reason is empty: it is required":            {}, // it closed the circuit for the whole fleet, for good, without an error
		"Reason is empty: it":                                 {State: infuse.StateClosed, Reason: " \n"},
		"Reason has more than 200 bytes":                      {State: infuse.StateOpen, Reason: strings.Repeat("x", 201)},
	} {
		require.ErrorContains(t, b.Override(t.Context(), o), want)
	}
	require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "a\nb", Reason: "<b>\x00"}))
	require.Equal(t, "a b", requireRejected(t, b).By)
	require.Equal(t, "<b> ", requireRejected(t, b).Reason)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, b.ClearOverride(cancelled, "ann"), "was not freed of its override: context canceled")
	requireState(t, infuse.StateOpen, b)
}

func TestAnOverrideReplacesAnUnreadableRecord(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, server)}))
	require.NoError(t, server.Client().HSet(t.Context(), "infuse:{prices}", "v", "7", "r", "garbage").Err())
	_ = b.Call(t.Context(), fails)
	require.Error(t, b.Stats().StorageErr)
	require.NoError(t, b.Override(t.Context(), hold(infuse.StateOpen, time.Time{})))
	require.NoError(t, b.Stats().StorageErr)
	require.Equal(t, "ann", recordOf(t, b).Override.By)
}

func TestAManualChangeAppliesUnderAnOverride(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{Storage: infuse.NewMemoryStorage()})
	ctx := t.Context()
	require.NoError(t, b.Override(ctx, hold(infuse.StateClosed, time.Time{})))
	require.NoError(t, b.SetState(ctx, infuse.StateOpen))
	requireState(t, infuse.StateClosed, b)
	require.Equal(t, infuse.StateOpen, recordOf(t, b).State)
	require.NoError(t, b.Override(ctx, hold(infuse.StateOpen, time.Time{})))
	require.NoError(t, b.SetState(ctx, infuse.StateClosed))
	requireRejected(t, b)
	require.NoError(t, b.ClearOverride(ctx, "ann"))
	require.NoError(t, b.Call(ctx, succeeds), fmt.Sprint(recordOf(t, b)))
}

// TestAManualOpeningLastsAsLongAsItsSenderSet: an operator opens the circuit for
// longer than the settings of the processes allow a Retry-After, or anything else.
// R41.
func TestAManualOpeningLastsAsLongAsItsSenderSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		b := startBreaker(t, "prices", infuse.Config{Storage: storage})
		operator := startBreaker(t, "prices", infuse.Config{Storage: storage, ResetTimeout: 2 * time.Hour})
		require.NoError(t, operator.SetState(t.Context(), infuse.StateOpen))
		eventuallyState(t, infuse.StateOpen, b)
		require.Equal(t, 2*time.Hour, requireRejected(t, b).RetryAfter())
		late := startBreaker(t, "prices", infuse.Config{Storage: storage, MaxRetryAfter: -1})
		time.Sleep(2*time.Hour - time.Millisecond)
		requireRejected(t, b)
		requireRejected(t, late)
		time.Sleep(time.Millisecond)
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
	})
}

// Nothing but redis-cli could replace a record that cannot be read.
func TestAManualChangeReplacesAnUnreadableRecord(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	b := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, server)}))
	for what, spoil := range map[string]func() error{
		"garbage":      func() error { return client.HSet(t.Context(), "infuse:{prices}", "v", "7", "r", "garbage").Err() },
		"another type": func() error { return client.Set(t.Context(), "infuse:{prices}", "garbage", 0).Err() },
	} {
		require.NoError(t, client.Del(t.Context(), "infuse:{prices}").Err())
		require.NoError(t, spoil())
		_ = b.Call(t.Context(), fails)
		require.Error(t, b.Stats().StorageErr, what)
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen), what)
		require.NoError(t, b.Stats().StorageErr, what)
		require.Equal(t, infuse.StateOpen, recordOf(t, b).State, what)
		require.NoError(t, b.SetState(t.Context(), infuse.StateClosed), what)
	}
}

// What a reviewer broke of overrides and histories.

// R33.
func TestAnOverrideThatIsOverStaysOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", infuse.Config{})
		require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, Reason: "maintenance", Until: time.Now().Add(time.Second)}))
		time.Sleep(2 * time.Second)
		require.Equal(t, infuse.StateClosed, b.State())
		require.ErrorIs(t, callOf(b, true), errUnhealthy)
		time.Sleep(24 * time.Hour)
		require.NoError(t, callOf(b, false), "a day later")
	})
}

func TestAGroupKeepsOverrides(t *testing.T) {
	for _, state := range []infuse.State{infuse.StateOpen, infuse.StateClosed} {
		t.Run(state.String(), func(t *testing.T) {
			g, err := infuse.NewGroup(infuse.Config{MaxCircuits: 2, FailMax: 1})
			require.NoError(t, err)
			held, _ := g.Breaker("held")
			require.NoError(t, held.Override(t.Context(), infuse.Override{State: state, Reason: "maintenance"}))
			open, _ := g.Breaker("open")
			_ = callOf(open, true)
			require.Equal(t, infuse.StateOpen, open.State())
			_, _ = g.Breaker("new")
			again, _ := g.Breaker("held")
			require.NotNil(t, again.Stats().Override, "the override is gone")
		})
	}
}

// R6, R33.
func TestClearingNoOverrideClearsNoLocalCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		one, other := startBreaker(t, "service", infuse.Config{Storage: storage}), startBreaker(t, "service", infuse.Config{Storage: storage})
		for range 5 {
			_ = callOf(one, true)
		}
		for range 5 {
			_ = callOf(other, false)
		}
		time.Sleep(time.Second)
		require.Equal(t, infuse.StateOpen, one.State())
		require.Equal(t, infuse.StateClosed, one.Stats().Shared.State)
		require.NoError(t, other.ClearOverride(t.Context(), "ann"))
		synctest.Wait()
		require.Equal(t, infuse.StateOpen, one.State(), "there was no override, and its own circuit is closed")
	})
}

func TestAnOverrideToHalfOpen(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	_, _, err := storage.Apply(t.Context(), "service", infuse.Change{Limits: infuse.Limits{FailMax: 5, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: 30 * time.Second}, Override: &infuse.Override{State: infuse.StateHalfOpen}})
	require.Error(t, err)
}

// R34.
func TestAnOverrideIsClearedForThisProcessDuringAnOutage(t *testing.T) {
	for name, release := range map[string]func(ctx context.Context, b *infuse.Breaker) error{
		"ClearOverride": func(ctx context.Context, b *infuse.Breaker) error { return b.ClearOverride(ctx, "ann") },
		"Override closed": func(ctx context.Context, b *infuse.Breaker) error {
			return b.Override(ctx, infuse.Override{State: infuse.StateClosed, Reason: "over"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &troubled{Storage: infuse.NewMemoryStorage()}
				b := startBreaker(t, "service", infuse.Config{Storage: storage})
				require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, Reason: "maintenance"}))
				storage.Down.Store(true)
				_, err := b.Record(t.Context()) // meets the outage
				require.Error(t, err)
				time.Sleep(time.Second)
				err = release(t.Context(), b)
				t.Log(err)
				require.ErrorContains(t, err, "in this process only")
				require.NoError(t, callOf(b, false), "for this process")
			})
		})
	}
}

// R33.
func TestTheEndOfAnOverrideOverAnOpenCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		b := startBreaker(t, "service", infuse.Config{Storage: storage})
		require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateClosed, Reason: "false alarm", Until: time.Now().Add(10 * time.Second)}))
		for range 20 {
			require.ErrorIs(t, callOf(b, true), errUnhealthy)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, infuse.StateOpen, b.State())
		require.Error(t, callOf(b, false))
		time.Sleep(time.Minute)
		require.NoError(t, callOf(b, false))
		require.Equal(t, infuse.StateClosed, b.State())
	})
}
