package infuse_test

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
	"github.com/infuse-go/infuse/internal/redistest"
)

func TestTheReadyMadeClassifications(t *testing.T) {
	const success, failure, ignored = infuse.OutcomeSuccess, infuse.OutcomeFailure, infuse.OutcomeIgnored
	background := context.Background()
	cancelled, cancel := context.WithCancelCause(background)
	cancel(errIll)
	late, stop := context.WithDeadline(background, time.Now().Add(-time.Hour))
	defer stop()
	for _, test := range []struct {
		what               string
		ctx                context.Context
		status             int // 0: an error
		preset, also, only infuse.Outcome
		errors             infuse.Outcome
	}{
		{"200", background, 200, success, success, success, success},
		{"404", background, 404, success, success, success, success},
		{"429", background, 429, success, failure, success, success},
		{"500", background, 500, failure, failure, success, success},
		{"503", background, 503, failure, failure, failure, success},
		{"600", background, 600, success, success, success, success},
		{"an error", background, 0, failure, failure, failure, failure},
		{"a cancelled request", cancelled, 0, ignored, ignored, ignored, ignored},
		{"a request past its deadline", late, 0, failure, failure, failure, failure},
		{"a 503 that came before the cancellation", cancelled, 503, failure, failure, failure, success},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, "http://inventory.test", nil).WithContext(test.ctx)
			var response *http.Response
			err := errIll
			if test.status != 0 {
				response, err = &http.Response{StatusCode: test.status}, nil
			}
			require.Equal(t, test.preset, infuse.DefaultClassify(r, response, err))
			require.Equal(t, test.also, infuse.FailAlsoOn(429)(r, response, err))
			require.Equal(t, test.only, infuse.FailOnlyOn(502, 503, 504)(r, response, err))
			require.Equal(t, test.errors, infuse.FailOnlyOn()(r, response, err))
		})
	}
}

func TestClassifyReplacesTheTransportsDefault(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusTooManyRequests, "later"))
		c := startFailedClient(t, s)
		c.transport.Classify = infuse.FailAlsoOn(http.StatusTooManyRequests)
		_, err := c.get()
		require.NoError(t, err)
		require.Equal(t, 2, infuse.FailuresOf(c.breaker))

		s.does(answers(http.StatusInternalServerError, "ill"))
		c.transport.Classify = infuse.FailOnlyOn(http.StatusBadGateway)
		_, err = c.get()
		require.NoError(t, err)
		require.Zero(t, infuse.FailuresOf(c.breaker))
	})
}

func TestClassifyIsAskedOfHeadersErrorsAndBodies(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		type question struct {
			status int
			err    bool
		}
		var asked []question
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			require.NotNil(t, r)
			q := question{err: err != nil}
			if response != nil {
				q.status = response.StatusCode
			}
			asked = append(asked, q)
			return infuse.DefaultClassify(r, response, err)
		}
		ask := func(h http.HandlerFunc) []question {
			s.does(h)
			asked = nil
			_, _ = c.get()
			return asked
		}
		require.Equal(t, []question{{200, false}}, ask(answers(200, "well")), "once, though the body is read")
		require.Equal(t, []question{{200, false}, {200, true}}, ask(breaksOff))
		require.Equal(t, []question{{503, false}}, ask(answers(503, "ill")))
		require.Equal(t, []question{{0, true}}, ask(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		require.Equal(t, 3, infuse.FailuresOf(c.breaker), "a broken body, a 503 and an error since the last success")
	})
}

