package infuse_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A timeout around the breaker that cancels, as failsafe-go's, or a proxy whose
// clients leave: a service that hangs was never counted (H6).
func TestACancelledCallThatWasSlowIsAFailure(t *testing.T) {
	hangs := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, call := range map[string]func(context.Context, *infuse.Breaker){
		"Call": func(ctx context.Context, b *infuse.Breaker) { _ = b.Call(ctx, hangs) },
		"Do": func(ctx context.Context, b *infuse.Breaker) {
			_, _ = infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 0, hangs(ctx) })
		},
		"a permit that is done": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				p.Done(hangs(ctx))
			}
		},
		"a permit that is settled": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				_ = hangs(ctx)
				p.Settle(infuse.OutcomeIgnored)
			}
		},
		"ErrAbortHandler": func(ctx context.Context, b *infuse.Breaker) {
			defer func() { _ = recover() }()
			_ = b.Call(ctx, func(ctx context.Context) error {
				_ = hangs(ctx)
				panic(http.ErrAbortHandler)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				slowCall time.Duration
				failures int
			}{{0, 0}, {time.Second, 3}, {time.Minute, 0}} {
				synctest.Test(t, func(t *testing.T) {
					b := startBreaker(t, "inventory", infuse.Config{FailMax: 100, SlowCall: test.slowCall})
					for range 3 {
						ctx, cancel := context.WithCancelCause(t.Context())
						time.AfterFunc(2*time.Second, func() { cancel(errors.New("timeout exceeded")) })
						call(ctx, b)
						cancel(nil)
					}
					require.Equal(t, test.failures, infuse.FailuresOf(b))
				})
			}
		})
	}
}

func TestACancelledRequestThatWasSlowIsAFailure(t *testing.T) {
	const limit = 50 * time.Millisecond
	none := func() io.Reader { return nil }
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, test := range map[string]struct {
			slowCall time.Duration
			classify func(*http.Request, *http.Response, error) infuse.Outcome
			body     func() io.Reader
			failures int
		}{
			"without SlowCall":      {0, nil, none, 0},
			"with SlowCall":         {limit, nil, none, 1},
			"by DefaultClassify":    {limit, infuse.DefaultClassify, none, 1},
			"sooner":                {patience, nil, none, 0},
			"after an upload":       {limit, nil, func() io.Reader { return streamed(&failingBody{"order", io.EOF}) }, 1},
			"during our own upload": {limit, nil, func() io.Reader { return pending(t) }, 0},
			"with a GetBody":        {limit, nil, func() io.Reader { return strings.NewReader("order") }, 1},
		} {
			for how, cancels := range map[string]func(*http.Request) *http.Request{
				"by the context": func(r *http.Request) *http.Request {
					ctx, cancel := context.WithCancel(r.Context())
					time.AfterFunc(3*limit, cancel)
					return r.WithContext(ctx)
				},
				"by Request.Cancel": func(r *http.Request) *http.Request {
					cancel := make(chan struct{})
					time.AfterFunc(3*limit, func() { close(cancel) })
					//lint:ignore SA1019 there are clients that set it
					r.Cancel = cancel
					return r
				},
			} {
				t.Run(name+" "+how, func(t *testing.T) {
					s.does(s.stalls)
					c := startWebClient(t, s, infuse.Config{FailMax: 100, SlowCall: test.slowCall})
					c.transport.Classify = test.classify
					_, err := c.transport.RoundTrip(cancels(newRequest(t, http.MethodPost, s.URL, test.body())))
					require.Error(t, err)
					require.Equal(t, test.failures, infuse.FailuresOf(c.breaker), "%v", err)
				})
			}
		}
	})
}

// pending is a body whose Read does not return until it is closed or the test
// ends.
func pending(t *testing.T) io.Reader {
	reader, writer := io.Pipe()
	t.Cleanup(func() { _ = writer.Close() })
	time.AfterFunc(300*time.Millisecond, func() { _ = writer.Close() }) // net/http waits for it
	return reader
}

