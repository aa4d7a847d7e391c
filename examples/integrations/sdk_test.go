package integrations_test

// This file tests how SDKs classify a rejection.

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// refused returns a server whose circuit is open because its connections were refused.
// Retriers match the text of that error.
func refused(t *testing.T) (*server, *infuse.Transport, *infuse.Breaker) {
	t.Helper()
	s, transport, breaker := start(t)
	s.Close()
	for range 3 {
		_, err := (&http.Client{Transport: transport}).Get(s.URL)
		require.ErrorContains(t, err, "connection refused")
	}
	require.Equal(t, infuse.StateOpen, breaker.State())
	return s, transport, breaker
}

// By default the AWS SDK retries unknown errors: three attempts, with pauses of seconds.
func TestAWSSDKDoesNotRetryARejection(t *testing.T) {
	s, transport, _ := refused(t)
	_, err := (&http.Client{Transport: transport}).Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	for name, retryer := range map[string]interface{ IsErrorRetryable(error) bool }{
		"standard": retry.NewStandard(),
		"adaptive": retry.NewAdaptiveMode(),
	} {
		require.False(t, retryer.IsErrorRetryable(err), name)
	}
}

// The Azure SDK retried a rejection until the caller's deadline, and then returned
// DeadlineExceeded.
func TestAzureSDKDoesNotRetryARejection(t *testing.T) {
	s, transport, _ := refused(t)
	pipeline := runtime.NewPipeline("orders", "v1", runtime.PipelineOptions{}, &policy.ClientOptions{
		Transport: &http.Client{Transport: transport},
		Retry:     policy.RetryOptions{MaxRetries: 3, RetryDelay: time.Hour},
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request, err := runtime.NewRequest(ctx, http.MethodGet, s.URL)
	require.NoError(t, err)
	_, err = pipeline.Do(request)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.NoError(t, ctx.Err())
}
