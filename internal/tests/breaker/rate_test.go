package breaker_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// ways are the kinds of breaker that count calls on paths of their own.
func ways(t *testing.T, cfg infuse.Config, test func(t *testing.T, b *infuse.Breaker)) {
	for name, with := range map[string]func(*infuse.Config){
		"alone": func(*infuse.Config) {},
		"listener": func(c *infuse.Config) {
			c.Listeners = []*infuse.Listener{{Success: func(context.Context, *infuse.Breaker) {}}}
		},
		"classify":   func(c *infuse.Config) { c.Classify = classifyPlainly },
		"slow calls": func(c *infuse.Config) { c.SlowCall = time.Hour },
		"memory":     func(c *infuse.Config) { c.Storage = infuse.NewMemoryStorage() },
		"strict":     func(c *infuse.Config) { c.Storage, c.Strict = infuse.NewMemoryStorage(), true },
		"stranger's": func(c *infuse.Config) { c.Storage = struct{ infuse.Storage }{infuse.NewMemoryStorage()} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := cfg
				with(&cfg)
				test(t, startBreaker(t, "service", cfg))
			})
		})
	}
}

func classifyPlainly(_ context.Context, err error) infuse.Outcome {
	if err != nil {
		return infuse.OutcomeFailure
	}
	return infuse.OutcomeSuccess
}

// R20.
func TestTheRateOpensAtAFailure(t *testing.T) {
	cfg := infuse.Config{FailureRate: 0.5, MinCalls: 10}
	for calls, opens := range map[string]int{
		strings.Repeat("f", 20):                                      10,
		strings.Repeat("fs", 20):                                     11, // 5 of 10 at a success decide nothing: a failure has to
		strings.Repeat("fss", 50):                                    0,
		strings.Repeat("s", 100) + strings.Repeat("f", 10):           110, // a window begins with a failure
		"f" + strings.Repeat("s", 12) + strings.Repeat("f", 20):      24,
		strings.Repeat("f", 9) + "ssss" + strings.Repeat("f", 2):     14,
		"f" + strings.Repeat("s", 8) + "f" + strings.Repeat("sf", 9): 0,
	} {
		t.Run(calls, func(t *testing.T) {
			ways(t, cfg, func(t *testing.T, b *infuse.Breaker) {
				require.Equal(t, opens, outcomes(t, b, calls))
			})
		})
	}
}

func TestAStreakOpensBesideARateOnlyIfItIsConfigured(t *testing.T) {
	ways(t, infuse.Config{FailureRate: 0.9, MinCalls: 1000}, func(t *testing.T, b *infuse.Breaker) {
		require.Zero(t, outcomes(t, b, strings.Repeat("f", 900)))
		require.Equal(t, 900, failuresOf(b))
		require.Zero(t, outcomes(t, b, "s"))
		require.Zero(t, outcomes(t, b, "f"))
		require.Equal(t, 1, failuresOf(b))
	})
	ways(t, infuse.Config{FailureRate: 0.9, MinCalls: 1000, FailMax: 7}, func(t *testing.T, b *infuse.Breaker) {
		require.Zero(t, outcomes(t, b, strings.Repeat("ffffffs", 20)))
		require.Equal(t, 7, outcomes(t, b, strings.Repeat("f", 7)))
	})
}

// R19.
func TestWhatIsOlderThanTheWindowIsForgotten(t *testing.T) {
	ways(t, infuse.Config{FailureRate: 0.5, MinCalls: 10, Window: time.Second}, func(t *testing.T, b *infuse.Breaker) {
		require.Zero(t, outcomes(t, b, strings.Repeat("f", 9)))
		time.Sleep(time.Second)
		require.Zero(t, outcomes(t, b, strings.Repeat("f", 9)))
		time.Sleep(900 * time.Millisecond)
		require.Equal(t, 1, outcomes(t, b, "f"), "still in the window")
	})
	// Once its last failure has left, a window is empty, and the next begins with
	// a failure.
	ways(t, infuse.Config{FailureRate: 0.5, MinCalls: 10, Window: time.Second}, func(t *testing.T, b *infuse.Breaker) {
		require.Zero(t, outcomes(t, b, "f"))
		for range 21 {
			require.Zero(t, outcomes(t, b, strings.Repeat("s", 100)))
			time.Sleep(50 * time.Millisecond)
		}
		require.Equal(t, 10, outcomes(t, b, strings.Repeat("f", 10)))
	})
	// Successes are put where they belong in time, though nobody looks at the
	// clock when they end.
	ways(t, infuse.Config{FailureRate: 0.5, MinCalls: 10, Window: time.Second}, func(t *testing.T, b *infuse.Breaker) {
		require.Zero(t, outcomes(t, b, "f"+strings.Repeat("s", 100)))
		time.Sleep(950 * time.Millisecond)
		require.Zero(t, outcomes(t, b, strings.Repeat("f", 9)), "the window holds 100 successes")
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, 1, outcomes(t, b, "f"), "and then it does not")
	})
}

