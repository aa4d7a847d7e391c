package integrations

// This file shows the clients of google.golang.org/api.

import (
	"net/http"

	"github.com/infuse-go/infuse"
	"golang.org/x/oauth2"
	"google.golang.org/api/option"
)

// GoogleOption makes a client of google.golang.org/api use the breaker.
// option.WithHTTPClient replaces all options of authentication, so the HTTP client must
// sign the requests. It does that outside of the breaker: a missing token is not a failure
// of the service.
//
// The tokens may come from google.DefaultTokenSource, with a context as in NewOAuth2Client.
func GoogleOption(transport *infuse.Transport, tokens oauth2.TokenSource) option.ClientOption {
	return option.WithHTTPClient(&http.Client{Transport: &oauth2.Transport{Source: tokens, Base: transport}})
}
