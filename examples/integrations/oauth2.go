package integrations

import (
	"context"
	"net/http"
	"time"

	"github.com/infuse-go/infuse"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// NewOAuth2Client asks for tokens and calls the service over the breaker, and
// each host has its own circuit. Tokens are had outside of the breaker: a
// service does not pay for a token server that is ill.
//
// The client in the context serves both. Its Timeout matters: a request for a
// token does not heed the context of the call that needs it, and all calls wait
// for the one token. The context should live as long as the client.
//
// Set the config's AuthStyle. While it is to be detected, what fails is tried
// again in the other style: a failure counts twice, and a rejection is retried.
func NewOAuth2Client(ctx context.Context, transport *infuse.Transport, config *clientcredentials.Config) *http.Client {
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return config.Client(context.WithValue(ctx, oauth2.HTTPClient, client))
}
