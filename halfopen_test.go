package infuse_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// What other breakers got wrong while half-open. The scenarios with several
// processes are in fleet_test.go.

// startDue returns a breaker, in memory, whose next call is a trial.
func startDue(t *testing.T, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b := startBreaker(t, "prices", cfg)
	require.NoError(t, b.Move(t.Context(), infuse.StateOpen))
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
				require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
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
	for late, result := range map[string]error{"a failure": errIll, "a success": nil} {
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
		first.Done(errIll)
		requireState(t, infuse.StateClosed, b)
		require.Zero(t, b.Failures())

		require.NoError(t, b.Move(t.Context(), infuse.StateHalfOpen))
		first = requireTrial(t, b)
		time.Sleep(time.Second)
		second = requireTrial(t, b)
		second.Done(errIll)
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
	for result, err := range map[string]error{"a success": nil, "a failure": errIll} {
		t.Run(result, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBreaker(t, "prices", infuse.Config{})
				closed, acquired := b.Acquire(t.Context())
				require.NoError(t, acquired)
				trip(t, b)
				waitUntilDue(t, b)
				earlier := requireTrial(t, b)
				require.NoError(t, b.Move(t.Context(), infuse.StateOpen))
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
		trial.Done(errIll)
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
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		for range 4 {
			var held []infuse.Permit
			for i := range 3 {
				p, err := []*infuse.Breaker{b, other}[i%2].Acquire(cancelled)
				require.NoError(t, err)
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
