package breaker_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A process that shuts down in its trial gives the trial back: the fleet does
// not wait for the lease.
// R46.
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

// startDue returns a breaker, in memory, whose next call is a trial.
func startDue(t *testing.T, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b := startBreaker(t, "prices", cfg)
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	waitUntilDue(t, b)
	return b
}

// A last trial that was ignored kept its place, and no call was
// ever admitted again.
func TestAnIgnoredTrialFreesItsSlot(t *testing.T) {
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
func TestATrialThatEndsItsGoroutineFreesItsSlot(t *testing.T) {
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
// R26.
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
// R4, R26.
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
// R4.
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
func TestReadingTheStateDoesNotChangeIt(t *testing.T) {
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
// R24.
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

// R24.
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

// R24.
func TestSuccessThresholdNeedsConsecutiveSuccesses(t *testing.T) {
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

// lateStorage takes its time with each change, before it makes it.
type lateStorage struct {
	infuse.Storage
	asks, settles atomic.Int64 // how long
}

func (s *lateStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	switch {
	case c.RequestTrial != "":
		time.Sleep(time.Duration(s.asks.Load()))
	case len(c.Settled) > 0:
		time.Sleep(time.Duration(s.settles.Load()))
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A process whose trial succeeded found the circuit half-open when its call
// returned, if the storage was slow to grant the trial, and slower to receive its
// outcome.
// R28.
func TestWhoRanTheTrialSeesTheCircuitClosed(t *testing.T) {
	for name, fallback := range map[string]infuse.StorageDownPolicy{"local": infuse.StorageDownLocal, "closed": infuse.StorageDownAllow} {
		for _, asks := range []time.Duration{0, 10 * time.Millisecond, 60 * time.Millisecond, 94 * time.Millisecond} {
			for _, settles := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 97 * time.Millisecond, 10 * time.Second} {
				t.Run(fmt.Sprintf("%s, %v to ask, %v to settle", name, asks, settles), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						storage := &lateStorage{Storage: infuse.NewMemoryStorage()}
						const timeout = 100 * time.Millisecond
						b := startBreaker(t, "prices", infuse.Config{Storage: storage, StorageTimeout: timeout, StorageDown: fallback})
						other := startBreaker(t, "prices", infuse.Config{Storage: storage.Storage})
						tripFleet(t, b, other)
						time.Sleep(time.Minute)
						storage.asks.Store(int64(asks))
						storage.settles.Store(int64(settles))
						began := time.Now()
						require.NoError(t, b.Call(t.Context(), succeeds))
						require.LessOrEqual(t, time.Since(began), timeout)
						requireState(t, infuse.StateClosed, b)
						require.NoError(t, b.Call(t.Context(), succeeds))

						time.Sleep(time.Minute)
						synctest.Wait()
						requireState(t, infuse.StateClosed, b, other)
						require.NoError(t, b.Stats().StorageErr)
						require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
					})
				})
			}
		}
	}
}
