package transport_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A 200, and then the body is truncated. Breakers that
// look at the headers alone count a success.
func TestATruncatedBodyIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, h := range map[string]http.HandlerFunc{
			"with a length": truncates,
			"without": func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			},
			"compressed": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				var whole bytes.Buffer
				z := gzip.NewWriter(&whole)
				_, _ = io.WriteString(z, "half and half")
				_ = z.Close()
				_, _ = w.Write(whole.Bytes()[:whole.Len()-9])
			},
		} {
			t.Run(name, func(t *testing.T) {
				s.does(h)
				c := startFailedClient(t, s)
				response, err := c.Get(s.URL)
				require.NoError(t, err)
				require.Equal(t, 1, failuresOf(c.breaker), "nothing is settled at the headers")
				_, err = readAll(response)
				require.Error(t, err)
				require.Equal(t, 2, failuresOf(c.breaker))
			})
		}
	})
}

func TestTruncatedBodiesOpenTheCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(truncates)
		c := startWebClient(t, s, infuse.Config{FailMax: 3})
		for range 3 {
			_, err := c.get()
			require.Error(t, err)
			require.NotErrorIs(t, err, infuse.ErrOpen)
		}
		_, err := c.get()
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Error(t, rejection.Cause)
	})
}

// The caller has seen enough after half of the body,
// and closes it.
func TestABodyClosedEarlyIsNoFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stallsInTheBody)
		c := startFailedClient(t, s)
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		_, err = io.ReadFull(response.Body, make([]byte, 4))
		require.NoError(t, err)
		require.Equal(t, 1, failuresOf(c.breaker))
		require.NoError(t, response.Body.Close())
		require.Zero(t, failuresOf(c.breaker), "a success")

		_, err = response.Body.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, response.Body.Close())
		require.Zero(t, failuresOf(c.breaker), "what comes after Close changes nothing")
	})
}

// The caller never closes the body. Nothing waits for it: no goroutine, no
// finalizer, no place in the circuit. (A goroutine that is left would fail the
// test: its bubble would never end.)
func TestABodyThatIsNeverClosedHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var collected atomic.Int64
		transport := &infuse.Transport{Breakers: groupOf(t, infuse.Config{}), Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			response, _ := always(http.StatusOK, "well")(r)
			body := &closeCounter{Reader: response.Body}
			runtime.AddCleanup(body, func(n *atomic.Int64) { n.Add(1) }, &collected)
			response.Body = body
			return response, nil
		})}
		b := breakerOf(t, transport.Breakers, "inventory.test")
		for i := range 100 {
			if i%2 == 0 {
				require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
			}
			_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
			require.NoError(t, err)
			requireState(t, infuse.StateClosed, b)
		}
		for range 1000 {
			if runtime.GC(); collected.Load() == 100 {
				return
			}
			time.Sleep(pace)
		}
		require.Equal(t, int64(100), collected.Load())
	})
}

// R3.
func TestABodyIsSettledOnce(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		var heard stateLog
		c := startWebClient(t, s, infuse.Config{FailMax: 100, Listeners: []*infuse.Listener{{
			Success: func(context.Context, *infuse.Breaker) { heard.Add("success") },
			Failure: func(context.Context, *infuse.Breaker, error) { heard.Add("failure") },
		}}})
		for outcome, h := range map[string]http.HandlerFunc{
			"success": answers(http.StatusOK, "well"),
			"failure": truncates,
		} {
			s.does(h)
			before := len(heard.All())
			response, err := c.Get(s.URL)
			require.NoError(t, err)
			require.Len(t, heard.All(), before)
			for range 3 {
				_, _ = io.Copy(io.Discard, response.Body)
			}
			for range 3 {
				_ = response.Body.Close()
			}
			require.Equal(t, []string{outcome}, heard.All()[before:])
		}
	})
}

// Close may come while another goroutine reads, and makes its Read fail. That
// error is not the service's.
func TestACloseThatInterruptsAReadIsNoFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stallsInTheBody)
		c := startWebClient(t, s, infuse.Config{FailMax: 100})
		for range 50 {
			response, err := c.Get(s.URL)
			require.NoError(t, err)
			_, err = io.ReadFull(response.Body, make([]byte, 4))
			require.NoError(t, err)
			reading := make(chan struct{})
			var both sync.WaitGroup
			both.Go(func() {
				close(reading)
				_, err := response.Body.Read(make([]byte, 1))
				assert.Error(t, err)
			})
			both.Go(func() {
				<-reading
				assert.NoError(t, response.Body.Close())
			})
			both.Wait()
			require.Zero(t, failuresOf(c.breaker))
		}
	})
}

func TestABodyWhoseReaderIsCancelledIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stallsInTheBody)
		c := startFailedClient(t, s)
		ctx, cancel := context.WithCancelCause(t.Context())
		response, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.NoError(t, err)
		cancel(errors.New("I have seen enough"))
		_, err = readAll(response)
		require.Error(t, err)
		require.Equal(t, 1, failuresOf(c.breaker), "neither a failure nor a success")
	})
}

func TestABodyThatStallsBeyondClientTimeoutIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stallsInTheBody)
		c := startFailedClient(t, s)
		var response *http.Response
		err := errUnhealthy
		for c.Timeout = 100 * time.Millisecond; err != nil && c.Timeout < patience; c.Timeout *= 2 {
			response, err = c.Get(s.URL) // the headers may be late on a busy machine
		}
		require.NoError(t, err)
		before := failuresOf(c.breaker)
		text, err := readAll(response)
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.Equal(t, "half", text)
		require.Equal(t, before+1, failuresOf(c.breaker))
	})
}

// A stream that outlives its request's circuit changes nothing in a later one.
// R4.
func TestABodyOfAnOlderGenerationIsNotCounted(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		goOn := make(chan struct{})
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			sendHalf(w)
			<-goOn
			panic(http.ErrAbortHandler)
		})
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateClosed))
		close(goOn)
		_, err = readAll(response)
		require.Error(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
	})
}

// bodyOf fetches a response whose body is the given one.
func bodyOf(t *testing.T, body io.ReadCloser) (io.ReadCloser, *infuse.Breaker) {
	t.Helper()
	transport := &infuse.Transport{
		Breakers: groupOf(t, infuse.Config{FailMax: 100}),
		Base: baseFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: body}, nil
		}),
	}
	b, err := transport.Breakers.Breaker("inventory.test")
	require.NoError(t, err)
	require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
	response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
	require.NoError(t, err)
	return response.Body, b
}

func TestWriterToIsKeptWhereItWas(t *testing.T) {
	body, b := bodyOf(t, io.NopCloser(strings.NewReader("well")))
	require.Implements(t, (*io.WriterTo)(nil), body)
	var text bytes.Buffer
	n, err := io.Copy(&text, body)
	require.NoError(t, err)
	require.Equal(t, int64(4), n)
	require.Equal(t, "well", text.String())
	require.Zero(t, failuresOf(b), "the end of WriteTo is the end of the body")

	body, _ = bodyOf(t, &closeCounter{Reader: strings.NewReader("well")})
	_, writerTo := body.(io.WriterTo)
	require.False(t, writerTo)
}

// halfThenErr has WriteTo, and is truncated.
type halfThenErr struct{ io.Reader }

func (halfThenErr) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "half")
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return int64(n), err
}

func (halfThenErr) Close() error { return nil }

func TestWriteToTellsTheServicesErrorFromTheWriters(t *testing.T) {
	body, b := bodyOf(t, halfThenErr{})
	_, err := io.Copy(io.Discard, body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, 2, failuresOf(b))

	body, b = bodyOf(t, halfThenErr{})
	reader, writer := io.Pipe()
	require.NoError(t, reader.CloseWithError(errUnhealthy))
	_, err = io.Copy(writer, body)
	require.ErrorIs(t, err, errUnhealthy)
	require.Equal(t, 1, failuresOf(b), "the writer's error is not the service's")
	require.NoError(t, body.Close())
	require.Zero(t, failuresOf(b), "the caller closes early")
}

func TestABodyReadsAsItsOriginalDoes(t *testing.T) {
	text := strings.Repeat("well", 1000)
	for name, reader := range map[string]io.Reader{
		"byte by byte":      iotest.OneByteReader(strings.NewReader(text)),
		"by halves":         iotest.HalfReader(strings.NewReader(text)),
		"EOF with the data": iotest.DataErrReader(strings.NewReader(text)),
		"at once":           strings.NewReader(text),
	} {
		t.Run(name, func(t *testing.T) {
			body, b := bodyOf(t, &closeCounter{Reader: reader})
			got, err := io.ReadAll(body)
			require.NoError(t, err)
			require.Equal(t, text, string(got))
			require.Zero(t, failuresOf(b))
		})
	}
	body, b := bodyOf(t, io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(text)))))
	_, err := io.ReadAll(body)
	require.ErrorIs(t, err, iotest.ErrTimeout)
	require.Equal(t, 2, failuresOf(b))
}

// duplex is a body that can be written to, of a Base that gives one for a
// status other than 101.
type duplex struct{ net.Conn }

func TestABodyThatCanBeWrittenToIsNeverWrapped(t *testing.T) {
	conn, other := net.Pipe()
	defer other.Close()
	body, b := bodyOf(t, duplex{conn})
	require.Equal(t, duplex{conn}, body)
	require.Zero(t, failuresOf(b), "it is a success from the headers on")
	require.NoError(t, body.Close())
}
