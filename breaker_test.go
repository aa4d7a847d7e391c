package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
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

// Moves by hand.

func TestEveryStateMovesToEveryOther(t *testing.T) {
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

// TestAManualOpeningLastsAsLongAsItsSenderSet: an operator opens the circuit for
// longer than the settings of the processes allow a Retry-After, or anything else.
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
			require.NoError(t, b.Call(t.Context(), succeeds), "it does not hear of the others")
			require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
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
			require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
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

// Strict trades round trips for exactness: nothing needs to be pushed.
func TestStrictKnowsWhatOthersDidBeforeTheCall(t *testing.T) {
	server, deaf := redistest.Start(t), redistest.Start(t)
	cfg := infuse.Config{FailMax: 3, SuccessThreshold: 2, ResetTimeout: time.Hour}
	breaker := func(strict bool) *infuse.Breaker {
		cfg.Strict = strict
		return startDeafBreaker(t, server, deaf, cfg)
	}
	one, two, lax := breaker(true), breaker(true), breaker(false)

	require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
	require.Equal(t, errUnhealthy, two.Call(t.Context(), fails))
	require.Equal(t, 2, failuresOf(two))
	require.NoError(t, one.Call(t.Context(), succeeds))
	require.Zero(t, recordOf(t, two).Failures, "a success is counted before the call returns")
	require.NoError(t, two.Call(t.Context(), succeeds), "its own streak")
	tripFleet(t, one, two)
	requireRejected(t, two)
	require.NoError(t, lax.Call(t.Context(), succeeds), "this is what Strict is for")

	require.NoError(t, one.SetState(t.Context(), infuse.StateHalfOpen))
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

func TestTheZeroPermitIsSettled(t *testing.T) {
	var p infuse.Permit
	p.Done(nil)
	p.Done(errUnhealthy)
}

func TestAcquireAndDoneAreACallInTwoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 2})
		for i := range 2 {
			p, err := b.Acquire(t.Context())
			require.NoError(t, err)
			p.Done(errUnhealthy)
			require.Equal(t, i+1, failuresOf(b))
		}
		p, err := b.Acquire(t.Context())
		require.ErrorIs(t, err, infuse.ErrOpen)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, errUnhealthy, rejection.Cause)
		p.Done(errUnhealthy) // that of a rejection is settled
		waitUntilDue(t, b)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

func TestDoneClassifiesByTheContextOfAcquire(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	p, err := b.Acquire(ctx)
	require.NoError(t, err)
	cancel()
	p.Done(ctx.Err())
	require.Zero(t, failuresOf(b))
}

// Whatever becomes of its copies, a permit counts once, also when the place
// that it is kept in has gone to another permit.
func TestAPermitCountsOnce(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1_000_000})
	var settled []infuse.Permit
	for i := range 100 {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		copied := p
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { copied.Done(errUnhealthy) })
		}
		p.Done(errUnhealthy)
		all.Wait()
		for _, old := range settled {
			old.Done(nil) // would clear the failures
		}
		require.Equal(t, i+1, failuresOf(b))
		settled = append(settled, p)
	}
}

func TestAPermitThatIsNeverSettledHoldsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{TrialTimeout: time.Second})
		for range 1000 {
			_, err := b.Acquire(t.Context())
			require.NoError(t, err)
		}
		require.NoError(t, b.Call(t.Context(), succeeds))
		trip(t, b)
		waitUntilDue(t, b)
		requireTrial(t, b)
		time.Sleep(time.Second)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

func TestSettleCountsTheOutcomeThatItIsGiven(t *testing.T) {
	var heard stateLog
	b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Listeners: []*infuse.Listener{everyCall(&heard)}})
	settle := func(o infuse.Outcome) {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		p.Settle(o)
	}
	settle(infuse.OutcomeFailure)
	settle(infuse.OutcomeFailure)
	require.Equal(t, 2, failuresOf(b))
	settle(infuse.OutcomeIgnored)
	settle(9)
	require.Equal(t, 2, failuresOf(b), "an outcome that does not exist counts for nothing")
	settle(infuse.OutcomeSuccess)
	require.Zero(t, failuresOf(b))
	for range 3 {
		settle(infuse.OutcomeFailure)
	}
	requireState(t, infuse.StateOpen, b)
	require.ErrorContains(t, requireRejected(t, b).Cause, "settled as a failure")
	require.Equal(t, []string{
		"call", "failure: infuse: settled as a failure", "call", "failure: infuse: settled as a failure",
		"call", "ignored: <nil>", "call", "ignored: <nil>", "call", "success",
	}, heard.All()[:10])
}

// Settle has the last word: Classify would have called every call a failure.
func TestSettleIsInPlaceOfClassify(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{
		FailMax: 1, Classify: func(context.Context, error) infuse.Outcome { return infuse.OutcomeFailure },
	})
	p, err := b.Acquire(t.Context())
	require.NoError(t, err)
	p.Settle(infuse.OutcomeSuccess)
	requireState(t, infuse.StateClosed, b)
}

func TestAPermitIsSettledOnceByDoneOrSettle(t *testing.T) {
	var zero infuse.Permit
	zero.Settle(infuse.OutcomeFailure)

	b := startBreaker(t, "prices", infuse.Config{FailMax: 1000})
	for i := range 100 {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { p.Settle(infuse.OutcomeFailure) })
			all.Go(func() { p.Done(errUnhealthy) })
		}
		all.Wait()
		p.Settle(infuse.OutcomeSuccess) // would clear the failures
		require.Equal(t, i+1, failuresOf(b))
	}
}

func TestSettleEndsATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, storage := range []infuse.Storage{nil, infuse.NewMemoryStorage()} {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Storage: storage})
			trip(t, b)
			time.Sleep(time.Minute)
			requireTrial(t, b).Settle(infuse.OutcomeIgnored)
			requireState(t, infuse.StateHalfOpen, b)
			requireTrial(t, b).Settle(infuse.OutcomeFailure)
			requireState(t, infuse.StateOpen, b)
			time.Sleep(time.Minute)
			requireTrial(t, b).Settle(infuse.OutcomeSuccess)
			requireState(t, infuse.StateClosed, b)
		}
	})
}

func TestSettlingASuccessInHealthAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("sync.Pool drops things on purpose")
	}
	b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{new(stateLog).Listener()}})
	require.Zero(t, allocations(func() {
		p, err := b.Acquire(context.Background())
		if err != nil {
			panic(err)
		}
		p.Settle(infuse.OutcomeSuccess)
	}))
}

// What other breakers miscounted. Scenarios 12 and 13 are in fleet_test.go.

