package transport_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience  = breakertest.Patience
	pace      = breakertest.Pace
	suspicion = breakertest.Suspicion
)

var (
	errUnhealthy    = breakertest.ErrUnhealthy
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	patiently       = breakertest.Patiently
	trip            = breakertest.Trip
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	recordOf        = breakertest.RecordOf
	groupOf         = breakertest.Group
	breakerOf       = breakertest.Of
	failuresOf      = breakertest.FailuresOf
	everyCall       = breakertest.EveryCall
	late            = breakertest.Late
	passSuspicion   = breakertest.PassSuspicion
	allocations     = breakertest.Allocations
	errTroubled     = breakertest.ErrTroubled
)

type (
	stateLog = breakertest.StateLog
	troubled = breakertest.Troubled
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }

// Real servers over HTTP/1.1 and HTTP/2, and clients of them.

// webServer is a real server. What it answers can be changed at any time.
type webServer struct {
	*httptest.Server
	calls   atomic.Int64
	answer  atomic.Pointer[http.HandlerFunc]
	release chan struct{} // closed when the test ends: what stalls may go
}

func startWeb(t testing.TB, protocol string) *webServer {
	t.Helper()
	s := &webServer{release: make(chan struct{})}
	s.does(answers(http.StatusOK, "well"))
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		(*s.answer.Load())(w, r)
	}))
	if protocol == "HTTP/2.0" {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		close(s.release)
		s.Server.Client().CloseIdleConnections()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *webServer) does(h http.HandlerFunc) { s.answer.Store(&h) }

// circuit is the name of the server's circuit by default.
func (s *webServer) circuit() string { return s.Listener.Addr().String() }

func (s *webServer) protocol() string {
	if s.EnableHTTP2 {
		return "HTTP/2.0"
	}
	return "HTTP/1.1"
}

// stall holds a handler until the client has gone or the test ends.
func (s *webServer) stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.release:
	}
}

func (s *webServer) stalls(_ http.ResponseWriter, r *http.Request) { s.stall(r) }

// stallsInTheBody sends the headers and half of the body.
func (s *webServer) stallsInTheBody(w http.ResponseWriter, r *http.Request) {
	sendHalf(w)
	s.stall(r)
}

func answers(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func sendHalf(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "8")
	_, _ = io.WriteString(w, "half")
	_ = http.NewResponseController(w).Flush()
}

// truncates sends half of a response, and cuts it.
func truncates(w http.ResponseWriter, _ *http.Request) {
	sendHalf(w)
	panic(http.ErrAbortHandler)
}

// overBoth runs the test over HTTP/1.1 and over HTTP/2.
func overBoth(t *testing.T, test func(t *testing.T, s *webServer)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			s := startWeb(t, protocol)
			response, err := s.Server.Client().Get(s.URL)
			require.NoError(t, err)
			require.Equal(t, protocol, response.Proto)
			_, _ = readAll(response)
			s.calls.Store(0)
			test(t, s)
		})
	}
}

// webClient is a client whose Transport talks to one server.
type webClient struct {
	http.Client
	transport *infuse.Transport
	breaker   *infuse.Breaker // of the server's circuit
	url       string
}

func startWebClient(t testing.TB, s *webServer, cfg infuse.Config) *webClient {
	t.Helper()
	group := groupOf(t, cfg)
	transport := &infuse.Transport{Base: s.Server.Client().Transport, Breakers: group}
	return &webClient{Client: http.Client{Transport: transport}, transport: transport, breaker: breakerOf(t, group, s.circuit()), url: s.URL}
}

// startFailedClient is startWebClient with one failure on record: a success
// clears it, another failure makes it two, and what is ignored leaves it alone.
func startFailedClient(t testing.TB, s *webServer) *webClient {
	t.Helper()
	c := startWebClient(t, s, infuse.Config{FailMax: 100})
	require.ErrorIs(t, c.breaker.Call(context.Background(), fails), errUnhealthy)
	return c
}

// get fetches the server's page, and reads it all.
func (c *webClient) get() (string, error) {
	response, err := c.Get(c.url)
	if err != nil {
		return "", err
	}
	return readAll(response)
}

func readAll(response *http.Response) (string, error) {
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// baseFunc is a func as a Transport's Base.
type baseFunc func(*http.Request) (*http.Response, error)

func (f baseFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// always is a Base that answers with the status and the body.
func always(status int, body string) baseFunc {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: make(http.Header), Request: r,
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	}
}

// closeCounter is a request's body that knows whether it was closed.
type closeCounter struct {
	io.Reader
	closed atomic.Int64
}

func (c *closeCounter) Close() error {
	c.closed.Add(1)
	return nil
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, url, body)
	require.NoError(t, err)
	return r
}
