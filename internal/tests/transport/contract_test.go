package transport_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A rejection left the request's body open, or both a response
// and an error came back.
// R8.
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
		s.does(answers(http.StatusBadGateway, "failed"))
		c := startWebClient(t, s, infuse.Config{FailMax: 3})
		for range 3 {
			response, err := c.Get(s.URL)
			require.NoError(t, err)
			require.Equal(t, http.StatusBadGateway, response.StatusCode)
			text, err := readAll(response)
			require.NoError(t, err)
			require.Equal(t, "failed", text)
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

	s.does(answers(http.StatusInternalServerError, "failed"))
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

func TestABaseIsHeldToTheContract(t *testing.T) {
	body := &closeCounter{Reader: strings.NewReader("half")}
	both := baseFunc(func(*http.Request) (*http.Response, error) { return &http.Response{Body: body}, errUnhealthy })
	neither := baseFunc(func(*http.Request) (*http.Response, error) { return nil, nil })
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)

	response, err := (&infuse.Transport{Base: both}).RoundTrip(r)
	require.Nil(t, response)
	require.Equal(t, errUnhealthy, err)
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
				http.Error(w, "failed", http.StatusInternalServerError)
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
				require.Equal(t, "failed\n", text)
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
		require.Zero(t, failuresOf(outside))
	}

	other := &infuse.Transport{
		Base: &infuse.Transport{Breakers: inner}, Breakers: group,
		Circuit: func(*http.Request) string { return "shop" },
	}
	_, err := other.RoundTrip(r)
	require.ErrorIs(t, err, infuse.ErrOpen)
	shop := breakerOf(t, group, "shop")
	require.Equal(t, 1, failuresOf(shop), "a circuit that the service depends on is another matter")
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
	require.Zero(t, failuresOf(c.breaker), "it is a success from the headers on")

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
	require.Zero(t, failuresOf(c.breaker), "how the connection ends is not the request's")
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
			require.Zero(t, failuresOf(c.breaker), "it is a success before its body is closed")
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
			return always(http.StatusBadGateway, "failed")(r)
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
	require.Zero(t, failuresOf(breakerOf(t, group, s.circuit())))
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
	for name, returned := range map[string]error{"a type": typedNil, "an OpenError": nilOpen, "a slice": sliceError{"failed"}, "an empty slice": sliceError{}} {
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

// Requests that would be rejected are sent as they are.
func TestADryRunOfTheTransportLeavesRequestsAlone(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = w.Write(body)
		})
		c := startWebClient(t, s, infuse.Config{DryRun: true, CountCalls: true})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))
		for range 3 {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, io.MultiReader(strings.NewReader("hello")))
			require.NoError(t, err)
			response, err := c.Do(request)
			require.NoError(t, err)
			text, err := readAll(response)
			require.NoError(t, err)
			require.Equal(t, "hello", text)
		}
		require.Equal(t, infuse.CallCounts{WouldReject: 3}, c.breaker.Stats().Calls)
	})
}