// Calls that failed together at the threshold opened the circuit
// once each: as many events, and a deadline that every one put off.
func TestFailuresAtOnceOpenTheCircuitOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes stateLog
		b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{changes.Listener()}})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				_ = b.Call(t.Context(), func(context.Context) error {
					if i < 50 {
						time.Sleep(time.Second)
					} else {
						time.Sleep(10 * time.Second) // ends when the circuit has long been open
					}
					return errUnhealthy
				})
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		opened := recordOf(t, b)
		require.Equal(t, infuse.StateOpen, opened.State)
		all.Wait()
		require.Equal(t, opened, recordOf(t, b))
		require.Equal(t, []string{"closed>open"}, changes.All())
	})
}

// Scenario 12, in one process: breakers with clients of their own, and
// successes of none.
func TestBreakersThatFailAtOnceCountEveryFailure(t *testing.T) {
	const breakers, failures = 8, 100
	server := redistest.Start(t)
	var fleet []*infuse.Breaker
	for range breakers {
		fleet = append(fleet, startBreaker(t, "prices", patiently(infuse.Config{FailMax: 1_000_000, Storage: host(t, server)})))
	}
	var all sync.WaitGroup
	for _, b := range fleet {
		for range failures {
			all.Go(func() { _ = b.Call(t.Context(), fails) })
		}
	}
	all.Wait()
	require.Equal(t, breakers*failures, recordOf(t, fleet[0]).Failures)
}

// The reply to a script got lost, the client sent the script
// again, and one failure counted as two, or one trial took two places.
func TestAScriptThatRunsTwiceCountsOnce(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), PoolSize: 1})
	t.Cleanup(func() { _ = client.Close() })
	// It receives no message, which would have it read the record.
	storage := infuse.NewRedisStorage(split(client, redistest.Start(t).Client()), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	b := startQuietly(t, server, infuse.Config{
		FailMax: 3, SuccessThreshold: 2, MaxTrials: 2, ResetTimeout: 300 * time.Millisecond, Storage: storage,
	})
	twice := func(what string, do func()) infuse.Record {
		t.Helper()
		proxy.DropReplies(1)
		cost := costOf(t, server, do)
		require.EqualValues(t, 2, runsOf(cost), "%s: the script is to run twice", what)
		return recordOf(t, b)
	}

	r := twice("a failure", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Equal(t, 1, r.Failures)
	r = twice("another", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Equal(t, 2, r.Failures)
	opened := r.Generation
	r = twice("the last", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Greater(t, r.Generation, opened)
	require.True(t, r.Suspect())

	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	var trial infuse.Permit
	time.Sleep(time.Until(recordOf(t, b).DueAt) + 2*time.Millisecond)
	r = twice("a trial", func() {
		require.Eventually(t, func() bool { // the breaker may be a little late to notice
			var err error
			trial, err = b.Acquire(t.Context())
			return err == nil
		}, patience, pace)
	})
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Len(t, r.Trials, 1)
	r = twice("its end", func() { trial.Done(nil) })
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Equal(t, 1, r.Successes)
	require.Empty(t, r.Trials)

	generation := r.Generation
	r = twice("a move by hand", func() { require.NoError(t, b.SetState(t.Context(), infuse.StateOpen)) })
	require.Equal(t, infuse.StateOpen, r.State)
	require.Greater(t, r.Generation, generation)
}

// A report goes out although the context of its call has ended.
func TestAFailureWhoseContextHasEndedIsCountedForTheFleet(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{
		FailMax: 3, ResetTimeout: time.Hour, Storage: host(t, server),
		Classify: func(_ context.Context, err error) infuse.Outcome { // by default a call that came too late is ignored
			if err != nil {
				return infuse.OutcomeFailure
			}
			return infuse.OutcomeSuccess
		},
	}))
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for range 3 {
		require.ErrorIs(t, b.Call(ctx, func(ctx context.Context) error { return ctx.Err() }), context.DeadlineExceeded)
	}
	require.True(t, recordOf(t, b).Suspect())

	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.ErrorIs(t, b.Call(ctx, succeeds), infuse.ErrOpen, "nobody waits for a trial then")
	require.Empty(t, recordOf(t, b).Trials)
	ctx, cancel = context.WithCancel(t.Context())
	require.NoError(t, b.Call(ctx, func(context.Context) error {
		cancel()
		return nil
	}), "but a trial is settled")
	require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
}

// Rejections were reported like failures, so that a breaker
// which rejected kept itself open.
func TestRejectionsCountForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{})
		trip(t, b)
		opened := recordOf(t, b)
		for range 1000 {
			requireRejected(t, b)
		}
		require.Equal(t, opened, recordOf(t, b))

		waitUntilDue(t, b)
		trial := requireTrial(t, b)
		tried := recordOf(t, b)
		for range 1000 {
			requireRejected(t, b)
		}
		require.Equal(t, tried, recordOf(t, b))
		trial.Done(nil)
		requireState(t, infuse.StateClosed, b)
		require.Zero(t, failuresOf(b))
	})
}

// A breaker inside another of the same circuit rejects what the outer one has
// admitted: that says nothing about the service. Another circuit's rejection
// does: the call has failed.
func TestARejectionByTheSameCircuitIsIgnoredAndByAnotherIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		outer := startBreaker(t, "prices", infuse.Config{Storage: storage})
		inner := startBreaker(t, "prices", infuse.Config{Storage: storage})
		other := startBreaker(t, "rates", infuse.Config{Storage: storage})
		calls := func(b *infuse.Breaker) func(context.Context) error {
			return func(ctx context.Context) error {
				if err := b.Call(ctx, succeeds); err != nil {
					return fmt.Errorf("asking for the price: %w", err)
				}
				return nil
			}
		}
		require.NoError(t, outer.SetState(t.Context(), infuse.StateHalfOpen))
		for range 10 { // the outer call is the trial that turns the inner one away
			require.ErrorIs(t, outer.Call(t.Context(), calls(inner)), infuse.ErrOpen)
			requireState(t, infuse.StateHalfOpen, outer, inner)
		}
		require.NoError(t, outer.Call(t.Context(), succeeds))

		require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
		require.ErrorIs(t, outer.Call(t.Context(), calls(other)), infuse.ErrOpen)
		require.Equal(t, 1, failuresOf(outer))
		require.Equal(t, 1, recordOf(t, outer).Failures)
	})
}

// The successes of a half-open spell that failed were still there
// in the next, and closed the circuit too early.
func TestSuccessesOfAHalfOpenSpellThatFailedAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{SuccessThreshold: 3})
		for range 2 {
			require.NoError(t, b.Call(t.Context(), succeeds))
			require.NoError(t, b.Call(t.Context(), succeeds))
			requireState(t, infuse.StateHalfOpen, b)
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			requireState(t, infuse.StateOpen, b)
			waitUntilDue(t, b)
		}
	})
}