// What a Group's Config says of errors is true for a Transport's errors, too.
func TestErrorsAreClassifiedByTheConfigByDefault(t *testing.T) {
	failing := baseFunc(func(*http.Request) (*http.Response, error) { return nil, errIll })
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
	for name, cfg := range map[string]infuse.Config{
		"excluded": {Exclude: []func(error) bool{func(err error) bool { return errors.Is(err, errIll) }}},
		"classified": {Classify: func(_ context.Context, err error) infuse.Outcome {
			require.ErrorIs(t, err, errIll)
			return infuse.OutcomeSuccess
		}},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &infuse.Transport{Base: failing, Breakers: groupOf(t, cfg)}
			b, err := transport.Breakers.Breaker("inventory.test")
			require.NoError(t, err)
			_, err = transport.RoundTrip(r)
			require.Equal(t, errIll, err)
			require.Zero(t, infuse.FailuresOf(b))

			transport.Classify = infuse.DefaultClassify
			_, err = transport.RoundTrip(r)
			require.Equal(t, errIll, err)
			require.Equal(t, 1, infuse.FailuresOf(b), "the Transport's Classify replaces that")
		})
	}
}

// The recipe of DefaultClassify's comment: a caller whose deadlines a healthy
// service may miss.
func TestACallersOwnDeadlineCanBeIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			if err != nil && r.Context().Err() != nil {
				return infuse.OutcomeIgnored
			}
			return infuse.DefaultClassify(r, response, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker))
	})
}

// A body that the caller itself fails to deliver cannot be told from a
// service's error, but by a Classify that knows it.
func TestARequestsOwnBodyThatFailsCanBeIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			if errors.Is(err, errIll) {
				return infuse.OutcomeIgnored
			}
			return infuse.DefaultClassify(r, response, err)
		}
		reader, writer := io.Pipe()
		require.NoError(t, writer.CloseWithError(errIll))
		_, err := c.Post(s.URL, "text/plain", reader)
		require.ErrorIs(t, err, errIll)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker))
	})
}

// A 200, and then the body breaks off. Breakers that
// look at the headers alone count a success.
func TestABodyThatBreaksOffIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, h := range map[string]http.HandlerFunc{
			"with a length": breaksOff,
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
				require.Equal(t, 1, infuse.FailuresOf(c.breaker), "nothing is settled at the headers")
				_, err = readAll(response)
				require.Error(t, err)
				require.Equal(t, 2, infuse.FailuresOf(c.breaker))
			})
		}
	})
}

func TestBodiesThatBreakOffOpenTheCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(breaksOff)
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
		require.Equal(t, 1, infuse.FailuresOf(c.breaker))
		require.NoError(t, response.Body.Close())
		require.Zero(t, infuse.FailuresOf(c.breaker), "a success")

		_, err = response.Body.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, response.Body.Close())
		require.Zero(t, infuse.FailuresOf(c.breaker), "what comes after Close changes nothing")
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

func TestABodyIsSettledOnce(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		var heard stateLog
		c := startWebClient(t, s, infuse.Config{FailMax: 100, Listeners: []*infuse.Listener{{
			Success: func(context.Context, *infuse.Breaker) { heard.Add("success") },
			Failure: func(context.Context, *infuse.Breaker, error) { heard.Add("failure") },
		}}})
		for outcome, h := range map[string]http.HandlerFunc{
			"success": answers(http.StatusOK, "well"),
			"failure": breaksOff,
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
			require.Zero(t, infuse.FailuresOf(c.breaker))
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
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "neither a failure nor a success")
	})
}

func TestABodyThatStallsBeyondClientTimeoutIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stallsInTheBody)
		c := startFailedClient(t, s)
		var response *http.Response
		err := errIll
		for c.Timeout = 100 * time.Millisecond; err != nil && c.Timeout < patience; c.Timeout *= 2 {
			response, err = c.Get(s.URL) // the headers may be late on a busy machine
		}
		require.NoError(t, err)
		before := infuse.FailuresOf(c.breaker)
		text, err := readAll(response)
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.Equal(t, "half", text)
		require.Equal(t, before+1, infuse.FailuresOf(c.breaker))
	})
}

