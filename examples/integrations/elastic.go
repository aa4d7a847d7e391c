package integrations

// This file shows go-elasticsearch.

import (
	"errors"
	"net/http"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/infuse-go/infuse"
)

// ElasticOptions returns options for elasticsearch.WithTransportOptions. They set the
// Transport and the RetryOnError of an elasticsearch.Config. Without RetryOnError, a
// rejected request is attempted four times without a pause.
//
// This is for one address. With several nodes omit RetryOnError: each node has its own
// circuit, and the next attempt goes to another node.
func ElasticOptions(transport *infuse.Transport) []elastictransport.Option {
	return []elastictransport.Option{
		elastictransport.WithTransport(transport),
		elastictransport.WithRetryOnError(func(_ *http.Request, err error) bool { return err != nil && !errors.Is(err, infuse.ErrOpen) }),
	}
}