func TestOnlyFailuresInARowOpenTheCircuit(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 3})
	for range 20 {
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, 2, failuresOf(b))
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.Zero(t, failuresOf(b))
	}
	requireState(t, infuse.StateClosed, b)
}

func TestExcludedErrorsCountAsSuccessesAndAreReturned(t *testing.T) {
	notFound, excluded := errors.New("not found"), 0
	b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Exclude: []func(error) bool{
		func(error) bool { return false },
		func(err error) bool { excluded++; return errors.Is(err, notFound) },
	}})
	wrapped := fmt.Errorf("prices: %w", notFound)
	for range 10 {
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, wrapped, b.Call(t.Context(), func(context.Context) error { return wrapped }))
		require.Zero(t, failuresOf(b))
	}
	require.Equal(t, 30, excluded)

	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.Equal(t, wrapped, b.Call(t.Context(), func(context.Context) error { return wrapped }))
	requireState(t, infuse.StateClosed, b)
}

func TestClassifyReplacesTheDefaultAndExclude(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{
		FailMax: 2,
		Exclude: []func(error) bool{func(error) bool { panic("is not asked") }},
		Classify: func(_ context.Context, err error) infuse.Outcome {
			switch err {
			case nil:
				return infuse.OutcomeFailure // an answer that came suspiciously soon
			case errUnhealthy:
				return infuse.OutcomeIgnored
			}
			return infuse.OutcomeSuccess
		},
	})
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Equal(t, 1, failuresOf(b))
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.Equal(t, 1, failuresOf(b))
	require.Error(t, b.Call(t.Context(), func(context.Context) error { return errors.ErrUnsupported }))
	require.Zero(t, failuresOf(b))
	for range 2 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	requireState(t, infuse.StateOpen, b)
	require.NoError(t, requireRejected(t, b).Cause)
}

// What other breakers got wrong while half-open. The scenarios with several
// processes are in fleet_test.go.

// startDue returns a breaker, in memory, whose next call is a trial.
func startDue(t *testing.T, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b := startBreaker(t, "prices", cfg)
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	waitUntilDue(t, b)
	return b
}

// waitUntilDue waits, on the fake clock, for as long as a rejection says.
func waitUntilDue(t *testing.T, b *infuse.Breaker) {
	t.Helper()
	time.Sleep(requireRejected(t, b).RetryAfter())
	synctest.Wait()
}

// A last trial that was ignored kept its place, and no call was
// ever admitted again.
func TestATrialThatIsIgnoredLeavesItsPlaceToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{})
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, b.Call(ctx, func(ctx context.Context) error {
				requireRejected(t, b)
				cancel()
				return ctx.Err()
			}), context.Canceled)
			requireState(t, infuse.StateHalfOpen, b)
		}
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
	})
}

// A panic in a trial, or in the func that judges it, left the
// breaker half-open for ever, or was swallowed.
func TestATrialThatPanicsIsSettledAndThePanicGoesOn(t *testing.T) {
	panics := func(error) bool { panic("bang") }
	for where, c := range map[string]struct {
		config infuse.Config
		call   func(context.Context) error
	}{
		"the call": {call: func(context.Context) error { panic("bang") }},
		"Classify": {
			config: infuse.Config{Classify: func(context.Context, error) infuse.Outcome { panic("bang") }},
			call:   fails,
		},
		"Exclude": {config: infuse.Config{Exclude: []func(error) bool{panics}}, call: fails},
	} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBreaker(t, "prices", c.config)
				require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
				require.PanicsWithValue(t, "bang", func() { _ = b.Call(t.Context(), c.call) })
				requireState(t, infuse.StateOpen, b)

				require.NoError(t, b.Configure(infuse.Config{}))
				waitUntilDue(t, b)
				require.NoError(t, b.Call(t.Context(), succeeds))
				requireState(t, infuse.StateClosed, b)
			})
		})
	}
}

// A trial that ended its goroutine, as a test's FailNow does, was
// never settled: recover saw nil.
func TestATrialThatEndsItsGoroutineLeavesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = b.Call(t.Context(), func(context.Context) error {
				runtime.Goexit()
				return nil
			})
			t.Error("the goroutine went on")
		}()
		<-ended
		requireState(t, infuse.StateHalfOpen, b)
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
	})
}

// A trial that hung kept all others out; and when its result came
// at last, it decided over a circuit that had moved on.
func TestATrialThatHangsPastItsLeaseIsReplacedAndItsResultDropped(t *testing.T) {
	for late, result := range map[string]error{"a failure": errUnhealthy, "a success": nil} {
		t.Run(late, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startDue(t, infuse.Config{SuccessThreshold: 2, TrialTimeout: 30 * time.Second})
				hung := requireTrial(t, b)
				time.Sleep(30*time.Second - time.Millisecond - time.Nanosecond)
				requireRejected(t, b)
				time.Sleep(time.Millisecond + time.Nanosecond)
				second := requireTrial(t, b)

				hung.Done(result)
				r := recordOf(t, b)
				require.Equal(t, infuse.StateHalfOpen, r.State)
				require.Zero(t, r.Successes)
				require.Len(t, r.Trials, 1)
				requireRejected(t, b)

				second.Done(nil)
				require.Equal(t, 1, recordOf(t, b).Successes)
				third := requireTrial(t, b)
				third.Done(nil)
				requireState(t, infuse.StateClosed, b)
			})
		})
	}
}

// A late result changes nothing in a circuit that has closed or opened
// meanwhile, either.
func TestALateTrialChangesNothingAfterTheTransition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{TrialTimeout: time.Second, FailMax: 2})
		first := requireTrial(t, b)
		time.Sleep(time.Second)
		second := requireTrial(t, b)
		second.Done(nil)
		requireState(t, infuse.StateClosed, b)
		first.Done(errUnhealthy)
		requireState(t, infuse.StateClosed, b)
		require.Zero(t, failuresOf(b))

		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		first = requireTrial(t, b)
		time.Sleep(time.Second)
		second = requireTrial(t, b)
		second.Done(errUnhealthy)
		requireState(t, infuse.StateOpen, b)
		due := recordOf(t, b).DueAt
		first.Done(nil)
		requireState(t, infuse.StateOpen, b)
		require.Equal(t, due, recordOf(t, b).DueAt)
	})
}

