package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

type handlerFunc = func(http.ResponseWriter, *http.Request) error

// rejectionFor returns the error with which a client's call was rejected.
func rejectionFor(t *testing.T, wait time.Duration) error {
	t.Helper()
	b := startBreaker(t, "inventory", infuse.Config{ResetTimeout: wait})
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	return fmt.Errorf("loading the stock: %w", requireRejected(t, b))
}

func TestAHandlerAnswersARejectionWith503(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		rejection := rejectionFor(t, time.Hour)
		s.does(infuse.Handler(func(http.ResponseWriter, *http.Request) error { return rejection }, nil).ServeHTTP)
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "3600", response.Header.Get("Retry-After"))
		require.NotContains(t, text, "inventory", "strangers do not hear what it depends on")
	})
}

// A service whose own client was rejected: its callers hear of it as a 503.
func TestARejectionTravelsFromTheClientToTheCaller(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		client := startWebClient(t, s, infuse.Config{ResetTimeout: time.Hour})
		require.NoError(t, client.breaker.SetState(t.Context(), infuse.StateOpen))
		w := httptest.NewRecorder()
		infuse.Handler(func(http.ResponseWriter, *http.Request) error {
			_, err := client.get()
			return err
		}, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "3600", w.Header().Get("Retry-After"))
	})
}

func TestAHandlersOtherErrors(t *testing.T) {
	serve := func(onError func(http.ResponseWriter, *http.Request, error), h handlerFunc) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		infuse.Handler(h, onError).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w
	}
	fails := func(http.ResponseWriter, *http.Request) error { return errUnhealthy }

	w := serve(nil, fails)
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.NotContains(t, w.Body.String(), errUnhealthy.Error())

	w = serve(func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusTeapot)
	}, fails)
	require.Equal(t, http.StatusTeapot, w.Code)

	w = serve(nil, func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, "well")
		return err
	})
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "well", w.Body.String())
}

// strictWriter fails the test when an answer is begun twice.
type strictWriter struct {
	*httptest.ResponseRecorder
	t      *testing.T
	begun  int
	hijack net.Conn
}

func (w *strictWriter) WriteHeader(status int) {
	if status >= 200 {
		w.begun++
		assert.LessOrEqual(w.t, w.begun, 1, "an answer was begun twice")
	}
	w.ResponseRecorder.WriteHeader(status)
}

func (w *strictWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.hijack, nil, nil }

func TestAnAnswerThatHasBegunIsLeftAlone(t *testing.T) {
	rejection := rejectionFor(t, time.Hour)
	for name, begin := range map[string]func(http.ResponseWriter){
		"by WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusAccepted) },
		"by Write":       func(w http.ResponseWriter) { _, _ = w.Write([]byte("half")) },
		"by io.Copy":     func(w http.ResponseWriter) { _, _ = io.Copy(w, strings.NewReader("half")) },
		"by ReadFrom":    func(w http.ResponseWriter) { _, _ = io.Copy(w, io.LimitReader(strings.NewReader("half"), 9)) },
		"by Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"by the ResponseController": func(w http.ResponseWriter) {
			require.NoError(t, http.NewResponseController(w).Flush())
		},
		"by Hijack": func(w http.ResponseWriter) {
			_, _, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
		},
	} {
		for _, err := range []error{rejection, errUnhealthy} {
			t.Run(name, func(t *testing.T) {
				var after string
				w := &strictWriter{ResponseRecorder: httptest.NewRecorder(), t: t}
				infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
					begin(w)
					return err
				}, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
				after = w.Body.String()
				require.True(t, after == "" || after == "half", after)
				require.Empty(t, w.Header().Get("Retry-After"))
				require.NotEqual(t, http.StatusServiceUnavailable, w.Code)
			})
		}
	}
}

func TestAnInterimResponseIsNoAnswer(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		rejection := rejectionFor(t, time.Hour)
		s.does(infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.Copy(w, io.LimitReader(strings.NewReader(""), 9))
			assert.NoError(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)), "what else it can do is there")
			return rejection
		}, nil).ServeHTTP)
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	})
}

func TestRespondUnavailableAnswersForAReverseProxy(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		client := startWebClient(t, s, infuse.Config{ResetTimeout: 90 * time.Minute})
		target, err := url.Parse(s.URL)
		require.NoError(t, err)
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.Transport = client.transport
		proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			if !infuse.RespondUnavailable(w, err) {
				w.WriteHeader(http.StatusBadGateway)
			}
		}
		serve := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			proxy.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			return w
		}
		require.Equal(t, "well", serve().Body.String())
		require.NoError(t, client.breaker.SetState(t.Context(), infuse.StateOpen))
		w := serve()
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "5400", w.Header().Get("Retry-After"))
	})
	w := httptest.NewRecorder()
	require.False(t, infuse.RespondUnavailable(w, errors.New("other")))
	require.False(t, infuse.RespondUnavailable(w, nil))
	require.Zero(t, w.Body.Len())
}

// httputil.ReverseProxy ends that way when its client is gone. It was a failure
// (H7).
func TestAnAbortedHandlerWhoseCallerIsGoneIsIgnored(t *testing.T) {
	b := startBreaker(t, "inventory", infuse.Config{FailMax: 100})
	require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	aborts := func(context.Context) error { panic(http.ErrAbortHandler) }
	require.PanicsWithValue(t, http.ErrAbortHandler, func() { _ = b.Call(cancelled, aborts) })
	require.Equal(t, 1, failuresOf(b))
	require.PanicsWithValue(t, "another", func() { _ = b.Call(cancelled, func(context.Context) error { panic("another") }) })
	require.Equal(t, 2, failuresOf(b))
	require.Panics(t, func() { _ = b.Call(cancelled, func(context.Context) error { panic([]int{1}) }) })
	require.Equal(t, 3, failuresOf(b))
	require.PanicsWithValue(t, http.ErrAbortHandler, func() { _ = b.Call(t.Context(), aborts) })
	require.Equal(t, 4, failuresOf(b), "the caller is still there")
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
		return errUnhealthy
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
		return errors.Join(http.NewResponseController(w).Flush(), errUnhealthy)
	}, nil).ServeHTTP(unwraps{w}, httptest.NewRequest(http.MethodGet, "/", nil))
	require.True(t, w.Flushed)
	require.Equal(t, http.StatusOK, w.Code, "the answer has begun")

	w = httptest.NewRecorder()
	infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
		return http.NewResponseController(w).Flush()
	}, nil).ServeHTTP(bare{w}, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusInternalServerError, w.Code, "it has not")
}
