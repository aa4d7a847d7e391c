package redistest

// This file contains Cluster, a Redis Cluster.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	slots          = 16384
	clusterTimeout = 20 * time.Second
	migrateTimeout = 5 * time.Second
)

// A Cluster is a Redis Cluster. It serves its remaining slots while a node is down, and
// detects that a node is down within about a second.
type Cluster struct {
	tb       testing.TB
	masters  int
	replicas int
	nodes    []*Server
}

// StartCluster starts a cluster of masters that share the slots evenly, and returns once
// all nodes agree. The args are passed to [Launch] for each node. The servers are closed
// when the test ends.
func StartCluster(tb testing.TB, masters int, args ...string) *Cluster {
	tb.Helper()
	return StartClusterWithReplicas(tb, masters, 0, args...)
}

// StartClusterWithReplicas is [StartCluster] with replicas for each master. Promoting a
// replica requires at least three masters.
func StartClusterWithReplicas(tb testing.TB, masters, replicas int, args ...string) *Cluster {
	tb.Helper()
	args = append([]string{
		"--cluster-enabled", "yes",
		"--cluster-node-timeout", "1000",
		"--cluster-require-full-coverage", "no",
	}, args...)
	c := &Cluster{tb: tb, masters: masters, replicas: replicas}
	for range masters * (1 + replicas) {
		c.nodes = append(c.nodes, Start(tb, args...))
	}
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	if err := c.form(ctx); err != nil {
		tb.Fatalf("redistest: form a cluster: %v", err)
	}
	return c
}

// Nodes returns the servers: first those that started as masters, then the
// replicas of the first, of the second, and so on.
func (c *Cluster) Nodes() []*Server { return slices.Clone(c.nodes) }

// Addrs returns the addresses of the Nodes.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, node := range c.nodes {
		addrs = append(addrs, node.Addr())
	}
	return addrs
}

// Client returns a new client of the cluster, with the defaults of go-redis, changed by
// opts. It is closed at the latest when the test ends.
func (c *Cluster) Client(opts ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	options := &redis.ClusterOptions{Addrs: c.Addrs()}
	for _, opt := range opts {
		opt(options)
	}
	client := redis.NewClusterClient(options)
	c.tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Owner returns the slot of a key and the master that serves it, according to that master.
func (c *Cluster) Owner(ctx context.Context, key string) (slot int, master *Server, err error) {
	for _, node := range c.nodes {
		if slot, err = node.do(ctx, "cluster", "keyslot", key).Int(); err != nil {
			continue // this node may be down
		}
		// A node serves its own keys, and redirects for others.
		if err = node.do(ctx, "exists", key).Err(); err == nil {
			return slot, node, nil
		}
	}
	return 0, nil, fmt.Errorf("redistest: no node serves %q: %w", key, err)
}

// MoveSlot moves a slot and its keys from a master to another, like redis-cli, and returns
// once all running nodes agree. Clients get ASK during the move, and MOVED afterwards.
func (c *Cluster) MoveSlot(ctx context.Context, slot int, from, to *Server) error {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	err := moveSlot(ctx, slot, from, to)
	if err == nil {
		err = until(ctx, func(ctx context.Context) error { return c.agreed(ctx, to) })
	}
	if err != nil {
		return fmt.Errorf("redistest: move slot %d from %s to %s: %w", slot, from.Addr(), to.Addr(), err)
	}
	return nil
}

func moveSlot(ctx context.Context, slot int, from, to *Server) error {
	fromID, err := from.do(ctx, "cluster", "myid").Text()
	if err != nil {
		return err
	}
	toID, err := to.do(ctx, "cluster", "myid").Text()
	if err != nil {
		return err
	}
	if err = to.do(ctx, "cluster", "setslot", slot, "importing", fromID).Err(); err != nil {
		return err
	}
	if err = from.do(ctx, "cluster", "setslot", slot, "migrating", toID).Err(); err != nil {
		return err
	}
	if err = migrateKeys(ctx, slot, from, to); err != nil {
		return err
	}
	// The new owner first, because it notifies the others. Otherwise no node would own the
	// slot for a moment.
	return errors.Join(
		to.do(ctx, "cluster", "setslot", slot, "node", toID).Err(),
		from.do(ctx, "cluster", "setslot", slot, "node", toID).Err(),
	)
}

func migrateKeys(ctx context.Context, slot int, from, to *Server) error {
	for {
		keys, err := from.do(ctx, "cluster", "getkeysinslot", slot, 100).StringSlice()
		if err != nil || len(keys) == 0 {
			return err
		}
		args := []any{"migrate", loopback, to.port, "", 0, migrateTimeout.Milliseconds(), "keys"}
		for _, key := range keys {
			args = append(args, key)
		}
		if err = from.do(ctx, args...).Err(); err != nil {
			return err
		}
	}
}

// agreed checks that all running nodes know the current slots and epoch of a master. A
// master that takes a slot with an older epoch would not get it.
func (c *Cluster) agreed(ctx context.Context, master *Server) error {
	id, err := master.do(ctx, "cluster", "myid").Text()
	if err != nil {
		return err
	}
	claim, err := known(ctx, master, id)
	if err != nil {
		return err
	}
	for _, node := range c.nodes {
		if seen, err := known(ctx, node, id); err == nil && seen != claim {
			return fmt.Errorf("%s has %q for %s, not %q", node.Addr(), seen, master.Addr(), claim)
		}
	}
	return nil
}

// known returns a node's epoch and slots of another node.
func known(ctx context.Context, node *Server, id string) (string, error) {
	nodes, err := node.do(ctx, "cluster", "nodes").Text()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line) // id address flags master ping pong epoch link slots...
		if fields[0] != id {
			continue
		}
		slots := slices.DeleteFunc(fields[8:], func(slot string) bool {
			return strings.HasPrefix(slot, "[") // a slot that is being moved: only the node itself reports it
		})
		return fmt.Sprint(fields[6], slots), nil
	}
	return "", fmt.Errorf("%s has no node %s", node.Addr(), id)
}

