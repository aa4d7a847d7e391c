package transport_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A deadline with a cause of its own looked like an error of the body (H1).
func TestADeadlineWithACauseIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) { readsAll(w, r); s.stall(r) })
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("inventory had its time"))
		defer cancel()
		r := newRequest(t, http.MethodPost, s.URL, streamed(strings.NewReader("order"))).WithContext(ctx)
		_, err := c.transport.RoundTrip(r)
		require.Error(t, err)
		_, err = c.get()
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.ErrorContains(t, rejection.Cause, "deadline exceeded")
	})
}

// An uploader that is slower than the deadline of the proxy blamed the service
// (H3).
func TestADeadlineThatPassesWhileTheBodyIsReadIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(readsAll)
		const limit = 50 * time.Millisecond
		for name, start := range map[string]func() *proxied{
			"http.TimeoutHandler": func() *proxied {
				return startProxy(t, s, infuse.Config{FailMax: 100}, func(h http.Handler) http.Handler { return http.TimeoutHandler(h, limit, "") }, nil)
			},
			"ReadTimeout": func() *proxied {
				return startProxy(t, s, infuse.Config{FailMax: 100}, nil, func(server *http.Server) { server.ReadTimeout = limit })
			},
		} {
			t.Run(name, func(t *testing.T) {
				p := start()
				require.ErrorIs(t, p.breaker.Call(t.Context(), fails), errUnhealthy)
				conn := p.raw(t, chunked)
				defer conn.Close()
				if name == "http.TimeoutHandler" { // net/http waits for the end of the Read
					time.Sleep(2 * limit)
					_, err := io.WriteString(conn, "4\r\nmore\r\n")
					require.NoError(t, err)
				}
				<-p.errs
				require.Equal(t, 1, failuresOf(p.breaker))
			})
		}
		t.Run("of the client", func(t *testing.T) {
			c := startFailedClient(t, s)
			for name, deadline := range map[string]func(*http.Client, *http.Request) *http.Request{
				"the context's": func(_ *http.Client, r *http.Request) *http.Request {
					ctx, cancel := context.WithTimeout(r.Context(), limit)
					t.Cleanup(cancel)
					return r.WithContext(ctx)
				},
				"with a cause": func(_ *http.Client, r *http.Request) *http.Request {
					ctx, cancel := context.WithTimeoutCause(r.Context(), limit, errUnhealthy)
					t.Cleanup(cancel)
					return r.WithContext(ctx)
				},
				"http.Client.Timeout": func(c *http.Client, r *http.Request) *http.Request {
					c.Timeout = limit
					return r
				},
			} {
				for end, moves := range map[string]func(*io.PipeWriter){
					"and goes on":   func(w *io.PipeWriter) { _, _ = io.WriteString(w, "more"); _ = w.Close() },
					"and ends":      func(w *io.PipeWriter) { _ = w.Close() },
					"and gives up":  func(w *io.PipeWriter) { _ = w.CloseWithError(errUnhealthy) },
					"and is silent": func(*io.PipeWriter) {},
				} {
					reader, writer := io.Pipe()
					var body io.Reader = streamed(reader) // its Close does not end a Read
					if end == "and is silent" {
						body = reader
					}
					client := http.Client{Transport: c.transport}
					go func() {
						_, _ = io.WriteString(writer, "first")
						time.Sleep(4 * limit)
						moves(writer)
						if end == "and is silent" && !s.EnableHTTP2 { // net/http waits for the Read
							_ = writer.Close()
						}
					}()
					_, err := client.Do(deadline(&client, newRequest(t, http.MethodPost, s.URL, body)))
					require.Error(t, err)
					require.Equal(t, 1, failuresOf(c.breaker), "%s %s: %v", name, end, err)
				}
			}
		})
	})
}

// slowTimer is a context whose deadline has passed before its timer fires.
type slowTimer struct {
	context.Context
	deadline time.Time
}

func (s slowTimer) Deadline() (time.Time, bool) { return s.deadline, true }

// An http.Client whose Timeout is over closes the body before the timer of the
// context fires: then a pending Read of the body was not seen (H3).
func TestADeadlineIsComparedWithTheClockWhileTheBodyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group := groupOf(t, infuse.Config{FailMax: 100})
		deadline := time.Now().Add(time.Second)
		transport := &infuse.Transport{Breakers: group, Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			time.AfterFunc(time.Until(deadline), func() { _ = r.Body.Close() })
			_, _ = r.Body.Read(make([]byte, 1))
			return nil, errors.New("net/http: request canceled")
		})}
		reader, _ := io.Pipe()
		r := newRequest(t, http.MethodPost, "https://inventory.test/items", reader).WithContext(slowTimer{t.Context(), deadline})
		_, err := transport.RoundTrip(r)
		require.Error(t, err)
		require.Zero(t, failuresOf(breakerOf(t, group, "inventory.test")))
	})
}

// A service that does not read, or does not answer, is blamed as ever.
func TestADeadlineThatPassesWhileTheServiceHangsIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		for name, body := range map[string]io.Reader{
			"it has the whole body": streamed(strings.NewReader("order")),
			"it reads nothing":      streamed(&repeating{}),
		} {
			c := startFailedClient(t, s)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := c.Do(newRequest(t, http.MethodPost, s.URL, body).WithContext(ctx))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 2, failuresOf(c.breaker), name)
		}
	})
}

// SlowCall counted the time of the caller's own upload (H5).
// R2.
func TestSlowCallCountsFromTheEndOfTheBody(t *testing.T) {
	const limit = 200 * time.Millisecond
	overBoth(t, func(t *testing.T, s *webServer) {
		for name, test := range map[string]struct {
			upload   time.Duration
			h        http.HandlerFunc
			failures int
		}{
			"a slow upload":            {2 * limit, readsAll, 0},
			"a slow answer":            {0, func(w http.ResponseWriter, r *http.Request) { readsAll(w, r); time.Sleep(2 * limit) }, 1},
			"a slow upload and answer": {2 * limit, func(w http.ResponseWriter, r *http.Request) { readsAll(w, r); time.Sleep(2 * limit) }, 1},
			"an early answer": {2 * limit, func(w http.ResponseWriter, r *http.Request) {
				if !s.EnableHTTP2 {
					_ = http.NewResponseController(w).EnableFullDuplex()
				}
				_ = http.NewResponseController(w).Flush()
				readsAll(w, r)
			}, 0},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := startWeb(t, s.protocol())
				s.does(test.h)
				c := startWebClient(t, s, infuse.Config{FailMax: 100, SlowCall: limit})
				reader, writer := io.Pipe()
				go func() {
					_, _ = io.WriteString(writer, "order")
					time.Sleep(test.upload)
					_ = writer.Close()
				}()
				response, err := c.Post(s.URL, "text/plain", reader)
				require.NoError(t, err)
				require.Equal(t, test.failures, failuresOf(c.breaker))
				_, err = readAll(response)
				require.NoError(t, err)
			})
		}
	})
}
