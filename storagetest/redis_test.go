package storagetest_test

// This file runs the tests with RedisStorage on a server, a Cluster, Sentinels and
// miniredis.

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/infuse-go/infuse/storagetest"
)

func TestRedis(t *testing.T) {
	t.Parallel()
	runOnRedis(t, redistest.Start(t).Client())
}

func TestRedisWithoutPubSub(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	// A user without permission for Pub/Sub.
	rule := []any{"acl", "setuser", "default", "resetchannels"}
	require.NoError(t, client.Do(t.Context(), rule...).Err())
	runOnRedis(t, client)
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	runOnRedis(t, redistest.StartCluster(t, 3).Client())
}

func TestRedisBehindSentinel(t *testing.T) {
	t.Parallel()
	runOnRedis(t, redistest.StartSentinel(t).Client())
}

// Examples and unit tests of users run with miniredis.
func TestMiniredis(t *testing.T) {
	t.Parallel()
	runOnRedis(t, redistest.StartMini(t).Client())
}

// runOnRedis runs each test with a separate prefix.
func runOnRedis(t *testing.T, client redis.UniversalClient) {
	var storages atomic.Int64
	storagetest.Run(t, func(t *testing.T) infuse.Storage {
		prefix := fmt.Sprintf("test %d:", storages.Add(1))
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: prefix, PollInterval: 100 * time.Millisecond})
		t.Cleanup(func() { require.NoError(t, storage.Close()) })
		return storage
	})
}
