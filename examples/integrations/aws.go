package integrations

// This file shows aws-sdk-go-v2.

import (
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/infuse-go/infuse"
)

// WithAWS makes the clients of a config use the breaker, like config.WithHTTPClient. The
// retryer of the SDK needs no change: a rejection reports that it is not retryable.
func WithAWS(config aws.Config, transport *infuse.Transport) aws.Config {
	config.HTTPClient = &http.Client{Transport: transport}
	return config
}
