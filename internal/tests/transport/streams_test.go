package transport_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// streams is a handler whose responses go on until they are cut: what is sent
// first, and then more every few milliseconds where that is wanted.
type streams struct {
	media  string
	first  string
	goesOn bool
	cut    chan struct{}
}

func (s *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", s.media)
	flush := http.NewResponseController(w).Flush
	_, _ = io.WriteString(w, s.first)
	_ = flush()
	ticks := time.NewTicker(pace)
	defer ticks.Stop()
	for {
		select {
		case <-s.cut:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		case <-ticks.C:
			if s.goesOn {
				_, _ = io.WriteString(w, s.first)
				_ = flush()
			}
		}
	}
}

var kindsOfStreams = map[string]struct{ media, query string }{
	"event stream":             {"text/event-stream", ""},
	"event stream, charset":    {"text/event-stream; charset=utf-8", ""},
	"event stream, as written": {"Text/Event-Stream", ""},
	"event stream, blanks":     {"text/event-stream ; charset=utf-8", ""},
	"lines of JSON":            {"application/x-ndjson", ""},
	"lines of JSON, jsonl":     {"application/jsonl", ""},
	"stream of JSON":           {"application/stream+json", ""},
	"events of AWS":            {"application/vnd.amazon.eventstream", ""},
	"parts":                    {`multipart/mixed; boundary="-"`, ""},
	"watch, of JSON":           {`Application/JSON; Stream=watch`, ""},
	"watch":                    {"application/json", "?resourceVersion=7&watch=true"},
	"watch, as a number":       {"application/json", "?watch=1"},
	"watch, by its type":       {"application/vnd.kubernetes.protobuf;stream=watch", ""},
	"gRPC":                     {"application/grpc", ""},
	"gRPC-Web":                 {"application/grpc-web+proto", ""},
	"stream of Connect":        {"application/connect+proto", ""},
	"of Connect, as written":   {"Application/Connect+Proto ", ""},
	"stream of Connect, JSON":  {"application/connect+json", ""},
}

// A load balancer restarted, and cut six streams of a healthy service at once:
// its circuit opened for a minute.
func TestStreamsThatAreCutTogetherDoNotOpenTheCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, kind := range kindsOfStreams {
			t.Run(name, func(t *testing.T) {
				h := &streams{media: kind.media, first: "event\n", cut: make(chan struct{})}
				s.does(h.ServeHTTP)
				c := startWebClient(t, s, infuse.Config{})
				var running sync.WaitGroup
				for range 20 {
					response, err := c.Get(s.URL + kind.query)
					require.NoError(t, err)
					_, err = io.ReadFull(response.Body, make([]byte, len(h.first)))
					require.NoError(t, err)
					running.Go(func() {
						if _, err := readAll(response); err == nil {
							t.Error("it was cut")
						}
					})
				}
				close(h.cut)
				running.Wait()
				require.Zero(t, failuresOf(c.breaker))
				requireState(t, infuse.StateClosed, c.breaker)
			})
		}
	})
}

// A client connects to an event stream again and again, and each ends in a cut.
func TestConsecutiveStreamsThatAreCutDoNotOpenTheCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, kind := range kindsOfStreams {
			t.Run(name, func(t *testing.T) {
				c := startWebClient(t, s, infuse.Config{})
				for range 10 {
					h := &streams{media: kind.media, first: "event\n", cut: make(chan struct{})}
					s.does(h.ServeHTTP)
					response, err := c.Get(s.URL + kind.query)
					require.NoError(t, err)
					_, err = io.ReadFull(response.Body, make([]byte, len(h.first)))
					require.NoError(t, err)
					close(h.cut)
					_, err = readAll(response)
					require.Error(t, err)
				}
				require.Zero(t, failuresOf(c.breaker))
			})
		}
	})
}

