package infuse_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A rejection left the request's body open, or both a response
// and an error came back.
func TestARejectionClosesTheRequestsBody(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))

		body := &closeCounter{Reader: strings.NewReader("order")}
		for _, r := range []*http.Request{
			newRequest(t, http.MethodPost, s.URL, body),
			newRequest(t, http.MethodGet, s.URL, nil),
			newRequest(t, http.MethodGet, s.URL, http.NoBody),
		} {
			response, err := c.transport.RoundTrip(r)
			require.Nil(t, response)
			require.ErrorIs(t, err, infuse.ErrOpen)
		}
		require.Equal(t, int64(1), body.closed.Load())

		_, err := c.Post(s.URL, "text/plain", strings.NewReader("order"))
		var wrapped *url.Error
		require.ErrorAs(t, err, &wrapped)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, s.circuit(), rejection.Circuit)
		require.Positive(t, rejection.RetryAfter())
		require.Zero(t, s.calls.Load())
	})
}

func TestTheVeryRequestIsSentUnmodified(t *testing.T) {
	var got *http.Request
	transport := &infuse.Transport{Base: baseFunc(func(r *http.Request) (*http.Response, error) {
		got = r
		return always(http.StatusOK, "well")(r)
	})}
	r := newRequest(t, http.MethodPost, "http://Inventory.test/items?q=1", strings.NewReader("order"))
	r.Header.Set("X-Order", "7")
	r.Host = "Virtual.test"
	body, want := r.Body, r.Clone(r.Context())

	response, err := transport.RoundTrip(r)
	require.NoError(t, err)
	require.Same(t, r, got)
	require.Equal(t, body, r.Body)
	_, err = readAll(response)
	require.NoError(t, err)
	r.GetBody, want.GetBody = nil, nil // funcs cannot be compared
	require.Equal(t, want, r)
}

func TestTheRequestsBodyReachesTheServer(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		c := startWebClient(t, s, infuse.Config{})
		order := strings.Repeat("order", 100_000)
		response, err := c.Post(s.URL, "text/plain", strings.NewReader(order))
		require.NoError(t, err)
		echo, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, order, echo)
	})
}

func TestA5xxIsAResponseAndItsErrorIsNil(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusBadGateway, "ill"))
		c := startWebClient(t, s, infuse.Config{FailMax: 3})
		for range 3 {
			response, err := c.Get(s.URL)
			require.NoError(t, err)
			require.Equal(t, http.StatusBadGateway, response.StatusCode)
			text, err := readAll(response)
			require.NoError(t, err)
			require.Equal(t, "ill", text)
		}
		_, err := c.get()
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.EqualError(t, rejection.Cause, "502 Bad Gateway")
		require.Equal(t, int64(3), s.calls.Load())
	})
}

func TestTheZeroTransportWorks(t *testing.T) {
	s := startWeb(t, "HTTP/1.1")
	first, second := &infuse.Transport{}, &infuse.Transport{}
	require.Same(t, http.DefaultTransport, first.Unwrap())
	client := http.Client{Transport: first}
	defer client.CloseIdleConnections()

	s.does(answers(http.StatusInternalServerError, "ill"))
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			if response, err := client.Get(s.URL); err == nil {
				_, _ = readAll(response)
			} else {
				assert.ErrorIs(t, err, infuse.ErrOpen)
			}
		})
	}
	calls.Wait()
	_, err := client.Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)

	other := http.Client{Transport: second}
	defer other.CloseIdleConnections()
	response, err := other.Get(s.URL)
	require.NoError(t, err, "another Transport has circuits of its own")
	_, _ = readAll(response)
}