// A call from before the trip, or from an earlier half-open, ended
// in the next half-open, and its result was taken for the trial's.
func TestACallOfAnEarlierGenerationIsNoTrial(t *testing.T) {
	for result, err := range map[string]error{"a success": nil, "a failure": errUnhealthy} {
		t.Run(result, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBreaker(t, "prices", infuse.Config{})
				closed, acquired := b.Acquire(t.Context())
				require.NoError(t, acquired)
				trip(t, b)
				waitUntilDue(t, b)
				earlier := requireTrial(t, b)
				require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
				waitUntilDue(t, b)

				trial := requireTrial(t, b)
				closed.Done(err)
				earlier.Done(err)
				requireState(t, infuse.StateHalfOpen, b)
				require.Len(t, recordOf(t, b).Trials, 1)
				requireRejected(t, b)
				trial.Done(nil)
				requireState(t, infuse.StateClosed, b)
			})
		})
	}
}

// A permit that was settled twice freed a place that it did not
// have; one that never was settled kept its place for ever.
func TestATrialSettledTwiceCountsOnceAndOneNeverSettledFreesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{SuccessThreshold: 3, TrialTimeout: time.Second})
		trial := requireTrial(t, b)
		trial.Done(nil)
		copied := trial
		copied.Done(nil)
		trial.Done(errUnhealthy)
		require.Equal(t, 1, recordOf(t, b).Successes)
		requireState(t, infuse.StateHalfOpen, b)

		requireTrial(t, b) // never settled
		trial.Done(nil)
		requireRejected(t, b)
		time.Sleep(time.Second)
		requireTrial(t, b).Done(nil)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

// To ask for the state took the only trial; and a process that
// noticed the transition cleared the successes of the others.
func TestSeeingIsNotMoving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{SuccessThreshold: 3, Storage: infuse.NewMemoryStorage()}
		one, two, three := startDue(t, cfg), startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)
		all := []*infuse.Breaker{one, two, three}
		for range 100 {
			for _, b := range all {
				require.Equal(t, infuse.StateOpen, b.State(), "it stays open until a call becomes its trial")
				recordOf(t, b)
			}
		}
		for i, b := range all {
			requireState(t, []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateHalfOpen}[i], all...)
			require.NoError(t, b.Call(t.Context(), succeeds))
			for _, other := range all {
				recordOf(t, other)
			}
			startBreaker(t, "prices", cfg) // joins, and changes nothing
		}
		requireState(t, infuse.StateClosed, all...)
	})
}

// N trials were to run and N+1 did; and each that ended raised
// the limit by one.
func TestMaxTrialsLetsSoManyRunAndNotOneMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{MaxTrials: 3, SuccessThreshold: 100, Storage: infuse.NewMemoryStorage()}
		b, other := startDue(t, cfg), startBreaker(t, "prices", cfg)
		for range 4 {
			var held []infuse.Permit
			for i := range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				p, err := []*infuse.Breaker{b, other}[i%2].Acquire(ctx)
				require.NoError(t, err)
				cancel()
				held = append(held, p)
			}
			requireRejected(t, b)
			requireRejected(t, other)
			for _, p := range held {
				p.Done(context.Canceled)
				p.Done(context.Canceled)
			}
		}
	})
}

func TestMaxTrialsHoldsAgainstManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{MaxTrials: 3, SuccessThreshold: 1000})
		var mu sync.Mutex
		running, most, ran := 0, 0, 0
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				for range 20 {
					_ = b.Call(t.Context(), func(context.Context) error {
						mu.Lock()
						running++
						ran++
						most = max(most, running)
						mu.Unlock()
						time.Sleep(time.Millisecond)
						mu.Lock()
						running--
						mu.Unlock()
						return nil
					})
					time.Sleep(time.Millisecond)
				}
			})
		}
		all.Wait()
		require.LessOrEqual(t, most, 3)
		require.Greater(t, ran, 20)
	})
}

func TestSuccessThresholdNeedsSoManyInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startDue(t, infuse.Config{SuccessThreshold: 3})
		for range 2 {
			require.NoError(t, b.Call(t.Context(), succeeds))
			requireState(t, infuse.StateHalfOpen, b)
		}
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
	})
}

// Calls that do not return: they panic, or end their goroutine.

//go:noinline
func explodes(value any) { panic(value) }

// unwind runs do and returns what it panicked with, and the stack as whoever
// recovers sees it.
func unwind(do func()) (value any, stack string) {
	defer func() {
		value, stack = recover(), string(debug.Stack())
	}()
	do()
	return nil, ""
}

func TestAPanicGoesOnWithTheStackOfWhereItBegan(t *testing.T) {
	ctx := context.Background()
	exploding := func(context.Context) error {
		explodes(errUnhealthy)
		return nil
	}
	for where, c := range map[string]struct {
		config infuse.Config
		use    func(b *infuse.Breaker)
	}{
		"Call": {use: func(b *infuse.Breaker) { _ = b.Call(ctx, exploding) }},
		"Do": {use: func(b *infuse.Breaker) {
			_, _ = infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 1, exploding(ctx) })
		}},
		"Call, heard": {
			config: infuse.Config{Listeners: []*infuse.Listener{{}}},
			use:    func(b *infuse.Breaker) { _ = b.Call(ctx, exploding) },
		},
		"Classify": {
			config: infuse.Config{Classify: func(context.Context, error) infuse.Outcome {
				explodes(errUnhealthy)
				return infuse.OutcomeSuccess
			}},
			use: func(b *infuse.Breaker) { _ = b.Call(ctx, succeeds) },
		},
		"Exclude": {
			config: infuse.Config{Exclude: []func(error) bool{func(error) bool {
				explodes(errUnhealthy)
				return true
			}}},
			use: func(b *infuse.Breaker) { _ = b.Call(ctx, fails) },
		},
		"Done": {
			config: infuse.Config{Classify: func(context.Context, error) infuse.Outcome {
				explodes(errUnhealthy)
				return infuse.OutcomeSuccess
			}},
			use: func(b *infuse.Breaker) {
				p, err := b.Acquire(ctx)
				require.NoError(t, err)
				p.Done(nil)
			},
		},
	} {
		t.Run(where, func(t *testing.T) {
			cfg := c.config
			cfg.FailMax = 2
			b := startBreaker(t, "prices", cfg)
			for failures := 1; failures <= 2; failures++ { // closed
				value, stack := unwind(func() { c.use(b) })
				require.Equal(t, errUnhealthy, value)
				require.Contains(t, stack, "infuse_test.explodes(")
				require.Equal(t, failures, recordOf(t, b).Failures)
			}
			requireState(t, infuse.StateOpen, b)
			require.EqualError(t, requireRejected(t, b).Cause, "panic: "+errUnhealthy.Error())

			require.NoError(t, b.SetState(ctx, infuse.StateHalfOpen))
			value, stack := unwind(func() { c.use(b) })
			require.Equal(t, errUnhealthy, value)
			require.Contains(t, stack, "infuse_test.explodes(")
			requireState(t, infuse.StateOpen, b)
			require.Empty(t, recordOf(t, b).Trials)
		})
	}
}

