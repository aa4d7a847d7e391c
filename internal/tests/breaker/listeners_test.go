package breaker_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// everyFunc is a listener that has all of its funcs do the same.
func everyFunc(do func(b *infuse.Breaker)) *infuse.Listener {
	return &infuse.Listener{
		BeforeCall:  func(_ context.Context, b *infuse.Breaker) { do(b) },
		Success:     func(_ context.Context, b *infuse.Breaker) { do(b) },
		Failure:     func(_ context.Context, b *infuse.Breaker, _ error) { do(b) },
		Ignored:     func(_ context.Context, b *infuse.Breaker, _ error) { do(b) },
		Rejected:    func(_ context.Context, b *infuse.Breaker, _ *infuse.OpenError) { do(b) },
		StateChange: func(b *infuse.Breaker, _ infuse.Transition) { do(b) },
		WouldReject: func(_ context.Context, b *infuse.Breaker, _ *infuse.OpenError) { do(b) },
		Warning:     func(b *infuse.Breaker, _ error) { do(b) },
	}
}

// A listener asked for the state of the breaker that called it,
// under the lock that it was called with, and neither ever returned.
// R43.
func TestAListenerMayUseItsBreaker(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var used atomic.Int64
			listener := everyFunc(func(b *infuse.Breaker) {
				if used.Add(1) > 200 {
					return // what it does is reported to listeners, too
				}
				ctx := context.Background()
				_, _, _ = b.State(), b.Name(), b.Stats()
				_, _ = b.Record(ctx)
				_ = b.Call(ctx, fails)
				if p, err := b.Acquire(ctx); err == nil {
					p.Done(nil)
				}
				_, _, _ = b.SetState(ctx, infuse.StateOpen), b.SetState(ctx, infuse.StateHalfOpen), b.SetState(ctx, infuse.StateClosed)
			})
			b := startBreaker(t, "prices", patiently(infuse.Config{
				FailMax: 2, ResetTimeout: time.Millisecond, Storage: storage, Listeners: []*infuse.Listener{listener},
			}))
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range 10 {
					_ = b.Call(context.Background(), fails)
					_ = b.Call(context.Background(), succeeds)
					_ = b.SetState(context.Background(), infuse.StateOpen)
					_ = b.Call(context.Background(), succeeds)
					_ = b.Configure(infuse.Config{FailMax: i + 1, Listeners: []*infuse.Listener{listener}})
				}
			}()
			select {
			case <-done:
			case <-time.After(patience):
				require.FailNow(t, "a deadlock")
			}
			require.Greater(t, used.Load(), int64(200))
		})
	}
}

// A listener that panicked took the place of the call's result,
// and of its bookkeeping.
// R43.
func TestAListenerThatPanicsChangesNothing(t *testing.T) {
	silenceSlog(t)
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var after stateLog
			b := startBreaker(t, "prices", patiently(infuse.Config{
				FailMax: 3, ResetTimeout: 50 * time.Millisecond, Storage: storage,
				Listeners: []*infuse.Listener{everyFunc(func(*infuse.Breaker) { panic("a bad listener") }), after.Listener()},
			}))
			require.NoError(t, b.Call(t.Context(), succeeds))
			for i := range 3 {
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				require.Equal(t, i+1, recordOf(t, b).Failures)
			}
			require.ErrorIs(t, b.Call(t.Context(), succeeds), infuse.ErrOpen)
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
			requireState(t, infuse.StateClosed, b)
			require.Eventually(t, func() bool {
				return slices.Equal(after.All(), []string{"closed>open", "open>half-open", "half-open>closed"})
			}, patience, pace, "the listener behind it is called all the same")
		})
	}
}

// silenceSlog keeps what is logged on purpose out of the test's output.
func silenceSlog(t *testing.T) {
	old := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(old) })
}

