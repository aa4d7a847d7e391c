package infuse_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// streamed is a body that cannot be sent twice.
func streamed(r io.Reader) io.Reader { return struct{ io.Reader }{r} }

// readsAll is a handler that reads the request's body.
func readsAll(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

// An outage behind a dialer with errors of its own was ignored for uploads: 20 of
// 20 were sent (H1).
func TestAnErrorThatTheBodyDidNotReturnIsNeverTheBodysFault(t *testing.T) {
	plain := errors.New("resolver: no healthy instance of payments")
	_, ofFile := net.LookupPort("tcp", "no such service")
	for name, spoil := range map[string]func(*http.Transport){
		"a dialer": func(base *http.Transport) {
			base.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, plain }
		},
		"another dialer": func(base *http.Transport) {
			base.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, ofFile }
		},
		"a proxy": func(base *http.Transport) { base.Proxy = func(*http.Request) (*url.URL, error) { return nil, plain } },
		"a TLS dialer": func(base *http.Transport) {
			base.DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return nil, plain }
			base.DialContext = base.DialTLSContext
		},
		"VerifyConnection": func(base *http.Transport) {
			if base.TLSClientConfig == nil {
				base.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, plain }
				return
			}
			base.TLSClientConfig.VerifyConnection = func(tls.ConnectionState) error { return plain }
		},
		"a connection": func(base *http.Transport) {
			base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				return failingConn{conn, plain}, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, s *webServer) {
				s.does(readsAll)
				for _, classify := range classifiers {
					c := startWebClient(t, s, infuse.Config{FailMax: 3})
					base := s.Server.Client().Transport.(*http.Transport).Clone()
					spoil(base)
					c.transport.Base, c.transport.Classify = base, classify
					for range 3 {
						_, err := c.Post(s.URL, "text/plain", streamed(strings.NewReader("order")))
						require.Error(t, err)
						require.NotErrorIs(t, err, infuse.ErrOpen)
					}
					requireState(t, infuse.StateOpen, c.breaker)
				}
			})
		})
	}
}

// failingConn is a connection whose Write has an error of no known type.
type failingConn struct {
	net.Conn
	err error
}

func (c failingConn) Write([]byte) (int, error) { return 0, c.err }

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

// proxied is a reverse proxy in front of a server, through a Transport.
type proxied struct {
	*httptest.Server
	*webClient
	errs chan error // of uploads that failed
}

func startProxy(t *testing.T, s *webServer, cfg infuse.Config, wrap func(http.Handler) http.Handler, set func(*http.Server)) *proxied {
	t.Helper()
	p := &proxied{webClient: startWebClient(t, s, cfg), errs: make(chan error, 10_000)}
	to, err := url.Parse(s.URL)
	require.NoError(t, err)
	var h http.Handler = &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: p.transport,
		ErrorLog:  log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			p.errs <- err
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	if wrap != nil {
		h = wrap(h)
	}
	p.Server = httptest.NewUnstartedServer(h)
	p.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if set != nil {
		set(p.Server.Config)
	}
	p.Server.Start()
	t.Cleanup(func() { p.Server.CloseClientConnections(); p.Server.Close() })
	return p
}

// raw sends what is no valid request, and returns the connection.
func (p *proxied) raw(t testing.TB, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Server.Listener.Addr().String())
	require.NoError(t, err)
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: proxy.test\r\n"+text)
	require.NoError(t, err)
	return conn
}

const chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"

// malformedUploads are chunked uploads that break off or that are malformed.
var malformedUploads = map[string]string{
	"a bad length":              chunked + "xyz\r\n",
	"a negative length":         chunked + "-1\r\n",
	"a length that is too long": chunked + "fffffffffffffffffffff\r\n",
	"no CRLF after a chunk":     chunked + "3\r\nabcdef\r\n0\r\n\r\n",
	"a huge line":               chunked + strings.Repeat("1", 5000) + "\r\n",
	"a trailer without a colon": chunked + "0\r\nno colon here\r\n\r\n",
	"a trailer of 20 KB":        chunked + "0\r\nX-Long: " + strings.Repeat("x", 20<<10) + "\r\n\r\n",
	"half a chunk":              chunked + "10\r\nhalf",
	"no end":                    chunked,
	"half of a length":          "Content-Length: 100\r\n\r\nhalf",
}