// A running stream never counted as a success.
func TestAnEventStreamIsASuccessWithItsFirstEvent(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		h := &streams{media: "text/event-stream", first: "data: well\n\n", cut: make(chan struct{})}
		s.does(h.ServeHTTP)
		c := startFailedClient(t, s)
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, 1, failuresOf(c.breaker), "it is not established")
		_, err = io.ReadFull(response.Body, make([]byte, len(h.first)))
		require.NoError(t, err)
		require.Zero(t, failuresOf(c.breaker))

		require.ErrorIs(t, c.breaker.Call(t.Context(), fails), errUnhealthy)
		close(h.cut)
		_, err = readAll(response)
		require.Error(t, err)
		require.Equal(t, 1, failuresOf(c.breaker), "it counts once, and its end for nothing")
	})
}

// A watch of which there is nothing to tell is as silent as one that is unhealthy. But
// the service was up when it began the stream.
func TestAStreamThatIsCutBeforeItsFirstDataIsNotCounted(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		cut := make(chan struct{})
		close(cut)
		for name, kind := range kindsOfStreams {
			t.Run(name, func(t *testing.T) {
				s.does((&streams{media: kind.media, cut: cut}).ServeHTTP)
				c := startFailedClient(t, s)
				response, err := c.Get(s.URL + kind.query)
				require.NoError(t, err)
				_, err = readAll(response)
				require.Error(t, err)
				require.Equal(t, 1, failuresOf(c.breaker))
			})
		}
	})
}

// Nothing tells that this is a stream, but that it goes on and on.
func TestAResponseThatGoesOnIsEstablished(t *testing.T) {
	for name, length := range map[string]string{"chunked": "", "a long download": "1000000000"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overBoth(t, func(t *testing.T, s *webServer) {
				h := &streams{media: "application/json", first: "{}\n", goesOn: true, cut: make(chan struct{})}
				s.does(func(w http.ResponseWriter, r *http.Request) {
					if length != "" {
						w.Header().Set("Content-Length", length)
					}
					h.ServeHTTP(w, r)
				})
				c := startFailedClient(t, s)
				response, err := c.Get(s.URL)
				require.NoError(t, err)
				ended := make(chan error)
				go func() {
					_, err := readAll(response)
					ended <- err
				}()
				require.Eventually(t, func() bool { return failuresOf(c.breaker) == 0 }, patience, pace)
				require.ErrorIs(t, c.breaker.Call(t.Context(), fails), errUnhealthy)
				close(h.cut)
				require.Error(t, <-ended)
				require.Equal(t, 1, failuresOf(c.breaker), "it counts once, and its end for nothing")
			})
		})
	}
}

// script is a body that does one thing after another, in fake time.
type script struct{ steps []step }

type step struct {
	after time.Duration
	text  string
	err   error
}

func (s *script) Read(p []byte) (int, error) {
	next := s.steps[0]
	s.steps = s.steps[1:]
	time.Sleep(next.after)
	return copy(p, next.text), next.err
}

func (*script) Close() error { return nil }

// scriptWriter is a script that has WriteTo.
type scriptWriter struct{ script }

func (s *scriptWriter) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{&s.script})
}

// times is so many steps of the same kind.
func times(n int, s step) []step {
	all := make([]step, n)
	for i := range all {
		all[i] = s
	}
	return all
}