func TestUnwrapAndCloseIdleConnectionsGoThrough(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{})
		require.Same(t, s.Server.Client().Transport, c.transport.Unwrap())

		reused := func() bool {
			var reused bool
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
			})
			r := newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx)
			response, err := c.Do(r)
			require.NoError(t, err)
			_, err = readAll(response)
			require.NoError(t, err)
			return reused
		}
		require.True(t, reused(), "reading to the end gives the connection back")
		require.Eventually(t, func() bool {
			c.CloseIdleConnections()
			return !reused()
		}, patience, pace)
	})
	(&infuse.Transport{Base: always(http.StatusOK, "")}).CloseIdleConnections() // has none to close
}

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
				require.Equal(t, test.failures, infuse.FailuresOf(c.breaker))
			})
		})
	}
	t.Run("a refused connection is a failure", func(t *testing.T) {
		s := startWeb(t, "HTTP/1.1")
		c := startFailedClient(t, s)
		s.Server.Close()
		_, err := c.get()
		require.Error(t, err)
		require.Equal(t, 2, infuse.FailuresOf(c.breaker))
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
		require.Equal(t, 2, infuse.FailuresOf(c.breaker))
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
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "neither a failure nor a success")
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
		require.Equal(t, 2, infuse.FailuresOf(c.breaker))
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
		require.Equal(t, 2, infuse.FailuresOf(c.breaker))
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
			require.Equal(t, 2+i, infuse.FailuresOf(c.breaker))
		}
	})
}

// One client follows a redirect from a healthy host to a sick
// one. Each hop meets the circuit of its own host.
func TestARedirectToAnotherHostMeetsThatHostsCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		protocol := "HTTP/1.1"
		if s.EnableHTTP2 {
			protocol = "HTTP/2.0"
		}
		sick := startWeb(t, protocol)
		sick.does(answers(http.StatusInternalServerError, "ill"))
		s.does(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, sick.URL, http.StatusFound) })
		c := startWebClient(t, s, infuse.Config{FailMax: 2})
		for range 2 {
			text, err := c.get()
			require.NoError(t, err)
			require.Equal(t, "ill", text)
		}

		_, err := c.get()
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, sick.circuit(), rejection.Circuit)
		require.Equal(t, int64(2), sick.calls.Load())
		require.Equal(t, int64(3), s.calls.Load(), "the first host was asked all the same")
		requireState(t, infuse.StateClosed, c.breaker)

		_, err = c.Get(sick.URL)
		require.ErrorIs(t, err, infuse.ErrOpen)
	})
}

func TestARedirectedPostIsSentAgainByItsOwnMeans(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
				return
			}
			_, _ = io.Copy(w, r.Body)
		})
		c := startWebClient(t, s, infuse.Config{})
		response, err := c.Post(s.URL, "text/plain", strings.NewReader("order"))
		require.NoError(t, err)
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, "order", text)
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
				require.Equal(t, 1, infuse.FailuresOf(c.breaker))
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

func TestSkipGoesPastTheBreaker(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusInternalServerError, "ill"))
		c := startFailedClient(t, s)
		ctx := infuse.Skip(t.Context())
		response, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.NoError(t, err)
		_, _ = readAll(response)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "it counts for nothing")

		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))
		response, err = c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.NoError(t, err, "it is sent though the circuit is open")
		_, _ = readAll(response)
		require.Equal(t, int64(2), s.calls.Load())
	})
}

// Retriers look for the words of a broken connection in err.Error(), and took a
// rejection for one: they tried again, and in the end lost the *OpenError.
func TestARejectionDoesNotSpeakWithItsCausesWords(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		for _, breakIt := range []func(){
			func() { s.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) },
			s.Server.Close, // then it is refused
		} {
			t.Run("", func(t *testing.T) {
				breakIt()
				require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateClosed))
				_, broken := c.get()
				require.Error(t, broken)
				_, err := c.get()
				var rejection *infuse.OpenError
				require.ErrorAs(t, err, &rejection)
				require.Error(t, rejection.Cause)
				require.False(t, infuse.Retryable(err))
				for _, words := range []string{"refused", "reset", "EOF", "timeout", "broken", "closed", "stream", rejection.Cause.Error()} {
					require.NotContains(t, err.Error(), words)
				}
				for _, cause := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET} {
					require.NotErrorIs(t, err, cause)
				}
			})
		}
	})
}

func TestServiceUnavailableAnswersForTheService(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{ResetTimeout: time.Hour})
		c.transport.OnRejected = infuse.ServiceUnavailable
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))

		response, err := c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, "503 Service Unavailable", response.Status)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "HTTP/1.1", response.Proto)
		require.True(t, response.ProtoAtLeast(1, 1))
		require.Equal(t, "3600", response.Header.Get("Retry-After"))
		require.Equal(t, s.URL, response.Request.URL.String())
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, response.ContentLength, int64(len(text)))
		require.NotEmpty(t, text)

		response, err = c.Head(s.URL)
		require.NoError(t, err)
		require.Equal(t, http.NoBody, response.Body)
		require.Zero(t, s.calls.Load())

		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		_, err = c.breaker.Acquire(t.Context()) // the trial
		require.NoError(t, err)
		response, err = c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, "1", response.Header.Get("Retry-After"), "never an invitation to come again at once")
	})
}