// Five malformed uploads of strangers opened the circuit of a healthy service
// behind a reverse proxy, for all (H2).
func TestMalformedUploadsThroughAReverseProxyAreIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(readsAll)
		for name, text := range malformedUploads {
			for end, closes := range map[string]func(*net.TCPConn){
				"half-closed": func(c *net.TCPConn) { _ = c.CloseWrite() },
				"closed":      func(c *net.TCPConn) { _ = c.Close() },
				"reset":       func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
			} {
				t.Run(name+"/"+end, func(t *testing.T) {
					p := startProxy(t, s, infuse.Config{FailMax: 2}, nil, nil)
					for range 3 {
						before := s.calls.Load()
						conn := p.raw(t, text)
						defer conn.Close()
						require.Eventually(t, func() bool { return s.calls.Load() > before }, patience, time.Millisecond)
						closes(conn.(*net.TCPConn))
						err := <-p.errs
						require.Zero(t, infuse.FailuresOf(p.breaker), "%T: %v", err, err)
					}
					requireState(t, infuse.StateClosed, p.breaker)
				})
			}
		}
	})
}

// An upload that breaks off after the response began: its error came back from
// the response's body.
func TestAnUploadThatBreaksOffDuringTheResponseIsIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			if !s.EnableHTTP2 {
				assert.NoError(t, c.EnableFullDuplex())
			}
			_, _ = io.WriteString(w, "first")
			_ = c.Flush()
			readsAll(w, r)
			s.stall(r)
		})
		c := startFailedClient(t, s)
		reader, writer := io.Pipe()
		response, err := c.Post(s.URL, "text/plain", reader)
		require.NoError(t, err)
		require.NoError(t, writer.CloseWithError(errIll))
		_, err = readAll(response)
		require.Error(t, err)
		require.Equal(t, 1, infuse.FailuresOf(c.breaker), "%v", err)
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
				require.ErrorIs(t, p.breaker.Call(t.Context(), fails), errIll)
				conn := p.raw(t, chunked)
				defer conn.Close()
				if name == "http.TimeoutHandler" { // net/http waits for the end of the Read
					time.Sleep(2 * limit)
					_, err := io.WriteString(conn, "4\r\nmore\r\n")
					require.NoError(t, err)
				}
				<-p.errs
				require.Equal(t, 1, infuse.FailuresOf(p.breaker))
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
					ctx, cancel := context.WithTimeoutCause(r.Context(), limit, errIll)
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
					"and gives up":  func(w *io.PipeWriter) { _ = w.CloseWithError(errIll) },
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
					require.Equal(t, 1, infuse.FailuresOf(c.breaker), "%s %s: %v", name, end, err)
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
		require.Zero(t, infuse.FailuresOf(breakerOf(t, group, "inventory.test")))
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
			require.Equal(t, 2, infuse.FailuresOf(c.breaker), name)
		}
	})
}

// A response of an unhealthy service is the body of a request to a healthy one:
// the healthy one was blamed (H4).
func TestCopyingFromAnUnhealthyToAHealthyServiceBlamesTheUnhealthyOne(t *testing.T) {
	overBoth(t, func(t *testing.T, to *webServer) {
		from := startWeb(t, to.protocol())
		to.does(readsAll)
		for name, test := range map[string]struct {
			h        http.HandlerFunc
			failures int
		}{
			"breaks off": {breaksOff, 1},
			"stalls":     {from.stallsInTheBody, 1},
			"healthy":    {answers(http.StatusOK, "all of it"), 0},
		} {
			t.Run(name, func(t *testing.T) {
				from.does(test.h)
				source, target := startWebClient(t, from, infuse.Config{FailMax: 100}), startFailedClient(t, to)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				page, err := source.Do(newRequest(t, http.MethodGet, from.URL, nil).WithContext(ctx))
				require.NoError(t, err)
				response, err := target.Do(newRequest(t, http.MethodPost, to.URL, page.Body).WithContext(ctx))
				if err == nil {
					_, _ = readAll(response)
				}
				_ = page.Body.Close()
				if name != "stalls" { // the target's client may close the page before the deadline is reported
					require.Equal(t, test.failures, infuse.FailuresOf(source.breaker))
				}
				require.Equal(t, test.failures, infuse.FailuresOf(target.breaker), "%v", err)
			})
		}
	})
}

