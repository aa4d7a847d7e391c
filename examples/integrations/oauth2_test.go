package integrations_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

// tokens is the handler of a token server. The tokens expire immediately, so each call
// needs another one.
func tokens(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"access_token":"secret","token_type":"Bearer","expires_in":1}`)
}

func TestOAuth2(t *testing.T) {
	issuer, transport, issuerBreaker := startWith(t, tokens)
	api, _, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "healthy")
	})
	apiBreaker, err := transport.Breakers.Breaker(api.Listener.Addr().String())
	require.NoError(t, err)
	client := integrations.NewOAuth2Client(t.Context(), transport, &clientcredentials.Config{
		ClientID: "orders", ClientSecret: "secret", TokenURL: issuer.URL, AuthStyle: oauth2.AuthStyleInHeader,
	})
	succeeds := func() {
		t.Helper()
		response, err := client.Get(api.URL)
		require.NoError(t, err)
		requireHealthy(t, response.Body)
	}
	succeeds()

	issuer.failing.Store(true)
	for range 3 {
		_, err := client.Get(api.URL)
		var answer *oauth2.RetrieveError
		require.ErrorAs(t, err, &answer)
		require.Equal(t, http.StatusBadGateway, answer.Response.StatusCode)
	}
	_, err = client.Get(api.URL)
	var rejected *infuse.OpenError
	require.ErrorAs(t, err, &rejected)
	require.Equal(t, issuerBreaker.Name(), rejected.Circuit)
	require.Equal(t, int64(4), issuer.calls.Load(), "no request is sent")
	require.Equal(t, int64(1), issuer.rejections.Load(), "a rejection is not retried")
	require.Equal(t, int64(1), api.calls.Load())
	require.Equal(t, infuse.StateClosed, apiBreaker.State(), "the service's circuit is unaffected")

	issuer.recover(t, issuerBreaker)
	succeeds()
	require.Equal(t, infuse.StateClosed, issuerBreaker.State())

	api.failing.Store(true)
	for range 3 {
		response, err := client.Get(api.URL)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
	}
	_, err = client.Get(api.URL)
	require.ErrorAs(t, err, &rejected)
	require.Equal(t, apiBreaker.Name(), rejected.Circuit)
	require.Equal(t, infuse.StateClosed, issuerBreaker.State(), "the token server's circuit is unaffected")
}

// While the style is detected, all failed requests are repeated.
func TestOAuth2RetriesRejectionsWithoutAuthStyle(t *testing.T) {
	issuer, transport, breaker := startWith(t, tokens)
	require.NoError(t, breaker.SetState(t.Context(), infuse.StateOpen))
	client := integrations.NewOAuth2Client(t.Context(), transport, &clientcredentials.Config{TokenURL: issuer.URL})
	_, err := client.Get("http://api.invalid")
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(2), issuer.rejections.Load())
}