// The text is what Infuse for Python answers with, by a framework that renders
// it without spaces.
func TestServiceUnavailableJSONIsInfusesAnswer(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{ResetTimeout: time.Hour})
		c.transport.OnRejected = infuse.ServiceUnavailableJSON
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))

		response, err := c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, "503 Service Unavailable", response.Status)
		require.Equal(t, "application/json", response.Header.Get("Content-Type"))
		require.Empty(t, response.Header.Get("Retry-After"))
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, response.ContentLength, int64(len(text)))
		require.Equal(t, `{"message":"Service unavailable.","description":"`+c.breaker.Name()+` is currently unavailable.",`+
			`"error_code":{"name":"infuse_service_unavailable","value":998603}}`, string(text))

		response, err = c.Head(s.URL)
		require.NoError(t, err)
		require.Equal(t, http.NoBody, response.Body)
		require.Zero(t, s.calls.Load())
	})
}

func TestOnRejectedIsHeldToTheContract(t *testing.T) {
	var left *closeCounter
	transport := &infuse.Transport{Breakers: groupOf(t, infuse.Config{})}
	b := breakerOf(t, transport.Breakers, "inventory.test")
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	body := &closeCounter{Reader: strings.NewReader("order")}
	r := newRequest(t, http.MethodPost, "http://inventory.test", body)

	transport.OnRejected = func(*http.Request, *infuse.OpenError) (*http.Response, error) {
		require.Equal(t, int64(1), body.closed.Load(), "the body has been closed")
		return nil, nil
	}
	response, err := transport.RoundTrip(r)
	require.Nil(t, response)
	require.ErrorIs(t, err, infuse.ErrOpen, "no answer: the rejection it is")

	transport.OnRejected = func(*http.Request, *infuse.OpenError) (*http.Response, error) {
		left = &closeCounter{Reader: strings.NewReader("stale")}
		return &http.Response{Body: left}, errIll
	}
	response, err = transport.RoundTrip(r)
	require.Nil(t, response)
	require.Equal(t, errIll, err)
	require.Equal(t, int64(1), left.closed.Load())
}

func TestABaseIsHeldToTheContract(t *testing.T) {
	body := &closeCounter{Reader: strings.NewReader("half")}
	both := baseFunc(func(*http.Request) (*http.Response, error) { return &http.Response{Body: body}, errIll })
	neither := baseFunc(func(*http.Request) (*http.Response, error) { return nil, nil })
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)

	response, err := (&infuse.Transport{Base: both}).RoundTrip(r)
	require.Nil(t, response)
	require.Equal(t, errIll, err)
	require.Equal(t, int64(1), body.closed.Load())

	response, err = (&infuse.Transport{Base: neither}).RoundTrip(r)
	require.Nil(t, response)
	require.ErrorContains(t, err, "neither a response nor an error")
}

func TestABaseThatPanicsFailsAndThePanicGoesOn(t *testing.T) {
	transport := &infuse.Transport{Breakers: groupOf(t, infuse.Config{FailMax: 2})}
	b := breakerOf(t, transport.Breakers, "inventory.test")
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
	roundTrip := func() { _, _ = transport.RoundTrip(r) }

	transport.Base = baseFunc(func(*http.Request) (*http.Response, error) { panic("base") })
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.PanicsWithValue(t, "base", roundTrip)
	requireState(t, infuse.StateOpen, b)

	transport.Base = always(http.StatusOK, "well")
	transport.Classify = func(*http.Request, *http.Response, error) infuse.Outcome { panic("classify") }
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.PanicsWithValue(t, "classify", roundTrip)
	requireState(t, infuse.StateOpen, b)

	transport.Base = baseFunc(func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil })
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	var ended sync.WaitGroup
	ended.Go(roundTrip)
	ended.Wait()
	requireTrial(t, b).Done(nil)
	requireState(t, infuse.StateClosed, b)
}