// SlowCall counted the time of the caller's own upload (H5).
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
				require.Equal(t, test.failures, infuse.FailuresOf(c.breaker))
				_, err = readAll(response)
				require.NoError(t, err)
			})
		}
	})
}

// What a Base sees of a body that cannot be sent twice.
func TestACopyIsSentOfARequestWhoseBodyCannotBeSentTwice(t *testing.T) {
	body := &closeCounter{Reader: strings.NewReader("order")}
	r := newRequest(t, http.MethodPost, "http://inventory.test", body)
	r.ContentLength = 5
	var sent *http.Request
	transport := &infuse.Transport{Base: baseFunc(func(got *http.Request) (*http.Response, error) {
		sent = got
		text, err := io.ReadAll(got.Body)
		require.NoError(t, err)
		require.Equal(t, "order", string(text))
		require.NoError(t, got.Body.Close())
		return always(http.StatusOK, "well")(got)
	})}
	response, err := transport.RoundTrip(r)
	require.NoError(t, err)
	require.NotSame(t, r, sent)
	require.Same(t, r, response.Request, "the caller sees its own")
	require.Same(t, body, r.Body)
	require.Equal(t, int64(1), body.closed.Load())
	sent.Body = r.Body
	require.Equal(t, r, sent, "but for the body it is the same")

	for name, r := range map[string]*http.Request{
		"no body":  newRequest(t, http.MethodGet, "http://inventory.test", nil),
		"NoBody":   newRequest(t, http.MethodGet, "http://inventory.test", http.NoBody),
		"GetBody":  newRequest(t, http.MethodPost, "http://inventory.test", strings.NewReader("order")),
		"GetBody2": newRequest(t, http.MethodPost, "http://inventory.test", strings.NewReader("")),
	} {
		transport.Base = baseFunc(func(got *http.Request) (*http.Response, error) {
			require.Same(t, r, got, name)
			return always(http.StatusOK, "well")(got)
		})
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
	}
}

