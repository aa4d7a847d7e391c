package transport_test

import (
	"context"
	"crypto/tls"
	"errors"
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

// Uploads that their own readers truncated opened the circuit of the service.
func TestARequestsOwnBodyThatFailsIsIgnored(t *testing.T) {
	_, missing := os.Open(t.TempDir() + "/missing")
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		for name, own := range map[string]error{
			"errors.New":       errUnhealthy,
			"a type":           &ownError{"order.json"},
			"wrapped":          fmt.Errorf("reading the order: %w", errUnhealthy),
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
					require.Equal(t, 1, failuresOf(c.breaker))
				})
			}
		}
	})
}

// What the service or the network does to an upload is a failure, as ever.
func TestAnUploadThatTheServiceTruncatesIsAFailure(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		endless := func() io.Reader { return struct{ io.Reader }{&repeating{}} }
		s.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		c := startFailedClient(t, s)
		_, err := c.Post(s.URL, "text/plain", endless())
		require.Error(t, err)
		require.Equal(t, 2, failuresOf(c.breaker), "%v", err)

		s.Server.Client().Transport.(*http.Transport).ResponseHeaderTimeout = 20 * time.Millisecond
		s.does(s.stalls)
		_, err = c.Post(s.URL, "text/plain", struct{ io.Reader }{strings.NewReader("order")})
		require.Error(t, err)
		require.Equal(t, 3, failuresOf(c.breaker), "%v", err)

		s.CloseClientConnections()
		require.NoError(t, s.Listener.Close())
		_, err = c.Post(s.URL, "text/plain", endless())
		require.Error(t, err)
		require.Equal(t, 4, failuresOf(c.breaker), "%v", err)
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
				require.Equal(t, 1, failuresOf(c.breaker), "%v", err)
			})
		}
	})
}

// Strangers who truncated their uploads opened the circuit of the service behind
// a reverse proxy.
func TestAnUploadThatItsSenderTruncatesIsIgnored(t *testing.T) {
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
				require.Equal(t, 1, failuresOf(c.breaker), "%T: %v", err, err)
			})
		}
	})
}

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

// An upload that is truncated after the response began: its error came back from
// the response's body.
func TestAnUploadThatIsTruncatedDuringTheResponseIsIgnored(t *testing.T) {
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
		require.NoError(t, writer.CloseWithError(errUnhealthy))
		_, err = readAll(response)
		require.Error(t, err)
		require.Equal(t, 1, failuresOf(c.breaker), "%v", err)
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
			"is truncated": {truncates, 1},
			"stalls":       {from.stallsInTheBody, 1},
			"healthy":      {answers(http.StatusOK, "all of it"), 0},
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
					require.Equal(t, test.failures, failuresOf(source.breaker))
				}
				require.Equal(t, test.failures, failuresOf(target.breaker), "%v", err)
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
	require.Equal(t, 100, failuresOf(breakerOf(t, transport.Breakers, "inventory.test")), "what Close does to a Read is not the body's error")
}
