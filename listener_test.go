package infuse_test

import (
	"bytes"
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
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What other breakers got wrong with callbacks and errors. Scenario 31 is in
// fleet_test.go.

// stateLog keeps what a listener has heard of, in order.
type stateLog struct {
	mu     sync.Mutex
	events []string
}

func (l *stateLog) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *stateLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func (l *stateLog) listener() *infuse.Listener {
	return &infuse.Listener{StateChange: func(_ *infuse.Breaker, from, to infuse.State) {
		l.add(from.String() + ">" + to.String())
	}}
}

// everyFunc is a listener that has all of its funcs do the same.
func everyFunc(do func(b *infuse.Breaker)) *infuse.Listener {
	return &infuse.Listener{
		BeforeCall:   func(_ context.Context, b *infuse.Breaker) { do(b) },
		Success:      func(_ context.Context, b *infuse.Breaker) { do(b) },
		Failure:      func(_ context.Context, b *infuse.Breaker, _ error) { do(b) },
		Rejected:     func(_ context.Context, b *infuse.Breaker, _ *infuse.OpenError) { do(b) },
		StateChange:  func(b *infuse.Breaker, _, _ infuse.State) { do(b) },
		StorageError: func(b *infuse.Breaker, _ error) { do(b) },
	}
}

// storages are what a test of listeners is to hold with: memory tells its
// watchers within Apply, and Redis on a goroutine of its own.
func storages(t *testing.T) map[string]infuse.Storage {
	return map[string]infuse.Storage{
		"memory": infuse.NewMemoryStorage(),
		"redis":  host(t, redistest.Start(t)),
	}
}

// Scenario 28. A listener asked for the state of the breaker that called it,
// under the lock that it was called with, and neither ever returned.
func TestAListenerMayUseItsBreaker(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var used atomic.Int64
			listener := everyFunc(func(b *infuse.Breaker) {
				if used.Add(1) > 200 {
					return // what it does is told to listeners, too
				}
				ctx := context.Background()
				_, _, _ = b.State(), b.Failures(), b.Name()
				_, _ = b.Record(ctx)
				_ = b.Call(ctx, fails)
				if p, err := b.Acquire(ctx); err == nil {
					p.Done(nil)
				}
				_, _, _ = b.Open(ctx), b.HalfOpen(ctx), b.Close(ctx)
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
					_ = b.Open(context.Background())
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

// Scenario 28. A listener that panicked took the place of the call's result,
// and of its bookkeeping.
func TestAListenerThatPanicsChangesNothing(t *testing.T) {
	silenceSlog(t)
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var after stateLog
			b := startBreaker(t, "prices", patiently(infuse.Config{
				FailMax: 3, ResetTimeout: 50 * time.Millisecond, Storage: storage,
				Listeners: []*infuse.Listener{everyFunc(func(*infuse.Breaker) { panic("a bad listener") }), after.listener()},
			}))
			require.NoError(t, b.Call(t.Context(), succeeds))
			for i := range 3 {
				require.Equal(t, errIll, b.Call(t.Context(), fails))
				require.Equal(t, i+1, recordOf(t, b).Failures)
			}
			require.ErrorIs(t, b.Call(t.Context(), succeeds), infuse.ErrOpen)
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
			requireState(t, infuse.StateClosed, b)
			require.Eventually(t, func() bool {
				return slices.Equal(after.all(), []string{"closed>open", "open>half-open", "half-open>closed"})
			}, patience, pace, "the listener behind it is told all the same")
		})
	}
}

// silenceSlog keeps what is logged on purpose out of the test's output.
func silenceSlog(t *testing.T) {
	old := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(old) })
}

// Scenario 29. "Closed" was told when the trial was let in, before anybody
// knew how it would end.
func TestTransitionsAreToldWhenTheyHaveHappenedOnceEachAndInOrder(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var heard stateLog
			var waiting atomic.Bool // until the circuit is due
			log := heard.listener()
			log.BeforeCall = func(context.Context, *infuse.Breaker) { heard.add("call") }
			log.Success = func(context.Context, *infuse.Breaker) { heard.add("success") }
			log.Failure = func(_ context.Context, _ *infuse.Breaker, err error) { heard.add("failure: " + err.Error()) }
			log.Rejected = func(_ context.Context, _ *infuse.Breaker, err *infuse.OpenError) {
				if !waiting.Load() {
					heard.add("rejected: " + err.State.String())
				}
			}
			b := startBreaker(t, "prices", patiently(infuse.Config{
				FailMax: 2, ResetTimeout: 50 * time.Millisecond, Storage: storage, Listeners: []*infuse.Listener{log},
			}))
			var want []string
			step := func(do func(), events ...string) {
				t.Helper()
				do()
				want = append(want, events...)
				require.Eventually(t, func() bool { return len(heard.all()) >= len(want) }, patience, pace, "%v", want)
				require.Equal(t, want, heard.all())
			}
			failing, succeeding := func() { _ = b.Call(t.Context(), fails) }, func() { _ = b.Call(t.Context(), succeeds) }
			trial := func(result error) func() {
				return func() {
					try := func(context.Context) error {
						waiting.Store(false)
						require.Eventually(t, func() bool { // told by another goroutine, perhaps
							return slices.Contains(heard.all()[len(want):], "open>half-open")
						}, patience, pace)
						require.NotContains(t, heard.all()[len(want):], "half-open>closed")
						succeeding()
						return result
					}
					waiting.Store(true)
					for waiting.Load() {
						time.Sleep(time.Millisecond)
						if err := b.Call(t.Context(), try); !waiting.Load() {
							require.Equal(t, result, err)
						}
					}
				}
			}
			step(succeeding, "call", "success")
			step(failing, "call", "failure: "+errIll.Error())
			step(failing, "call", "failure: "+errIll.Error(), "closed>open")
			step(succeeding, "rejected: open")
			step(trial(errIll), "open>half-open", "call", "rejected: half-open", "failure: "+errIll.Error(), "half-open>open")
			step(trial(nil), "open>half-open", "call", "rejected: half-open", "success", "half-open>closed")
			step(succeeding, "call", "success")
			step(func() { require.NoError(t, b.HalfOpen(t.Context())) }, "closed>half-open")
			step(func() { require.NoError(t, b.Open(t.Context())) }, "half-open>open")
			step(func() { require.NoError(t, b.Close(t.Context())) }, "open>closed")
			step(func() { require.NoError(t, b.Close(t.Context())) })
		})
	}
}

