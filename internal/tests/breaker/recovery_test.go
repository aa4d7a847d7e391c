package breaker_test

import (
	"context"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// How a circuit comes back: the open time that grows, and the ramp.

// openFor returns for how long the circuit of b, which has just opened, stays
// open.
func openFor(t testing.TB, b *infuse.Breaker) time.Duration {
	t.Helper()
	return time.Until(requireRejected(t, b).DueAt)
}

// R30.
func TestTheOpenDurationDoublesAndShrinksAfterAHealthyPeriod(t *testing.T) {
	growing := infuse.Config{FailMax: 1, ResetTimeout: time.Second, MaxResetTimeout: 8 * time.Second}
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", growing)
		trip(t, b)
		for _, want := range []time.Duration{1, 2, 4, 8, 8} {
			require.Equal(t, want*time.Second, openFor(t, b))
			time.Sleep(want * time.Second)
			require.Error(t, b.Call(t.Context(), fails), "the trial")
		}
		// Each time that it stays closed for as long as it was open last, one
		// doubling is forgotten, and the next opening is one doubling.
		for _, c := range []struct{ calm, want time.Duration }{
			{0, 8}, {7, 8}, {8, 8}, {8 + 4 - 1, 8}, {8 + 4, 4}, {4, 4}, {4 + 2, 2}, {0, 4}, {4 + 2 + 1, 1}, {0, 2},
		} {
			time.Sleep(8 * time.Second)
			require.NoError(t, b.Call(t.Context(), succeeds))
			time.Sleep(c.calm * time.Second)
			trip(t, b)
			require.Equal(t, c.want*time.Second, openFor(t, b).Round(time.Millisecond), "after %d s of calm", c.calm)
		}
	})
	synctest.Test(t, func(t *testing.T) { // closed manually forgets everything
		b := startBreaker(t, "service", growing)
		trip(t, b)
		time.Sleep(time.Second)
		require.Error(t, b.Call(t.Context(), fails))
		require.Equal(t, 2*time.Second, openFor(t, b))
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		require.Equal(t, time.Second, openFor(t, b), "manually it is ResetTimeout")
		time.Sleep(time.Second)
		require.Error(t, b.Call(t.Context(), fails))
		require.Equal(t, 4*time.Second, openFor(t, b))
	})
}

// The fleet's open time is on record: whoever runs the trial, it grows for all.
// R30.
func TestTheOpenDurationGrowsForTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		cfg := infuse.Config{ResetTimeout: time.Second, MaxResetTimeout: 8 * time.Second, Storage: storage}
		var all []*infuse.Breaker
		for range 3 {
			all = append(all, startBreaker(t, "service", cfg))
		}
		tripFleetOf(t, all)
		for i, want := range []time.Duration{2, 4, 8, 8} {
			time.Sleep(max(openFor(t, all[i%3]), openFor(t, all[(i+1)%3])))
			require.ErrorIs(t, all[i%3].Call(t.Context(), fails), errUnhealthy)
			require.ErrorIs(t, all[(i+1)%3].Call(t.Context(), fails), errUnhealthy, "another process confirms it")
			synctest.Wait()
			for _, b := range all {
				require.Equal(t, want*time.Second, openFor(t, b).Round(time.Millisecond))
			}
		}
	})
}

// tripFleetOf opens the shared circuit, and has a call of each process fail.
func tripFleetOf(t testing.TB, all []*infuse.Breaker) {
	t.Helper()
	tripFleet(t, all[0], all[1:]...)
	synctest.Wait()
	for _, b := range all {
		_ = b.Call(context.Background(), fails)
	}
	synctest.Wait()
	requireState(t, infuse.StateOpen, all...)
}

// A Retry-After keeps the circuit open for longer, and is not what doubles.
// R30.
func TestARetryAfterDoesNotGrow(t *testing.T) {
	r := infuse.Record{}
	limits := infuse.Limits{FailMax: 1, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, MaxResetTimeout: 8 * time.Second}
	now := time.UnixMilli(1_700_000_000_000)
	failure := infuse.Change{Limits: limits, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}, OpenFor: 30 * time.Second}
	r, _ = r.Apply(failure, now)
	require.Equal(t, now.Add(30*time.Second), r.DueAt)
	now = r.DueAt
	r, _ = r.Apply(infuse.Change{Limits: limits, RequestTrial: "a"}, now)
	r, _ = r.Apply(infuse.Change{Limits: limits, Settled: []infuse.Settlement{{ID: "a", Outcome: infuse.OutcomeFailure}}}, now)
	require.Equal(t, now.Add(2*time.Second), r.DueAt)
}

