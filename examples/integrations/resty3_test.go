package integrations_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"resty.dev/v3"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

func TestResty3(t *testing.T) {
	s, transport, breaker := start(t)
	client := integrations.NewResty3Client(transport).
		SetRetryCount(10).
		SetRetryWaitTime(time.Millisecond).
		SetRetryMaxWaitTime(time.Millisecond)
	t.Cleanup(func() { require.NoError(t, client.Close()) })

	s.requireRetriesEndAtTheCircuit(t, breaker, func() error {
		_, err := client.R().SetBody("order").Put(s.URL)
		return err
	}, func() (string, error) {
		response, err := client.R().Get(s.URL)
		return response.String(), err
	})
}

// By default, version 3 does not retry a rejection, because it is not temporary.
func TestResty3DoesNotRetryARejectionByItself(t *testing.T) {
	s, transport, _ := refused(t)
	client := resty.New().SetTransport(transport).SetRetryCount(10)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	_, err := client.R().Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(1), s.rejections.Load())
}
