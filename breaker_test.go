package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

func TestTheZeroConfigIsPybreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{})
		require.Equal(t, "prices", b.Name())
		for i := range 5 {
			requireState(t, infuse.StateClosed, b)
			require.Equal(t, i, b.Failures())
			require.Equal(t, errIll, b.Call(t.Context(), fails))
		}
		require.Equal(t, time.Minute, requireRejected(t, b).RetryAfter())
		waitUntilDue(t, b)

		hung := requireTrial(t, b) // no second one beside it
		rejection := requireRejected(t, b)
		require.Equal(t, infuse.StateHalfOpen, rejection.State)
		require.Zero(t, rejection.RetryAfter(), "the end of another's trial cannot be known")
		time.Sleep(30 * time.Second)
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
		require.Zero(t, b.Failures())
		hung.Done(nil)
	})
}

func TestCallReturnsWhatItsFuncReturnsAndHandsItTheContext(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "value")
	for listening, listeners := range map[string][]*infuse.Listener{"unheard": nil, "heard": {{}}} {
		t.Run(listening, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{Listeners: listeners})
			wrapped := fmt.Errorf("wrapped: %w", errIll)
			for _, want := range []error{nil, errIll, wrapped, nil} {
				ran := 0
				require.Equal(t, want, b.Call(ctx, func(got context.Context) error {
					ran++
					require.Equal(t, ctx, got)
					return want
				}))
				require.Equal(t, 1, ran)
			}
		})
	}
}

func TestDoReturnsTheValueAndTheZeroValueOnRejection(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
	price, err := infuse.Do(t.Context(), b, func(context.Context) (int, error) { return 250, nil })
	require.NoError(t, err)
	require.Equal(t, 250, price)
	price, err = infuse.Do(t.Context(), b, func(context.Context) (int, error) { return 7, errIll })
	require.Equal(t, errIll, err)
	require.Equal(t, 7, price, "a value beside an error goes through, too")

	ran := func(context.Context) (int, error) {
		t.Error("a rejected call ran")
		return 1, nil
	}
	price, err = infuse.Do(t.Context(), b, ran)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Zero(t, price)
}

// Contexts: a caller who gives up says nothing about the service; a deadline
// that has passed does.

func TestACallThatItsCallerCancelledIsIgnored(t *testing.T) {
	gone := errors.New("the user has gone")
	for how, cancelled := range map[string]func() context.Context{
		"cancelled": func() context.Context {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return ctx
		},
		"cancelled with a cause": func() context.Context {
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(gone)
			return ctx
		},
		"cancelled before its deadline": func() context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			cancel()
			return ctx
		},
	} {
		t.Run(how, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 2})
			require.Equal(t, errIll, b.Call(t.Context(), fails))
			for _, err := range []error{context.Canceled, gone, errIll, fmt.Errorf("get: %w", context.Canceled)} {
				require.Equal(t, err, b.Call(cancelled(), func(context.Context) error { return err }))
				require.Equal(t, 1, b.Failures(), "neither a failure nor a success")
			}
			require.NoError(t, b.Call(cancelled(), succeeds))
			require.Zero(t, b.Failures(), "what has succeeded has succeeded")
		})
	}
}

func TestADeadlineThatHasPassedIsAFailure(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 10})
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	require.ErrorIs(t, b.Call(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}), context.DeadlineExceeded)
	require.Equal(t, 1, b.Failures(), "the caller's own")

	require.ErrorIs(t, b.Call(t.Context(), func(context.Context) error { return context.DeadlineExceeded }), context.DeadlineExceeded)
	require.Equal(t, 2, b.Failures(), "one beneath the call")

	require.ErrorIs(t, b.Call(t.Context(), func(ctx context.Context) error {
		inner, cancel := context.WithCancel(ctx)
		cancel()
		return inner.Err()
	}), context.Canceled)
	require.Equal(t, 3, b.Failures(), "a cancellation that is not the caller's")
}

// Moves by hand.