// A stream that outlives its request's circuit changes nothing in a later one.
func TestABodyOfAnOlderGenerationCountsForNothing(t *testing.T) {
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
	require.ErrorIs(t, b.Call(t.Context(), fails), errIll)
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
	require.Zero(t, infuse.FailuresOf(b), "the end of WriteTo is the end of the body")

	body, _ = bodyOf(t, &closeCounter{Reader: strings.NewReader("well")})
	_, writerTo := body.(io.WriterTo)
	require.False(t, writerTo)
}

// halfThenErr has WriteTo, and breaks off.
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
	require.Equal(t, 2, infuse.FailuresOf(b))

	body, b = bodyOf(t, halfThenErr{})
	reader, writer := io.Pipe()
	require.NoError(t, reader.CloseWithError(errIll))
	_, err = io.Copy(writer, body)
	require.ErrorIs(t, err, errIll)
	require.Equal(t, 1, infuse.FailuresOf(b), "the writer's error is not the service's")
	require.NoError(t, body.Close())
	require.Zero(t, infuse.FailuresOf(b), "the caller closes early")
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
			require.Zero(t, infuse.FailuresOf(b))
		})
	}
	body, b := bodyOf(t, io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(text)))))
	_, err := io.ReadAll(body)
	require.ErrorIs(t, err, iotest.ErrTimeout)
	require.Equal(t, 2, infuse.FailuresOf(b))
}

// duplex is a body that can be written to, of a Base that gives one for a
// status other than 101.
type duplex struct{ net.Conn }

func TestABodyThatCanBeWrittenToIsNeverWrapped(t *testing.T) {
	conn, other := net.Pipe()
	defer other.Close()
	body, b := bodyOf(t, duplex{conn})
	require.Equal(t, duplex{conn}, body)
	require.Zero(t, infuse.FailuresOf(b), "it is a success from the headers on")
	require.NoError(t, body.Close())
}

// asksFor answers with a status, and a Retry-After.
func asksFor(status int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", retryAfter)
		w.WriteHeader(status)
	}
}

// requireOpenFor checks how long a rejected request is told to wait, with a
// minute for a machine that has other things to do.
func requireOpenFor(t *testing.T, want time.Duration, err error) {
	t.Helper()
	var rejection *infuse.OpenError
	require.ErrorAs(t, err, &rejection)
	require.LessOrEqual(t, rejection.RetryAfter(), want)
	require.Greater(t, rejection.RetryAfter(), want-time.Minute)
}

func TestRetryAfterKeepsTheCircuitOpen(t *testing.T) {
	const reset = 5 * time.Minute // Config.ResetTimeout
	httpDate := func(in time.Duration) string { return time.Now().Add(in).UTC().Format(http.TimeFormat) }
	for _, test := range []struct {
		name, value string
		status      int
		want        time.Duration
	}{
		{"seconds", "1200", 503, 20 * time.Minute},
		{"seconds with blanks", " 1200\t", 503, 20 * time.Minute},
		{"seconds of a 429", "1200", 429, 20 * time.Minute},
		{"other failures do not ask", "1200", 500, reset},
		{"less than the reset timeout", "1", 503, reset},
		{"a date", httpDate(20 * time.Minute), 503, 20 * time.Minute},
		{"a date in the old form", time.Now().Add(20 * time.Minute).UTC().Format("Monday, 02-Jan-06 15:04:05 GMT"), 503, 20 * time.Minute},
		{"a date in the past", httpDate(-20 * time.Minute), 503, reset},
		{"a date a century ago", "Mon, 01 Jan 1900 00:00:00 GMT", 503, reset},
		{"a date far away", "Fri, 31 Dec 9999 23:59:59 GMT", 503, time.Hour},
		{"too many seconds", "86400", 503, time.Hour},
		{"more seconds than a number holds", "99999999999999999999999999", 503, time.Hour},
		{"negative", "-1200", 503, reset},
		{"with a sign", "+1200", 503, reset},
		{"a fraction", "1200.5", 503, reset},
		{"hexadecimal", "0x4b0", 503, reset},
		{"garbage", "soon", 503, reset},
		{"empty", "", 503, reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, s *webServer) {
				s.does(asksFor(test.status, test.value))
				c := startWebClient(t, s, infuse.Config{FailMax: 1, ResetTimeout: reset, MaxRetryAfter: time.Hour})
				c.transport.Classify = infuse.FailAlsoOn(http.StatusTooManyRequests)
				_, err := c.get()
				require.NoError(t, err)
				_, err = c.get()
				requireOpenFor(t, test.want, err)
			})
		})
	}
}