func TestWhatTheEndOfAResponseSays(t *testing.T) {
	const nothing, success, failure = 1, 0, 2 // failures on record afterwards; one was there before
	cut := step{err: io.ErrUnexpectedEOF}
	data := step{after: time.Millisecond, text: "data"}
	slow := step{after: 3 * time.Second, text: "data"}
	then := func(steps []step, more ...step) []step { return append(append([]step{}, steps...), more...) }
	for name, test := range map[string]struct {
		length int64
		media  string
		steps  []step
		want   int
	}{
		"short, chunked":                              {-1, "", then(times(1, data), cut), failure},
		"short, with a length":                        {99, "", then(times(1, data), cut), failure},
		"many reads at once":                          {-1, "", then(times(300, data), cut), failure},
		"quiet for long, chunked":                     {-1, "", then(times(1, data), step{after: time.Minute, err: io.ErrUnexpectedEOF}), nothing},
		"quiet for long, nothing came, chunked":       {-1, "", []step{{after: time.Minute, err: io.ErrUnexpectedEOF}}, nothing},
		"quiet for long, with a length":               {99, "", then(times(1, data), step{after: time.Minute, err: io.ErrUnexpectedEOF}), failure},
		"stalls until somebody's patience ends":       {-1, "", then(times(1, data), step{after: time.Minute, err: context.DeadlineExceeded}), failure},
		"a stream is silent until a patience ends":    {-1, "text/event-stream", []step{{after: time.Minute, err: context.DeadlineExceeded}}, nothing},
		"a stream is silent, and is cut":              {-1, "text/event-stream", []step{{after: time.Minute, err: io.ErrUnexpectedEOF}}, nothing},
		"a stream that is cut at once":                {-1, "text/event-stream", []step{cut}, nothing},
		"a stream that has begun":                     {-1, "text/event-stream", then(times(1, data), cut), success},
		"gRPC that has begun":                         {-1, "application/grpc+proto", then(times(1, data), cut), nothing},
		"gRPC that has gone on":                       {-1, "application/grpc+proto", then(times(16, slow), cut), success},
		"a length belies the type":                    {99, "text/event-stream", then(times(1, data), cut), failure},
		"goes on for long, chunked":                   {-1, "", then(times(16, slow), cut), success},
		"goes on for long, with a length":             {99, "", then(times(16, slow), cut), success},
		"goes on for long, and times out":             {-1, "", then(times(16, slow), step{err: context.DeadlineExceeded}), success},
		"goes on for long, and ends":                  {-1, "", then(times(16, slow), step{err: io.EOF}), success},
		"a few parts, one after the other, and a cut": {99, "", then(times(8, slow), cut), failure},
	} {
		for _, writes := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var body io.ReadCloser = &script{test.steps}
					if writes {
						body = &scriptWriter{script{test.steps}}
					}
					transport := &infuse.Transport{
						Breakers: groupOf(t, infuse.Config{FailMax: 100}),
						Base: baseFunc(func(*http.Request) (*http.Response, error) {
							return &http.Response{
								StatusCode: http.StatusOK, Body: body, ContentLength: test.length,
								Header: http.Header{"Content-Type": {test.media}},
							}, nil
						}),
					}
					b := breakerOf(t, transport.Breakers, "inventory.test")
					require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
					response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
					require.NoError(t, err)
					_, _ = io.Copy(io.Discard, response.Body)
					require.NoError(t, response.Body.Close())
					require.Equal(t, test.want, failuresOf(b))
				})
			})
		}
	}
}

// A stream as the trial closes the circuit at its headers, and its cut is
// nothing that happens to the circuit.
func TestAStreamAsTheTrial(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		h := &streams{media: "text/event-stream", first: "data: well\n\n", cut: make(chan struct{})}
		s.does(h.ServeHTTP)
		var heard stateLog
		c := startWebClient(t, s, infuse.Config{FailMax: 1, Listeners: []*infuse.Listener{everyCall(&heard)}})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		_, err = io.ReadFull(response.Body, make([]byte, len(h.first)))
		require.NoError(t, err)
		close(h.cut)
		_, err = readAll(response)
		require.Error(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, []string{"call", "success"}, heard.All())
	})
}

// A tunnel is a connection that was handed over. How it ends is not the
// request's.
func TestATunnelIsLeftAlone(t *testing.T) {
	transport := &infuse.Transport{
		Breakers: groupOf(t, infuse.Config{FailMax: 1}),
		Base: baseFunc(func(*http.Request) (*http.Response, error) {
			body := &script{[]step{{err: errors.New("connection reset")}}}
			return &http.Response{StatusCode: http.StatusOK, Body: body, ContentLength: -1}, nil
		}),
	}
	response, err := transport.RoundTrip(newRequest(t, http.MethodConnect, "http://inventory.test", nil))
	require.NoError(t, err)
	_, err = readAll(response)
	require.Error(t, err)
	requireState(t, infuse.StateClosed, breakerOf(t, transport.Breakers, "inventory.test"))
}