func TestEveryStateMovesToEveryOther(t *testing.T) {
	all := []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen}
	synctest.Test(t, func(t *testing.T) {
		for _, from := range all {
			for _, to := range all {
				b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Minute})
				require.Equal(t, errIll, b.Call(t.Context(), fails))
				require.NoError(t, b.Move(t.Context(), from))
				time.Sleep(10 * time.Second)
				before := recordOf(t, b)

				require.NoError(t, b.Move(t.Context(), to))
				requireState(t, to, b)
				after := recordOf(t, b)
				require.Equal(t, to, after.State)
				require.Greater(t, after.Generation, before.Generation, "%v to %v", from, to)
				switch to {
				case infuse.StateClosed:
					require.Zero(t, b.Failures())
					require.NoError(t, b.Call(t.Context(), succeeds))
				case infuse.StateOpen:
					require.Equal(t, time.Minute, requireRejected(t, b).RetryAfter(), "from %v: the open time starts anew", from)
				case infuse.StateHalfOpen:
					requireTrial(t, b).Done(nil)
					requireState(t, infuse.StateClosed, b)
				}
			}
		}
	})
}

func TestAnnounceHasCallersTryAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		caller := startBreaker(t, "prices", infuse.Config{Storage: storage})
		trip(t, caller)
		requireRejected(t, caller)
		require.NoError(t, infuse.Announce(t.Context(), storage, "prices", infuse.StateHalfOpen))
		require.NoError(t, caller.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, caller)

		require.NoError(t, infuse.Announce(t.Context(), storage, "prices", infuse.StateOpen))
		require.Equal(t, time.Minute, requireRejected(t, caller).RetryAfter())
		require.NoError(t, infuse.Announce(t.Context(), storage, "prices", infuse.StateClosed))
		require.NoError(t, caller.Call(t.Context(), succeeds))
	})
}

// Configure changes the limits without losing state.

func TestConfigureKeepsTheCircuitAndChangesTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 10, ResetTimeout: time.Minute})
		for range 4 {
			require.Equal(t, errIll, b.Call(t.Context(), fails))
		}
		require.NoError(t, b.Configure(infuse.Config{FailMax: 6, ResetTimeout: time.Hour}))
		require.Equal(t, 4, b.Failures())
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		requireState(t, infuse.StateClosed, b)
		require.NoError(t, b.Configure(infuse.Config{FailMax: 2, ResetTimeout: time.Hour}))
		requireState(t, infuse.StateClosed, b)
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		require.Equal(t, time.Hour, requireRejected(t, b).RetryAfter())

		require.NoError(t, b.Configure(infuse.Config{ResetTimeout: time.Second, MaxTrials: 2, SuccessThreshold: 2}))
		require.Equal(t, time.Hour, requireRejected(t, b).RetryAfter(), "what is open stays so until the time that was set")
		waitUntilDue(t, b)
		one, two := requireTrial(t, b), requireTrial(t, b)
		requireRejected(t, b)
		require.NoError(t, b.Configure(infuse.Config{MaxTrials: 3, SuccessThreshold: 2}))
		three := requireTrial(t, b)
		one.Done(nil)
		requireState(t, infuse.StateHalfOpen, b)
		two.Done(nil)
		requireState(t, infuse.StateClosed, b)
		three.Done(errIll)
		require.Zero(t, b.Failures())
	})
}

func TestConfigureChangesTheListenersAndTheClasses(t *testing.T) {
	var before, after stateLog
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Listeners: []*infuse.Listener{before.listener()}})
	require.NoError(t, b.Move(t.Context(), infuse.StateOpen))
	require.NoError(t, b.Configure(infuse.Config{
		FailMax:   1,
		Listeners: []*infuse.Listener{after.listener()},
		Exclude:   []func(error) bool{func(err error) bool { return err == errIll }},
	}))
	require.NoError(t, b.Move(t.Context(), infuse.StateClosed))
	require.Equal(t, []string{"closed>open"}, before.all())
	require.Equal(t, []string{"open>closed"}, after.all())
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	requireState(t, infuse.StateClosed, b)
}

// Stop.

func TestAStoppedBreakerWorksOnFromItsOwnView(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var heard stateLog
			cfg := patiently(infuse.Config{ResetTimeout: 50 * time.Millisecond, Storage: storage})
			other := startBreaker(t, "prices", cfg)
			cfg.Listeners = []*infuse.Listener{heard.listener()}
			b := startBreaker(t, "prices", cfg)
			b.Stop()

			require.NoError(t, b.Call(t.Context(), succeeds))
			tripFleet(t, b) // the storage still hears of its calls
			require.Equal(t, infuse.StateOpen, recordOf(t, other).State)
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
			requireState(t, infuse.StateClosed, b)

			require.NoError(t, b.Move(t.Context(), infuse.StateOpen))
			require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
			require.Equal(t, errIll, b.Call(t.Context(), fails))
			require.NoError(t, b.Move(t.Context(), infuse.StateClosed))
			require.True(t, recordOf(t, other).Healthy())
			require.Equal(t, []string{
				"closed>open", "open>half-open", "half-open>closed",
				"closed>open", "open>half-open", "half-open>open", "open>closed",
			}, heard.all())

			require.NoError(t, other.Move(t.Context(), infuse.StateOpen))
			require.NoError(t, b.Call(t.Context(), succeeds), "it does not hear of the others")
			require.NoError(t, other.Move(t.Context(), infuse.StateClosed))
		})
	}
}