// tagging is a RoundTripper of somebody else's, which sends a copy.
type tagging struct {
	base http.RoundTripper
	ran  atomic.Int64
}

func (g *tagging) RoundTrip(r *http.Request) (*http.Response, error) {
	g.ran.Add(1)
	r = r.Clone(r.Context())
	r.Header.Set("X-Tag", "seen")
	return g.base.RoundTrip(r)
}

func TestInsideAndOutsideOfAnotherRoundTripper(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Tag") != "seen" {
				http.Error(w, "untagged", http.StatusBadRequest)
			} else {
				http.Error(w, "ill", http.StatusInternalServerError)
			}
		})
		inside := startWebClient(t, s, infuse.Config{FailMax: 2})
		outer := &tagging{base: inside.transport}
		inside.Transport = outer
		outside := startWebClient(t, s, infuse.Config{FailMax: 2})
		inner := &tagging{base: outside.transport.Base}
		outside.transport.Base = inner

		for _, c := range []*webClient{inside, outside} {
			for range 2 {
				text, err := c.get()
				require.NoError(t, err)
				require.Equal(t, "ill\n", text)
			}
			_, err := c.get()
			require.ErrorIs(t, err, infuse.ErrOpen)
		}
		require.Equal(t, int64(3), outer.ran.Load())
		require.Equal(t, int64(2), inner.ran.Load(), "a rejection does not reach what is inside")
	})
}

// A Transport under another one for the same circuit.
// The rejections of the inner one are no failures for the outer one.
func TestARejectionByTheSameCircuitIsIgnored(t *testing.T) {
	group, inner := groupOf(t, infuse.Config{}), groupOf(t, infuse.Config{})
	outside := breakerOf(t, group, "inventory.test")
	inside := breakerOf(t, inner, "inventory.test")
	require.NoError(t, inside.SetState(t.Context(), infuse.StateOpen))
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
	for _, classify := range []func(*http.Request, *http.Response, error) infuse.Outcome{nil, infuse.DefaultClassify} {
		transport := &infuse.Transport{Base: &infuse.Transport{Breakers: inner}, Breakers: group, Classify: classify}
		_, err := transport.RoundTrip(r)
		require.ErrorIs(t, err, infuse.ErrOpen)
		require.Zero(t, infuse.FailuresOf(outside))
	}

	other := &infuse.Transport{
		Base: &infuse.Transport{Breakers: inner}, Breakers: group,
		Circuit: func(*http.Request) string { return "shop" },
	}
	_, err := other.RoundTrip(r)
	require.ErrorIs(t, err, infuse.ErrOpen)
	shop := breakerOf(t, group, "shop")
	require.Equal(t, 1, infuse.FailuresOf(shop), "a circuit that the service depends on is another matter")
}

func TestATrialEndsAtTheHeaders(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		goOn := make(chan struct{})
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/download" {
				sendHalf(w)
				<-goOn
				panic(http.ErrAbortHandler)
			}
		})
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))

		download, err := c.Get(s.URL + "/download")
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		_, err = c.get()
		require.NoError(t, err, "a long download holds nobody back")

		close(goOn)
		text, err := readAll(download)
		require.Error(t, err)
		require.Equal(t, "half", text)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "that it broke off is known, too")
	})
}

func TestACancelledTrialLeavesItsPlaceToTheNext(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startWebClient(t, s, infuse.Config{TrialTimeout: time.Hour})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			assert.Eventually(t, func() bool { return s.calls.Load() == 1 }, patience, pace)
			cancel()
		}()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.ErrorIs(t, err, context.Canceled)
		requireState(t, infuse.StateHalfOpen, c.breaker)

		s.does(answers(http.StatusOK, "well"))
		_, err = c.get()
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
	})
}

// As long as more trials are needed, each is judged by its headers alone: its
// body may end when others have been judged.
func TestEveryTrialOfManyEndsAtTheHeaders(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(breaksOff)
		c := startWebClient(t, s, infuse.Config{SuccessThreshold: 3})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		for range 2 {
			_, err := c.get()
			require.Error(t, err)
			require.NotErrorIs(t, err, infuse.ErrOpen)
			requireState(t, infuse.StateHalfOpen, c.breaker)
		}
		_, err := c.get()
		require.Error(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "the body after the last trial")
	})
}

