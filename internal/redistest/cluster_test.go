package redistest_test

// This file tests the Cluster.

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// The subtests share one cluster, because a new one accepts no writes for two seconds.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, "--cluster-node-timeout", "500")
	t.Run("keys are distributed", func(t *testing.T) { spreadsKeys(t, c) })
	t.Run("a slot is moved with its keys", func(t *testing.T) { movesSlot(t, c) })
	t.Run("clients get no errors during moves", func(t *testing.T) { movesUnderLoad(t, c) })
	t.Run("the remaining slots are served while a node is down", func(t *testing.T) { losesNode(t, c) })
}

func spreadsKeys(t *testing.T, c *redistest.Cluster) {
	ctx := t.Context()
	client := c.Client()
	const keys = 300
	for i := range keys {
		require.NoError(t, client.Set(ctx, fmt.Sprint("key", i), i, 0).Err())
	}
	require.Len(t, c.Nodes(), 3)
	var total int64
	for i, node := range c.Nodes() {
		require.Equal(t, c.Addrs()[i], node.Addr())
		size := node.Client().DBSize(ctx).Val()
		require.Positive(t, size)
		total += size
	}
	require.Equal(t, int64(keys), total)
}

func movesSlot(t *testing.T, c *redistest.Cluster) {
	ctx := t.Context()
	client := c.Client()
	const keys = 250 // more than one MIGRATE moves
	for i := range keys {
		require.NoError(t, client.Set(ctx, fmt.Sprintf("{tag}%d", i), i, 0).Err())
	}
	slot, from, err := c.Owner(ctx, "{tag}")
	require.NoError(t, err)
	require.Equal(t, int64(slot), client.ClusterKeySlot(ctx, "{tag}").Val())
	to := c.Nodes()[0]
	if to == from {
		to = c.Nodes()[1]
	}

	require.NoError(t, c.MoveSlot(ctx, slot, from, to))

	_, owner, err := c.Owner(ctx, "{tag}")
	require.NoError(t, err)
	require.Equal(t, to.Addr(), owner.Addr())
	require.Zero(t, from.Client().ClusterCountKeysInSlot(ctx, slot).Val())
	require.Equal(t, int64(keys), to.Client().ClusterCountKeysInSlot(ctx, slot).Val())
	require.ErrorContains(t, from.Client().Get(ctx, "{tag}0").Err(), "MOVED")
	for i := range keys {
		require.Equal(t, fmt.Sprint(i), client.Get(ctx, fmt.Sprintf("{tag}%d", i)).Val())
	}

	require.ErrorContains(t, c.MoveSlot(ctx, slot, from, to), "move slot", "the slot belongs to another node")
}

func movesUnderLoad(t *testing.T, c *redistest.Cluster) {
	ctx := t.Context()
	slot, from, err := c.Owner(ctx, "counter")
	require.NoError(t, err)
	stop := make(chan struct{})
	counted := make(chan int64)
	go func() {
		defer close(counted)
		client := c.Client()
		for n := int64(1); ; n++ {
			count, err := client.Incr(ctx, "counter").Result()
			assert.NoError(t, err)
			assert.Equal(t, n, count)
			select {
			case <-stop:
				counted <- n
				return
			default:
			}
		}
	}()

	for i := range 30 {
		to := c.Nodes()[i%3]
		if to == from {
			continue
		}
		require.NoError(t, c.MoveSlot(ctx, slot, from, to))
		from = to
	}

	close(stop)
	require.Greater(t, <-counted, int64(30))
}

func losesNode(t *testing.T, c *redistest.Cluster) {
	ctx := t.Context()
	_, lost, err := c.Owner(ctx, "a")
	require.NoError(t, err)
	_, kept, err := c.Owner(ctx, "b")
	require.NoError(t, err)
	require.NotEqual(t, lost.Addr(), kept.Addr())

	lost.Kill()
	require.Eventually(t, func() bool {
		return !strings.Contains(kept.Client().ClusterInfo(ctx).Val(), "cluster_slots_ok:16384")
	}, patience, pace)
	require.NoError(t, kept.Client().Set(ctx, "b", 1, 0).Err())
	_, _, err = c.Owner(ctx, "a")
	require.ErrorContains(t, err, "no node serves")

	require.NoError(t, lost.Restart())
	require.Eventually(t, func() bool {
		return lost.Client().Set(ctx, "a", 1, 0).Err() == nil
	}, patience, pace, "the node is in the cluster again")
}

func TestReplicaOfFailedMasterIsPromoted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := redistest.StartClusterWithReplicas(t, 3, 1, "--cluster-node-timeout", "500")
	require.Len(t, c.Nodes(), 6)
	client := c.Client(func(o *redis.ClusterOptions) {
		// By default go-redis uses a failed master for up to a minute.
		o.ClusterStateReloadInterval = 100 * time.Millisecond
		o.DialerRetries = 1
	})
	require.NoError(t, client.Set(ctx, "key", "value", 0).Err())
	_, master, err := c.Owner(ctx, "key")
	require.NoError(t, err)
	var replica *redistest.Server
	for i, node := range c.Nodes()[:3] {
		if node == master {
			replica = c.Nodes()[3+i]
		}
	}
	require.Eventually(t, func() bool {
		return replica.Client().DBSize(ctx).Val() == 1
	}, patience, pace)

	master.Kill()

	require.Eventually(t, func() bool {
		_, owner, err := c.Owner(ctx, "key")
		return err == nil && owner == replica
	}, patience, pace)
	require.Eventually(t, func() bool {
		return client.Get(ctx, "key").Val() == "value"
	}, patience, pace)
}
