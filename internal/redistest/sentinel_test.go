package redistest_test

// This file tests the Sentinel.

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

func TestFailover(t *testing.T) {
	t.Parallel()
	ctx := within(t, 20*time.Second)
	s := redistest.StartSentinel(t)
	client := s.Client()
	first, second := s.Master(), s.Replica()
	require.NotEqual(t, first.Addr(), second.Addr())
	require.NoError(t, client.Set(ctx, "key", "value", 0).Err())
	require.Eventually(t, func() bool {
		return second.Client().DBSize(ctx).Val() == 1
	}, patience, pace)

	require.NoError(t, s.Failover(ctx))

	require.Equal(t, second.Addr(), s.Master().Addr())
	require.Equal(t, first.Addr(), s.Replica().Addr())
	require.NoError(t, second.Client().Set(ctx, "new", "value", 0).Err())
	require.Eventually(t, func() bool {
		return client.Get(ctx, "new").Val() == "value"
	}, patience, pace, "the client uses the new master")
	require.Equal(t, "value", client.Get(ctx, "key").Val())

	require.NoError(t, s.Failover(ctx), "failover back")
	require.Equal(t, first.Addr(), s.Master().Addr())
}

func TestSentinelReplacesFailedMaster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.StartSentinel(t)
	client := s.Client()
	replica := s.Replica()

	s.Master().Kill()

	require.Eventually(t, func() bool {
		return client.Set(ctx, "key", "value", 0).Err() == nil
	}, patience, pace)
	require.Equal(t, replica.Addr(), s.Master().Addr())
	require.Equal(t, "value", replica.Client().Get(ctx, "key").Val())
}
