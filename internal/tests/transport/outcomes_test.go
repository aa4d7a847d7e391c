package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// R1.
func TestWhatCountsByDefault(t *testing.T) {
	closed := startWeb(t, "HTTP/1.1")
	closed.Server.Close()
	for _, test := range []struct {
		name     string
		status   int
		failures int
	}{
		{"a 200 is a success", 200, 0},
		{"a 204 is a success", 204, 0},
		{"a 304 is a success", 304, 0},
		{"a 404 is a success", 404, 0},
		{"a 429 is a success", 429, 0},
		{"a 500 is a failure", 500, 2},
		{"a 503 is a failure", 503, 2},
		{"a 599 is a failure", 599, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, s *webServer) {
				s.does(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(test.status) })
				c := startFailedClient(t, s)
				_, err := c.get()
				require.NoError(t, err)
				require.Equal(t, test.failures, failuresOf(c.breaker))
			})
		})
	}
	t.Run("a refused connection is a failure", func(t *testing.T) {
		s := startWeb(t, "HTTP/1.1")
		c := startFailedClient(t, s)
		s.Server.Close()
		_, err := c.get()
		require.Error(t, err)
		require.Equal(t, 2, failuresOf(c.breaker))
	})
	t.Run("an answer that is no HTTP is a failure", func(t *testing.T) {
		s := startWeb(t, "HTTP/1.1")
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			assert.NoError(t, err)
			_, _ = io.WriteString(conn, "hello\r\n\r\n")
			_ = conn.Close()
		})
		c := startFailedClient(t, s)
		_, err := c.get()
		require.Error(t, err)
		require.Equal(t, 2, failuresOf(c.breaker))
	})
}

// A caller cancelled with a cause of its own. The error is that
// cause, so that only the context tells that it was the caller.
func TestACancelledRequestIsIgnoredWhateverTheCause(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startFailedClient(t, s)
		enough := errors.New("I have seen enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			assert.Eventually(t, func() bool { return s.calls.Load() == 1 }, patience, pace)
			cancel(enough)
		}()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.Error(t, err)
		if !s.EnableHTTP2 { // over HTTP/2 it is context.Canceled
			require.NotErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, enough)
		}
		require.Equal(t, 1, failuresOf(c.breaker), "neither a failure nor a success")
	})
}

// The server stalls beyond ResponseHeaderTimeout. The error looks
// like the caller's deadline, and the context has none.
func TestResponseHeaderTimeoutIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.Server.Client().Transport.(*http.Transport).ResponseHeaderTimeout = 20 * time.Millisecond
		s.does(s.stalls)
		c := startFailedClient(t, s)
		r := newRequest(t, http.MethodGet, s.URL, nil)
		_, err := c.Do(r)
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.NoError(t, r.Context().Err())
		require.Equal(t, 2, failuresOf(c.breaker))
	})
}

func TestACallersOwnDeadlineIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startFailedClient(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 2, failuresOf(c.breaker))
	})
}

func TestClientTimeoutIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startFailedClient(t, s)
		for i := range 20 { // it ends the request in two ways at once: either may be first
			c.Timeout = 10 * time.Millisecond
			_, err := c.get()
			var timeout net.Error
			require.ErrorAs(t, err, &timeout)
			require.True(t, timeout.Timeout())
			require.Equal(t, 2+i, failuresOf(c.breaker))
		}
	})
}

func TestAMalformedRequestIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startFailedClient(t, s)
		for name, spoil := range map[string]func(*http.Request){
			"nil URL":             func(r *http.Request) { r.URL = nil },
			"nil Header":          func(r *http.Request) { r.Header = nil },
			"no host":             func(r *http.Request) { r.URL.Host = "" },
			"method":              func(r *http.Request) { r.Method = "GET IT" },
			"header name":         func(r *http.Request) { r.Header["a b"] = []string{"c"} },
			"empty header name":   func(r *http.Request) { r.Header[""] = []string{"c"} },
			"header value":        func(r *http.Request) { r.Header["A"] = []string{"fine", "b\r\nc"} },
			"trailer":             func(r *http.Request) { r.Trailer = http.Header{"A": {"\x00"}} },
			"length without body": func(r *http.Request) { r.Body, r.ContentLength = nil, 7 },
			"scheme":              func(r *http.Request) { r.URL.Scheme = "gopher" },
			"no scheme":           func(r *http.Request) { r.URL.Scheme = "" },
		} {
			t.Run(name, func(t *testing.T) {
				body := &closeCounter{Reader: strings.NewReader("order")}
				r := newRequest(t, http.MethodPost, s.URL, body)
				spoil(r)
				sent, want := s.Server.Client().Transport.RoundTrip(r)
				if want == nil {
					_, _ = readAll(sent)
					t.Skip("HTTP/2 sends it all the same")
				}
				response, err := c.transport.RoundTrip(r)
				require.Nil(t, response)
				require.EqualError(t, err, want.Error(), "as the Base reports it")
				require.Equal(t, 1, failuresOf(c.breaker))
			})
		}

		// Nor does one take the trial's place for good.
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		r := newRequest(t, http.MethodGet, s.URL, nil)
		r.Header["a b"] = []string{"c"}
		_, err := c.transport.RoundTrip(r)
		require.Error(t, err)
		require.NotErrorIs(t, err, infuse.ErrOpen)
		requireState(t, infuse.StateHalfOpen, c.breaker)
		_, err = c.get()
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
	})
}

