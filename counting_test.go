package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
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
		b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{changes.listener()}})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				_ = b.Call(t.Context(), func(context.Context) error {
					if i < 50 {
						time.Sleep(time.Second)
					} else {
						time.Sleep(10 * time.Second) // ends when the circuit has long been open
					}
					return errIll
				})
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		opened := recordOf(t, b)
		require.Equal(t, infuse.StateOpen, opened.State)
		all.Wait()
		require.Equal(t, opened, recordOf(t, b))
		require.Equal(t, []string{"closed>open"}, changes.all())
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
	storage := infuse.NewRedisStorage(split{client, server.Client()}, infuse.RedisOptions{PollInterval: time.Hour})
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

	r := twice("a failure", func() { require.Equal(t, errIll, b.Call(t.Context(), fails)) })
	require.Equal(t, 1, r.Failures)
	r = twice("another", func() { require.Equal(t, errIll, b.Call(t.Context(), fails)) })
	require.Equal(t, 2, r.Failures)
	opened := r.Generation
	r = twice("the last", func() { require.Equal(t, errIll, b.Call(t.Context(), fails)) })
	require.Greater(t, r.Generation, opened)
	require.False(t, r.OpensAt.IsZero(), "suspect")

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
	r = twice("a move by hand", func() { require.NoError(t, b.Move(t.Context(), infuse.StateOpen)) })
	require.Equal(t, infuse.StateOpen, r.State)
	require.Greater(t, r.Generation, generation)
}

// A report goes out although the context of its call has ended.
func TestAFailureWhoseContextHasEndedIsCountedForTheFleet(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Storage: host(t, server)}))
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for range 3 {
		require.ErrorIs(t, b.Call(ctx, func(ctx context.Context) error { return ctx.Err() }), context.DeadlineExceeded)
	}
	require.Eventually(t, func() bool { return recordOf(t, b).State == infuse.StateOpen }, patience, pace)

	require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, b.Call(ctx, succeeds), "a trial is asked for and settled, too")
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
		require.Zero(t, b.Failures())
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
		require.NoError(t, outer.Move(t.Context(), infuse.StateHalfOpen))
		for range 10 { // the outer call is the trial that turns the inner one away
			require.ErrorIs(t, outer.Call(t.Context(), calls(inner)), infuse.ErrOpen)
			requireState(t, infuse.StateHalfOpen, outer, inner)
		}
		require.NoError(t, outer.Call(t.Context(), succeeds))

		require.NoError(t, other.Move(t.Context(), infuse.StateOpen))
		require.ErrorIs(t, outer.Call(t.Context(), calls(other)), infuse.ErrOpen)
		require.Equal(t, 1, outer.Failures())
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
			require.Equal(t, errIll, b.Call(t.Context(), fails))
			requireState(t, infuse.StateOpen, b)
			waitUntilDue(t, b)
		}
	})
}

func TestOnlyFailuresInARowOpenTheCircuit(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 3})
	for range 20 {
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		require.Equal(t, 2, b.Failures())
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.Zero(t, b.Failures())
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
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		require.Equal(t, wrapped, b.Call(t.Context(), func(context.Context) error { return wrapped }))
		require.Zero(t, b.Failures())
	}
	require.Equal(t, 30, excluded)

	require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
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
			case errIll:
				return infuse.OutcomeIgnored
			}
			return infuse.OutcomeSuccess
		},
	})
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Equal(t, 1, b.Failures())
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.Equal(t, 1, b.Failures())
	require.Error(t, b.Call(t.Context(), func(context.Context) error { return errors.ErrUnsupported }))
	require.Zero(t, b.Failures())
	for range 2 {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}
	requireState(t, infuse.StateOpen, b)
	require.NoError(t, requireRejected(t, b).Cause)
}
