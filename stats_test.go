package infuse_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Every call is counted once, by what became of it, on every way that it takes.
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