// "Closed" was reported when the trial was let in, before anybody knew how it would
// end.
func TestEventsAreReportedOnceEachAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for kind, storage := range map[string]infuse.Storage{"alone": nil, "in a fleet": infuse.NewMemoryStorage()} {
			var heard stateLog
			log := everyCall(&heard)
			log.StateChange = heard.Listener().StateChange
			log.Rejected = func(_ context.Context, _ *infuse.Breaker, err *infuse.OpenError) {
				heard.Add("rejected: " + err.State.String())
			}
			b := startBreaker(t, "prices", infuse.Config{FailMax: 2, Storage: storage, Listeners: []*infuse.Listener{log}})
			told := 0
			step := func(do func(), want ...string) {
				t.Helper()
				do()
				synctest.Wait()
				all := heard.All()
				require.Equal(t, want, append([]string(nil), all[told:]...), kind)
				told = len(all)
			}
			call := func(fn func(context.Context) error) func() { return func() { _ = b.Call(t.Context(), fn) } }
			trial := func(result error) func() {
				return call(func(context.Context) error {
					synctest.Wait()
					require.Contains(t, heard.All()[told:], "open>half-open")
					require.NotContains(t, heard.All()[told:], "half-open>closed")
					_ = b.Call(t.Context(), succeeds)
					return result
				})
			}
			due := func() { time.Sleep(time.Minute) }
			move := func(to infuse.State) func() {
				return func() { require.NoError(t, b.SetState(t.Context(), to)) }
			}
			step(call(succeeds), "call", "success")
			step(call(fails), "call", "failure: the service is unhealthy")
			step(call(fails), "call", "failure: the service is unhealthy", "closed>open")
			step(call(succeeds), "rejected: open")
			step(due)
			step(trial(errUnhealthy), "open>half-open", "call", "rejected: half-open", "failure: the service is unhealthy", "half-open>open")
			step(due)
			step(trial(nil), "open>half-open", "call", "rejected: half-open", "success", "half-open>closed")
			step(call(succeeds), "call", "success")
			step(move(infuse.StateHalfOpen), "closed>half-open")
			step(move(infuse.StateOpen), "half-open>open")
			step(move(infuse.StateClosed), "open>closed")
			step(move(infuse.StateClosed))
		}
	})
}

// A call that was cancelled, panicked or ended its goroutine told BeforeCall
// and nothing after it, so a gauge of calls under way only ever grew.
func TestEveryBeforeCallIsFollowedByOneOutcome(t *testing.T) {
	const success, failure, ignored = "success", "failure", "ignored"
	cancelled := func(_ context.Context, err error) infuse.Outcome {
		if err == context.Canceled {
			return infuse.OutcomeIgnored
		}
		return infuse.OutcomeSuccess
	}
	for name, test := range map[string]struct {
		want     string
		fn       func(context.Context) error
		classify func(context.Context, error) infuse.Outcome
	}{
		"success":                {want: success, fn: succeeds},
		"failure":                {want: failure, fn: fails},
		"panic":                  {want: failure, fn: func(context.Context) error { panic("failed") }},
		"Goexit":                 {want: ignored, fn: func(context.Context) error { runtime.Goexit(); return nil }},
		"cancelled":              {want: ignored, fn: func(context.Context) error { return context.Canceled }, classify: cancelled},
		"no outcome that exists": {want: ignored, fn: succeeds, classify: func(context.Context, error) infuse.Outcome { return 9 }},
		"panic of Classify":      {want: failure, fn: succeeds, classify: func(context.Context, error) infuse.Outcome { panic("failed") }},
		"Goexit of Classify":     {want: ignored, fn: succeeds, classify: func(context.Context, error) infuse.Outcome { runtime.Goexit(); return 0 }},
	} {
		for _, state := range []infuse.State{infuse.StateClosed, infuse.StateHalfOpen} {
			for _, storage := range []infuse.Storage{nil, infuse.NewMemoryStorage()} {
				t.Run(fmt.Sprintf("%s, %v, %T", name, state, storage), func(t *testing.T) {
					var heard stateLog
					b := startBreaker(t, "prices", infuse.Config{
						Storage: storage, Classify: test.classify, Listeners: []*infuse.Listener{everyCall(&heard)},
					})
					require.NoError(t, b.SetState(t.Context(), state))
					var call sync.WaitGroup
					call.Go(func() {
						defer func() { _ = recover() }()
						_ = b.Call(context.Background(), test.fn)
					})
					call.Wait()
					all := heard.All()
					require.Len(t, all, 2)
					require.Equal(t, "call", all[0])
					require.True(t, strings.HasPrefix(all[1], test.want), all[1])
				})
			}
		}
	}
}