// A trial whose body broke off was told twice: as a success at the headers, and
// as a failure at the end.
func TestEveryRequestIsToldOnce(t *testing.T) {
	const call, success, ignored = "call", "success", "ignored: context canceled"
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, test := range map[string]struct {
			h                  http.HandlerFunc
			want, wantOfATrial string // what the outcome begins with
		}{
			"well":                 {answers(http.StatusOK, "well"), success, success},
			"without a body":       {answers(http.StatusNoContent, ""), success, success},
			"ill":                  {answers(http.StatusServiceUnavailable, "ill"), "failure: 503 Service Unavailable", "failure: 503 Service Unavailable"},
			"no answer":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "failure: ", "failure: "},
			"a body that breaks":   {breaksOff, "failure: ", success},
			"cancelled":            {s.stalls, ignored, ignored},
			"cancelled in a body":  {s.stallsInTheBody, ignored, success},
			"a Classify panics":    {answers(http.StatusOK, "well"), "failure: panic: ", "failure: panic: "},
			"and panics at a body": {breaksOff, "failure: panic: ", success},
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

func TestOneTrialOfManyRequestsRuns(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		arrived, goOn := make(chan struct{}), make(chan struct{})
		s.does(func(http.ResponseWriter, *http.Request) {
			close(arrived) // a second one would panic
			<-goOn
		})
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		trial := make(chan error)
		go func() {
			_, err := c.get()
			trial <- err
		}()
		<-arrived
		for range 20 {
			_, err := c.get()
			require.ErrorIs(t, err, infuse.ErrOpen)
		}
		close(goOn)
		require.NoError(t, <-trial)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, int64(1), s.calls.Load())
	})
}

func TestASwitchOfProtocolsHandsOverTheConnection(t *testing.T) {
	s := startWeb(t, "HTTP/1.1")
	s.does(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if !assert.NoError(t, err) {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = rw.WriteString(line)
		_ = rw.Flush()
	})
	c := startFailedClient(t, s)
	r := newRequest(t, http.MethodGet, s.URL, nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	response, err := c.Do(r)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, response.StatusCode)
	require.Zero(t, infuse.FailuresOf(c.breaker), "it is a success from the headers on")

	conn, ok := response.Body.(io.ReadWriteCloser)
	require.True(t, ok)
	defer conn.Close()
	_, err = io.WriteString(conn, "hello\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.Zero(t, infuse.FailuresOf(c.breaker), "how the connection ends is not the request's")
}

func TestAResponseWithoutBodyIsLeftAlone(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", "8")
			} else {
				w.WriteHeader(http.StatusNoContent)
			}
		})
		for _, method := range []string{http.MethodHead, http.MethodDelete} {
			c := startFailedClient(t, s)
			response, err := c.Do(newRequest(t, method, s.URL, nil))
			require.NoError(t, err)
			require.Zero(t, infuse.FailuresOf(c.breaker), "it is a success before its body is closed")
			require.NotContains(t, fmt.Sprintf("%T", response.Body), "infuse")
			require.NoError(t, response.Body.Close())
		}
	})
	none := &infuse.Transport{Base: baseFunc(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Request: r}, nil
	})}
	response, err := none.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
	require.NoError(t, err)
	require.Nil(t, response.Body)
}

// The cause of a trip kept the response that it came
// with, and the request, alive as long as the circuit was open.
func TestTheCauseKeepsNoRequestAlive(t *testing.T) {
	freed := make(chan string, 2)
	transport := &infuse.Transport{
		Breakers: groupOf(t, infuse.Config{FailMax: 1}),
		Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "prices.test" {
				return nil, &url.Error{Op: "Get", URL: r.URL.String(), Err: fmt.Errorf("of %p: %w", r, &holder{r})}
			}
			return always(http.StatusBadGateway, "ill")(r)
		}),
	}
	for _, host := range []string{"inventory.test", "prices.test"} {
		func() {
			r := newRequest(t, http.MethodGet, "http://"+host, nil)
			runtime.AddCleanup(r, func(host string) { freed <- host }, host)
			_, _ = transport.RoundTrip(r)
		}()
		_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Error(t, rejection.Cause)
		require.Eventually(t, func() bool {
			runtime.GC()
			return len(freed) > 0
		}, patience, pace)
		require.Equal(t, host, <-freed)
		runtime.KeepAlive(rejection)
	}
}