// However many breakers move a circuit at once, and however slow a listener
// is, every breaker's listener hears a chain: from where the last one led to.
func TestTransitionsFormAChainUnderConcurrentMoves(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var chains [3]stateLog
			var fleet []*infuse.Breaker
			for i := range chains {
				slow := &infuse.Listener{StateChange: func(*infuse.Breaker, infuse.State, infuse.State) { runtime.Gosched() }}
				fleet = append(fleet, startBreaker(t, "prices", patiently(infuse.Config{
					Storage: storage, Listeners: []*infuse.Listener{slow, chains[i].listener()},
				})))
			}
			var all sync.WaitGroup
			for _, b := range fleet {
				all.Go(func() {
					for range 30 {
						_, _, _ = b.Open(context.Background()), b.HalfOpen(context.Background()), b.Close(context.Background())
					}
				})
			}
			all.Wait()
			require.NoError(t, fleet[0].Open(context.Background()))
			for i := range chains {
				require.Eventually(t, func() bool {
					return strings.HasSuffix(strings.Join(chains[i].all(), " "), ">open") && fleet[i].State() == infuse.StateOpen
				}, patience, pace)
				at := "closed"
				for _, event := range chains[i].all() {
					from, to, _ := strings.Cut(event, ">")
					require.Equal(t, at, from)
					require.NotEqual(t, from, to)
					at = to
				}
				require.Equal(t, "open", at)
			}
		})
	}
}

// Scenario 30. The call that tripped the circuit returned "open" in place of
// what had happened to it.
func TestTheTrippingCallReturnsItsOwnErrorAndRejectionsCarryIt(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 2, ResetTimeout: time.Hour})
	first, last := fmt.Errorf("first: %w", errIll), fmt.Errorf("last: %w", errIll)
	require.Equal(t, first, b.Call(t.Context(), func(context.Context) error { return first }))
	require.Equal(t, last, b.Call(t.Context(), func(context.Context) error { return last }))

	rejection := requireRejected(t, b)
	require.EqualError(t, rejection.Cause, last.Error())
	require.ErrorIs(t, rejection.Cause, errIll)
	require.NotErrorIs(t, rejection, errIll, "a rejection is not the failure")
	require.Equal(t, "prices", rejection.Circuit)
	require.Equal(t, infuse.StateOpen, rejection.State)
	require.ErrorContains(t, rejection, `circuit "prices" is open, a trial may run in`)
	require.ErrorContains(t, rejection, last.Error())
}

// heavyError holds on to what a call worked with.
type heavyError struct{ request *[1 << 20]byte }

func (e *heavyError) Error() string { return "heavy" }
func (e *heavyError) Unwrap() error { return errIll }

// Scenario 30. As long as the circuit was open, it kept alive the request that
// had opened it, with its body.
func TestAnOpenCircuitKeepsNoRequestAlive(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1, ResetTimeout: time.Hour})
	var request weak.Pointer[[1 << 20]byte]
	func() {
		err := &heavyError{new([1 << 20]byte)}
		request = weak.Make(err.request)
		require.Equal(t, error(err), b.Call(t.Context(), func(context.Context) error { return err }))
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		return request.Value() == nil
	}, patience, pace)
	rejection := requireRejected(t, b)
	require.EqualError(t, rejection.Cause, "heavy")
	require.ErrorIs(t, rejection.Cause, errIll)
}

// A process knows the cause of a trip where it had a part in it.
func TestACauseIsForgottenWhenTheCircuitCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{FailMax: 2, Storage: infuse.NewMemoryStorage()}
		b, other := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)
		trip(t, b)
		require.Equal(t, errIll, requireRejected(t, b).Cause)
		require.NoError(t, requireRejected(t, other).Cause, "it has seen no failure")
		waitUntilDue(t, b)
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.NoError(t, b.Open(t.Context()))
		require.NoError(t, requireRejected(t, b).Cause, "opened by hand")
	})
}

func TestLogListenerLogsTransitions(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	b := startBreaker(t, "prices", infuse.Config{FailMax: 2, Listeners: []*infuse.Listener{infuse.LogListener(logger)}})
	trip(t, b)
	require.NoError(t, b.HalfOpen(t.Context()))
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Equal(t, `level=WARN msg="circuit moved" circuit=prices from=closed to=open
level=INFO msg="circuit moved" circuit=prices from=open to=half-open
level=INFO msg="circuit moved" circuit=prices from=half-open to=closed
`, out.String())
}