// A listener that ended the goroutine before the call left those before it with
// a call that never ended.
func TestAListenerThatExitsEndsTheCallForAll(t *testing.T) {
	for _, state := range []infuse.State{infuse.StateClosed, infuse.StateHalfOpen} {
		var heard stateLog
		exits := &infuse.Listener{BeforeCall: func(context.Context, *infuse.Breaker) { runtime.Goexit() }}
		b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{everyCall(&heard), exits}})
		require.NoError(t, b.SetState(t.Context(), state))
		var call sync.WaitGroup
		call.Go(func() { _ = b.Call(context.Background(), succeeds) })
		call.Wait()
		require.Equal(t, []string{"call", "ignored: <nil>"}, heard.All())
		require.Empty(t, recordOf(t, b).Trials)
	}
}

// A trial that the storage refuses, or whose answer never comes, runs nothing:
// its call is reported as rejected, and as nothing else.
func TestACallIsReportedAsAdmittedOrRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, rejections, outcomes atomic.Int64
		count := &infuse.Listener{
			BeforeCall: func(context.Context, *infuse.Breaker) { calls.Add(1) },
			Success:    func(context.Context, *infuse.Breaker) { outcomes.Add(1) },
			Failure:    func(context.Context, *infuse.Breaker, error) { outcomes.Add(1) },
			Ignored:    func(context.Context, *infuse.Breaker, error) { outcomes.Add(1) },
			Rejected:   func(context.Context, *infuse.Breaker, *infuse.OpenError) { rejections.Add(1) },
		}
		cfg := infuse.Config{FailMax: 2, ResetTimeout: time.Second, Storage: infuse.NewMemoryStorage(), Listeners: []*infuse.Listener{count}}
		fleet := []*infuse.Breaker{startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)}
		made, ran := 0, atomic.Int64{}
		for round := range 100 {
			var all sync.WaitGroup
			for i, b := range fleet {
				made++
				all.Go(func() {
					_ = b.Call(context.Background(), func(context.Context) error {
						ran.Add(1)
						time.Sleep(time.Millisecond)
						if (round+i)%3 > 0 {
							return errUnhealthy
						}
						return nil
					})
				})
			}
			all.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, ran.Load(), calls.Load())
		require.Equal(t, ran.Load(), outcomes.Load())
		require.Equal(t, int64(made), calls.Load()+rejections.Load())
		require.Positive(t, rejections.Load())
	})
}

// A listener that ended its goroutine, as require does in a test, left another
// breaker of the circuit deaf and dumb: it never reported again.
func TestAListenerThatExitsSilencesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		exits := everyFunc(func(*infuse.Breaker) { runtime.Goexit() })
		exits.BeforeCall = nil // or no call would run
		var heard, own stateLog
		a := startBreaker(t, "prices", infuse.Config{FailMax: 2, Storage: storage, Listeners: []*infuse.Listener{own.Listener(), exits}})
		b := startBreaker(t, "prices", infuse.Config{FailMax: 2, Storage: storage, Listeners: []*infuse.Listener{heard.Listener()}})
		apart := func(do func()) {
			var done sync.WaitGroup
			done.Go(do)
			done.Wait()
			synctest.Wait()
		}
		for _, by := range [][2]*infuse.Breaker{{a, b}, {b, a}} {
			for _, failing := range by {
				for range 2 {
					apart(func() { _ = failing.Call(context.Background(), fails) })
				}
				passSuspicion()
			}
			requireState(t, infuse.StateOpen, a, b)
			require.Equal(t, infuse.StateOpen, recordOf(t, b).State, "every failure was reported")
			apart(func() { _ = by[0].SetState(context.Background(), infuse.StateClosed) })
			requireState(t, infuse.StateClosed, a, b)
			for _, b := range by { // an event that came with another one is delivered by the next call
				apart(func() { _ = b.SetState(context.Background(), infuse.StateClosed) })
			}
		}
		for _, all := range [][]string{heard.All(), own.All()} { // of both circuits
			require.ElementsMatch(t, slices.Repeat([]string{"closed>open", "open>closed"}, 4), all)
		}
	})
}