// TestAPermitReportsAPanicWithItsCause: an interceptor that settled its permit as a
// failure lost the value of the panic.
func TestAPermitReportsAPanicWithItsCause(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx      context.Context
		value    any
		failures int
		cause    string
	}{
		"a panic":                        {t.Context(), "bang", 1, "panic: bang"},
		"a panic of a cancelled call":    {cancelled, errUnhealthy, 1, "panic: " + errUnhealthy.Error()},
		"the end of a goroutine":         {t.Context(), nil, 0, ""},
		"an abort":                       {t.Context(), http.ErrAbortHandler, 1, "panic: " + http.ErrAbortHandler.Error()},
		"an abort whose caller has left": {cancelled, http.ErrAbortHandler, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
			p, err := b.Acquire(c.ctx)
			require.NoError(t, err)
			p.Panicked(c.value)
			p.Panicked("once more")
			p.Done(errUnhealthy)
			require.Equal(t, c.failures, failuresOf(b))
			if c.cause != "" {
				require.EqualError(t, requireRejected(t, b).Cause, c.cause)
			}
		})
	}
}

func TestAPanicWithNilIsAPanic(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	value, _ := unwind(func() {
		_ = b.Call(t.Context(), func(context.Context) error { panic(nil) })
	})
	require.IsType(t, &runtime.PanicNilError{}, value)
	require.Equal(t, 1, failuresOf(b))
}

// A panic that the func recovers itself is its own business.
func TestARecoveredPanicIsAResult(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), func(context.Context) (err error) {
		defer func() { err = recover().(error) }()
		panic(errUnhealthy)
	}))
	require.Equal(t, 1, failuresOf(b))
}

func TestACallThatEndsItsGoroutineIsIgnored(t *testing.T) {
	exits := func(context.Context) error {
		runtime.Goexit()
		return nil
	}
	for where, c := range map[string]struct {
		config infuse.Config
		use    func(b *infuse.Breaker)
	}{
		"Call": {use: func(b *infuse.Breaker) { _ = b.Call(context.Background(), exits) }},
		"Do": {use: func(b *infuse.Breaker) {
			_, _ = infuse.Do(context.Background(), b, func(ctx context.Context) (int, error) { return 1, exits(ctx) })
		}},
		"Classify": {
			config: infuse.Config{Classify: func(_ context.Context, err error) infuse.Outcome {
				if errors.Is(err, errUnhealthy) {
					return infuse.OutcomeFailure
				}
				runtime.Goexit()
				return infuse.OutcomeFailure
			}},
			use: func(b *infuse.Breaker) { _ = b.Call(context.Background(), succeeds) },
		},
	} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBreaker(t, "prices", c.config)
				exit := func() {
					ended, wentOn := make(chan struct{}), false
					go func() {
						defer close(ended)
						c.use(b)
						wentOn = true
					}()
					<-ended
					require.False(t, wentOn)
				}
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				exit()
				require.Equal(t, 1, failuresOf(b), "neither a failure nor a success")

				require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
				exit()
				requireState(t, infuse.StateHalfOpen, b)
				require.Empty(t, recordOf(t, b).Trials, "its place is free")
			})
		})
	}
}

func TestAnOutcomeThatDoesNotExistIsNoOutcome(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{Classify: func(context.Context, error) infuse.Outcome { return 9 }})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.NotEqual(t, infuse.StateClosed, b.State(), "nobody said that it was a success")
	require.Empty(t, recordOf(t, b).Trials)
}

// A listener that ends the goroutine, as a test's FailNow does, must not keep
// the trial.
func TestATrialIsSettledThoughAListenerEndsTheGoroutine(t *testing.T) {
	b, err := infuse.New("inventory", infuse.Config{Listeners: []*infuse.Listener{{
		Success: func(context.Context, *infuse.Breaker) { runtime.Goexit() },
	}}})
	require.NoError(t, err)
	defer b.Stop()
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Call(t.Context(), func(context.Context) error { return nil })
	}()
	<-done
	require.Equal(t, infuse.StateClosed, b.State())
}

// Hosts whose clocks differed by minutes opened and closed the shared circuit
// under each other. Here one host's clock is a quarter of a century behind, and
// stands still while it talks to Redis.
func TestHostsWhoseClocksDifferBehaveTheSame(t *testing.T) {
	server := redistest.Start(t)
	cfg := patiently(infuse.Config{ResetTimeout: time.Hour})
	breaker := func(t *testing.T, storage infuse.Storage) *infuse.Breaker {
		cfg := cfg
		cfg.Storage = storage
		return startBreaker(t, "prices", cfg)
	}
	between59And60Minutes := func(b *infuse.Breaker) {
		left := b.Call(context.Background(), succeeds).(*infuse.OpenError).RetryAfter()
		assert.Greater(t, left, 59*time.Minute)
		assert.LessOrEqual(t, left, time.Hour+time.Millisecond, "times on record are rounded up")
	}
	here := breaker(t, host(t, server))
	onThisHost := elsewhere(t)

	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, 2000, time.Now().Year())
		storage := host(t, server)
		there := breaker(t, storage)
		require.NoError(t, there.SetState(t.Context(), infuse.StateOpen))
		between59And60Minutes(there)
		require.Equal(t, 2000, recordOf(t, there).DueAt.Year())
		onThisHost(func() {
			eventuallyState(t, infuse.StateOpen, here)
			between59And60Minutes(here)
			left := time.Until(recordOf(t, here).DueAt)
			assert.Greater(t, left, 59*time.Minute)
			assert.NoError(t, here.SetState(context.Background(), infuse.StateClosed))
			assert.NoError(t, here.SetState(context.Background(), infuse.StateOpen))
		})
		between59And60Minutes(breaker(t, storage))
	})
}

// is called, and waits for it.
func elsewhere(t *testing.T) func(func()) {
	orders, done := make(chan func()), make(chan struct{})
	t.Cleanup(func() { close(orders) })
	go func() {
		for do := range orders {
			go func() {
				defer func() { done <- struct{}{} }() // also where a require ends it
				do()
			}()
		}
	}()
	return func(do func()) {
		orders <- do
		<-done
	}
}

