package redistest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMini(t *testing.T) {
	t.Parallel()
	mini := StartMini(t)
	client, ctx := mini.Client(), t.Context()
	require.NoError(t, client.Set(ctx, "key", "value", time.Minute).Err())

	noon := time.Date(2030, 1, 1, 12, 0, 0, 123_000, time.UTC)
	mini.SetTime(noon)
	for range 2 { // it stands still
		now, err := client.Time(ctx).Result()
		require.NoError(t, err)
		require.True(t, noon.Equal(now), now)
	}
	mini.FastForward(59 * time.Second)
	require.Equal(t, "value", client.Get(ctx, "key").Val())
	mini.FastForward(time.Second)
	require.Empty(t, client.Get(ctx, "key").Val())
}
