package transport_test

import (
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
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

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

// malformedUploads are chunked uploads that are truncated or that are malformed.
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
						require.Zero(t, failuresOf(p.breaker), "%T: %v", err, err)
					}
					requireState(t, infuse.StateClosed, p.breaker)
				})
			}
		}
	})
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
			go sendsGoaway(listener, test.code, test.last)
			protocols := new(http.Protocols)
			protocols.SetUnencryptedHTTP2(true)
			base := &http.Transport{Protocols: protocols}
			defer base.CloseIdleConnections()
			group := groupOf(t, infuse.Config{FailMax: 100})
			b := breakerOf(t, group, listener.Addr().String())
			require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
			reader, writer := io.Pipe()
			defer writer.Close()
			go func() { _, _ = io.WriteString(writer, "order") }()
			_, err = (&infuse.Transport{Base: base, Breakers: group}).RoundTrip(newRequest(t, http.MethodPost, "http://"+listener.Addr().String(), reader))
			require.Error(t, err)
			require.Equal(t, test.failures, failuresOf(b), "%v", err)
		})
	}
}

// sendsGoaway serves HTTP/2 connections: it reads the first data, sends a GOAWAY and
// closes.
func sendsGoaway(listener net.Listener, code, last byte) {
	const settings, goaway, data = 4, 7, 0
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
				_, _ = conn.Write(frameOf(goaway, 0, 0, 0, last, 0, 0, 0, code))
				time.Sleep(20 * time.Millisecond)
				break
			}
		}
		_ = conn.Close()
	}
}
