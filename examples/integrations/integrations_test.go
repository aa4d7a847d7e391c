package integrations_test

// This file contains the helpers of the tests, and the tests of small clients.

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

// server returns 502 while failing is set.
type server struct {
	*httptest.Server
	failing    atomic.Bool
	calls      atomic.Int64
	bodies     atomic.Int64 // bytes of request bodies
	failures   atomic.Int64 // counted failures
	ignored    atomic.Int64 // calls that were not counted
	rejections atomic.Int64 // several for one call if a client retries them
}

func start(t *testing.T) (*server, *infuse.Transport, *infuse.Breaker) {
	t.Helper()
	s, transport, breaker := startWith(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "healthy") })
	s.failing.Store(true)
	return s, transport, breaker
}

// startWith starts a server that uses the handler while it is healthy.
func startWith(t *testing.T, healthy http.HandlerFunc) (*server, *infuse.Transport, *infuse.Breaker) {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		if s.failing.Load() {
			n, _ := io.Copy(io.Discard, r.Body)
			s.bodies.Add(n)
			http.Error(w, "failing", http.StatusBadGateway)
			return
		}
		healthy(w, r)
	}))
	t.Cleanup(s.Close)
	counting := infuse.Listener{
		Failure:  func(context.Context, *infuse.Breaker, error) { s.failures.Add(1) },
		Ignored:  func(context.Context, *infuse.Breaker, error) { s.ignored.Add(1) },
		Rejected: func(context.Context, *infuse.Breaker, *infuse.OpenError) { s.rejections.Add(1) },
	}
	group, err := infuse.NewGroup(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Listeners: []*infuse.Listener{&counting}})
	require.NoError(t, err)
	t.Cleanup(group.Stop)
	breaker, err := group.Breaker(s.Listener.Addr().String())
	require.NoError(t, err)
	return s, &infuse.Transport{Base: s.Client().Transport, Breakers: group}, breaker
}

// recover makes the server healthy, and the next call a trial.
func (s *server) recover(t *testing.T, breaker *infuse.Breaker) {
	t.Helper()
	s.failing.Store(false)
	require.NoError(t, breaker.SetState(t.Context(), infuse.StateHalfOpen))
}

func TestGoRetryablehttp(t *testing.T) {
	s, transport, breaker := start(t)
	client := integrations.NewRetryableClient(transport)
	client.RetryMax = 10
	client.RetryWaitMin, client.RetryWaitMax = time.Millisecond, time.Millisecond
	client.Logger = slog.New(slog.DiscardHandler)

	s.requireRetriesEndAtTheCircuit(t, breaker, func() error {
		_, err := client.Post(s.URL, "text/plain", strings.NewReader("order"))
		return err
	}, func() (string, error) {
		response, err := client.Get(s.URL)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return string(text), err
	})
}

// requireRetriesEndAtTheCircuit sends an order with a client that retries often. That
// opens the circuit, and ends the retries.
func (s *server) requireRetriesEndAtTheCircuit(t *testing.T, breaker *infuse.Breaker, order func() error, get func() (string, error)) {
	t.Helper()
	require.ErrorIs(t, order(), infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load(), "each attempt counts, and a rejection is not retried")
	require.Equal(t, int64(3*len("order")), s.bodies.Load(), "each attempt sends its body")
	s.requireOneAttempt(t, breaker, get)
}

// requireOneAttempt makes a call in an open circuit, after three calls and one rejection.
// Then the circuit closes.
func (s *server) requireOneAttempt(t *testing.T, breaker *infuse.Breaker, get func() (string, error)) {
	t.Helper()
	_, err := get()
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load())
	require.Equal(t, int64(2), s.rejections.Load(), "one for each call")

	s.recover(t, breaker)
	text, err := get()
	require.NoError(t, err)
	require.Equal(t, "healthy", text)
	require.Equal(t, infuse.StateClosed, breaker.State())
}

// The warning of infuse.ServiceUnavailable: this client would sleep while the circuit is
// open.
func TestGoRetryablehttpSleepsOnServiceUnavailable(t *testing.T) {
	s, transport, breaker := start(t)
	transport.OnRejected = infuse.ServiceUnavailable
	require.NoError(t, breaker.SetState(t.Context(), infuse.StateOpen))
	response, err := (&http.Client{Transport: transport}).Get(s.URL)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	again, err := retryablehttp.DefaultRetryPolicy(t.Context(), response, nil)
	require.NoError(t, err)
	require.True(t, again)
	require.Greater(t, retryablehttp.DefaultBackoff(time.Millisecond, time.Millisecond, 0, response), 59*time.Minute)
}

func TestOtelhttp(t *testing.T) {
	s, transport, breaker := start(t)
	spans := tracetest.NewSpanRecorder()
	tracer := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	t.Cleanup(func() { require.NoError(t, tracer.Shutdown(context.Background())) })
	client := integrations.NewTracedClient(transport, otelhttp.WithTracerProvider(tracer))

	for range 3 {
		response, err := client.Get(s.URL)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
	}
	_, err := client.Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load())

	ended := spans.Ended()
	require.Len(t, ended, 4, "the rejected request also has a span")
	rejected := ended[3].Status()
	require.Equal(t, codes.Error, rejected.Code)
	require.Contains(t, rejected.Description, breaker.Name())
	require.Contains(t, rejected.Description, "is open")
	require.NotContains(t, rejected.Description, "502", "the cause is only in the *OpenError")

	s.recover(t, breaker)
	response, err := client.Get(s.URL)
	require.NoError(t, err)
	requireHealthy(t, response.Body)
	require.Equal(t, infuse.StateClosed, breaker.State())
}

func TestResty(t *testing.T) {
	s, transport, breaker := start(t)
	client := integrations.NewRestyClient(transport).
		SetRetryCount(10).
		SetRetryWaitTime(time.Millisecond).
		SetRetryMaxWaitTime(time.Millisecond)

	s.requireRetriesEndAtTheCircuit(t, breaker, func() error {
		_, err := client.R().SetBody("order").Post(s.URL)
		return err
	}, func() (string, error) {
		response, err := client.R().Get(s.URL)
		return response.String(), err
	})
}

func requireHealthy(t *testing.T, body io.ReadCloser) {
	t.Helper()
	text, err := io.ReadAll(body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	require.Equal(t, "healthy", string(text))
}
