//lint:file-ignore SA1019 many clients still use x/net's http2, so it is tested

package integrations_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/infuse-go/infuse"
)

// golang.org/x/net/http2 has other error types than net/http. Failures of uploads in an
// outage were ignored; only failures of the caller's body must be ignored.
func TestUploadsThroughXNetHTTP2(t *testing.T) {
	errOwn := errors.New("the order changed")
	handler := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/hang":
			<-r.Context().Done()
		}
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(handler))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	defer server.CloseClientConnections()
	order := func() io.Reader { return struct{ io.Reader }{strings.NewReader("order")} }
	for name, test := range map[string]struct {
		path     string
		body     func() io.Reader
		dial     error
		failures int
	}{
		"a stream that is aborted":      {path: "/abort", body: order, failures: 1},
		"a service that hangs":          {path: "/hang", body: order, failures: 1},
		"a dialer with a plain error":   {path: "/", body: order, dial: errors.New("no healthy instance"), failures: 1},
		"an upload that fails itself":   {path: "/", body: func() io.Reader { return io.MultiReader(order(), brokenReader{errOwn}) }, failures: 0},
		"an upload that never delivers": {path: "/", body: silent, failures: 0},
	} {
		t.Run(name, func(t *testing.T) {
			group, err := infuse.NewGroup(infuse.Config{FailMax: 100})
			require.NoError(t, err)
			defer group.Stop()
			base := &http2.Transport{TLSClientConfig: server.Client().Transport.(*http.Transport).TLSClientConfig}
			defer base.CloseIdleConnections()
			if test.dial != nil {
				base.DialTLSContext = func(context.Context, string, string, *tls.Config) (net.Conn, error) { return nil, test.dial }
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+test.path, test.body())
			require.NoError(t, err)
			_, err = (&infuse.Transport{Base: base, Breakers: group}).RoundTrip(r)
			require.Error(t, err)
			b, err := group.Breaker(server.Listener.Addr().String())
			require.NoError(t, err)
			require.Equal(t, test.failures, max(b.Stats().Local.Failures, b.Stats().Shared.Failures))
		})
	}
}

// brokenReader is a reader whose Read fails.
type brokenReader struct{ err error }

func (f brokenReader) Read([]byte) (int, error) { return 0, f.err }

// silent is a body whose Read returns when it is closed.
func silent() io.Reader {
	reader, _ := io.Pipe()
	return reader
}