// holder is an error that holds a request.
type holder struct{ r *http.Request }

func (h *holder) Error() string { return "no answer from " + h.r.URL.Host }

func TestCircuitPicksTheName(t *testing.T) {
	sick := baseFunc(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.Path, "/search") {
			return always(http.StatusInternalServerError, "ill")(r)
		}
		return always(http.StatusOK, "well")(r)
	})
	transport := &infuse.Transport{
		Base: sick, Breakers: groupOf(t, infuse.Config{FailMax: 1}),
		Circuit: func(r *http.Request) string {
			route, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			return r.URL.Host + "/" + route
		},
	}
	get := func(path string) error {
		_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://shop.test"+path, nil))
		return err
	}
	require.NoError(t, get("/search/shoes"))
	require.ErrorIs(t, get("/search/hats"), infuse.ErrOpen)
	require.NoError(t, get("/items/7"), "another route of the same host")
}

// A name that no circuit may have is no reason to fail a request.
func TestARequestWithoutACircuitGoesPastTheBreakers(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusInternalServerError, "ill"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		for _, name := range []string{"", strings.Repeat("x", infuse.MaxNameLength+1)} {
			c.transport.Circuit = func(*http.Request) string { return name }
			for range 3 {
				text, err := c.get()
				require.NoError(t, err)
				require.Equal(t, "ill", text)
			}
		}
	})
}

// A scheme of the Base's own is its own business.
func TestARequestOfAnotherSchemeGoesPastTheBreakers(t *testing.T) {
	base := &http.Transport{}
	base.RegisterProtocol("file", http.NewFileTransport(http.Dir(t.TempDir())))
	transport := &infuse.Transport{Base: base}
	response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "file:///missing", nil))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	_, _ = readAll(response)
}

// watchedStorage counts the circuits that are watched: the breakers that live.
type watchedStorage struct {
	infuse.Storage
	watched atomic.Int64
}

func (s *watchedStorage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	s.watched.Add(1)
	stopWatching := s.Storage.Watch(circuit, fn)
	return func() {
		stopWatching()
		s.watched.Add(-1)
	}
}

// A crawler meets ten thousand hosts. What is kept of them is bounded, and the
// circuits that are open are kept while they are in use.
func TestTenThousandHostsStayBounded(t *testing.T) {
	const bound, sick, hosts = 100, 20, 10_000
	storage := &watchedStorage{Storage: infuse.NewMemoryStorage()}
	var sent atomic.Int64
	transport := &infuse.Transport{
		Breakers: groupOf(t, infuse.Config{
			MaxCircuits: bound, FailMax: 1, Storage: storage, ResetTimeout: time.Hour, StorageTimeout: patience,
		}),
		Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			sent.Add(1)
			if strings.HasPrefix(r.URL.Host, "sick") {
				return always(http.StatusInternalServerError, "ill")(r)
			}
			return always(http.StatusOK, "")(r)
		}),
	}
	get := func(host string, i int) error {
		response, err := transport.RoundTrip(newRequest(t, http.MethodGet, fmt.Sprintf("http://%s-%d.test", host, i), nil))
		if err == nil {
			_, _ = readAll(response)
		}
		return err
	}
	for i := range sick {
		require.NoError(t, get("sick", i))
	}
	var crawlers sync.WaitGroup
	for worker := range 4 {
		crawlers.Go(func() {
			for i := worker; i < hosts; i += 4 {
				assert.NoError(t, get("well", i))
				assert.ErrorIs(t, get("sick", i/4%sick), infuse.ErrOpen)
			}
		})
	}
	crawlers.Wait()
	require.Equal(t, int64(sick+hosts), sent.Load())
	for i := range sick {
		require.ErrorIs(t, get("sick", i), infuse.ErrOpen)
	}
	require.Equal(t, int64(sick+hosts), sent.Load())
	require.Eventually(t, func() bool {
		runtime.GC() // stops the breakers that nothing refers to any more
		return storage.watched.Load() <= bound
	}, patience, pace)
}