// R19.
func TestATrialIsNoPartOfTheRate(t *testing.T) {
	ways(t, infuse.Config{FailureRate: 0.5, MinCalls: 10, ResetTimeout: time.Second}, func(t *testing.T, b *infuse.Breaker) {
		require.Equal(t, 10, outcomes(t, b, strings.Repeat("f", 10)))
		passSuspicion()
		time.Sleep(6 * time.Second) // of a suspicion that lasts as long as half a window
		require.Equal(t, 1, outcomes(t, b, "f"), "the trial")
		time.Sleep(6 * time.Second)
		require.Zero(t, outcomes(t, b, "s"+strings.Repeat("f", 9)), "a new window")
		require.Equal(t, 1, outcomes(t, b, "f"))
	})
}

func TestARateIsConfiguredAtAnyTime(t *testing.T) {
	b := startBreaker(t, "service", infuse.Config{FailMax: 1000})
	require.Zero(t, outcomes(t, b, strings.Repeat("f", 30)))
	require.NoError(t, b.Configure(infuse.Config{FailureRate: 0.5, MinCalls: 10}))
	require.Zero(t, outcomes(t, b, strings.Repeat("f", 9)), "counted from now on")
	require.NoError(t, b.Configure(infuse.Config{FailMax: 1000}))
	require.Zero(t, outcomes(t, b, strings.Repeat("f", 30)))
	require.NoError(t, b.Configure(infuse.Config{FailureRate: 0.5, MinCalls: 10}))
	require.Equal(t, 1, outcomes(t, b, "f"), "the window is still there")
}

// One process of twenty for which every call fails is its own problem, and an
// outage is the fleet's.
// R21.
func TestTheRateOfAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		var all []*infuse.Breaker
		for range 20 {
			all = append(all, startBreaker(t, "service", infuse.Config{FailureRate: 0.5, Storage: storage}))
		}
		round := func(calls func(process int) string) {
			for i, b := range all {
				outcomes(t, b, calls(i))
			}
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		for range 3000 { // 30 s
			round(func(process int) string {
				if process == 0 {
					return "f"
				}
				return "s"
			})
		}
		requireState(t, infuse.StateOpen, all[0])
		require.Equal(t, infuse.StateClosed, all[0].Stats().Shared.State)
		requireState(t, infuse.StateClosed, all[1:]...)
		require.Zero(t, recordOf(t, all[1]).Opened)
		start := time.Now()
		for recordOf(t, all[1]).Opened == 0 && time.Since(start) < time.Second {
			round(func(int) string { return "f" })
		}
		require.NotZero(t, recordOf(t, all[1]).Opened)
		requireState(t, infuse.StateOpen, all...)
	})
}

// R2.
func TestASlowCallIsAFailure(t *testing.T) {
	cfg := infuse.Config{SlowCall: time.Second, FailMax: 100, Exclude: []func(error) bool{func(err error) bool { return errors.Is(err, errUnhealthy) }}}
	takes := func(d time.Duration, err error) func(context.Context) error {
		return func(context.Context) error {
			time.Sleep(d)
			return err
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var told []string
		cfg := cfg
		cfg.Listeners = []*infuse.Listener{{Failure: func(_ context.Context, _ *infuse.Breaker, err error) { told = append(told, err.Error()) }}}
		b := startBreaker(t, "service", cfg)
		ctx := t.Context()
		require.NoError(t, b.Call(ctx, takes(time.Second, nil)))
		require.Zero(t, failuresOf(b), "as long as SlowCall is in time")
		require.NoError(t, b.Call(ctx, takes(time.Second+1, nil)))
		require.Equal(t, 1, failuresOf(b))
		require.ErrorIs(t, b.Call(ctx, takes(2*time.Second, errUnhealthy)), errUnhealthy, "it would be a success otherwise")
		require.Equal(t, 2, failuresOf(b))
		_, err := infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 1, takes(2*time.Second, nil)(ctx) })
		require.NoError(t, err)
		require.Equal(t, 3, failuresOf(b))
		for i, settle := range []func(infuse.Permit){
			func(p infuse.Permit) { p.Done(nil) }, func(p infuse.Permit) { p.Settle(infuse.OutcomeSuccess) },
		} {
			p, err := b.Acquire(ctx)
			require.NoError(t, err)
			time.Sleep(2 * time.Second)
			settle(p)
			require.Equal(t, 4+i, failuresOf(b))
		}
		cancelled, cancel := context.WithCancel(ctx)
		_ = b.Call(cancelled, func(ctx context.Context) error {
			time.Sleep(2 * time.Second)
			cancel()
			return ctx.Err()
		})
		require.Equal(t, 6, failuresOf(b), "also if its caller gave up")
		require.Equal(t, []string{"slower than 1s"}, told[:1])
		require.NoError(t, b.Call(ctx, succeeds))
		require.Zero(t, failuresOf(b))

		require.NoError(t, b.SetState(ctx, infuse.StateHalfOpen))
		require.NoError(t, b.Call(ctx, takes(2*time.Second, nil)))
		requireState(t, infuse.StateOpen, b)
		require.Equal(t, "slower than 1s", requireRejected(t, b).Cause.Error())
	})
}

