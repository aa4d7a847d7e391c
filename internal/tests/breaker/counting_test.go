package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

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
func TestRejectionsAreNotCounted(t *testing.T) {
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
// R1.
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
		for range 10 { // the outer call is the trial that rejects the inner one
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

// R5.
func TestOnlyConsecutiveFailuresOpenTheCircuit(t *testing.T) {
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

// R1.
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

// R1.
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

func TestAnOutcomeThatDoesNotExistIsNoOutcome(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{Classify: func(context.Context, error) infuse.Outcome { return 9 }})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.NotEqual(t, infuse.StateClosed, b.State(), "nobody said that it was a success")
	require.Empty(t, recordOf(t, b).Trials)
}

// asksItsContext is a call that does nothing for a caller who is late.
func asksItsContext(ctx context.Context) error { return ctx.Err() }

// Callers who came too late opened the circuit of a service that had not heard
// of them.
// R1.
func TestACallThatCameTooLateIsIgnored(t *testing.T) {
	var heard stateLog
	for name, cfg := range map[string]infuse.Config{
		"fast":          {FailMax: 2},
		"with listener": {FailMax: 2, Listeners: []*infuse.Listener{everyCall(&heard)}},
		"strict":        patiently(infuse.Config{FailMax: 2, Strict: true, Storage: infuse.NewMemoryStorage()}),
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", cfg)
			require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
			for range 3 {
				require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
				_, err := infuse.Do(late(t), b, func(ctx context.Context) (int, error) { return 0, ctx.Err() })
				require.ErrorIs(t, err, context.DeadlineExceeded)
				p, err := b.Acquire(late(t))
				require.NoError(t, err)
				p.Done(context.DeadlineExceeded)
			}
			require.Equal(t, 1, failuresOf(b), "neither failures nor successes")

			require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
			if cfg.Storage != nil { // a trial is asked for, and the caller does not wait
				require.ErrorIs(t, b.Call(late(t), asksItsContext), infuse.ErrOpen)
				require.Empty(t, recordOf(t, b).Trials)
				return
			}
			require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
			requireState(t, infuse.StateHalfOpen, b)
			require.NoError(t, b.Call(late(t), succeeds), "what succeeds all the same is a success")
			requireState(t, infuse.StateClosed, b)
		})
	}
}

// A timeout around the breaker that cancels, as failsafe-go's, or a proxy whose
// clients leave: a service that hangs was never counted (H6).
// R2.
func TestACancelledCallThatWasSlowIsAFailure(t *testing.T) {
	hangs := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, call := range map[string]func(context.Context, *infuse.Breaker){
		"Call": func(ctx context.Context, b *infuse.Breaker) { _ = b.Call(ctx, hangs) },
		"Do": func(ctx context.Context, b *infuse.Breaker) {
			_, _ = infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 0, hangs(ctx) })
		},
		"a permit that is done": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				p.Done(hangs(ctx))
			}
		},
		"a permit that is settled": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				_ = hangs(ctx)
				p.Settle(infuse.OutcomeIgnored)
			}
		},
		"ErrAbortHandler": func(ctx context.Context, b *infuse.Breaker) {
			defer func() { _ = recover() }()
			_ = b.Call(ctx, func(ctx context.Context) error {
				_ = hangs(ctx)
				panic(http.ErrAbortHandler)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				slowCall time.Duration
				failures int
			}{{0, 0}, {time.Second, 3}, {time.Minute, 0}} {
				synctest.Test(t, func(t *testing.T) {
					b := startBreaker(t, "inventory", infuse.Config{FailMax: 100, SlowCall: test.slowCall})
					for range 3 {
						ctx, cancel := context.WithCancelCause(t.Context())
						time.AfterFunc(2*time.Second, func() { cancel(errors.New("timeout exceeded")) })
						call(ctx, b)
						cancel(nil)
					}
					require.Equal(t, test.failures, failuresOf(b))
				})
			}
		})
	}
}

// Every call is counted once, by what became of it, on every way that it takes.
// R3.
func TestCallsAreCounted(t *testing.T) {
	ways(t, infuse.Config{CountCalls: true}, func(t *testing.T, b *infuse.Breaker) {
		ctx := t.Context()
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		for range 3 {
			require.NoError(t, b.Call(ctx, succeeds))
		}
		ignored := uint64(0)
		if b.Call(cancelled, func(ctx context.Context) error { return ctx.Err() }) != nil {
			ignored = b.Stats().Calls.Ignored // a Classify of its own may think otherwise
		}
		failures := b.Stats().Calls.Failure
		p, err := b.Acquire(ctx)
		require.NoError(t, err)
		p.Settle(infuse.OutcomeFailure)
		trip(t, b)
		for range 4 {
			requireRejected(t, b)
		}
		_, err = b.Acquire(ctx)
		require.Error(t, err)
		calls := b.Stats().Calls
		require.Equal(t, uint64(3), calls.Success)
		require.Equal(t, uint64(5), calls.Failure)
		require.Equal(t, ignored, calls.Ignored)
		require.Equal(t, uint64(1), ignored+failures)
		require.Equal(t, uint64(5), calls.Rejected)
		require.NoError(t, b.Configure(infuse.Config{}))
		requireRejected(t, b)
		require.Equal(t, calls, b.Stats().Calls, "what was counted stays")
	})
}

func TestCallsAreCountedByManyAtOnce(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{CountCalls: true, FailMax: 1 << 30})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 10_000 {
				fn := succeeds
				if i%10 == 0 {
					fn = fails
				}
				_ = b.Call(context.Background(), fn)
			}
		})
	}
	all.Wait()
	require.Equal(t, uint64(72_000), b.Stats().Calls.Success)
	require.Equal(t, uint64(8_000), b.Stats().Calls.Failure)
}

func TestCallsThatNobodyCountsAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{})
		trip(t, b)
		requireRejected(t, b)
		require.Zero(t, b.Stats().Calls)
		time.Sleep(time.Minute)
	})
}