// The circuit of the last request is at hand for the next one, unless the group
// has forgotten it meanwhile.
func TestACircuitThatTheGroupHasForgottenIsMadeAnew(t *testing.T) {
	group := groupOf(t, infuse.Config{MaxCircuits: 1})
	transport := &infuse.Transport{Base: always(http.StatusOK, ""), Breakers: group}
	get := func(host string) {
		response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		require.NoError(t, err)
		_, _ = readAll(response)
	}
	get("inventory.test")
	first := breakerOf(t, group, "inventory.test")
	breakerOf(t, group, "prices.test") // makes room
	get("inventory.test")
	again := breakerOf(t, group, "inventory.test")
	require.NotSame(t, first, again)
	require.NoError(t, again.SetState(t.Context(), infuse.StateOpen))
	_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
	require.ErrorIs(t, err, infuse.ErrOpen)
}

// The recipe of docs/http.md: a service, as it starts, has its callers try it at
// once, instead of waiting out the reset timeout.
func TestAServiceThatStartsAnnouncesItself(t *testing.T) {
	redis := redistest.Start(t)
	overBoth(t, func(t *testing.T, s *webServer) {
		cfg := patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour})
		cfg.Storage = host(t, redis)
		caller := startWebClient(t, s, cfg)
		s.does(answers(http.StatusBadGateway, "ill"))
		_, err := caller.get()
		require.NoError(t, err)
		_, err = caller.get()
		require.ErrorIs(t, err, infuse.ErrOpen)

		s.does(answers(http.StatusOK, "well")) // deployed again, in a process of its own
		require.NoError(t, infuse.Announce(t.Context(), host(t, redis), s.circuit(), infuse.StateHalfOpen))
		require.Eventually(t, func() bool {
			text, err := caller.get()
			return err == nil && text == "well"
		}, patience, pace)
		requireState(t, infuse.StateClosed, caller.breaker)
	})
}

// The recipe of docs/http.md: a readiness page that tells the circuits a service
// depends on.
func TestAReadinessPageTellsTheCircuits(t *testing.T) {
	group := groupOf(t, infuse.Config{})
	page := infuse.Handler(func(w http.ResponseWriter, r *http.Request) error {
		for _, name := range []string{"inventory", "prices"} {
			b, err := group.Breaker(name)
			if err != nil {
				return err
			}
			if b.State() == infuse.StateOpen {
				http.Error(w, name+" is away", http.StatusServiceUnavailable)
				return nil
			}
		}
		_, err := fmt.Fprintln(w, "ready")
		return err
	}, nil)
	s := startWeb(t, "HTTP/1.1")
	s.does(page.ServeHTTP)
	status := func() int {
		response, err := http.Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		return response.StatusCode
	}
	require.Equal(t, http.StatusOK, status())
	prices := breakerOf(t, group, "prices")
	require.NoError(t, prices.SetState(t.Context(), infuse.StateOpen))
	require.Equal(t, http.StatusServiceUnavailable, status())
	requireState(t, infuse.StateOpen, prices)
	require.NoError(t, prices.SetState(t.Context(), infuse.StateClosed))
	require.Equal(t, http.StatusOK, status())
}

// reusable is a Base that allocates nothing: one response, whose body is there
// again for each request.
type reusable struct {
	response http.Response
	body     io.ReadCloser
}

func (b *reusable) RoundTrip(*http.Request) (*http.Response, error) {
	b.response.Body = b.body
	return &b.response, nil
}

// endless is a body with nothing in it, which can be read again and again.
type endless struct{}

func (endless) Read([]byte) (int, error) { return 0, io.EOF }
func (endless) Close() error             { return nil }

// endlessText writes itself as a string, as a strings.Reader does.
type endlessText struct{ endless }

func (endlessText) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "text")
	return int64(n), err
}

// cheapRequests are the requests whose cost is promised.
func cheapRequests(tb testing.TB) []cheapRequest {
	transport := func(status int, body io.ReadCloser) *infuse.Transport {
		return &infuse.Transport{
			Base:     &reusable{response: http.Response{StatusCode: status}, body: body},
			Breakers: groupOf(tb, infuse.Config{}),
		}
	}
	rejecting := transport(http.StatusOK, http.NoBody)
	b := breakerOf(tb, rejecting.Breakers, "inventory.test")
	require.NoError(tb, b.SetState(tb.Context(), infuse.StateOpen))
	return []cheapRequest{
		{"success without body", 0, transport(http.StatusOK, http.NoBody)},
		{"success with body", 1, transport(http.StatusOK, endless{})},
		{"success with a body that has WriteTo", 1, transport(http.StatusOK, endlessText{})},
		{"rejection", 0, rejecting},
	}
}