// A timeout of 250 ms was cut to whole seconds, and so was
// anything from nothing to a second.
func TestAResetTimeoutOf250MillisecondsIsThat(t *testing.T) {
	t.Parallel()
	const resetTimeout = 250 * time.Millisecond
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{ResetTimeout: resetTimeout})
			trip(t, b)
			time.Sleep(resetTimeout - time.Nanosecond)
			synctest.Wait()
			requireRejected(t, b)
			time.Sleep(time.Nanosecond)
			require.NoError(t, b.Call(t.Context(), succeeds))
		})
	})
	t.Run("redis", func(t *testing.T) {
		server := redistest.Start(t)
		b := startBreaker(t, "prices", patiently(infuse.Config{ResetTimeout: resetTimeout, Storage: host(t, server)}))
		var took []time.Duration
		for range 7 {
			began := time.Now()
			trip(t, b)
			for b.Call(t.Context(), succeeds) != nil {
				time.Sleep(time.Millisecond)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("open for %v: min %v, p50 %v, max %v", resetTimeout, took[0], took[len(took)/2], took[len(took)-1])
		require.GreaterOrEqual(t, took[0], resetTimeout-time.Millisecond)
		require.Less(t, took[len(took)/2], 2*resetTimeout)
	})
}

// Bad input is an error that says what is wrong with which value.

var badConfigs = map[string]struct {
	config infuse.Config
	says   []string
}{
	"FailMax below zero":          {infuse.Config{FailMax: -1}, []string{"FailMax", "-1"}},
	"FailMax too large":           {infuse.Config{FailMax: math.MaxInt32 + 1}, []string{"FailMax", "2147483648"}},
	"ResetTimeout below zero":     {infuse.Config{ResetTimeout: -time.Second}, []string{"ResetTimeout", "-1s"}},
	"ResetTimeout too short":      {infuse.Config{ResetTimeout: time.Microsecond}, []string{"ResetTimeout", "1µs"}},
	"ResetTimeout too long":       {infuse.Config{ResetTimeout: math.MaxInt64}, []string{"ResetTimeout", "2562047h47m16.854775807s"}},
	"SuccessThreshold below zero": {infuse.Config{SuccessThreshold: -3}, []string{"SuccessThreshold", "-3"}},
	"MaxTrials below zero":        {infuse.Config{MaxTrials: -2}, []string{"MaxTrials", "-2"}},
	"MaxTrials too large":         {infuse.Config{MaxTrials: 1025}, []string{"MaxTrials", "1025"}},
	"TrialTimeout below zero":     {infuse.Config{TrialTimeout: -time.Minute}, []string{"TrialTimeout", "-1m0s"}},
	"TrialTimeout too short":      {infuse.Config{TrialTimeout: 999 * time.Microsecond}, []string{"TrialTimeout", "999µs"}},
	"StorageTimeout below zero":   {infuse.Config{StorageTimeout: -time.Millisecond}, []string{"StorageTimeout", "-1ms"}},
	"StorageDown unknown":         {infuse.Config{StorageDown: 9}, []string{"StorageDown", "9"}},
	"Exclude with a nil func": {
		infuse.Config{Exclude: []func(error) bool{func(error) bool { return false }, nil}},
		[]string{"Exclude[1]", "nil"},
	},
	"Listeners with a nil":   {infuse.Config{Listeners: []*infuse.Listener{nil}}, []string{"Listeners[0]", "nil"}},
	"MaxCircuits below zero": {infuse.Config{MaxCircuits: -7}, []string{"MaxCircuits", "-7"}},
	"Storage without a client": {
		infuse.Config{Storage: infuse.NewRedisStorage(nil, infuse.RedisOptions{})},
		[]string{"Storage", "client", "nil"},
	},
	"Storage with a bad poll": {
		infuse.Config{Storage: infuse.NewRedisStorage(nil, infuse.RedisOptions{PollInterval: -time.Second})},
		[]string{"Storage", "PollInterval", "-1s"},
	},
}

func TestABadConfigIsAnErrorThatNamesFieldAndValue(t *testing.T) {
	good, err := infuse.New("prices", infuse.Config{})
	require.NoError(t, err)
	defer good.Stop()
	for name, bad := range badConfigs {
		t.Run(name, func(t *testing.T) {
			_, newErr := infuse.New("prices", bad.config)
			_, groupErr := infuse.NewGroup(bad.config)
			for who, err := range map[string]error{"New": newErr, "NewGroup": groupErr, "Configure": good.Configure(bad.config)} {
				require.Error(t, err, who)
				require.True(t, strings.HasPrefix(err.Error(), "infuse: "), "%s says %q", who, err)
				for _, words := range bad.says {
					require.ErrorContains(t, err, words, who)
				}
			}
		})
	}
	require.NoError(t, good.Call(t.Context(), succeeds), "a Config that was refused changes nothing")
}

func TestABadNameIsAnError(t *testing.T) {
	group, err := infuse.NewGroup(infuse.Config{})
	require.NoError(t, err)
	defer group.Stop()
	storage := infuse.NewMemoryStorage()
	for says, name := range map[string]string{
		"empty":     "",
		"257 bytes": strings.Repeat("é", 128) + "e",
	} {
		_, err := infuse.New(name, infuse.Config{})
		require.ErrorContains(t, err, says)
		_, err = group.Breaker(name)
		require.ErrorContains(t, err, says)
		require.ErrorContains(t, infuse.CheckName(name), says)
		require.ErrorContains(t, infuse.Announce(t.Context(), storage, name, infuse.StateHalfOpen), says)
	}
	longest := strings.Repeat("n", infuse.MaxNameLength)
	require.Equal(t, longest, startBreaker(t, longest, infuse.Config{}).Name())
}

func TestAnnounceRefusesWhatItCannotDo(t *testing.T) {
	require.ErrorContains(t, infuse.Announce(t.Context(), nil, "prices", infuse.StateClosed), "nil")
	require.ErrorContains(t, infuse.Announce(t.Context(), infuse.NewMemoryStorage(), "prices", 7), "State(7)")
}

// strangeNames are names that a careless key would mistake for each other.
var strangeNames = []string{
	"a", "A", " a", "a ", "a b", "a+b", "a%20b", "a\tb", "a\nb", "a\r\nb", "a\x00b", "a,b", "a=b",
	"{", "}", "{}", "{a}", "{a", "a}", "a}{b", "{a}{b}", "%7Ba%7D", "a:b", "a*", "a?", "[a]",
	"é", "e\u0301", "\xff", "\xfe", "%FF", "a/b", "../a", "*",
}

func TestNamesNeverMeet(t *testing.T) {
	server := redistest.Start(t)
	for kind, storage := range map[string]infuse.Storage{
		"memory": infuse.NewMemoryStorage(),
		"redis":  host(t, server),
	} {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 1000, Storage: storage})
			for i, name := range strangeNames {
				b := startBreaker(t, name, cfg)
				for range i + 1 {
					require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				}
			}
			for i, name := range strangeNames {
				require.Equal(t, i+1, recordOf(t, startBreaker(t, name, cfg)).Failures, "%q", name)
			}
		})
	}
	keys, err := server.Client().Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Len(t, keys, len(strangeNames))
	for _, key := range keys {
		require.Regexp(t, `^infuse:\{[A-Za-z0-9%+._~-]+\}$`, key, "no name leaves its hash tag")
	}
}

