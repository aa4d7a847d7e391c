package integrations_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/googleapis/gax-go/v2"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

func TestGoogle(t *testing.T) {
	s, transport, breaker := startWith(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(storage.Bucket{Name: "orders"})
	})
	tokens := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "secret"})
	service, err := storage.NewService(t.Context(), integrations.GoogleOption(transport, tokens), option.WithEndpoint(s.URL))
	require.NoError(t, err)

	bucket, err := service.Buckets.Get("orders").Do()
	require.NoError(t, err, "the request is signed")
	require.Equal(t, "orders", bucket.Name)

	s.failing.Store(true)
	for range 3 {
		_, err := service.Buckets.Get("orders").Do()
		var answer *googleapi.Error
		require.ErrorAs(t, err, &answer)
		require.Equal(t, http.StatusBadGateway, answer.Code)
	}
	_, err = service.Buckets.Get("orders").Do()
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(4), s.calls.Load(), "no request is sent")
	require.Equal(t, int64(1), s.rejections.Load())

	s.recover(t, breaker)
	_, err = service.Buckets.Get("orders").Do()
	require.NoError(t, err)
	require.Equal(t, infuse.StateClosed, breaker.State())
}

// An upload is retried until its context ends, so its own failures may open the circuit.
func TestGoogleUploadDoesNotRetryARejection(t *testing.T) {
	s, transport, _ := start(t)
	tokens := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "secret"})
	service, err := storage.NewService(t.Context(), integrations.GoogleOption(transport, tokens), option.WithEndpoint(s.URL))
	require.NoError(t, err)

	upload := func() error {
		_, err := service.Objects.Insert("orders", &storage.Object{Name: "one"}).
			Media(strings.NewReader("order")).
			WithRetry(&gax.Backoff{Initial: time.Millisecond, Max: time.Millisecond}, nil).
			Context(t.Context()).Do()
		return err
	}
	require.ErrorIs(t, upload(), infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load(), "each attempt counts, and a rejection is not retried")
	require.ErrorIs(t, upload(), infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load())
	require.Equal(t, int64(2), s.rejections.Load(), "one for each call")
}

// A missing token is not a failure of the service.
func TestGoogleTokensAreFetchedOutsideOfTheBreaker(t *testing.T) {
	s, transport, breaker := startWith(t, func(http.ResponseWriter, *http.Request) {})
	noTokens := errors.New("no tokens")
	service, err := storage.NewService(t.Context(), integrations.GoogleOption(transport, failing{noTokens}), option.WithEndpoint(s.URL))
	require.NoError(t, err)
	for range 4 {
		_, err := service.Buckets.Get("orders").Do()
		require.ErrorIs(t, err, noTokens)
	}
	require.Equal(t, infuse.StateClosed, breaker.State())
	require.Zero(t, s.failures.Load())
}

type failing struct{ err error }

func (f failing) Token() (*oauth2.Token, error) { return nil, f.err }
