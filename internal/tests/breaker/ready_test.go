package breaker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// State that can be read without being misled: Ready, Wait, Stats, and events.

func TestReadyIsWhetherACallWouldRunOrBecomeTheTrial(t *testing.T) {
	for _, storage := range []func() infuse.Storage{func() infuse.Storage { return nil }, func() infuse.Storage { return infuse.NewMemoryStorage() }} {
		synctest.Test(t, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 2, ResetTimeout: time.Minute, TrialTimeout: time.Second, Storage: storage()})
			require.True(t, b.Ready())
			began := time.Now()
			for range 2 {
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			}
			require.False(t, b.Ready())
			require.Equal(t, began.Add(time.Minute), b.Stats().DueAt)
			time.Sleep(time.Minute)
			synctest.Wait()
			require.True(t, b.Ready(), "ready for a trial, though nobody calls")
			require.Equal(t, infuse.StateOpen, b.State())
			time.Sleep(time.Hour)
			require.True(t, b.Ready(), "Ready uses up nothing")
			require.Equal(t, began.Add(time.Minute), b.Stats().DueAt, "in the past: ready for a trial")
			trial := requireTrial(t, b)
			require.False(t, b.Ready(), "the trial runs")
			trial.Done(nil)
			require.True(t, b.Ready())
			require.Zero(t, b.Stats().DueAt)
		})
	}
}

// Ten thousand waiters cost one wake-up each, and nothing while they wait.
func TestWaitWakesEachWaiterOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: infuse.NewMemoryStorage()})
		require.NoError(t, b.Wait(t.Context()))
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		const waiters = 10_000
		began := time.Now()
		var woken, early atomic.Int64
		var all sync.WaitGroup
		for range waiters {
			all.Go(func() {
				err := b.Wait(t.Context())
				woken.Add(1)
				if err != nil || time.Since(began) < time.Hour-time.Second {
					early.Add(1)
				}
			})
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.Zero(t, woken.Load())
		all.Wait()
		require.EqualValues(t, waiters, woken.Load())
		require.Zero(t, early.Load())
		require.True(t, b.Ready())

		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, b.Wait(ctx), context.DeadlineExceeded)
		cause := errors.New("shutdown")
		go func() { _ = b.Configure(infuse.Config{DryRun: true}) }()
		require.NoError(t, b.Wait(t.Context()), "a dry run rejects nothing: %v", cause)
	})
}

// A consumer that stops taking work while its circuit is open goes on after a trial.
func TestAConsumerThatWaitsGoesOnAfterTheTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, ResetTimeout: time.Second})
		queue := make(chan int, 100)
		for i := range cap(queue) {
			queue <- i
		}
		close(queue)
		healthyAt := time.Now().Add(10 * time.Second)
		handled, calls, rejected := 0, 0, 0
		for job := range queue {
			for done := false; !done; {
				require.NoError(t, b.Wait(t.Context()))
				err := b.Call(t.Context(), func(context.Context) error {
					calls++
					if time.Now().Before(healthyAt) {
						return errUnhealthy
					}
					return nil
				})
				switch {
				case errors.Is(err, infuse.ErrOpen):
					rejected++
				case err == nil:
					done = true
					handled++
				}
			}
			_ = job
		}
		require.Equal(t, 100, handled)
		require.Zero(t, rejected)
		require.LessOrEqual(t, calls, 100+3+10, "FailMax failures, and one trial a second")
	})
}

func TestStatsHaveABlockForEachCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		cfg := infuse.Config{FailMax: 3, FailureRate: 0.9, MinCalls: 10, Storage: storage, ResetTimeout: time.Minute}
		cfg.Instance = "web-1"
		one := startBreaker(t, "prices", cfg)
		cfg.Instance = "web-2"
		two := startBreaker(t, "prices", cfg)
		began := time.Now()
		require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
		require.Equal(t, infuse.CircuitStats{Failures: 1, Window: struct{ Calls, Failures int }{1, 1}, Since: began, By: "web-1", Cause: ""}, clearedCause(one.Stats().Local))
		require.Equal(t, 1, one.Stats().Shared.Failures)
		require.Zero(t, two.Stats().Local.Failures)
		for range 2 {
			require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
		}
		time.Sleep(time.Second)
		s := two.Stats()
		require.True(t, s.Shared.Suspect)
		require.Equal(t, "web-1", s.Shared.By)
		require.Equal(t, errUnhealthy.Error(), s.Shared.Cause)
		require.Equal(t, infuse.StateClosed, s.State)
		for range 3 {
			require.Equal(t, errUnhealthy, two.Call(t.Context(), fails))
		}
		synctest.Wait()
		opened := time.Now()
		for _, b := range []*infuse.Breaker{one, two} {
			s := b.Stats()
			require.Equal(t, infuse.StateOpen, s.State)
			require.Equal(t, infuse.StateOpen, s.Shared.State)
			require.False(t, s.Shared.Suspect)
			require.Equal(t, opened, s.Shared.Since)
			require.Equal(t, began.Add(time.Minute), s.Shared.DueAt)
			require.Equal(t, infuse.StateOpen, s.Local.State)
			require.Equal(t, 3, s.Local.Failures)
		}
	})
}

func clearedCause(c infuse.CircuitStats) infuse.CircuitStats {
	c.By, c.Cause = "web-1", ""
	return c
}

// An outage over three processes: each logs the opening of the shared circuit once,
// those whose local circuit opened log that once, and a recovery logs no opening.
func TestAnOutageReadsAsOneInEveryLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		logs := make([]bytes.Buffer, 3)
		var fleet []*infuse.Breaker
		for i := range logs {
			handler := slog.NewTextHandler(&logs[i], &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}})
			fleet = append(fleet, startBreaker(t, "prices", infuse.Config{
				Storage: storage, Instance: fmt.Sprint("web-", i), Listeners: []*infuse.Listener{infuse.LogListener(slog.New(handler))},
			}))
		}
		for second := range 90 {
			failing := second < 30
			for _, b := range fleet[:2] { // the third has no traffic
				_ = b.Call(t.Context(), func(context.Context) error {
					if failing {
						return errUnhealthy
					}
					return nil
				})
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		for i := range logs {
			text := logs[i].String()
			count := func(what string) int { return strings.Count(text, what) }
			require.Equal(t, 1, count(`from=closed to=open local=false`), text)
			require.LessOrEqual(t, count(`from=closed to=open local=true`), 1, text)
			require.Equal(t, 1, count(`to=closed local=false`), text)
			require.Zero(t, count(`from=half-open to=open`), text)
			require.Zero(t, count(`local=true`)-count(`to=open local=true`)-count(`to=closed local=true`)-count(`to=half-open local=true`), text)
		}
		require.Zero(t, strings.Count(logs[2].String(), "local=true"), "it did not call: %s", logs[2].String())
		for _, b := range fleet {
			require.Equal(t, infuse.StateClosed, b.State())
			require.Equal(t, infuse.StateClosed, b.Stats().Local.State)
			require.Equal(t, infuse.StateClosed, b.Stats().Shared.State)
		}
	})
}

// Ready and Wait do not return while another call asks for the trial.
func TestWaitDoesNotSpinWhileATrialIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		by := new(atomic.Int64)
		b := startBreaker(t, "service", infuse.Config{ResetTimeout: time.Second, Storage: delayed{infuse.NewMemoryStorage(), by}})
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		by.Store(int64(50 * time.Millisecond))
		time.Sleep(time.Second)
		go func() { _ = callOf(b, false) }()
		synctest.Wait()
		require.False(t, b.Ready())
		began := time.Now()
		require.NoError(t, b.Wait(t.Context()))
		require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
		require.NoError(t, callOf(b, false))
		require.Equal(t, infuse.StateClosed, b.State())
	})
}
