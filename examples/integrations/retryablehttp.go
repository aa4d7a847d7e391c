// Package integrations shows how to use the Transport of Infuse with third-party clients
// and wrappers, and their order.
package integrations

import (
	"context"
	"errors"
	"net/http"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/infuse-go/infuse"
)

// NewRetryableClient retries outside of the breaker: each attempt passes the circuit and
// counts, and a rejection is not retried.
func NewRetryableClient(transport *infuse.Transport) *retryablehttp.Client {
	client := retryablehttp.NewClient()
	client.HTTPClient = &http.Client{Transport: transport}
	client.CheckRetry = func(ctx context.Context, response *http.Response, err error) (bool, error) {
		if errors.Is(err, infuse.ErrOpen) {
			return false, err
		}
		return retryablehttp.DefaultRetryPolicy(ctx, response, err)
	}
	return client
}
