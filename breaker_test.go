package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// R5.
func TestTheZeroConfigIsPybreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{})
		require.Equal(t, "prices", b.Name())
		for i := range 5 {
			requireState(t, infuse.StateClosed, b)
			require.Equal(t, i, failuresOf(b))
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
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
		require.Zero(t, failuresOf(b))
		hung.Done(nil)
	})
}

// R1.
func TestCallReturnsWhatItsFuncReturnsAndHandsItTheContext(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "value")
	for listening, listeners := range map[string][]*infuse.Listener{"unheard": nil, "heard": {{}}} {
		t.Run(listening, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{Listeners: listeners})
			wrapped := fmt.Errorf("wrapped: %w", errUnhealthy)
			for _, want := range []error{nil, errUnhealthy, wrapped, nil} {
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

// R8.
func TestDoReturnsTheValueAndTheZeroValueOnRejection(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
	price, err := infuse.Do(t.Context(), b, func(context.Context) (int, error) { return 250, nil })
	require.NoError(t, err)
	require.Equal(t, 250, price)
	price, err = infuse.Do(t.Context(), b, func(context.Context) (int, error) { return 7, errUnhealthy })
	require.Equal(t, errUnhealthy, err)
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

// R1.
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
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			for _, err := range []error{context.Canceled, gone, errUnhealthy, fmt.Errorf("get: %w", context.Canceled)} {
				require.Equal(t, err, b.Call(cancelled(), func(context.Context) error { return err }))
				require.Equal(t, 1, failuresOf(b), "neither a failure nor a success")
			}
			require.NoError(t, b.Call(cancelled(), succeeds))
			require.Zero(t, failuresOf(b), "what has succeeded has succeeded")
		})
	}
}

// R1.
func TestADeadlineThatPassesDuringTheCallIsAFailure(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 10})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, b.Call(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}), context.DeadlineExceeded)
	})
	require.Equal(t, 1, failuresOf(b), "the caller's own")

	require.ErrorIs(t, b.Call(t.Context(), func(context.Context) error { return context.DeadlineExceeded }), context.DeadlineExceeded)
	require.Equal(t, 2, failuresOf(b), "one beneath the call")

	require.ErrorIs(t, b.Call(t.Context(), func(ctx context.Context) error {
		inner, cancel := context.WithCancel(ctx)
		cancel()
		return inner.Err()
	}), context.Canceled)
	require.Equal(t, 3, failuresOf(b), "a cancellation that is not the caller's")
}

// Manual changes.

// R32.
func TestEveryStateCanBeSetToEveryOther(t *testing.T) {
	all := []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen}
	synctest.Test(t, func(t *testing.T) {
		for _, from := range all {
			for _, to := range all {
				b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Minute})
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				require.NoError(t, b.SetState(t.Context(), from))
				time.Sleep(10 * time.Second)
				before := recordOf(t, b)

				require.NoError(t, b.SetState(t.Context(), to))
				requireState(t, to, b)
				after := recordOf(t, b)
				require.Equal(t, to, after.State)
				require.Greater(t, after.Generation, before.Generation, "%v to %v", from, to)
				switch to {
				case infuse.StateClosed:
					require.Zero(t, failuresOf(b))
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

// R32.
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
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		}
		require.NoError(t, b.Configure(infuse.Config{FailMax: 6, ResetTimeout: 5 * time.Minute}))
		require.Equal(t, 4, failuresOf(b))
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		requireState(t, infuse.StateClosed, b)
		require.NoError(t, b.Configure(infuse.Config{FailMax: 2, ResetTimeout: 5 * time.Minute}))
		requireState(t, infuse.StateClosed, b)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, 5*time.Minute, requireRejected(t, b).RetryAfter())

		require.NoError(t, b.Configure(infuse.Config{ResetTimeout: time.Second, MaxTrials: 2, SuccessThreshold: 2}))
		require.Equal(t, time.Second, requireRejected(t, b).RetryAfter(), "an open circuit stays open as far as the new settings allow")
		waitUntilDue(t, b)
		one, two := requireTrial(t, b), requireTrial(t, b)
		requireRejected(t, b)
		require.NoError(t, b.Configure(infuse.Config{MaxTrials: 3, SuccessThreshold: 2}))
		three := requireTrial(t, b)
		one.Done(nil)
		requireState(t, infuse.StateHalfOpen, b)
		two.Done(nil)
		requireState(t, infuse.StateClosed, b)
		three.Done(errUnhealthy)
		require.Zero(t, failuresOf(b))
	})
}