// A trial whose body was truncated was reported twice: as a success at the headers, and
// as a failure at the end.
// R3.
func TestEveryRequestIsReportedOnce(t *testing.T) {
	const call, success, ignored = "call", "success", "ignored: context canceled"
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, test := range map[string]struct {
			h                  http.HandlerFunc
			want, wantOfATrial string // what the outcome begins with
		}{
			"well":                 {answers(http.StatusOK, "well"), success, success},
			"without a body":       {answers(http.StatusNoContent, ""), success, success},
			"failing":              {answers(http.StatusServiceUnavailable, "failed"), "failure: 503 Service Unavailable", "failure: 503 Service Unavailable"},
			"no answer":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "failure: ", "failure: "},
			"a body that breaks":   {truncates, "failure: ", success},
			"cancelled":            {s.stalls, ignored, ignored},
			"cancelled in a body":  {s.stallsInTheBody, ignored, success},
			"a Classify panics":    {answers(http.StatusOK, "well"), "failure: panic: ", "failure: panic: "},
			"and panics at a body": {truncates, "failure: panic: ", success},
		} {
			t.Run(name, func(t *testing.T) {
				for state, want := range map[infuse.State]string{infuse.StateClosed: test.want, infuse.StateHalfOpen: test.wantOfATrial} {
					var heard stateLog
					c := startWebClient(t, s, infuse.Config{Listeners: []*infuse.Listener{everyCall(&heard)}})
					c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
						if name == "a Classify panics" || name == "and panics at a body" && err != nil {
							panic("no verdict")
						}
						return infuse.DefaultClassify(r, response, err)
					}
					require.NoError(t, c.breaker.SetState(t.Context(), state))
					s.does(test.h)
					s.calls.Store(0)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if name == "cancelled" {
						go func() {
							assert.Eventually(t, func() bool { return s.calls.Load() > 0 }, patience, pace)
							cancel()
						}()
					}
					func() {
						defer func() { _ = recover() }()
						response, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
						if name == "cancelled in a body" {
							cancel()
						}
						if err == nil {
							_, _ = readAll(response)
						}
					}()
					all := heard.All()
					require.Len(t, all, 2, "%v: %v", state, all)
					require.Equal(t, call, all[0])
					require.True(t, strings.HasPrefix(all[1], want), "%v: %v", state, all)
				}
			})
		}
	})
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
			require.Equal(t, 1, failuresOf(c.breaker))

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
	"FailOn":          infuse.FailOn(func(status int) bool { return status >= 429 }),
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
				require.Equal(t, 1, failuresOf(c.breaker))
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
			require.Equal(t, 1, failuresOf(c.breaker), "%v", err)
			return
		}
		if err == nil {
			require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
			_, _ = readAll(response)
			require.Zero(t, failuresOf(c.breaker))
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
	require.Equal(t, 2, failuresOf(c.breaker))
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
					require.Equal(t, test.failures, failuresOf(c.breaker), "%v", err)
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

// A request is slow until its headers. Its body may take its time.
// R2.
func TestASlowRequestIsAFailure(t *testing.T) {
	t.Parallel()
	overBoth(t, func(t *testing.T, s *webServer) {
		const limit = 100 * time.Millisecond
		cfg := infuse.Config{SlowCall: limit, FailMax: 100}
		group := groupOf(t, cfg)
		client := &http.Client{Transport: &infuse.Transport{Base: s.Client().Transport, Breakers: group}}
		get := func() {
			response, err := client.Get(s.URL)
			require.NoError(t, err)
			_, err = readAll(response)
			require.NoError(t, err)
		}
		b := breakerOf(t, group, s.circuit())
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(2 * limit)
			fmt.Fprint(w, "late")
		})
		get()
		require.Equal(t, 1, failuresOf(b))
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			time.Sleep(2 * limit)
			fmt.Fprint(w, "in good time, and long")
		})
		require.Eventually(t, func() bool { // on a busy machine the headers may be late, too
			get()
			return failuresOf(b) == 0
		}, patience, pace)
	})
}

func TestRequestsAreCounted(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		client := startWebClient(t, s, infuse.Config{CountCalls: true, FailureRate: 0.5})
		s.does(answers(200, "well"))
		for range 7 {
			_, err := client.get()
			require.NoError(t, err)
		}
		s.does(answers(500, "failed"))
		_, _ = client.get()
		calls := client.breaker.Stats().Calls
		require.Equal(t, uint64(7), calls.Success)
		require.Equal(t, uint64(1), calls.Failure)
	})
}
