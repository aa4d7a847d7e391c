package integrations

import (
	"errors"
	"net/http"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/infuse-go/infuse"
)

// ElasticOptions are for elasticsearch.WithTransportOptions, and stand for the
// Transport and the RetryOnError of an elasticsearch.Config. Without the latter,
// a rejection is tried four times, one right after the other.
//
// That is for one address. With several nodes leave RetryOnError out: each has
// its own circuit, and the next try goes to another node.
func ElasticOptions(transport *infuse.Transport) []elastictransport.Option {
	return []elastictransport.Option{
		elastictransport.WithTransport(transport),
		elastictransport.WithRetryOnError(func(_ *http.Request, err error) bool { return err != nil && !errors.Is(err, infuse.ErrOpen) }),
	}
}