// A process that shuts down in its trial gives the trial back: the fleet does
// not wait for the lease.
func TestATrialThatEndsAfterStopIsSettled(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{Storage: storage})
			other := startBreaker(t, "stock", cfg)
			b := startBreaker(t, "stock", cfg)
			require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
			permit, err := b.Acquire(t.Context())
			require.NoError(t, err)
			b.Stop()
			permit.Done(nil)
			require.Equal(t, infuse.StateClosed, recordOf(t, other).State)
		})
	}
}

// A process that lives for one call breaks the row of failures all the same.
func TestStopWaitsForTheReportUnderWay(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 100, Storage: storage})
			other := startBreaker(t, "orders", cfg)
			for range 10 {
				require.Equal(t, errIll, other.Call(t.Context(), fails))
				b, err := infuse.New("orders", cfg)
				require.NoError(t, err)
				require.NoError(t, b.Call(t.Context(), succeeds))
				b.Stop()
				require.Zero(t, recordOf(t, other).Failures)
			}
		})
	}
}

func TestStopWhileManyCallsRun(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 2, ResetTimeout: time.Millisecond, Storage: storage}))
			var all sync.WaitGroup
			for i := range 16 {
				all.Go(func() {
					for n := range 200 {
						want := []error{nil, errIll}[(i+n)%2]
						err := b.Call(context.Background(), func(context.Context) error { return want })
						if !errors.Is(err, infuse.ErrOpen) && err != want {
							t.Errorf("returned %v, not %v", err, want)
						}
					}
				})
			}
			all.Go(b.Stop)
			all.Wait()
			require.NoError(t, b.Move(t.Context(), infuse.StateClosed))
			require.NoError(t, b.Call(t.Context(), succeeds))
		})
	}
}

// Strict trades round trips for exactness: nothing needs to be pushed.
func TestStrictKnowsWhatOthersDidBeforeTheCall(t *testing.T) {
	server, deaf := redistest.Start(t), redistest.Start(t)
	cfg := infuse.Config{FailMax: 3, SuccessThreshold: 2, ResetTimeout: time.Hour}
	breaker := func(strict bool) *infuse.Breaker {
		cfg.Strict = strict
		return startDeafBreaker(t, server, deaf, cfg)
	}
	one, two, lax := breaker(true), breaker(true), breaker(false)

	require.Equal(t, errIll, one.Call(t.Context(), fails))
	require.Equal(t, errIll, two.Call(t.Context(), fails))
	require.Equal(t, 2, two.Failures())
	require.NoError(t, one.Call(t.Context(), succeeds))
	require.Zero(t, recordOf(t, two).Failures, "a success is counted before the call returns")
	tripFleet(t, one)
	requireRejected(t, two)
	require.NoError(t, lax.Call(t.Context(), succeeds), "this is what Strict is for")

	require.NoError(t, one.Move(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, two.Call(t.Context(), succeeds))
	require.NoError(t, one.Call(t.Context(), succeeds))
	require.NoError(t, two.Call(t.Context(), succeeds))
	requireState(t, infuse.StateClosed, one, two)
}

func TestBreakersOfOneNameShareTheirCircuit(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 4, ResetTimeout: time.Hour, Storage: storage})
			one, two, other := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg), startBreaker(t, "rates", cfg)
			for range 2 {
				require.Equal(t, errIll, one.Call(t.Context(), fails))
				require.Equal(t, errIll, two.Call(t.Context(), fails))
			}
			eventuallyState(t, infuse.StateOpen, one, two)
			requireState(t, infuse.StateClosed, other)
			require.NoError(t, one.Move(t.Context(), infuse.StateClosed))
			eventuallyState(t, infuse.StateClosed, two)
		})
	}
}