// A service that asked for an hour was not called for an hour, with a
// ResetTimeout of a second and a MaxResetTimeout of ten.
func TestMaxRetryAfterIsTheLongestThatARetryAfterKeepsTheCircuitOpen(t *testing.T) {
	for _, test := range []struct {
		name, value string
		most, want  time.Duration
	}{
		{"5 minutes by default", "3600", 0, 5 * time.Minute},
		{"a date, too", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 0, 5 * time.Minute},
		{"less than it", "120", 10 * time.Minute, 2 * time.Minute},
		{"more than it", "3600", 10 * time.Second, 10 * time.Second},
		{"less than a second", "3600", 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"shorter than ResetTimeout", "3600", time.Millisecond, time.Second},
		{"ignored", "3600", -1, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			transport := &infuse.Transport{
				Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: time.Second, MaxResetTimeout: 10 * time.Second, MaxRetryAfter: test.most}),
				Base: baseFunc(func(r *http.Request) (*http.Response, error) {
					response, _ := always(http.StatusServiceUnavailable, "")(r)
					response.Header.Set("Retry-After", test.value)
					return response, nil
				}),
			}
			r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
			_, err := transport.RoundTrip(r)
			require.NoError(t, err)
			_, err = transport.RoundTrip(r)
			var rejection *infuse.OpenError
			require.ErrorAs(t, err, &rejection)
			require.InDelta(t, test.want, rejection.RetryAfter(), float64(test.want/2))
		})
	}
	_, err := infuse.New("x", infuse.Config{MaxRetryAfter: 367 * 24 * time.Hour})
	require.ErrorContains(t, err, "Config.MaxRetryAfter is 8808h0m0s: must be at most")
}

// A host's clock may be wrong by hours. The date counts from when the service
// says that it sent it, not from what the client's clock says.
func TestRetryAfterGoesByTheServicesClock(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		theirNow := time.Now().Add(-3 * time.Hour).UTC()
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", theirNow.Format(http.TimeFormat))
			w.Header().Set("Retry-After", theirNow.Add(20*time.Minute).Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		c := startWebClient(t, s, infuse.Config{FailMax: 1, MaxRetryAfter: time.Hour})
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)

		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Date"] = nil // no Date: the client's clock must do
			w.Header().Set("Retry-After", time.Now().UTC().Add(20*time.Minute).Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateClosed))
		_, err = c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestRetryAfterOfATrialKeepsTheCircuitOpen(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{MaxRetryAfter: time.Hour})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestServiceUnavailableTellsWhatTheServiceAskedFor(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1, MaxRetryAfter: time.Hour})
		c.transport.OnRejected = infuse.ServiceUnavailable
		_, err := c.get()
		require.NoError(t, err)
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		told, err := time.ParseDuration(response.Header.Get("Retry-After") + "s")
		require.NoError(t, err)
		require.InDelta(t, 20*time.Minute, told, float64(time.Minute))
		require.Equal(t, int64(1), s.calls.Load())
	})
}

