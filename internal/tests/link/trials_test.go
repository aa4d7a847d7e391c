package link_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// After an acquire of which the process never heard again, the record had a
// lease of that process's own that nobody held: all rejected for TrialTimeout.
// R27.
func TestNoLeaseOfALostAnswerBlocksTheFleet(t *testing.T) {
	for name, c := range map[string]struct {
		hangs  time.Duration
		after  bool // the replies are lost, and not the requests
		others bool // another process calls, too
	}{
		"the storage hangs":               {12 * time.Second, false, true},
		"the storage hangs a moment":      {2 * time.Second, false, true},
		"replies do not arrive":           {8 * time.Second, true, true},
		"nobody else uses the circuit":    {12 * time.Second, false, false},
		"replies do not arrive, nobody's": {8 * time.Second, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				memory := infuse.NewMemoryStorage()
				w := &way{Storage: memory}
				a := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Second, Storage: w})
				fleet := []*infuse.Breaker{a}
				if c.others {
					fleet = append(fleet, startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Second, Storage: memory}))
				}
				require.NoError(t, a.SetState(t.Context(), infuse.StateOpen))
				time.Sleep(2 * time.Second)

				over := make(chan struct{})
				if c.after {
					w.between(nil, until(over))
				} else {
					w.between(until(over), nil)
				}
				began := time.Now()
				require.ErrorIs(t, a.Call(t.Context(), succeeds), infuse.ErrOpen, "it may be that one answer is late")
				require.LessOrEqual(t, time.Since(began), storageTimeout)
				time.Sleep(time.Second)
				require.NoError(t, a.Call(t.Context(), succeeds), "its own trial")
				time.Sleep(c.hangs)
				w.between(nil, nil)
				close(over)

				// "No lease blocks the fleet for longer than the link is down plus
				// a second."
				time.Sleep(time.Second)
				for range 30 {
					for i, b := range fleet {
						require.NoError(t, b.Call(t.Context(), succeeds), "process %d", i)
					}
					time.Sleep(100 * time.Millisecond)
				}
				require.Empty(t, recordOf(t, a).Trials)
				require.Equal(t, infuse.StateClosed, recordOf(t, a).State)
			})
		})
	}
}

// Failures of processes that live for a moment opened a circuit that thousands
// of calls of another succeeded in: they broke no row of which it knew nothing.
// R16.
func TestSuccessesOfOthersDismissAStreak(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		well := startBreaker(t, "prices", infuse.Config{Storage: memory})
		var calls sync.WaitGroup
		defer calls.Wait()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var rejected atomic.Int64
		calls.Go(func() {
			for ctx.Err() == nil {
				if well.Call(context.Background(), succeeds) != nil {
					rejected.Add(1)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		for range 25 {
			b := startBreaker(t, "prices", infuse.Config{Storage: memory})
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			b.Stop()
			time.Sleep(3 * time.Second)
		}
		stop()
		calls.Wait()
		require.Zero(t, rejected.Load())
		requireState(t, infuse.StateClosed, well)
	})
}

// A failed trial made room for more than MaxTrials after the next open time,
// and so did a service that announced itself in a rolling restart.
// R24.
func TestNeverMoreTrialsThanMaxTrials(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		cfg := infuse.Config{MaxTrials: 2, ResetTimeout: time.Second, TrialTimeout: time.Hour, Storage: memory}
		a, b := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)
		require.NoError(t, a.SetState(t.Context(), infuse.StateHalfOpen))
		synctest.Wait()
		first, second := requireTrial(t, a), requireTrial(t, b)
		first.Done(errUnhealthy)
		synctest.Wait()
		require.NoError(t, a.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		time.Sleep(2 * time.Second)
		third := requireTrial(t, b)
		synctest.Wait()
		requireRejected(t, a)
		requireRejected(t, b)

		for range 3 { // a rolling restart
			require.NoError(t, infuse.Announce(t.Context(), memory, "prices", infuse.StateHalfOpen))
			require.NoError(t, a.SetState(t.Context(), infuse.StateHalfOpen))
			synctest.Wait()
			requireRejected(t, a)
			requireRejected(t, b)
		}
		second.Done(errUnhealthy) // of an older half-open: it frees its place, and no more
		synctest.Wait()
		require.Equal(t, infuse.StateHalfOpen, recordOf(t, a).State)
		fourth := requireTrial(t, a)
		third.Done(nil)
		fourth.Done(nil)
	})
}

