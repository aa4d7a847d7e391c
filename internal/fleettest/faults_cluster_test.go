package fleettest

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// Faults of fleets of Redis. While a fault of many servers is made good,
// go-redis finds its way anew: that takes it longer than on a single one.

func startSentinelFault(t *testing.T) (s *redistest.Sentinel, clients [2]redis.UniversalClient, newcomer redis.UniversalClient) {
	t.Helper()
	takesLong(t)
	t.Parallel()
	quietRedis()
	s = redistest.StartSentinel(t)
	soon := func(o *redis.FailoverOptions) { o.ReadTimeout, o.DialTimeout = time.Second, time.Second }
	return s, [2]redis.UniversalClient{s.Client(soon), s.Client(soon)}, s.Client(soon)
}

// The replica is promoted; what the old master receives after that is lost.
func TestSentinelPromotesTheReplica(t *testing.T) {
	s, clients, newcomer := startSentinelFault(t)
	endure(t, clients, newcomer, func(*traffic) { require.NoError(t, s.Failover(t.Context())) })
}

// The replica that is promoted has nothing: what was open is restored.
func TestSentinelPromotesAnEmptyReplica(t *testing.T) {
	s, clients, newcomer := startSentinelFault(t)
	endure(t, clients, newcomer, func(*traffic) {
		require.NoError(t, s.Failover(t.Context()))
		require.NoError(t, s.Master().Client().FlushAll(t.Context()).Err())
	})
}

// The master is killed, and the sentinel finds out by itself. A process whose
// reads are repeated until then may not notice.
func TestSentinelReplacesAKilledMaster(t *testing.T) {
	s, clients, newcomer := startSentinelFault(t)
	endure(t, clients, newcomer, func(*traffic) {
		master := s.Master()
		master.Kill()
		require.Eventually(t, func() bool { return s.Master().Addr() != master.Addr() }, patience, 10*pace)
	})
}

// owner is the master that has the circuit's key, and its slot.
func owner(t *testing.T, c *redistest.Cluster, circuit string) (slot int, master *redistest.Server) {
	t.Helper()
	slot, master, err := c.Owner(t.Context(), "infuse:{"+circuit+"}")
	require.NoError(t, err)
	return slot, master
}

func startClusterFault(t *testing.T, replicas int) (c *redistest.Cluster, clients [2]redis.UniversalClient, newcomer redis.UniversalClient) {
	t.Helper()
	takesLong(t)
	t.Parallel()
	quietRedis()
	c = redistest.StartClusterWithReplicas(t, 3, replicas)
	soon := func(o *redis.ClusterOptions) { o.ReadTimeout, o.DialTimeout = time.Second, time.Second }
	return c, [2]redis.UniversalClient{c.Client(soon), c.Client(soon)}, c.Client(soon)
}

// Nothing takes the place of the master that has the busy circuit, until it
// comes back by itself, and empty.
func TestAMasterOfTheClusterIsKilled(t *testing.T) {
	c, clients, newcomer := startClusterFault(t, 0)
	endure(t, clients, newcomer, func(tr *traffic) {
		_, master := owner(t, c, "busy")
		master.Kill()
		tr.awaitOutage()
		time.Sleep(3 * time.Second)
		require.NoError(t, master.Restart())
	})
}

// Its replica is promoted.
func TestAMasterOfTheClusterIsKilledThatHasAReplica(t *testing.T) {
	c, clients, newcomer := startClusterFault(t, 1)
	endure(t, clients, newcomer, func(tr *traffic) {
		_, master := owner(t, c, "busy")
		master.Kill()
		require.Eventually(t, func() bool {
			_, successor, err := c.Owner(t.Context(), "infuse:{busy}")
			return err == nil && successor.Addr() != master.Addr()
		}, patience, 10*pace)
	})
}

// The slots of all circuits are moved to other nodes and back, under traffic.
func TestSlotsOfTheClusterMove(t *testing.T) {
	c, clients, newcomer := startClusterFault(t, 0)
	endure(t, clients, newcomer, func(*traffic) {
		for range 2 {
			for _, circuit := range []string{"busy", "held", "failing", "signal"} {
				slot, from := owner(t, c, circuit)
				for _, to := range c.Nodes() {
					if to.Addr() != from.Addr() {
						require.NoError(t, c.MoveSlot(t.Context(), slot, from, to))
						break
					}
				}
			}
		}
	})
}
