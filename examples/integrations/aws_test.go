package integrations_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

func TestAWS(t *testing.T) {
	s, transport, breaker := startWith(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = io.WriteString(w, `<R><GetCallerIdentityResult><Account>healthy</Account></GetCallerIdentityResult></R>`)
	})
	s.failing.Store(true)
	client := sts.NewFromConfig(integrations.WithAWS(aws.Config{
		Region:       "eu-west-1",
		BaseEndpoint: aws.String(s.URL),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "orders", SecretAccessKey: "secret"}, nil
		}),
		Retryer: func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 10, time.Millisecond })
		},
	}, transport))
	identity := func() (string, error) {
		out, err := client.GetCallerIdentity(t.Context(), nil)
		if err != nil {
			return "", err
		}
		return aws.ToString(out.Account), nil
	}

	_, err := identity()
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load(), "each attempt counts, and a rejection is not retried")
	s.requireOneAttempt(t, breaker, identity)
}