func TestConfigureChangesTheListenersAndTheClasses(t *testing.T) {
	var before, after stateLog
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Listeners: []*infuse.Listener{before.Listener()}})
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	require.NoError(t, b.Configure(infuse.Config{
		FailMax:   1,
		Listeners: []*infuse.Listener{after.Listener()},
		Exclude:   []func(error) bool{func(err error) bool { return err == errUnhealthy }},
	}))
	require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
	require.Equal(t, []string{"closed>open"}, before.All())
	require.Equal(t, []string{"open>closed"}, after.All())
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	requireState(t, infuse.StateClosed, b)
}

// Stop.

// R46.
func TestAStoppedBreakerWorksOnFromItsOwnView(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var heard stateLog
			cfg := patiently(infuse.Config{ResetTimeout: 50 * time.Millisecond, Storage: storage})
			other := startBreaker(t, "prices", cfg)
			cfg.Listeners = []*infuse.Listener{heard.Listener()}
			b := startBreaker(t, "prices", cfg)
			b.Stop()

			require.NoError(t, b.Call(t.Context(), succeeds))
			trip(t, b)
			require.True(t, recordOf(t, other).Suspect(), "its calls are still reported")
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
			requireState(t, infuse.StateClosed, b)
			require.Equal(t, []string{"closed>open", "open>half-open", "half-open>closed"}, heard.All(), "of its local circuit")

			require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
			require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			requireState(t, infuse.StateOpen, b)
			require.Equal(t, infuse.StateHalfOpen, recordOf(t, other).State, "one failed trial opens nothing for others")
			require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
			require.True(t, recordOf(t, other).Healthy())
			require.Equal(t, []string{
				"closed>open", "open>half-open", // set manually
				"closed>open", // the local circuit
				"half-open>closed", "open>closed",
			}, heard.All()[3:])

			require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
			require.NoError(t, b.Call(t.Context(), succeeds), "it receives nothing of the others")
			require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
		})
	}
}

// A process that lives for one call breaks the row of failures all the same.
// R46.
func TestStopWaitsForTheReportUnderWay(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 100, Storage: storage})
			other := startBreaker(t, "orders", cfg)
			for range 10 {
				require.Equal(t, errUnhealthy, other.Call(t.Context(), fails))
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
						want := []error{nil, errUnhealthy}[(i+n)%2]
						err := b.Call(context.Background(), func(context.Context) error { return want })
						if !errors.Is(err, infuse.ErrOpen) && err != want {
							t.Errorf("returned %v, not %v", err, want)
						}
					}
				})
			}
			all.Go(b.Stop)
			all.Wait()
			require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
			require.NoError(t, b.Call(t.Context(), succeeds))
		})
	}
}

func TestBreakersOfOneNameShareTheirCircuit(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 4, ResetTimeout: time.Hour, Storage: storage})
			one, two, other := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg), startBreaker(t, "rates", cfg)
			third := startBreaker(t, "prices", cfg)
			for range 2 {
				require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
				require.Equal(t, errUnhealthy, two.Call(t.Context(), fails))
			}
			require.True(t, recordOf(t, one).Suspect(), "four failures of two processes")
			requireState(t, infuse.StateClosed, one, two)
			time.Sleep(suspicion)
			for _, b := range []*infuse.Breaker{third, two, one} { // until 8 are reported, one process supplies 4 at most
				for range 2 {
					_ = b.Call(t.Context(), fails)
				}
			}
			require.Equal(t, infuse.StateOpen, recordOf(t, one).State)
			eventuallyState(t, infuse.StateOpen, one, two, third)
			requireState(t, infuse.StateClosed, other)
			require.NoError(t, one.SetState(t.Context(), infuse.StateClosed))
			eventuallyState(t, infuse.StateClosed, two)
		})
	}
}

// Any listener, LogListener too, removed the fast path: 110 ns and three
// locks a call in place of 5 ns and none.
// R44.
func TestAListenerOfEventsCostsACallNothing(t *testing.T) {
	for name, listener := range map[string]*infuse.Listener{
		"LogListener": infuse.LogListener(slog.New(slog.DiscardHandler)),
		"StateChange": new(stateLog).Listener(),
		"nothing":     {},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Listeners: []*infuse.Listener{listener}})
			require.True(t, infuse.IsFast(b))
			require.Zero(t, allocations(func() { _ = b.Call(context.Background(), succeeds) }))

			trip(t, b)
			require.True(t, infuse.RejectsAtOnce(b))
			require.Zero(t, allocations(func() { _ = b.Call(context.Background(), succeeds) }))
		})
	}
	b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{everyCall(new(stateLog))}})
	require.False(t, infuse.IsFast(b), "a listener of calls receives each")
}