type cheapRequest struct {
	name        string
	allocations float64
	transport   *infuse.Transport
}

// cheapBody is a request whose body can be sent twice: it goes through untouched.
func cheapBody(tb testing.TB) *http.Request {
	r := newRequest(tb, http.MethodPost, "https://inventory.test/items", endless{})
	r.GetBody = func() (io.ReadCloser, error) { return endless{}, nil }
	return r
}

func (c *cheapRequest) send(r *http.Request, buffer []byte) {
	response, err := c.transport.RoundTrip(r)
	if err == nil {
		if to, ok := response.Body.(io.WriterTo); ok {
			_, _ = to.WriteTo(io.Discard)
		} else {
			_, _ = response.Body.Read(buffer)
		}
		_ = response.Body.Close()
	}
}

func TestWhatTheTransportAllocates(t *testing.T) {
	buffer := make([]byte, 64)
	for _, c := range cheapRequests(t) {
		r := cheapBody(t)
		require.Equal(t, c.allocations, allocations(func() { c.send(r, buffer) }), c.name)
		r = newRequest(t, http.MethodGet, "https://inventory.test/items", nil)
		require.Equal(t, c.allocations, allocations(func() { c.send(r, buffer) }), c.name+", without a body")
		if c.name != "rejection" {
			r = newRequest(t, http.MethodPost, "https://inventory.test/items", endless{})
			require.Equal(t, c.allocations+1, allocations(func() { c.send(r, buffer) }), c.name+", with a copy for a body that cannot be sent twice")
		}
	}
}

// BenchmarkTransport is what the Transport adds: its Base costs nothing.
func BenchmarkTransport(b *testing.B) {
	for _, c := range cheapRequests(b) {
		r := cheapBody(b)
		b.Run(c.name, func(b *testing.B) {
			buffer := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				c.send(r, buffer)
			}
		})
		b.Run(c.name+" in parallel", func(b *testing.B) {
			own := c.transport
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buffer := make([]byte, 64)
				mine := cheapRequest{transport: &infuse.Transport{Base: newReusable(own), Breakers: own.Breakers}}
				for pb.Next() {
					mine.send(r, buffer)
				}
			})
		})
	}
}

// newReusable is a copy of the Transport's Base for another goroutine.
func newReusable(t *infuse.Transport) *reusable {
	base := t.Base.(*reusable)
	return &reusable{response: http.Response{StatusCode: base.response.StatusCode}, body: base.body}
}

// readerOnly hides what else a body can do.
type readerOnly struct{ io.Reader }

func (readerOnly) Close() error { return nil }

// BenchmarkTransportAdds is a successful request with a body over a Base that
// answers from memory, without the Transport and with it: the difference is what
// the Transport adds.
func BenchmarkTransportAdds(b *testing.B) {
	const text = "a body of some length, as of an answer in JSON"
	header := http.Header{"Content-Type": {"application/json"}, "Date": {"now"}, "Server": {"some"}, "Vary": {"Origin"}}
	for _, kind := range []struct {
		name   string
		length int64
		body   func() io.ReadCloser
	}{
		{"with a length", int64(len(text)), func() io.ReadCloser { return readerOnly{strings.NewReader(text)} }},
		{"chunked", -1, func() io.ReadCloser { return readerOnly{strings.NewReader(text)} }},
		{"with WriteTo", int64(len(text)), func() io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }},
	} {
		base := baseFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{
				Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: header, Body: kind.body(), ContentLength: kind.length, Request: r,
			}, nil
		})
		send := func(name string, transport http.RoundTripper, body io.Reader) {
			b.Run(kind.name+"/"+name, func(b *testing.B) {
				r := newRequest(b, http.MethodPost, "https://inventory.test/items", body) // with GetBody, if there is a body
				b.ReportAllocs()
				for b.Loop() {
					response, err := transport.RoundTrip(r)
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, response.Body)
					_ = response.Body.Close()
				}
			})
		}
		transport := &infuse.Transport{Base: base, Breakers: groupOf(b, infuse.Config{})}
		send("bare", base, nil)
		send("a Transport", transport, nil)
		send("a Transport, GetBody", transport, strings.NewReader("a body"))
	}
}