// A manual change whose context was done reported that nothing was sent, and changed
// the shared circuit; so did a change without an answer in time.
// R34.
func TestAManualChangeReportsItsResult(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		w := &way{Storage: infuse.NewMemoryStorage()}
		b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: w})
		done, cancel := context.WithCancel(t.Context())
		cancel()
		err := b.SetState(done, infuse.StateOpen)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, `circuit "prices" was not set to open`)
		time.Sleep(time.Second)
		requireState(t, infuse.StateClosed, b)
		require.Equal(t, infuse.Record{}, recordOf(t, b))

		w.between(slow(2*storageTimeout), nil)
		err = b.SetState(t.Context(), infuse.StateOpen)
		require.ErrorContains(t, err, "may still apply it")
		requireState(t, infuse.StateOpen, b)
		time.Sleep(time.Second)
		r, err := w.Storage.Load(t.Context(), "prices")
		require.NoError(t, err)
		require.Equal(t, infuse.StateOpen, r.State)
	})
}

// Of the trials that ended while the storage was unavailable, the seventeenth and all
// after it were dropped without a word, and their leases stayed.
func TestAllTrialsThatEndWhilePartitionedAreSettled(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		const trials = 32
		w := &way{Storage: infuse.NewMemoryStorage()}
		cfg := infuse.Config{MaxTrials: trials, SuccessThreshold: trials + 1, TrialTimeout: time.Hour, Storage: w}
		b := startBreaker(t, "prices", cfg)
		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		var permits []infuse.Permit
		for range trials {
			permits = append(permits, requireTrial(t, b))
		}
		w.between(isLost, nil)
		for _, p := range permits {
			p.Done(nil)
		}
		time.Sleep(10 * time.Second)
		w.between(nil, nil)
		time.Sleep(5 * time.Second)
		r := recordOf(t, b)
		require.Empty(t, r.Trials)
		require.Equal(t, trials, r.Successes)
	})
}

// A circuit was moved to half-open while its process was cut off, and a storage
// that had lost the record was given that under the generation that others
// knew as open: one generation, two states.
func TestAGenerationHasOneState(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		before, lost := infuse.NewMemoryStorage(), infuse.NewMemoryStorage()
		w, near := &way{Storage: before}, &way{Storage: before}
		a := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: w})
		b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: near})
		states := make(map[int64]infuse.State)
		see := func() {
			for _, breaker := range []*infuse.Breaker{a, b} {
				if r, err := breaker.Record(t.Context()); err == nil {
					if state, known := states[r.Generation]; known {
						require.Equal(t, state, r.State, "generation %d", r.Generation)
					}
					states[r.Generation] = r.State
				}
			}
		}
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		see()
		w.between(isLost, nil)
		_, err := a.Record(t.Context())
		require.Error(t, err)
		require.Error(t, a.SetState(t.Context(), infuse.StateHalfOpen), "in this process only")
		see()
		w.mu.Lock()
		w.Storage = lost // restarted empty
		w.mu.Unlock()
		w.between(nil, nil)
		time.Sleep(5 * time.Second)
		_ = a.Call(t.Context(), fails)
		see()
		near.mu.Lock()
		near.Storage = lost
		near.mu.Unlock()
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		see()
		time.Sleep(5 * time.Second)
		see()
		require.Greater(t, len(states), 1)
	})
}

// An idle process was cut off while an outage began and ended. When it came
// back, it opened a healthy circuit: all who knew better had been restarted.
func TestAnIdleProcessThatComesBackChangesNothing(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		w := &way{Storage: memory}
		idle := startBreaker(t, "prices", infuse.Config{ResetTimeout: 10 * time.Second, Storage: w})
		other := startBreaker(t, "prices", infuse.Config{ResetTimeout: 10 * time.Second, Storage: memory})
		require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		requireState(t, infuse.StateOpen, idle)
		w.between(isLost, nil)
		_, err := idle.Record(t.Context())
		require.Error(t, err)

		time.Sleep(20 * time.Second)
		require.NoError(t, other.Call(t.Context(), succeeds))
		other.Stop()
		restarted := infuse.NewMemoryStorage() // and empty: nobody knows better
		newcomer := startBreaker(t, "prices", infuse.Config{Storage: restarted})
		w.mu.Lock()
		w.Storage = restarted
		w.mu.Unlock()
		w.between(nil, nil)
		time.Sleep(5 * time.Second)
		require.NoError(t, newcomer.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, newcomer)
		require.Equal(t, infuse.StateClosed, recordOf(t, newcomer).State)
	})
}

// A detached process received that its open circuit had been opened by
// hand elsewhere, and ran calls until the storage answered it again.
func TestAManualOpeningIsReceivedWhileDetached(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		w := &way{Storage: memory}
		a := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: w})
		b := startBreaker(t, "prices", infuse.Config{ResetTimeout: time.Hour, Storage: memory})
		require.NoError(t, a.SetState(t.Context(), infuse.StateOpen))
		w.between(isLost, nil)
		_, err := a.Record(t.Context())
		require.Error(t, err, "it has found out that it is unavailable")
		requireRejected(t, a)
		time.Sleep(time.Second)
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		requireRejected(t, a)
	})
}