// requireRamp checks that the shares are the ramp's, to a call a process.
func requireRamp(t testing.TB, shares []float64) {
	t.Helper()
	for i, share := range shares {
		mean := 0.1 + 0.9*(float64(i)+0.5)/10
		require.InDelta(t, mean, share, 0.03, "in the %d. tenth of %v", i+1, shares)
	}
}

// R31.
func TestARampLetsAGrowingShareRun(t *testing.T) {
	for name, with := range map[string]func(*infuse.Config){
		"alone":      func(*infuse.Config) {},
		"memory":     func(c *infuse.Config) { c.Storage = infuse.NewMemoryStorage() },
		"strict":     func(c *infuse.Config) { c.Storage, c.Strict = infuse.NewMemoryStorage(), true },
		"stranger's": func(c *infuse.Config) { c.Storage = struct{ infuse.Storage }{infuse.NewMemoryStorage()} },
		"rate":       func(c *infuse.Config) { c.FailureRate, c.MinCalls = 0.5, 5 },
		"listener": func(c *infuse.Config) {
			c.Listeners = []*infuse.Listener{{Rejected: func(context.Context, *infuse.Breaker, *infuse.OpenError) {}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := infuse.Config{ResetTimeout: 20 * time.Second, Ramp: 10 * time.Second}
				with(&cfg)
				b := startBreaker(t, "service", cfg)
				trip(t, b)
				time.Sleep(20 * time.Second)
				require.NoError(t, b.Call(t.Context(), succeeds), "one trial")
				requireState(t, infuse.StateClosed, b)
				requireRamp(t, ran(t, []*infuse.Breaker{b}, 10*time.Second))
				for range 100 {
					require.NoError(t, b.Call(t.Context(), succeeds))
				}
				if !cfg.Strict {
					require.Zero(t, allocations(func() { _ = b.Call(context.Background(), succeeds) }))
				}
			})
		})
	}
}

// R31.
func TestAFleetRampsAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{ResetTimeout: 20 * time.Second, Ramp: 10 * time.Second, Storage: infuse.NewMemoryStorage()}
		var all []*infuse.Breaker
		for range 8 {
			all = append(all, startBreaker(t, "service", cfg))
		}
		require.NoError(t, all[0].SetState(t.Context(), infuse.StateOpen))
		time.Sleep(20 * time.Second)
		require.NoError(t, all[5].Call(t.Context(), succeeds), "one trial")
		synctest.Wait()
		requireState(t, infuse.StateClosed, all...)
		requireRamp(t, ran(t, all, 10*time.Second))
	})
}

// Many processes that call once each start a tenth of the calls, and not none.
func TestARampIsFairToProcessesOfFewCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{ResetTimeout: 20 * time.Second, Ramp: 10 * time.Second, Storage: infuse.NewMemoryStorage()}
		var all []*infuse.Breaker
		for range 300 {
			all = append(all, startBreaker(t, "service", cfg))
		}
		require.NoError(t, all[0].SetState(t.Context(), infuse.StateOpen))
		require.NoError(t, all[0].SetState(t.Context(), infuse.StateClosed))
		synctest.Wait()
		n := 0
		for _, b := range all {
			if b.Call(t.Context(), succeeds) == nil {
				n++
			}
		}
		require.InDelta(t, 30, n, 5*math.Sqrt(30*0.9))
	})
}

func TestFailuresDuringARampOpenAsWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", infuse.Config{ResetTimeout: time.Second, Ramp: 10 * time.Second})
		trip(t, b)
		time.Sleep(time.Second)
		require.NoError(t, b.Call(t.Context(), succeeds))
		runs := 0
		for b.State() == infuse.StateClosed {
			if err := b.Call(t.Context(), fails); err == errUnhealthy {
				runs++
			}
		}
		require.Equal(t, 5, runs)
	})
}

