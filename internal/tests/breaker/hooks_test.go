package breaker_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// No user code runs under a lock. Every hook panics, ends its goroutine, or calls
// back into the breaker, at every place that runs it; then the breaker must work:
// no lock is held, no trial is taken, and nobody waits. A typed nil error used to
// panic under the lock of its circuit, and the next failing call hung for ever.

// hook is user code that the library runs. It does what the test sets.
type hook struct {
	breaker atomic.Pointer[infuse.Breaker]
	deed    atomic.Pointer[func(*infuse.Breaker)]
	runs    atomic.Bool // now: it does not run itself
}

func (h *hook) set(b *infuse.Breaker, does func(*infuse.Breaker)) {
	h.breaker.Store(b)
	h.deed.Store(&does)
}

func (h *hook) run() {
	if h == nil {
		return
	}
	if does := h.deed.Load(); does != nil && *does != nil && h.runs.CompareAndSwap(false, true) {
		defer h.runs.Store(false)
		(*does)(h.breaker.Load())
	}
}

// hookError runs its hook in the methods of an error.
type hookError struct {
	*hook
	method string
}

func (e *hookError) Error() string {
	if e.method == "Error" {
		e.run()
	}
	return "down"
}

func (e *hookError) Unwrap() error {
	if e.method == "Unwrap" {
		e.run()
	}
	return nil
}

func (e *hookError) Is(error) bool {
	if e.method == "Is" {
		e.run()
	}
	return false
}

func (e *hookError) As(any) bool {
	if e.method == "As" {
		e.run()
	}
	return false
}

// numberError is a bare number, as syscall.Errno is: its text is made by user code.
type numberError int

var hookOfNumber atomic.Pointer[hook]

func (numberError) Error() string { hookOfNumber.Load().run(); return "number" }

// nilError is an error whose methods need what a typed nil does not have.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// hookHandler runs its hook for each log record.
type hookHandler struct {
	slog.Handler
	*hook
}

func (h hookHandler) Handle(context.Context, slog.Record) error { h.run(); return nil }

// hookPlaces are where a user's code is called: the settings, and the error that
// each failing call returns.
func hookPlaces(h *hook) map[string]func(*infuse.Config) error {
	places := map[string]func(*infuse.Config) error{
		"a typed nil error": func(*infuse.Config) error { return (*nilError)(nil) },
		"numberError.Error": func(*infuse.Config) error { hookOfNumber.Store(h); return numberError(1) },
		"Classify": func(cfg *infuse.Config) error {
			cfg.Classify = func(_ context.Context, err error) infuse.Outcome {
				h.run()
				if err != nil {
					return infuse.OutcomeFailure
				}
				return infuse.OutcomeSuccess
			}
			return errUnhealthy
		},
		"Exclude": func(cfg *infuse.Config) error {
			cfg.Exclude = []func(error) bool{func(error) bool { h.run(); return false }}
			return errUnhealthy
		},
		"a log handler": func(cfg *infuse.Config) error {
			cfg.Listeners = append(cfg.Listeners, infuse.LogListener(slog.New(hookHandler{slog.NewTextHandler(io.Discard, nil), h})))
			return errUnhealthy
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As"} {
		places[method] = func(*infuse.Config) error { return &hookError{h, method} }
		places[method+" of a wrapped error"] = func(*infuse.Config) error { return fmt.Errorf("call: %w", &hookError{h, method}) }
	}
	for name, listener := range map[string]*infuse.Listener{
		"BeforeCall":  {BeforeCall: func(context.Context, *infuse.Breaker) { h.run() }},
		"Success":     {Success: func(context.Context, *infuse.Breaker) { h.run() }},
		"Failure":     {Failure: func(context.Context, *infuse.Breaker, error) { h.run() }},
		"Ignored":     {Ignored: func(context.Context, *infuse.Breaker, error) { h.run() }},
		"Rejected":    {Rejected: func(context.Context, *infuse.Breaker, *infuse.OpenError) { h.run() }},
		"StateChange": {StateChange: func(*infuse.Breaker, infuse.Transition) { h.run() }},
	} {
		places["Listener."+name] = func(cfg *infuse.Config) error {
			cfg.Listeners = append(cfg.Listeners, listener)
			return errUnhealthy
		}
	}
	return places
}

// hookDeeds are what user code does that should not.
var hookDeeds = map[string]func(*infuse.Breaker){
	"panics":             func(*infuse.Breaker) { panic("a hook") },
	"ends the goroutine": func(*infuse.Breaker) { runtime.Goexit() },
	"calls back": func(b *infuse.Breaker) {
		_, _ = b.State(), b.Stats()
		p, err := b.Acquire(context.Background())
		if err == nil {
			p.Settle(infuse.OutcomeIgnored)
		}
		_ = b.Configure(infuse.Config{FailMax: 2, ResetTimeout: time.Second})
	},
}

// hookWays are the ways to make a call that fails with an error.
var hookWays = map[string]func(*infuse.Breaker, error){
	"Transport": nil, // overTransport
	"Call": func(b *infuse.Breaker, err error) {
		_ = b.Call(context.Background(), func(context.Context) error { return err })
	},
	"Do": func(b *infuse.Breaker, err error) {
		_, _ = infuse.Do(context.Background(), b, func(context.Context) (int, error) { return 0, err })
	},
	"Acquire": func(b *infuse.Breaker, err error) {
		if p, rejected := b.Acquire(context.Background()); rejected == nil {
			p.Done(err)
		}
	},
}

// overTransport is a call by the Transport of a group.
func overTransport(g *infuse.Group) func(*infuse.Breaker, error) {
	return func(_ *infuse.Breaker, err error) {
		transport := &infuse.Transport{Breakers: g, Base: roundTrips(func(*http.Request) (*http.Response, error) {
			if err != nil {
				return nil, err
			}
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})}
		request, _ := http.NewRequest(http.MethodGet, "http://service/", nil)
		if response, err := transport.RoundTrip(request); err == nil {
			_ = response.Body.Close()
		}
	}
}

type roundTrips func(*http.Request) (*http.Response, error)

func (f roundTrips) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// R43.
func TestNoHookLeavesABreakerStuck(t *testing.T) {
	for place := range hookPlaces(nil) {
		for deed, does := range hookDeeds {
			for way, call := range hookWays {
				for _, storage := range []infuse.Storage{nil, infuse.NewMemoryStorage()} {
					t.Run(fmt.Sprintf("%s %s, %s, %T", place, deed, way, storage), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { testHook(t, place, does, call, storage) })
					})
				}
			}
		}
	}
}