// httputil.ReverseProxy ends that way when its client is gone. It was a failure
// (H7).
func TestAnAbortedHandlerWhoseCallerIsGoneIsIgnored(t *testing.T) {
	b := startBreaker(t, "inventory", infuse.Config{FailMax: 100})
	require.ErrorIs(t, b.Call(t.Context(), fails), errIll)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	aborts := func(context.Context) error { panic(http.ErrAbortHandler) }
	require.PanicsWithValue(t, http.ErrAbortHandler, func() { _ = b.Call(cancelled, aborts) })
	require.Equal(t, 1, infuse.FailuresOf(b))
	require.PanicsWithValue(t, "another", func() { _ = b.Call(cancelled, func(context.Context) error { panic("another") }) })
	require.Equal(t, 2, infuse.FailuresOf(b))
	require.Panics(t, func() { _ = b.Call(cancelled, func(context.Context) error { panic([]int{1}) }) })
	require.Equal(t, 3, infuse.FailuresOf(b))
	require.PanicsWithValue(t, http.ErrAbortHandler, func() { _ = b.Call(t.Context(), aborts) })
	require.Equal(t, 4, infuse.FailuresOf(b), "the caller is still there")
}

// A Transport that is registered for a protocol passes ErrSkipAltProtocol on: it
// was a failure of a service that was called all the same (H8).
func TestSkippingAProtocolIsIgnored(t *testing.T) {
	s := startWeb(t, "HTTP/1.1")
	group := groupOf(t, infuse.Config{FailMax: 1})
	base := s.Server.Client().Transport.(*http.Transport).Clone()
	base.RegisterProtocol("http", &infuse.Transport{
		Breakers: group,
		Base:     baseFunc(func(*http.Request) (*http.Response, error) { return nil, http.ErrSkipAltProtocol }),
	})
	for range 3 {
		response, err := (&http.Client{Transport: base}).Post(s.URL, "text/plain", streamed(http.NoBody))
		require.NoError(t, err)
		_, _ = readAll(response)
	}
	require.Zero(t, infuse.FailuresOf(breakerOf(t, group, s.circuit())))
	require.Equal(t, int64(3), s.calls.Load())
}

// opaque wraps a RoundTripper without an Unwrap.
type opaque struct{ http.RoundTripper }

// http.DefaultTransport = &infuse.Transport{} was a stack overflow (H9).
func TestATransportCanBeTheDefaultTransport(t *testing.T) {
	original := http.DefaultTransport
	defer func() { http.DefaultTransport = original }()
	s := startWeb(t, "HTTP/1.1")
	defer original.(*http.Transport).CloseIdleConnections()
	get := func(rt http.RoundTripper) {
		t.Helper()
		for _, ctx := range []context.Context{t.Context(), infuse.Skip(t.Context())} {
			r := newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx)
			response, err := rt.RoundTrip(r)
			require.NoError(t, err)
			require.Equal(t, ctx, response.Request.Context(), "the caller sees its own request")
			_, _ = readAll(response)
		}
	}
	zero := &infuse.Transport{}
	http.DefaultTransport = zero
	require.Same(t, original, zero.Unwrap())
	get(zero)
	get(&infuse.Transport{})

	http.DefaultTransport = &infuse.Transport{Base: zero}
	get(zero)

	around := &infuse.Transport{}
	http.DefaultTransport = opaque{around}
	get(around)
	get(http.DefaultTransport)
	get(&infuse.Transport{})

	calls := 0
	http.DefaultTransport = baseFunc(func(r *http.Request) (*http.Response, error) {
		calls++
		return always(http.StatusOK, "")(r)
	})
	get(&infuse.Transport{})
	require.Equal(t, 2, calls, "a DefaultTransport of the program's own is used")
}

// myError is an error whose methods need a value.
type myError struct{ err error }

func (e *myError) Error() string { return e.err.Error() }
func (e *myError) Unwrap() error { return e.err }

// sliceError is an error that cannot be compared.
type sliceError []string

func (e sliceError) Error() string { return e[0] }

// A Base that returns a nil pointer as its error made RoundTrip panic, and an
// error that cannot be compared did so in any call (L5).
func TestATypedNilErrorDoesNotPanic(t *testing.T) {
	var typedNil *myError
	var nilOpen *infuse.OpenError
	for name, returned := range map[string]error{"a type": typedNil, "an OpenError": nilOpen, "a slice": sliceError{"ill"}, "an empty slice": sliceError{}} {
		for _, classify := range classifiers {
			c := &infuse.Transport{Classify: classify, Breakers: groupOf(t, infuse.Config{FailMax: 2}), Base: baseFunc(func(*http.Request) (*http.Response, error) { return nil, returned })}
			for range 2 {
				require.NotPanics(t, func() {
					response, err := c.RoundTrip(newRequest(t, http.MethodPost, "http://inventory.test", streamed(http.NoBody)))
					require.Nil(t, response)
					require.True(t, err != nil)
				}, name)
			}
			requireState(t, infuse.StateOpen, breakerOf(t, c.Breakers, "inventory.test"))
		}
		b := startBreaker(t, "inventory", infuse.Config{FailMax: 1})
		_ = b.Call(t.Context(), func(context.Context) error { return returned })
		require.NotEmpty(t, requireRejected(t, b).Cause.Error())
	}
}

