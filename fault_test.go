package infuse_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// late is a context whose deadline passed an hour ago.
func late(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	t.Cleanup(cancel)
	return ctx
}

// asksItsContext is a call that does nothing for a caller who is late.
func asksItsContext(ctx context.Context) error { return ctx.Err() }

// Callers who came too late opened the circuit of a service that had not heard
// of them.
func TestACallThatCameTooLateIsIgnored(t *testing.T) {
	var heard stateLog
	for name, cfg := range map[string]infuse.Config{
		"fast":          {FailMax: 2},
		"with listener": {FailMax: 2, Listeners: []*infuse.Listener{everyCall(&heard)}},
		"strict":        patiently(infuse.Config{FailMax: 2, Strict: true, Storage: infuse.NewMemoryStorage()}),
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", cfg)
			require.ErrorIs(t, b.Call(t.Context(), fails), errIll)
			for range 3 {
				require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
				_, err := infuse.Do(late(t), b, func(ctx context.Context) (int, error) { return 0, ctx.Err() })
				require.ErrorIs(t, err, context.DeadlineExceeded)
				p, err := b.Acquire(late(t))
				require.NoError(t, err)
				p.Done(context.DeadlineExceeded)
			}
			require.Equal(t, 1, infuse.FailuresOf(b), "neither failures nor successes")

			require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
			if cfg.Storage != nil { // a trial is asked for, and the caller does not wait
				require.ErrorIs(t, b.Call(late(t), asksItsContext), infuse.ErrOpen)
				require.Empty(t, recordOf(t, b).Trials)
				return
			}
			require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
			requireState(t, infuse.StateHalfOpen, b)
			require.NoError(t, b.Call(late(t), succeeds), "what succeeds all the same is a success")
			requireState(t, infuse.StateClosed, b)
		})
	}
}

// A request whose deadline had passed is not sent at all.
func TestARequestThatCameTooLateIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for _, classify := range classifiers {
			c := startFailedClient(t, s)
			c.transport.Classify = classify
			for range 5 {
				_, err := c.transport.RoundTrip(newRequest(t, http.MethodGet, s.URL, nil).WithContext(late(t)))
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			require.Equal(t, 1, infuse.FailuresOf(c.breaker))

			require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
			_, err := c.transport.RoundTrip(newRequest(t, http.MethodGet, s.URL, nil).WithContext(late(t)))
			require.Error(t, err)
			requireState(t, infuse.StateHalfOpen, c.breaker)
			_, err = c.get()
			require.NoError(t, err)
			requireState(t, infuse.StateClosed, c.breaker)
		}
		require.Equal(t, int64(len(classifiers)), s.calls.Load())
	})
}

// classifiers are those under which the caller's faults are ignored.
var classifiers = map[string]func(*http.Request, *http.Response, error) infuse.Outcome{
	"by default":      nil,
	"DefaultClassify": infuse.DefaultClassify,
	"FailAlsoOn":      infuse.FailAlsoOn(429),
	"GRPCStatus":      infuse.GRPCStatus,
}

// Requests that were called off by their Cancel opened the circuit; by their
// context they were ignored.
func TestARequestThatIsCalledOffByItsCancelIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, classify := range classifiers {
			t.Run(name, func(t *testing.T) {
				c := startFailedClient(t, s)
				c.transport.Classify = classify
				cancelled := func(h http.HandlerFunc, before bool) error {
					s.does(h)
					s.calls.Store(0)
					cancel := make(chan struct{})
					r := newRequest(t, http.MethodGet, s.URL, nil)
					//lint:ignore SA1019 there are clients that set it
					r.Cancel = cancel
					if before {
						close(cancel)
					} else {
						go func() {
							assert.Eventually(t, func() bool { return s.calls.Load() > 0 }, patience, pace)
							close(cancel)
						}()
					}
					response, err := c.transport.RoundTrip(r)
					if err == nil {
						_, err = readAll(response)
					}
					return err
				}
				require.Error(t, cancelled(s.stalls, true))
				require.Error(t, cancelled(s.stalls, false))
				require.Error(t, cancelled(s.stallsInTheBody, false))
				require.Equal(t, 1, infuse.FailuresOf(c.breaker))
			})
		}
	})
}

// failingBody is a request's body that its reader cannot deliver.
type failingBody struct {
	text string
	err  error
}

func (b *failingBody) Read(p []byte) (int, error) {
	n := copy(p, b.text)
	b.text = b.text[n:]
	if n == 0 {
		return 0, b.err
	}
	return n, nil
}

func (*failingBody) Close() error { return nil }

// ownError is an error of a type that no network has.
type ownError struct{ file string }

func (e *ownError) Error() string { return e.file + " has changed meanwhile" }