// form joins the nodes to one cluster.
func (c *Cluster) form(ctx context.Context) error {
	for i, master := range c.nodes[:c.masters] {
		first, last := i*slots/c.masters, (i+1)*slots/c.masters-1
		// Different epochs, because masters with the same epoch must resolve the conflict first.
		if err := master.do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if err := master.do(ctx, "cluster", "addslotsrange", first, last).Err(); err != nil {
			return err
		}
	}
	for _, node := range c.nodes[1:] {
		if err := c.nodes[0].do(ctx, "cluster", "meet", loopback, node.port).Err(); err != nil {
			return err
		}
	}
	if err := until(ctx, c.acquainted); err != nil {
		return err
	}
	for i, replica := range c.nodes[c.masters:] {
		id, err := c.nodes[i/c.replicas].do(ctx, "cluster", "myid").Text()
		if err != nil {
			return err
		}
		if err = replica.do(ctx, "cluster", "replicate", id).Err(); err != nil {
			return err
		}
	}
	return until(ctx, c.whole)
}

// acquainted checks that every node has all other nodes.
func (c *Cluster) acquainted(ctx context.Context) error {
	for _, node := range c.nodes {
		info, err := node.do(ctx, "cluster", "info").Text()
		if err != nil {
			return err
		}
		if known := field(info, "cluster_known_nodes"); known != strconv.Itoa(len(c.nodes)) {
			return fmt.Errorf("%s has %s nodes of %d", node.Addr(), known, len(c.nodes))
		}
	}
	return nil
}

// whole checks that the cluster is healthy according to every node, with all slots and
// replicas, and that the replicas are up to date.
func (c *Cluster) whole(ctx context.Context) error {
	for i, node := range c.nodes {
		info, err := node.do(ctx, "cluster", "info").Text()
		if err != nil {
			return err
		}
		state, served := field(info, "cluster_state"), field(info, "cluster_slots_ok")
		if state != "ok" || served != strconv.Itoa(slots) {
			return fmt.Errorf("%s: state %s, %s slots served", node.Addr(), state, served)
		}
		nodes, err := node.do(ctx, "cluster", "nodes").Text()
		if err != nil {
			return err
		}
		if replicas := strings.Count(nodes, "slave "); replicas != len(c.nodes)-c.masters {
			return fmt.Errorf("%s has %d replicas", node.Addr(), replicas)
		}
		if i < c.masters {
			continue
		}
		if err = synced(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// synced checks that a replica is connected to its master.
func synced(ctx context.Context, replica *Server) error {
	info, err := replica.do(ctx, "info", "replication").Text()
	if err != nil {
		return err
	}
	if link := field(info, "master_link_status"); link != "up" {
		return fmt.Errorf("%s: the link to its master is %q", replica.Addr(), link)
	}
	return nil
}
