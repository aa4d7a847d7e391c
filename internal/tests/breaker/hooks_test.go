package breaker_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
)

// No user code runs under a lock. Every hook panics, ends its goroutine, or calls
// back into the breaker, at every place that runs it; then the breaker must work:
// no lock is held, no trial is taken, and nobody waits. A typed nil error used to
// panic under the lock of its circuit, and the next failing call hung for ever.

// numberError is a bare number, as syscall.Errno is: its text is made by user code.
type numberError int

var hookOfNumber atomic.Pointer[breakertest.Hook]

func (numberError) Error() string { hookOfNumber.Load().Run(); return "number" }

// hookHandler runs its hook for each log record.
type hookHandler struct {
	slog.Handler
	*breakertest.Hook
}

func (h hookHandler) Handle(context.Context, slog.Record) error { h.Run(); return nil }

// hookPlaces are where a user's code is called: the settings, and the error that
// each failing call returns.
func hookPlaces(h *breakertest.Hook) map[string]func(*infuse.Config) error {
	places := map[string]func(*infuse.Config) error{
		"a typed nil error": func(*infuse.Config) error { return (*breakertest.TextError)(nil) },
		"numberError.Error": func(*infuse.Config) error { hookOfNumber.Store(h); return numberError(1) },
		"a log handler": func(cfg *infuse.Config) error {
			cfg.Listeners = append(cfg.Listeners, infuse.LogListener(slog.New(hookHandler{slog.NewTextHandler(io.Discard, nil), h})))
			return errUnhealthy
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As"} {
		places[method] = func(*infuse.Config) error { return &breakertest.HookError{Hook: h, Method: method} }
		places[method+" of a wrapped error"] = func(*infuse.Config) error {
			return fmt.Errorf("call: %w", &breakertest.HookError{Hook: h, Method: method})
		}
	}
	for name, set := range h.Settings() {
		places[name] = func(cfg *infuse.Config) error {
			set(cfg)
			return errUnhealthy
		}
	}
	return places
}

// hookActions are the misbehaviours of user code, which also changes the settings.
func hookActions() map[string]func(*infuse.Breaker) {
	actions := maps.Clone(breakertest.HookActions)
	actions["calls back"] = func(b *infuse.Breaker) {
		breakertest.HookActions["calls back"](b)
		_ = b.Configure(infuse.Config{FailMax: 2, ResetTimeout: time.Second})
	}
	return actions
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
		for deed, does := range hookActions() {
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
	h := &breakertest.Hook{}
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
	h.Set(b, does)
	for range 4 { // opens the circuit, unless the hook prevents it, and is rejected
		apart(func() { call(b, fails) })
	}
	h.Set(b, nil)
	opens := func() {
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		time.Sleep(time.Second)
	}
	opens()
	h.Set(b, does)
	apart(func() { call(b, fails) }) // a trial
	apart(func() { call(b, nil) })
	apart(func() { b.Stats() })
	h.Set(b, nil)
	time.Sleep(2 * time.Second)
	synctest.Wait()
	require.NoError(t, b.Call(t.Context(), succeeds), "the slot of the trial is free")
	require.Equal(t, infuse.StateClosed, b.State())

	opens()
	h.Set(b, does)
	apart(func() { call(b, nil) }) // a trial without an error
	h.Set(b, nil)
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
		for deed, does := range hookActions() {
			t.Run(method+" "+deed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := &breakertest.Hook{}
					misbehave := func(b *infuse.Breaker) {
						if b != nil || deed != "calls back" {
							does(b)
						}
					}
					h.Set(nil, misbehave)
					s := &hookStorage{MemoryStorage: infuse.NewMemoryStorage()}
					var fault error = &breakertest.HookError{Hook: h, Method: method}
					if method == "a typed nil" {
						fault = (*breakertest.TextError)(nil)
					}
					s.err.Store(&fault)
					b, err := infuse.New("service", infuse.Config{FailMax: 2, ResetTimeout: time.Second, Storage: s})
					require.NoError(t, err)
					h.Set(b, misbehave)
					for range 3 {
						apart(func() { hookWays["Call"](b, errUnhealthy) })
					}
					require.Equal(t, infuse.StateOpen, b.State())
					apart(func() { _ = b.SetState(context.Background(), infuse.StateClosed) })
					apart(func() { _, _ = b.Record(context.Background()) })
					h.Set(b, nil)
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