func TestTheNewSettingsAreChecked(t *testing.T) {
	_, err := infuse.New("service", infuse.Config{
		FailureRate: 50, Window: time.Millisecond, MinCalls: -1, SlowCall: -time.Second,
		ResetTimeout: time.Minute, MaxResetTimeout: time.Second, Ramp: 2 * time.Hour,
	})
	require.Error(t, err)
	for _, line := range []string{
		"Config.FailureRate is 50: must be from 0 to 1, where 0.5 is one call in two and 0 is off",
		"Config.Window is 1ms: must be from 100ms to 1h0m0s, or 0 for 10s",
		"Config.MinCalls is -1: must be from 1 to 2147483647, or 0 for 20",
		"Config.SlowCall is -1s: must be from 1µs to 8784h0m0s, or 0 for off",
		"Config.MaxResetTimeout is 1s: must be from 1m0s to 8784h0m0s, or 0 for off",
		"Config.Ramp is 2h0m0s: must be from 1ms to 1h0m0s, or 0 for off",
	} {
		require.ErrorContains(t, err, line)
	}
	_, err = infuse.New("service", infuse.Config{FailMax: -1, FailureRate: 0.5})
	require.ErrorContains(t, err, "or 0 for none, as there is a FailureRate", "and not for 2147483647")
	for _, rate := range []float64{-0.1, 1.1, math.NaN()} {
		_, err := infuse.New("service", infuse.Config{FailureRate: rate})
		require.ErrorContains(t, err, "Config.FailureRate is")
	}
	_, err = infuse.New("service", infuse.Config{MaxResetTimeout: time.Second})
	require.ErrorContains(t, err, "Config.MaxResetTimeout is 1s: must be from 1m0s", "the default ResetTimeout is the least")
}

// A window keeps the width of the longest Window that it ever knew, as long
// as there is a failure in ten of these widths: under noise, for good.
func TestAShorterWindowOpensInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "service", infuse.Config{FailureRate: 0.5, Window: time.Hour})
		_ = callOf(b, true)
		require.NoError(t, b.Configure(infuse.Config{FailureRate: 0.5}))
		for range 3 * 3600 { // three hours at 1 % errors or so
			time.Sleep(time.Second)
			_ = callOf(b, time.Now().Unix()%100 == 0)
		}
		for time.Now().Unix()%360 != 60 { // a minute after a bucket began
			time.Sleep(time.Second)
			_ = callOf(b, false)
		}
		for i := range 2000 { // 200 s of a total outage, with 10 calls/s
			if b.State() == infuse.StateOpen {
				t.Logf("open after %d failures", i)
				require.Less(t, i, 200)
				return
			}
			_ = callOf(b, true)
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatal("200 s in which all of 2,000 calls failed, 3 hours after Configure: not open")
	})
}

// countedIn returns the calls of a window, and how many of them failed.
func countedIn(w infuse.Window) (calls, failures int) {
	for _, b := range w.Buckets {
		calls, failures = calls+b.Calls, failures+b.Failures
	}
	return calls, failures
}

// A process that opened its local circuit during an outage of the storage reported
// MinCalls failed calls, which nobody had made.
// R21.
func TestOnlyCallsThatWereMadeAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
		b := startBreaker(t, "service", infuse.Config{Storage: storage, FailMax: 5, FailureRate: 0.5, MinCalls: 50})
		storage.Down.Store(true)
		for range 10 {
			_ = callOf(b, true)
		}
		require.Equal(t, infuse.StateOpen, b.State())
		storage.Down.Store(false)
		for b.Stats().StorageErr != nil {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		r, err := b.Record(t.Context())
		require.NoError(t, err)
		calls, _ := countedIn(r.Window)
		require.LessOrEqual(t, calls, 10, "%+v", r)
	})
}

// A Strict failure was not stored at its return while a rate was being confirmed.
// R45.
func TestStrictFailuresAreStoredWhileARateIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		cfg := infuse.Config{Storage: storage, FailureRate: 0.5, MinCalls: 5, Strict: true}
		one, other := startBreaker(t, "service", cfg), startBreaker(t, "service", cfg)
		for range 5 {
			_ = callOf(one, true)
		}
		synctest.Wait()
		before, err := other.Record(t.Context())
		require.NoError(t, err)
		require.True(t, before.Rated)
		for range 3 {
			require.ErrorIs(t, callOf(other, true), errUnhealthy)
		}
		after, err := other.Record(t.Context())
		require.NoError(t, err)
		_, was := countedIn(before.Window)
		_, is := countedIn(after.Window)
		require.Equal(t, was+3, is)
	})
}
