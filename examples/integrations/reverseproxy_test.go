package integrations_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

// before starts a reverse proxy for the server.
func (s *server) before(t *testing.T, transport *infuse.Transport) *httptest.Server {
	t.Helper()
	service, err := url.Parse(s.URL)
	require.NoError(t, err)
	handler := integrations.NewReverseProxy(service, transport)
	handler.ErrorLog = log.New(io.Discard, "", 0)
	proxy := httptest.NewServer(handler)
	t.Cleanup(proxy.Close)
	return proxy
}

func TestReverseProxy(t *testing.T) {
	s, transport, breaker := start(t)
	proxy := s.before(t, transport)
	get := func() *http.Response {
		response, err := proxy.Client().Get(proxy.URL)
		require.NoError(t, err)
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}

	for range 3 {
		require.Equal(t, http.StatusBadGateway, get().StatusCode, "the response of the service")
	}
	rejected := get()
	require.Equal(t, http.StatusServiceUnavailable, rejected.StatusCode)
	seconds, err := strconv.Atoi(rejected.Header.Get("Retry-After"))
	require.NoError(t, err)
	require.InDelta(t, time.Hour.Seconds(), seconds, 60)
	require.Equal(t, int64(3), s.calls.Load(), "no request is sent")

	s.recover(t, breaker)
	requireHealthy(t, get().Body)
	require.Equal(t, infuse.StateClosed, breaker.State())
}

// Clients disconnect while they wait for the headers, or during the body.
func TestReverseProxyClientsThatDisconnectAreIgnored(t *testing.T) {
	for _, path := range []string{"/headers", "/body"} {
		t.Run(path, func(t *testing.T) {
			arrived := make(chan struct{}, 1)
			s, transport, breaker := startWith(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/body" {
					w.Header().Set("Content-Length", "1000")
					_, _ = io.WriteString(w, "healthy")
					_ = http.NewResponseController(w).Flush()
				}
				arrived <- struct{}{}
				<-r.Context().Done()
			})
			proxy := s.before(t, transport)
			for i := range 5 {
				ctx, leave := context.WithCancel(t.Context())
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, proxy.URL+path, nil)
				require.NoError(t, err)
				gone := make(chan error, 1)
				go func() {
					response, err := proxy.Client().Do(request)
					if err == nil {
						_, err = io.ReadAll(response.Body)
						_ = response.Body.Close()
					}
					gone <- err
				}()
				<-arrived
				leave()
				require.ErrorIs(t, <-gone, context.Canceled)
				require.Eventually(t, func() bool { return s.ignored.Load()+s.failures.Load() == int64(i+1) }, time.Minute, time.Millisecond)
				require.Zero(t, s.failures.Load())
			}
			require.Equal(t, infuse.StateClosed, breaker.State())
		})
	}
}

func TestReverseProxyForwardsWebSockets(t *testing.T) {
	s, transport, breaker := startWith(t, echo)
	proxy := s.before(t, transport)
	conn, _, err := websocket.Dial(t.Context(), proxy.URL, nil)
	require.NoError(t, err)
	requireEcho(t, conn)
	require.NoError(t, conn.CloseNow())

	require.NoError(t, breaker.SetState(t.Context(), infuse.StateOpen))
	_, response, err := websocket.Dial(t.Context(), proxy.URL, nil)
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.NotEmpty(t, response.Header.Get("Retry-After"))
	require.Equal(t, int64(1), s.calls.Load(), "no request is sent")
}