// Closing manually begins a ramp, and closing once more ends it.
// R31.
func TestARampEndsManually(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", infuse.Config{Ramp: time.Hour})
		ctx := t.Context()
		require.NoError(t, b.SetState(ctx, infuse.StateOpen))
		require.NoError(t, b.SetState(ctx, infuse.StateClosed))
		var err error
		for range 20 {
			err = b.Call(ctx, succeeds)
			if err != nil {
				break
			}
		}
		require.EqualError(t, err, `infuse: circuit "service" is recovering: only some calls run until its ramp ends`)
		require.ErrorIs(t, err, infuse.ErrOpen)
		require.NoError(t, b.SetState(ctx, infuse.StateClosed))
		for range 20 {
			require.NoError(t, b.Call(ctx, succeeds))
		}
	})
}

// A ramp that had ended came back with each later failure.
// R31.
func TestARampThatIsOverStaysOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", infuse.Config{Ramp: time.Second, ResetTimeout: time.Second, FailMax: 3})
		for range 3 {
			_ = callOf(b, true)
		}
		time.Sleep(time.Second)
		require.NoError(t, callOf(b, false))
		time.Sleep(time.Hour)
		for range 100 {
			require.NoError(t, callOf(b, false))
			require.ErrorIs(t, callOf(b, true), errUnhealthy, "an hour after the ramp")
		}
	})
}

// A ramp ended for a process when its storage became unavailable.
func TestARampGoesOnWhileTheStorageIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
		cfg := infuse.Config{Storage: storage, Ramp: 10 * time.Second}
		one, other := startBreaker(t, "service", cfg), startBreaker(t, "service", cfg)
		require.NoError(t, one.SetState(t.Context(), infuse.StateOpen))
		require.NoError(t, one.SetState(t.Context(), infuse.StateClosed))
		synctest.Wait()
		ran := func() (n int) {
			for range 100 {
				if callOf(other, false) == nil {
					n++
				}
			}
			return n
		}
		require.InDelta(t, 10, ran(), 3)
		storage.Down.Store(true)
		for other.Stats().StorageErr == nil { // the first failure that runs meets the storage
			_ = callOf(other, true)
		}
		require.Equal(t, infuse.StateClosed, other.Stats().Local.State)
		require.Equal(t, 1, other.Stats().Local.Failures)
		require.InDelta(t, 10, ran(), 3, "of 100 calls, some ms later")
	})
}

// slowTrials is a storage that takes long to grant a trial, and to settle it.
type slowTrials struct {
	infuse.Storage
	asks, settles atomic.Int64
}

func (s *slowTrials) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if c.RequestTrial != "" {
		time.Sleep(time.Duration(s.asks.Load()))
	}
	if len(c.Settled) > 0 {
		time.Sleep(time.Duration(s.settles.Load()))
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A process whose trial succeeded met a circuit on a ramp that let nothing run.
// Without a Ramp all calls run.
// R31.
func TestARampThatTheStorageHasNotReceived(t *testing.T) {
	for _, ramp := range []time.Duration{0, time.Second} {
		t.Run(ramp.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &slowTrials{Storage: infuse.NewMemoryStorage()}
				b := startBreaker(t, "prices", infuse.Config{Storage: storage, Ramp: ramp})
				other := startBreaker(t, "prices", infuse.Config{Storage: storage})
				for _, failing := range []*infuse.Breaker{b, other} {
					for range 5 {
						_ = callOf(failing, true)
					}
					time.Sleep(60 * time.Millisecond)
				}
				require.Equal(t, infuse.StateOpen, b.Stats().Shared.State)
				time.Sleep(time.Minute)
				storage.asks.Store(int64(60 * time.Millisecond))
				storage.settles.Store(int64(10 * time.Second))
				require.NoError(t, callOf(b, false))
				ran := 0
				var last error
				for range 500 { // at once: no time passes
					if err := callOf(b, false); err == nil {
						ran++
					} else {
						last = err
					}
				}
				t.Logf("state %v, storage error %v: %d of 500 ran; %v", b.State(), b.Stats().StorageErr, ran, last)
				if ran < 10 {
					t.Errorf("%d of 500 calls ran in a closed circuit", ran)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
			})
		})
	}
}