// Who moved a circuit, why and when, were not in the event.
func TestATransitionHasWhoWhyAndWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		var all [2][]infuse.Transition
		var mu sync.Mutex
		start := func(i int, instance string) *infuse.Breaker {
			return startBreaker(t, "prices", infuse.Config{
				FailMax: 2, Storage: storage, Instance: instance,
				Listeners: []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, tr infuse.Transition) {
					mu.Lock()
					defer mu.Unlock()
					all[i] = append(all[i], tr)
				}}},
			})
		}
		a, b := start(0, "web-1"), start(1, "web-2")
		transitions := func() [2][]infuse.Transition {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			told := all
			all = [2][]infuse.Transition{}
			return told
		}
		const closed, open, halfOpen = infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen

		trip(t, a)
		tripped := time.Now()
		require.Equal(t, [2][]infuse.Transition{
			{{From: closed, To: open, Local: true, Origin: "web-1", Cause: errUnhealthy.Error(), At: tripped}},
		}, transitions(), "its local circuit, at once")
		passSuspicion()
		require.Empty(t, transitions(), "time opens nothing")
		trip(t, b)
		opened := time.Now()
		shared := infuse.Transition{From: closed, To: open, Origin: "web-1", Cause: errUnhealthy.Error(), At: opened}
		require.Equal(t, [2][]infuse.Transition{
			{shared},
			{{From: closed, To: open, Local: true, Origin: "web-2", Cause: errUnhealthy.Error(), At: opened}, shared},
		}, transitions(), "one event for each circuit")

		time.Sleep(time.Minute)
		require.NoError(t, b.Call(t.Context(), succeeds))
		now := time.Now()
		requireAll := func(want infuse.Transition, got []infuse.Transition) {
			require.Len(t, got, 1)
			require.Equal(t, want, got[0])
		}
		told := transitions()
		for i, all := range told {
			instance := []string{"web-1", "web-2"}[i]
			var shared, local []infuse.Transition
			for _, tr := range all {
				if tr.Local {
					local = append(local, tr)
				} else {
					shared = append(shared, tr)
				}
			}
			require.Equal(t, []infuse.Transition{
				{From: open, To: halfOpen, Origin: "web-2", At: now},
				{From: halfOpen, To: closed, Origin: "web-2", At: now},
			}, shared)
			last := local[len(local)-1]
			require.Equal(t, closed, last.To, "a trial that closes the shared circuit closes every local one")
			require.Equal(t, instance, last.Origin)
		}

		require.NoError(t, a.SetState(t.Context(), closed))
		transitions()
		require.NoError(t, a.SetState(t.Context(), open))
		told = transitions()
		requireAll(infuse.Transition{From: closed, To: open, Origin: "web-1", At: now}, told[0])
		requireAll(infuse.Transition{From: closed, To: open, Origin: "web-1", At: now}, told[1])
	})
}

// An outage was reported twice a round, and again for each circuit that came back:
// tens of thousands of events.
// R43.
func TestAnOutageOfTheStorageIsReportedOnceForAllCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
		var heard stateLog
		var outages atomic.Int64
		listener := &infuse.Listener{
			StorageUnavailable: func(err error) { heard.Add("unavailable: " + err.Error()) },
			StorageAvailable: func(lasted time.Duration) {
				heard.Add("available")
				outages.Store(int64(lasted))
			},
		}
		g := groupOf(t, infuse.Config{FailMax: 100, Storage: storage, Listeners: []*infuse.Listener{listener}})
		const circuits = 20
		for i := range circuits {
			breakerOf(t, g, fmt.Sprint(i))
		}
		began := time.Now()
		storage.Down.Store(true)
		for i := range circuits {
			require.Equal(t, errUnhealthy, breakerOf(t, g, fmt.Sprint(i)).Call(t.Context(), fails))
		}
		for i := range 100 {
			_ = breakerOf(t, g, fmt.Sprint(i%circuits)).Call(t.Context(), fails)
			time.Sleep(100 * time.Millisecond)
		}
		storage.Down.Store(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"unavailable: " + errTroubled.Error(), "available"}, heard.All())
		require.InDelta(t, time.Since(began), outages.Load(), float64(6*time.Second))
	})
}
