package infuse_test

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Scenario 17. The wall clock was put forward or back, and the circuit was due
// an hour too early, or too late. On the real clock: that of synctest has no
// monotonic reading.
func TestAJumpOfTheWallClockMovesNothing(t *testing.T) {
	for name, jump := range map[string]time.Duration{"ahead": 2 * time.Hour, "back": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour})
			trip(t, b)
			b.JumpWallClock(jump)
			left := requireRejected(t, b).RetryAfter()
			require.Greater(t, left, 59*time.Minute)
			require.LessOrEqual(t, left, time.Hour)

			require.NoError(t, b.Configure(infuse.Config{ResetTimeout: 50 * time.Millisecond}))
			require.NoError(t, b.Open(t.Context()))
			opened := time.Now()
			b.JumpWallClock(jump)
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, time.Millisecond)
			require.GreaterOrEqual(t, time.Since(opened), 48*time.Millisecond)
			requireState(t, infuse.StateClosed, b)
		})
	}
}

// Scenario 18. Hosts whose clocks differed by minutes opened and closed the
// shared circuit under each other. Here one host's clock is a quarter of a
// century behind, and stands still while it talks to Redis.
func TestHostsWhoseClocksDifferBehaveTheSame(t *testing.T) {
	server := redistest.Start(t)
	breaker := func(t *testing.T, storage infuse.Storage, name string, resetTimeout time.Duration) *infuse.Breaker {
		return startBreaker(t, name, patiently(infuse.Config{ResetTimeout: resetTimeout, Storage: storage}))
	}
	between59And60Minutes := func(b *infuse.Breaker) {
		left := b.Call(context.Background(), succeeds).(*infuse.OpenError).RetryAfter()
		assert.Greater(t, left, 59*time.Minute)
		assert.LessOrEqual(t, left, time.Hour)
	}
	thisHost := host(t, server)
	long, short := breaker(t, thisHost, "long", time.Hour), breaker(t, thisHost, "short", 200*time.Millisecond)
	onThisHost := elsewhere(t)

	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, 2000, time.Now().Year())
		otherHost := host(t, server)
		otherLong, otherShort := breaker(t, otherHost, "long", time.Hour), breaker(t, otherHost, "short", 200*time.Millisecond)

		trip(t, otherLong)
		between59And60Minutes(otherLong)
		require.Equal(t, 2000, recordOf(t, otherLong).DueAt.Year())
		onThisHost(func() {
			eventuallyState(t, infuse.StateOpen, long)
			between59And60Minutes(long)
			left := time.Until(recordOf(t, long).DueAt)
			assert.Greater(t, left, 59*time.Minute)
			assert.NoError(t, long.Close(context.Background()))
			trip(t, long)
		})
		between59And60Minutes(breaker(t, otherHost, "long", time.Hour))

		var tripped time.Time
		onThisHost(func() { tripped = time.Now() })
		trip(t, otherShort)
		onThisHost(func() {
			eventuallyState(t, infuse.StateOpen, short)
			var trial infuse.Permit
			assert.Eventually(t, func() (admitted bool) {
				var err error
				trial, err = short.Acquire(context.Background())
				return err == nil
			}, patience, time.Millisecond)
			assert.GreaterOrEqual(t, time.Since(tripped), 198*time.Millisecond)
			trial.Done(nil)
			requireState(t, infuse.StateClosed, short)
		})
		require.NoError(t, breaker(t, otherHost, "short", time.Hour).Call(t.Context(), succeeds))
	})
}

// elsewhere returns a func that runs another outside of the bubble in which it
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

// Scenario 19. A timeout of 250 ms was cut to whole seconds, and so was
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
			if len(took) == 0 { // then the generation is the time of the transition
				raw := server.Client().HGetAll(t.Context(), "infuse:{prices}").Val()
				require.Equal(t, resetTimeout.Milliseconds(), whole(t, raw["due"])-whole(t, raw["generation"]))
			}
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

func whole(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	require.NoError(t, err)
	return n
}
