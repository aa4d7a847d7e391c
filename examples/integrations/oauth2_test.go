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

// tokens is a token server's answer. A token that is over at once has the next
// call ask for another.
func tokens(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"access_token":"secret","token_type":"Bearer","expires_in":1}`)
}

func TestOAuth2(t *testing.T) {
	issuer, transport, ofIssuer := startWith(t, tokens)
	api, _, _ := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "who is it?", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "well")
	})
	ofAPI, err := transport.Breakers.Breaker(api.Listener.Addr().String())
	require.NoError(t, err)
	client := integrations.NewOAuth2Client(t.Context(), transport, &clientcredentials.Config{
		ClientID: "orders", ClientSecret: "secret", TokenURL: issuer.URL, AuthStyle: oauth2.AuthStyleInHeader,
	})
	succeeds := func() {
		t.Helper()
		response, err := client.Get(api.URL)
		require.NoError(t, err)
		requireWell(t, response.Body)
	}
	succeeds()

	issuer.ill.Store(true)
	for range 3 {
		_, err := client.Get(api.URL)
		var answer *oauth2.RetrieveError
		require.ErrorAs(t, err, &answer)
		require.Equal(t, http.StatusBadGateway, answer.Response.StatusCode)
	}
	_, err = client.Get(api.URL)
	var rejected *infuse.OpenError
	require.ErrorAs(t, err, &rejected)
	require.Equal(t, ofIssuer.Name(), rejected.Circuit)
	require.Equal(t, int64(4), issuer.calls.Load(), "nothing was sent")
	require.Equal(t, int64(1), issuer.rejections.Load(), "a rejection was not tried again")
	require.Equal(t, int64(1), api.calls.Load())
	require.Equal(t, infuse.StateClosed, ofAPI.State(), "the service does not pay for it")

	issuer.recover(t, ofIssuer)
	succeeds()
	require.Equal(t, infuse.StateClosed, ofIssuer.State())

	api.ill.Store(true)
	for range 3 {
		response, err := client.Get(api.URL)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
	}
	_, err = client.Get(api.URL)
	require.ErrorAs(t, err, &rejected)
	require.Equal(t, ofAPI.Name(), rejected.Circuit)
	require.Equal(t, infuse.StateClosed, ofIssuer.State(), "nor the other way round")
}

// While the style is to be detected, whatever fails is tried again.
func TestOAuth2RetriesARejectionUnlessItHasAStyle(t *testing.T) {
	issuer, transport, breaker := startWith(t, tokens)
	require.NoError(t, breaker.SetState(t.Context(), infuse.StateOpen))
	client := integrations.NewOAuth2Client(t.Context(), transport, &clientcredentials.Config{TokenURL: issuer.URL})
	_, err := client.Get("http://api.invalid")
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(2), issuer.rejections.Load())
}