// The prefix and the names are one namespace for Pub/Sub, too: what happens to
// one circuit is no news for another.
func TestStrangeNamesHearOnlyOfThemselves(t *testing.T) {
	server := redistest.Start(t)
	here, there := host(t, server), host(t, server)
	var watching []*infuse.Breaker
	for _, name := range strangeNames {
		watching = append(watching, startBreaker(t, name, patiently(infuse.Config{Storage: here})))
	}
	for i, name := range strangeNames {
		moved := startBreaker(t, name, patiently(infuse.Config{Storage: there}))
		require.NoError(t, moved.SetState(t.Context(), infuse.StateOpen))
		eventuallyState(t, infuse.StateOpen, watching[i])
		requireState(t, infuse.StateClosed, watching[i+1:]...)
	}
}

func TestConfigureRefusesAnotherStorage(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	b := startBreaker(t, "prices", infuse.Config{Storage: storage})
	require.NoError(t, b.Configure(infuse.Config{Storage: storage, FailMax: 1}))
	require.NoError(t, b.Configure(infuse.Config{FailMax: 1}))
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: infuse.NewMemoryStorage()}), "Storage")
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: unhashable{}}), "Storage")
}

// unhashable cannot be compared: == on it panics.
type unhashable struct{ _ []int }

func (unhashable) Load(context.Context, string) (infuse.Record, error) {
	return infuse.Record{}, errors.ErrUnsupported
}

func (unhashable) Apply(context.Context, string, infuse.Change) (infuse.Record, infuse.Verdict, error) {
	return infuse.Record{}, infuse.VerdictRefused, errors.ErrUnsupported
}

func (unhashable) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

func TestTheNumbersPrintAsWords(t *testing.T) {
	require.Equal(t, "closed open half-open State(3)", fmt.Sprint(
		infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen, infuse.State(3)))
	require.Equal(t, "success failure ignored Outcome(3)", fmt.Sprint(
		infuse.OutcomeSuccess, infuse.OutcomeFailure, infuse.OutcomeIgnored, infuse.Outcome(3)))
	require.Equal(t, "local allow reject StorageDownPolicy(3)", fmt.Sprint(
		infuse.StorageDownLocal, infuse.StorageDownAllow, infuse.StorageDownReject, infuse.StorageDownPolicy(3)))
}

func TestEveryInvalidFieldIsNamedAtOnce(t *testing.T) {
	_, err := infuse.New("inventory", infuse.Config{FailMax: -1, ResetTimeout: -time.Second, StorageDown: 9})
	require.ErrorContains(t, err, "Config.FailMax is -1")
	require.ErrorContains(t, err, "Config.ResetTimeout is -1s")
	require.ErrorContains(t, err, "Config.StorageDown is StorageDownPolicy(9)")
}

// What a call costs: commands to Redis, and allocations.

// commands returns how often the server has run each command since it started,
// but for those that clients send of their own accord, and the test itself.
func commands(t *testing.T, s *redistest.Server) map[string]int64 {
	t.Helper()
	counts, err := s.Commands(t.Context())
	require.NoError(t, err)
	for _, name := range []string{"info", "hello", "ping", "client", "client|setinfo", "client|maint_notifications", "client|setname"} {
		delete(counts, name)
	}
	return counts
}

// costOf returns the commands that the server has run meanwhile.
func costOf(t *testing.T, s *redistest.Server, do func()) map[string]int64 {
	t.Helper()
	before := commands(t, s)
	do()
	cost := commands(t, s)
	for name, n := range before {
		cost[name] -= n
	}
	maps.DeleteFunc(cost, func(_ string, n int64) bool { return n == 0 })
	return cost
}

// runsOf counts the runs of the script: what a breaker sends.
func runsOf(cost map[string]int64) int64 { return cost["evalsha"] + cost["eval"] }

// rarelyPolled is a storage whose breakers hear by push, and only so.
func rarelyPolled(t *testing.T, s *redistest.Server) *infuse.RedisStorage {
	t.Helper()
	storage := infuse.NewRedisStorage(s.Client(), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	return storage
}

// startQuietBreaker starts a breaker that has nothing more to say, and hears
// by push alone.
func startQuietBreaker(t *testing.T, s *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	cfg.Storage = rarelyPolled(t, s)
	return startQuietly(t, s, cfg)
}

// startDeafBreaker starts a breaker that hears nothing: its Pub/Sub goes to
// another server.
func startDeafBreaker(t *testing.T, s, other *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	storage := infuse.NewRedisStorage(split(s.Client(), other.Client()), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	cfg.Storage = storage
	return startQuietly(t, s, cfg)
}

// startQuietly waits until the breaker has read its circuit, subscribed, and
// read it again. Nobody else may use the server meanwhile.
func startQuietly(t *testing.T, s *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	warm, err := infuse.New("warm", patiently(cfg)) // has Redis know the scripts
	require.NoError(t, err)
	_ = warm.Call(t.Context(), fails)
	require.NoError(t, warm.SetState(t.Context(), infuse.StateClosed))
	warm.Stop()
	reads := func() int64 { return commands(t, s)["hmget"] } // by the script, which is sent more often until it is known
	before := reads()
	b := startBreaker(t, "prices", patiently(cfg))
	require.Eventually(t, func() bool { return reads() >= before+2 }, patience, pace)
	recordOf(t, b) // not before what is under way has been answered, if there is one connection
	return b
}

func TestAMillionSuccessfulCallsSendNothing(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{})
	ctx := t.Context()
	require.Empty(t, costOf(t, server, func() {
		for range 1_000_000 {
			if b.Call(ctx, succeeds) != nil {
				t.Fatal("a call was rejected")
			}
		}
	}))
}

func TestAHundredThousandRejectionsSendNothing(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{ResetTimeout: time.Hour})
	trip(t, b)
	ctx := t.Context()
	require.Empty(t, costOf(t, server, func() {
		for range 100_000 {
			if b.Call(ctx, succeeds) == nil {
				t.Fatal("a call ran")
			}
		}
	}))
}

func TestAFailingCallSendsOneCommand(t *testing.T) {
	server := redistest.Start(t)
	// It receives no message: those of the opening have each process read it.
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{FailMax: 5, ResetTimeout: time.Hour})
	for range 5 { // the fifth opens the circuit, and costs no more
		cost := costOf(t, server, func() {
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		})
		require.EqualValues(t, 1, runsOf(cost))
		for name := range cost {
			require.Contains(t, []string{"eval", "evalsha", "time", "hmget", "hlen", "hset", "pttl", "pexpire", "publish"}, name,
				"the script and what it runs, and nothing else")
		}
	}
	requireState(t, infuse.StateOpen, b)
}

