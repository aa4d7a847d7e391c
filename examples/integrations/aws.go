package integrations

import (
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/infuse-go/infuse"
)

// WithAWS has the clients that are made of a config send over the breaker, as
// config.WithHTTPClient does. The SDK's retryer may stay: it asks a rejection
// whether to try again, and the answer is no.
func WithAWS(config aws.Config, transport *infuse.Transport) aws.Config {
	config.HTTPClient = &http.Client{Transport: transport}
	return config
}
