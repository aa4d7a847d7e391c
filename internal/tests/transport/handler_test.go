package transport_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// rejectionFor returns the error with which a client's call was rejected.
func rejectionFor(t *testing.T, wait time.Duration) error {
	t.Helper()
	b := startBreaker(t, "inventory", infuse.Config{ResetTimeout: wait})
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	return fmt.Errorf("loading the stock: %w", requireRejected(t, b))
}

// The caller of a service whose own call was rejected receives a 503, without the name
// of the circuit.
func TestARejectionBecomesA503ForTheCaller(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		rejection := rejectionFor(t, time.Hour)
		s.does(func(w http.ResponseWriter, _ *http.Request) { assert.True(t, infuse.RespondUnavailable(w, rejection)) })
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "3600", response.Header.Get("Retry-After"))
		require.NotContains(t, text, "inventory")
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