func testHook(t *testing.T, place string, does func(*infuse.Breaker), call func(*infuse.Breaker, error), storage infuse.Storage) {
	h := &hook{}
	cfg := infuse.Config{FailMax: 2, ResetTimeout: time.Second, TrialTimeout: time.Hour}
	if storage != nil {
		cfg.Storage = infuse.NewMemoryStorage() // of this bubble
	}
	fails := hookPlaces(h)[place](&cfg)
	g, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	b, err := g.Breaker("service")
	require.NoError(t, err)
	if call == nil {
		call = overTransport(g)
	}
	deed := does
	does = func(b *infuse.Breaker) {
		defer func() { _ = b.Configure(cfg) }() // the hook is in use again
		deed(b)
	}
	h.set(b, does)
	for range 4 { // opens the circuit, unless the hook prevents it, and is rejected
		apart(func() { call(b, fails) })
	}
	h.set(b, nil)
	opens := func() {
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		time.Sleep(time.Second)
	}
	opens()
	h.set(b, does)
	apart(func() { call(b, fails) }) // a trial
	apart(func() { call(b, nil) })
	apart(func() { b.Stats() })
	h.set(b, nil)
	time.Sleep(2 * time.Second)
	synctest.Wait()
	require.NoError(t, b.Call(t.Context(), succeeds), "the slot of the trial is free")
	require.Equal(t, infuse.StateClosed, b.State())

	opens()
	h.set(b, does)
	apart(func() { call(b, nil) }) // a trial without an error
	h.set(b, nil)
	time.Sleep(2 * time.Second)
	synctest.Wait()
	require.NoError(t, b.Call(t.Context(), succeeds), "the slot of the trial is free")
	require.Equal(t, infuse.StateClosed, b.State())
	for range 2 {
		require.Error(t, b.Call(t.Context(), func(context.Context) error { return errUnhealthy }))
	}
	require.ErrorIs(t, b.Call(t.Context(), succeeds), infuse.ErrOpen)
	time.Sleep(time.Second)
	require.NoError(t, b.Call(t.Context(), succeeds), "no trial is taken")
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Equal(t, infuse.StateClosed, b.State())
	g.Stop()
}

// A storage's errors are user code, too.
func TestNoErrorOfAStorageLeavesABreakerStuck(t *testing.T) {
	for _, method := range []string{"Error", "Unwrap", "Is", "As", "a typed nil"} {
		for deed, does := range hookDeeds {
			t.Run(method+" "+deed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := &hook{}
					h.set(nil, func(b *infuse.Breaker) {
						if b != nil || deed != "calls back" {
							does(b)
						}
					})
					s := &hookStorage{MemoryStorage: infuse.NewMemoryStorage()}
					var fault error = &hookError{h, method}
					if method == "a typed nil" {
						fault = (*nilError)(nil)
					}
					s.err.Store(&fault)
					b, err := infuse.New("service", infuse.Config{FailMax: 2, ResetTimeout: time.Second, Storage: s})
					require.NoError(t, err)
					h.breaker.Store(b)
					for range 3 {
						apart(func() { hookWays["Call"](b, errUnhealthy) })
					}
					require.Equal(t, infuse.StateOpen, b.State())
					apart(func() { _ = b.SetState(context.Background(), infuse.StateClosed) })
					apart(func() { _, _ = b.Record(context.Background()) })
					h.set(b, nil)
					s.err.Store(nil)
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Nil(t, b.Stats().StorageErr)
					require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
					require.NoError(t, b.Call(t.Context(), succeeds))
					b.Stop()
				})
			})
		}
	}
}

// hookStorage fails with an error as long as it has one.
type hookStorage struct {
	*infuse.MemoryStorage
	err atomic.Pointer[error]
}

func (s *hookStorage) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := s.err.Load(); err != nil {
		return infuse.Record{}, *err
	}
	return s.MemoryStorage.Load(ctx, circuit)
}

func (s *hookStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := s.err.Load(); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, *err
	}
	return s.MemoryStorage.Apply(ctx, circuit, c)
}
