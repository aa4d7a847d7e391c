package neighbours_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"resty.dev/v3"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/neighbours"
)

func TestResty3(t *testing.T) {
	s, transport, breaker := start(t)
	client := neighbours.NewResty3Client(transport).
		SetRetryCount(10).
		SetRetryWaitTime(time.Millisecond).
		SetRetryMaxWaitTime(time.Millisecond)
	t.Cleanup(func() { require.NoError(t, client.Close()) })

	_, err := client.R().SetBody("order").Put(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load(), "every attempt counted, and the open circuit was not retried")
	require.Equal(t, int64(3*len("order")), s.bodies.Load(), "every attempt sent its body")

	_, err = client.R().Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(3), s.calls.Load())
	require.Equal(t, int64(2), s.rejections.Load(), "one for each call")

	s.recover(t, breaker)
	response, err := client.R().Get(s.URL)
	require.NoError(t, err)
	require.Equal(t, "well", response.String())
	require.Equal(t, infuse.StateClosed, breaker.State())
}

// What version 3 does by itself: a rejection is not temporary.
func TestResty3DoesNotRetryARejectionByItself(t *testing.T) {
	s, transport, _ := refused(t)
	client := resty.New().SetTransport(transport).SetRetryCount(10)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	_, err := client.R().Get(s.URL)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(1), s.rejections.Load())
}
