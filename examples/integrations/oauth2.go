package integrations

// This file shows golang.org/x/oauth2.

import (
	"context"
	"net/http"
	"time"

	"github.com/infuse-go/infuse"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// NewOAuth2Client returns a client that uses the breaker for the token server and for the
// service; each host has its own circuit. Tokens are fetched outside of the service's
// breaker: failures of the token server do not count as failures of the service.
//
// Both use the client in the context. Set its Timeout: the request for a token ignores the
// context of the call, and all calls wait for the same token. The context must live as
// long as the client.
//
// Set AuthStyle in the config. While it is detected automatically, failed token requests
// are repeated with the other style: a failure counts twice, and a rejection is retried.
func NewOAuth2Client(ctx context.Context, transport *infuse.Transport, config *clientcredentials.Config) *http.Client {
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return config.Client(context.WithValue(ctx, oauth2.HTTPClient, client))
}