// A length that is known is sent as it is, and Expect: 100-continue holds.
func TestAnUploadIsFramedAsWithoutTheTransport(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.Client().Transport.(*http.Transport).ExpectContinueTimeout = patience
		for name, test := range map[string]struct {
			length int64
			expect bool
		}{"a length": {length: 5}, "none": {length: -1}, "100-continue": {length: 5, expect: true}} {
			t.Run(name, func(t *testing.T) {
				read := false
				s.does(func(w http.ResponseWriter, r *http.Request) {
					if test.expect {
						w.WriteHeader(http.StatusUnauthorized)
						return
					}
					assert.Equal(t, test.length, r.ContentLength)
					text, err := io.ReadAll(r.Body)
					assert.NoError(t, err)
					assert.Equal(t, "order", string(text))
				})
				c := startWebClient(t, s, infuse.Config{})
				r := newRequest(t, http.MethodPost, s.URL, streamed(readFunc(func(p []byte) (int, error) {
					read = true
					return 0, io.EOF
				})))
				if !test.expect {
					r.Body = io.NopCloser(streamed(strings.NewReader("order")))
				} else {
					r.Header.Set("Expect", "100-continue")
				}
				r.ContentLength = test.length
				response, err := c.Do(r)
				require.NoError(t, err)
				_, _ = readAll(response)
				require.False(t, read, "the server refused before the body was sent")
			})
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// Close may come while a Read is pending, from another goroutine.
func TestACloseWhileTheUploadIsReadIsNoRace(t *testing.T) {
	transport := &infuse.Transport{Breakers: groupOf(t, infuse.Config{FailMax: 1000}), Base: baseFunc(func(r *http.Request) (*http.Response, error) {
		go func() { _, _ = io.Copy(io.Discard, r.Body) }()
		go r.Body.Close()
		return nil, io.ErrUnexpectedEOF
	})}
	for range 100 {
		reader, writer := io.Pipe()
		go func() { _, _ = io.WriteString(writer, "order"); _ = writer.Close() }()
		_, err := transport.RoundTrip(newRequest(t, http.MethodPost, "http://inventory.test", reader))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
	require.Equal(t, 100, infuse.FailuresOf(breakerOf(t, transport.Breakers, "inventory.test")), "what Close does to a Read is not the body's error")
}

// 405 honest requests were answered beside broken uploads, and 1,173 rejected
// (H2).
func TestNoHonestRequestIsRejectedBesideBrokenUploads(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(readsAll)
		p := startProxy(t, s, infuse.Config{FailMax: 5, FailureRate: 0.03}, nil, nil)
		const seconds, honest, broken = 2, 200, 40
		var texts []string
		for _, text := range malformedUploads {
			texts = append(texts, text)
		}
		var failed, sent atomic.Int64
		var all sync.WaitGroup
		client := p.Server.Client()
		client.Transport.(*http.Transport).MaxIdleConnsPerHost = 50
		tick := time.NewTicker(time.Second / honest)
		defer tick.Stop()
		for i := range seconds * honest {
			<-tick.C
			all.Go(func() {
				sent.Add(1)
				var body io.Reader
				if i%2 == 0 {
					body = streamed(strings.NewReader("an order"))
				}
				response, err := client.Post(p.Server.URL, "text/plain", body)
				if err != nil || response.StatusCode != http.StatusOK {
					failed.Add(1)
				}
				if err == nil {
					_, _ = readAll(response)
				}
			})
			if i%(honest/broken) == 0 {
				conn := p.raw(t, texts[i/(honest/broken)%len(texts)])
				all.Go(func() {
					_ = conn.(*net.TCPConn).CloseWrite()
					time.Sleep(20 * time.Millisecond)
					_ = conn.Close()
				})
			}
		}
		all.Wait()
		require.Equal(t, int64(seconds*honest), sent.Load())
		require.Zero(t, failed.Load())
		requireState(t, infuse.StateClosed, p.breaker)
	})
}

// A server that shuts down says which requests it has not processed (RFC 9113,
// 6.8). An upload among them was a failure (H11).
func TestAGracefulGOAWAYIsIgnored(t *testing.T) {
	for name, test := range map[string]struct {
		code     byte
		last     byte // the last stream that was processed
		failures int
	}{
		"NO_ERROR, not processed":   {0, 0, 1},
		"NO_ERROR, processed":       {0, 1, 2},
		"PROTOCOL_ERROR":            {1, 0, 2},
		"INTERNAL_ERROR, processed": {2, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer listener.Close()
			go goesAway(listener, test.code, test.last)
			protocols := new(http.Protocols)
			protocols.SetUnencryptedHTTP2(true)
			base := &http.Transport{Protocols: protocols}
			defer base.CloseIdleConnections()
			group := groupOf(t, infuse.Config{FailMax: 100})
			b := breakerOf(t, group, listener.Addr().String())
			require.ErrorIs(t, b.Call(t.Context(), fails), errIll)
			reader, writer := io.Pipe()
			defer writer.Close()
			go func() { _, _ = io.WriteString(writer, "order") }()
			_, err = (&infuse.Transport{Base: base, Breakers: group}).RoundTrip(newRequest(t, http.MethodPost, "http://"+listener.Addr().String(), reader))
			require.Error(t, err)
			require.Equal(t, test.failures, infuse.FailuresOf(b), "%v", err)
		})
	}
}

// goesAway serves HTTP/2 connections: it reads the first data, sends a GOAWAY and
// closes.
func goesAway(listener net.Listener, code, last byte) {
	const settings, goAway, data = 4, 7, 0
	frameOf := func(kind byte, payload ...byte) []byte {
		return append([]byte{0, 0, byte(len(payload)), kind, 0, 0, 0, 0, 0}, payload...)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Write(frameOf(settings))
		_, _ = io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
		for head := make([]byte, 9); ; {
			if _, err := io.ReadFull(conn, head); err != nil {
				break
			}
			_, _ = io.CopyN(io.Discard, conn, int64(head[0])<<16|int64(head[1])<<8|int64(head[2]))
			if head[3] == data {
				_, _ = conn.Write(frameOf(goAway, 0, 0, 0, last, 0, 0, 0, code))
				time.Sleep(20 * time.Millisecond)
				break
			}
		}
		_ = conn.Close()
	}
}