// An outage costs a handful of round trips, not one a call: what fails while
// a report is under way goes together in the next.
func TestManyFailuresAtOnceShareTheirReports(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{FailMax: 1000})
	cost := costOf(t, server, func() {
		server.Pause()
		done := make(chan int, 1)
		go func() { done <- failAtOnce(b, 500) }()
		require.Never(t, func() bool { return len(done) > 0 }, 100*time.Millisecond, pace,
			"a failing call returns when its failure is counted")
		server.Resume()
		require.Equal(t, 500, <-done)
	})
	require.LessOrEqual(t, runsOf(cost), int64(50))
	require.Equal(t, 500, recordOf(t, b).Failures)
}

// A success after failures says that the row is broken, but its caller does
// not wait for that.
func TestTheSuccessThatEndsARowOfFailuresDoesNotWait(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))

	server.Pause()
	began := time.Now()
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Less(t, time.Since(began), time.Second, "it is not to wait for Redis, which hangs")
	server.Resume()
	require.Eventually(t, func() bool { return recordOf(t, b).Failures == 0 }, patience, pace)
	require.Eventually(t, func() bool { return failuresOf(b) == 0 }, patience, pace)
	require.Empty(t, costOf(t, server, func() {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}), "the circuit is quiet again")
}

// However many calls meet a circuit that is due, a process asks for one trial.
func TestOneCallOfAProcessAsksForATrialAtATime(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{})
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	cost := costOf(t, server, func() {
		server.Pause()
		results := make(chan error, 50)
		for range cap(results) {
			go func() { results <- b.Call(context.Background(), succeeds) }()
		}
		for range cap(results) - 1 {
			require.ErrorIs(t, <-results, infuse.ErrOpen, "rejected while the one waits for Redis")
		}
		server.Resume()
		require.NoError(t, <-results)
	})
	require.EqualValues(t, 2, runsOf(cost), "to ask, and to settle")
	requireState(t, infuse.StateClosed, b)
}

func TestStrictReadsTheRecordBeforeEveryCall(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{Strict: true, ResetTimeout: time.Hour})
	cost := costOf(t, server, func() {
		for range 10 {
			require.NoError(t, b.Call(t.Context(), succeeds))
		}
	})
	require.EqualValues(t, 10, runsOf(cost))
	require.Zero(t, cost["hset"], "to read is not to move")

	trip(t, b)
	cost = costOf(t, server, func() {
		for range 10 {
			requireRejected(t, b)
		}
	})
	require.EqualValues(t, 10, runsOf(cost))
}

func TestTheHotPathsDoNotAllocate(t *testing.T) {
	if underRace {
		t.Skip("sync.Pool allocates under the race detector")
	}
	ctx := context.Background()
	server := redistest.Start(t)
	for name, storage := range map[string]infuse.Storage{
		"memory": infuse.NewMemoryStorage(),
		"redis":  rarelyPolled(t, server),
	} {
		b := startBreaker(t, "prices", patiently(infuse.Config{Storage: storage, ResetTimeout: time.Hour}))
		for what, call := range map[string]func(){
			"a successful call": func() { _ = b.Call(ctx, succeeds) },
			"Acquire and Done": func() {
				p, _ := b.Acquire(ctx)
				p.Done(nil)
			},
		} {
			require.Zero(t, testing.AllocsPerRun(1000, call), "%s, with %s", what, name)
		}
		trip(t, b)
		for what, call := range map[string]func(){
			"a rejected call":    func() { _ = b.Call(ctx, succeeds) },
			"a rejected Acquire": func() { _, _ = b.Acquire(ctx) },
			"State":              func() { _, _ = b.State(), failuresOf(b) },
		} {
			require.Zero(t, testing.AllocsPerRun(1000, call), "%s, with %s", what, name)
		}
	}
}

// failAtOnce makes so many calls that fail, all at once, and returns how many ran.
func failAtOnce(b *infuse.Breaker, calls int) int {
	var ran atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for range calls {
		all.Go(func() {
			<-start
			if b.Call(context.Background(), fails) == errUnhealthy {
				ran.Add(1)
			}
		})
	}
	close(start)
	all.Wait()
	return int(ran.Load())
}

// BenchmarkCall is what a call costs. In parallel it is wall time by all calls:
// what scales takes a share of the time that it takes alone.
func BenchmarkCall(b *testing.B) {
	quiet := infuse.LogListener(slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, c := range []struct {
		name      string
		state     infuse.State
		fn        func(context.Context) error // in turn with one that succeeds
		listeners []*infuse.Listener
	}{
		{"closed", infuse.StateClosed, succeeds, nil},
		{"closed, CountCalls", infuse.StateClosed, succeeds, nil},
		{"open, CountCalls", infuse.StateOpen, succeeds, nil},
		{"closed, rate", infuse.StateClosed, succeeds, nil},
		{"closed, rate, failures in the window", infuse.StateClosed, succeeds, nil},
		{"closed, LogListener", infuse.StateClosed, succeeds, []*infuse.Listener{quiet}},
		{"open", infuse.StateOpen, succeeds, nil},
		{"open, LogListener", infuse.StateOpen, succeeds, []*infuse.Listener{quiet}},
		{"half failing", infuse.StateClosed, fails, nil},
		{"half failing, LogListener", infuse.StateClosed, fails, []*infuse.Listener{quiet}},
	} {
		cfg := infuse.Config{FailMax: 1000, ResetTimeout: time.Hour, Listeners: c.listeners}
		cfg.CountCalls = strings.Contains(c.name, "CountCalls")
		if strings.Contains(c.name, "rate") {
			cfg.FailureRate, cfg.Window = 0.5, time.Hour
		}
		breaker := startBreaker(b, "prices", cfg)
		require.NoError(b, breaker.SetState(b.Context(), c.state))
		if strings.Contains(c.name, "failures in the window") {
			require.Error(b, breaker.Call(b.Context(), fails))
			require.NoError(b, breaker.Call(b.Context(), succeeds))
		}
		calls := func(n int) {
			ctx := context.Background()
			for i := 0; i < n; i += 2 {
				_ = breaker.Call(ctx, succeeds)
				_ = breaker.Call(ctx, c.fn)
			}
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			calls(b.N)
		})
		b.Run(c.name+", in parallel", func(b *testing.B) {
			b.ReportAllocs()
			procs := runtime.GOMAXPROCS(0)
			var all sync.WaitGroup
			for range procs {
				all.Go(func() { calls((b.N + procs - 1) / procs) })
			}
			all.Wait()
		})
	}
}

// Nothing but redis-cli could mend a record that cannot be read.
func TestAMoveMendsARecordThatCannotBeRead(t *testing.T) {
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