// One process meets a 503 with a Retry-After, and the others wait as long. The
// suspicion passes first.
func TestRetryAfterHoldsForTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sick := baseFunc(func(r *http.Request) (*http.Response, error) {
			response, _ := always(http.StatusServiceUnavailable, "")(r)
			response.Header.Set("Retry-After", "1200")
			return response, nil
		})
		cfg := infuse.Config{FailMax: 2, MaxRetryAfter: time.Hour, Storage: infuse.NewMemoryStorage()}
		first := &infuse.Transport{Base: sick, Breakers: groupOf(t, cfg)}
		second := &infuse.Transport{Base: sick, Breakers: groupOf(t, cfg)}
		breakerOf(t, second.Breakers, "inventory.test")
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		for range 2 {
			_, err := first.RoundTrip(r)
			require.NoError(t, err)
		}
		_, err := first.RoundTrip(r)
		requireOpenFor(t, 20*time.Minute, err)
		passSuspicion()
		third := &infuse.Transport{Base: sick, Breakers: groupOf(t, cfg)}
		breakerOf(t, third.Breakers, "inventory.test")
		for range 2 {
			_, err := second.RoundTrip(r)
			require.NoError(t, err)
		}
		synctest.Wait()
		_, err = third.RoundTrip(r)
		require.NoError(t, err, "one failure of its own")
		for _, transport := range []*infuse.Transport{first, second, third} {
			_, err := transport.RoundTrip(r)
			requireOpenFor(t, 20*time.Minute, err)
		}
	})
}

func TestRetryAfterHoldsForTheFleetOnRedis(t *testing.T) {
	server := redistest.Start(t)
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		cfg := patiently(infuse.Config{FailMax: 2, MaxRetryAfter: time.Hour, Storage: host(t, server)})
		first := startWebClient(t, s, cfg)
		cfg.Storage = host(t, server)
		second := startWebClient(t, s, cfg)
		for range 2 {
			_, err := first.get()
			require.NoError(t, err)
		}
		_, err := first.get()
		requireOpenFor(t, 20*time.Minute, err)
		time.Sleep(suspicion)
		for range 2 {
			_, err = second.get()
			require.NoError(t, err)
		}
		require.Equal(t, infuse.StateOpen, recordOf(t, first.breaker).State)
		third := startWebClient(t, s, cfg)
		time.Sleep(pace) // Redis keeps whole milliseconds, and rounds up
		_, err = third.get()
		require.NoError(t, err, "one failure of its own")
		_, err = third.get()
		requireOpenFor(t, 20*time.Minute, err)
		require.Equal(t, int64(5), s.calls.Load())
	})
}

func TestRetryAfterIsOverWhenItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := http.StatusServiceUnavailable
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: time.Millisecond, MaxRetryAfter: time.Hour}),
			Base: baseFunc(func(r *http.Request) (*http.Response, error) {
				response, _ := always(status, "")(r)
				response.Header.Set("Retry-After", "1200")
				return response, nil
			}),
		}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		status = http.StatusOK
		time.Sleep(20*time.Minute - 10*time.Millisecond)
		_, err = transport.RoundTrip(r)
		require.ErrorIs(t, err, infuse.ErrOpen)
		time.Sleep(10 * time.Millisecond)
		_, err = transport.RoundTrip(r)
		require.NoError(t, err)
	})
}

// Whatever the service writes there: a circuit opens for its reset timeout at
// least, and for an hour at most.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{"1200", "-1", "9223372036854775808", "Fri, 31 Dec 9999 23:59:59 GMT", "\x00"} {
		f.Add(value, "Mon, 01 Jan 1900 00:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		const reset = 5 * time.Minute
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: reset, MaxRetryAfter: time.Hour}),
			Base: baseFunc(func(r *http.Request) (*http.Response, error) {
				response, _ := always(http.StatusServiceUnavailable, "")(r)
				response.Header.Set("Retry-After", value)
				response.Header.Set("Date", date)
				return response, nil
			}),
		}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		_, err = transport.RoundTrip(r)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Greater(t, rejection.RetryAfter(), reset-time.Minute)
		require.LessOrEqual(t, rejection.RetryAfter(), time.Hour)
	})
}
