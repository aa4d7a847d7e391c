package integrations

import (
	"net/http"

	"github.com/infuse-go/infuse"
	"golang.org/x/oauth2"
	"google.golang.org/api/option"
)

// GoogleOption has a service of google.golang.org/api send over the breaker.
// option.WithHTTPClient takes the place of all other options of authentication,
// so the client must sign its requests itself. It does that outside of the
// breaker: a token that cannot be had is no failure of the service.
//
// The tokens may be google.DefaultTokenSource's, with a context as in
// NewOAuth2Client.
func GoogleOption(transport *infuse.Transport, tokens oauth2.TokenSource) option.ClientOption {
	return option.WithHTTPClient(&http.Client{Transport: &oauth2.Transport{Source: tokens, Base: transport}})
}
