package integrations_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

// newElastic returns the transport of go-elasticsearch, which retries. The whole client
// would make CI compile the thousand packages of its typed API.
func newElastic(t *testing.T, options []elastictransport.Option, nodes ...*server) *elastictransport.Client {
	t.Helper()
	var urls []*url.URL
	for _, node := range nodes {
		u, err := url.Parse(node.URL)
		require.NoError(t, err)
		urls = append(urls, u)
	}
	client, err := elastictransport.NewClient(append(options, elastictransport.WithURLs(urls...))...)
	require.NoError(t, err)
	return client
}

func search(t *testing.T, client *elastictransport.Client) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/orders/_search", strings.NewReader("{}"))
	require.NoError(t, err)
	return client.Perform(request)
}

func TestElastic(t *testing.T) {
	s, transport, breaker := startWith(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "healthy") })
	client := newElastic(t, integrations.ElasticOptions(transport), s)
	response, err := search(t, client)
	require.NoError(t, err)
	requireHealthy(t, response.Body)

	s.failing.Store(true)
	_, err = search(t, client)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(4), s.calls.Load(), "each attempt counts, and a rejection is not retried")
	require.Equal(t, int64(3*len("{}")), s.bodies.Load(), "each attempt sends its body")

	_, err = search(t, client)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(4), s.calls.Load())
	require.Equal(t, int64(2), s.rejections.Load(), "one for each call")

	s.recover(t, breaker)
	response, err = search(t, client)
	require.NoError(t, err)
	requireHealthy(t, response.Body)
	require.Equal(t, infuse.StateClosed, breaker.State())
}

// With several nodes, a rejected request is retried with the next node.
func TestElasticWithNodes(t *testing.T) {
	failing, transport, breaker := start(t)
	healthy, _, _ := startWith(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "healthy") })
	require.NoError(t, breaker.SetState(t.Context(), infuse.StateOpen))
	client := newElastic(t, []elastictransport.Option{elastictransport.WithTransport(transport)}, failing, healthy)
	for range 4 {
		response, err := search(t, client)
		require.NoError(t, err)
		requireHealthy(t, response.Body)
	}
	require.Zero(t, failing.calls.Load())
	require.Equal(t, int64(1), failing.rejections.Load(), "the client skips the node for some time")
}