// Uploads that their own readers broke off opened the circuit of the service.
func TestARequestsOwnBodyThatFailsIsIgnored(t *testing.T) {
	_, missing := os.Open(t.TempDir() + "/missing")
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		for name, own := range map[string]error{
			"errors.New":       errIll,
			"a type":           &ownError{"order.json"},
			"wrapped":          fmt.Errorf("reading the order: %w", errIll),
			"of a file":        missing,
			"a closed pipe":    io.ErrClosedPipe,
			"a body too large": &http.MaxBytesError{Limit: 7},
			"passed on":        http.ErrBodyReadAfterClose,
		} {
			for _, text := range []string{"", "half an order"} {
				t.Run(name, func(t *testing.T) {
					c := startFailedClient(t, s)
					_, err := c.Do(newRequest(t, http.MethodPost, s.URL, &failingBody{text, own}))
					require.ErrorIs(t, err, own)
					require.Equal(t, 1, infuse.FailuresOf(c.breaker))
				})
			}
		}
	})
}

// What the service or the network does to an upload is a failure, as ever.
func TestAnUploadThatTheServiceBreaksOffIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		endless := func() io.Reader { return struct{ io.Reader }{&repeating{}} }
		s.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		c := startFailedClient(t, s)
		_, err := c.Post(s.URL, "text/plain", endless())
		require.Error(t, err)
		require.Equal(t, 2, infuse.FailuresOf(c.breaker), "%v", err)

		s.Server.Client().Transport.(*http.Transport).ResponseHeaderTimeout = 20 * time.Millisecond
		s.does(s.stalls)
		_, err = c.Post(s.URL, "text/plain", struct{ io.Reader }{strings.NewReader("order")})
		require.Error(t, err)
		require.Equal(t, 3, infuse.FailuresOf(c.breaker), "%v", err)

		s.CloseClientConnections()
		require.NoError(t, s.Listener.Close())
		_, err = c.Post(s.URL, "text/plain", endless())
		require.Error(t, err)
		require.Equal(t, 4, infuse.FailuresOf(c.breaker), "%v", err)
	})
}

// repeating is a body without an end.
type repeating struct{}

func (*repeating) Read(p []byte) (int, error) { return len(p), nil }

// The length was wrong: the request is not sent wholly.
func TestABodyOfAnotherLengthThanItsRequestSaysIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		for name, length := range map[string]int64{"shorter": 100, "longer": 3} {
			t.Run(name, func(t *testing.T) {
				c := startFailedClient(t, s)
				r := newRequest(t, http.MethodPost, s.URL, struct{ io.Reader }{strings.NewReader("order")})
				r.ContentLength = length
				response, err := c.transport.RoundTrip(r)
				if err == nil { // HTTP/2 leaves it to the server, and over HTTP/1.1 its answer may be the first
					_, _ = readAll(response)
					return
				}
				require.Equal(t, 1, infuse.FailuresOf(c.breaker), "%v", err)
			})
		}
	})
}

// Over HTTP/2 the client knows what the server takes, and sends nothing. Over
// HTTP/1.1 the server says 431, which is an answer.
func TestHeadersOverThePeersLimitAreNoFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startFailedClient(t, s)
		r := newRequest(t, http.MethodGet, s.URL, nil)
		r.Header.Set("X-Large", strings.Repeat("x", 2<<20))
		response, err := c.transport.RoundTrip(r)
		if s.EnableHTTP2 {
			require.Error(t, err)
			require.Equal(t, 1, infuse.FailuresOf(c.breaker), "%v", err)
			return
		}
		if err == nil {
			require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
			_, _ = readAll(response)
			require.Zero(t, infuse.FailuresOf(c.breaker))
		}
	})
}

// An answer that only looks like one of net/http's own complaints is the
// service's.
func TestAServiceCannotSpeakForTheCaller(t *testing.T) {
	s := startWeb(t, "HTTP/1.1")
	s.does(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		assert.NoError(t, err)
		_, _ = io.WriteString(conn, "http: ContentLength=5 with Body length 3\r\n\r\n")
		_ = conn.Close()
	})
	c := startFailedClient(t, s)
	_, err := c.get()
	require.ErrorContains(t, err, "ContentLength=5")
	require.Equal(t, 2, infuse.FailuresOf(c.breaker))
}

// Strangers who broke off their uploads opened the circuit of the service behind
// a reverse proxy.
func TestAnUploadThatItsSenderBreaksOffIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		c := startFailedClient(t, s)
		to, err := url.Parse(s.URL)
		require.NoError(t, err)
		failed := make(chan error, 1)
		proxy := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
			Transport:    c.transport,
			ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed <- err },
		})
		defer proxy.Close()
		for name, head := range map[string]string{
			"with a length": "Content-Length: 100\r\n\r\nhalf",
			"chunked":       "Transfer-Encoding: chunked\r\n\r\n10\r\nhalf",
		} {
			t.Run(name, func(t *testing.T) {
				conn, err := net.Dial("tcp", proxy.Listener.Addr().String())
				require.NoError(t, err)
				before := s.calls.Load()
				_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: proxy.test\r\n"+head)
				require.NoError(t, err)
				require.Eventually(t, func() bool { return s.calls.Load() > before }, patience, pace)
				require.NoError(t, conn.Close())
				err = <-failed
				require.Equal(t, 1, infuse.FailuresOf(c.breaker), "%T: %v", err, err)
			})
		}
	})
}