// The cause of a timeout read "net/http: request canceled" (H16).
func TestTheCauseOfATimeoutSaysSo(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, h := range map[string]http.HandlerFunc{"before the headers": s.stalls, "in the body": s.stallsInTheBody} {
			t.Run(name, func(t *testing.T) {
				s.does(h)
				for range 10 { // it ends the request in two ways at once: either may be first
					storage := infuse.NewMemoryStorage()
					c := startWebClient(t, s, infuse.Config{FailMax: 1, Storage: storage})
					c.Timeout = 30 * time.Millisecond
					_, err := c.get()
					require.Error(t, err)
					require.Contains(t, requireRejected(t, c.breaker).Cause.Error(), "deadline exceeded")

					around := startBreaker(t, "around", infuse.Config{FailMax: 1, Storage: storage})
					client := http.Client{Transport: s.Server.Client().Transport, Timeout: c.Timeout}
					_ = around.Call(t.Context(), func(context.Context) error {
						response, err := client.Get(s.URL)
						if err == nil {
							_, err = readAll(response)
						}
						return err
					})
					require.Regexp(t, `deadline exceeded|Client\.Timeout`, requireRejected(t, around).Cause.Error())
				}
			})
		}
	})
}

// bare is a ResponseWriter that can do nothing else.
type bare struct{ http.ResponseWriter }

// unwraps is a wrapper that has Unwrap alone.
type unwraps struct{ http.ResponseWriter }

func (u unwraps) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// Handler's writer claimed to be a Flusher and a Hijacker whatever was below
// (H14).
func TestAHandlersWriterClaimsWhatTheOriginalCan(t *testing.T) {
	var flushes, hijacks bool
	ask := func(w http.ResponseWriter, _ *http.Request) error {
		_, flushes = w.(http.Flusher)
		_, hijacks = w.(http.Hijacker)
		return errIll
	}
	for _, onError := range []func(http.ResponseWriter, *http.Request, error){nil, func(w http.ResponseWriter, r *http.Request, _ error) { _ = ask(w, r) }} {
		h := infuse.Handler(ask, onError)
		h.ServeHTTP(bare{httptest.NewRecorder()}, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, []bool{false, false}, []bool{flushes, hijacks})
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, []bool{true, false}, []bool{flushes, hijacks})
	}
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(infuse.Handler(ask, nil).ServeHTTP)
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		require.Equal(t, []bool{true, !s.EnableHTTP2}, []bool{flushes, hijacks})
	})

	w := httptest.NewRecorder()
	infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
		return errors.Join(http.NewResponseController(w).Flush(), errIll)
	}, nil).ServeHTTP(unwraps{w}, httptest.NewRequest(http.MethodGet, "/", nil))
	require.True(t, w.Flushed)
	require.Equal(t, http.StatusOK, w.Code, "the answer has begun")

	w = httptest.NewRecorder()
	infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
		return http.NewResponseController(w).Flush()
	}, nil).ServeHTTP(bare{w}, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusInternalServerError, w.Code, "it has not")
}

// Sentry made an issue of each rejection: "a trial may run in 59.985s" (H13).
func TestTheTextOfARejectionIsStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
		trip(t, b)
		for left := time.Minute; left > 0; left -= 7 * time.Second {
			rejection := requireRejected(t, b)
			require.EqualError(t, rejection, `infuse: circuit "prices" is open`)
			require.Equal(t, left, rejection.RetryAfter())
			time.Sleep(7 * time.Second)
		}
		var trial sync.WaitGroup
		trial.Go(func() {
			assert.NoError(t, b.Call(t.Context(), func(context.Context) error { time.Sleep(time.Second); return nil }))
		})
		synctest.Wait()
		require.EqualError(t, requireRejected(t, b), `infuse: circuit "prices" is half-open`)
		trial.Wait()
	})
}
