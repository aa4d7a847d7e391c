package infuse_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

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
		assert.LessOrEqual(t, left, time.Hour)
	}
	here := breaker(t, host(t, server))
	onThisHost := elsewhere(t)

	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, 2000, time.Now().Year())
		storage := host(t, server)
		there := breaker(t, storage)
		require.NoError(t, there.Move(t.Context(), infuse.StateOpen))
		between59And60Minutes(there)
		require.Equal(t, 2000, recordOf(t, there).DueAt.Year())
		onThisHost(func() {
			eventuallyState(t, infuse.StateOpen, here)
			between59And60Minutes(here)
			left := time.Until(recordOf(t, here).DueAt)
			assert.Greater(t, left, 59*time.Minute)
			assert.NoError(t, here.Move(context.Background(), infuse.StateClosed))
			assert.NoError(t, here.Move(context.Background(), infuse.StateOpen))
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
