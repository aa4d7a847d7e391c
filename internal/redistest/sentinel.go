package redistest

// This file contains Sentinel, a master with a replica and a sentinel.

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	masterName      = "mymaster"
	sentinelTimeout = time.Minute // a sentinel that was delayed does nothing for 30 s
)

// A Sentinel is a master, a replica, and a sentinel that promotes the replica about a
// second after the master stops replying.
type Sentinel struct {
	tb       testing.TB
	sentinel *Server
	servers  []*Server
}

// StartSentinel starts the three servers, and returns once the sentinel could replace the
// master. They are closed when the test ends.
func StartSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	master := Start(tb)
	replica := Start(tb, "--replicaof", loopback, strconv.Itoa(master.port))
	s := &Sentinel{
		tb:       tb,
		sentinel: Start(tb, "--sentinel"),
		servers:  []*Server{master, replica},
	}
	ctx, cancel := context.WithTimeout(context.Background(), sentinelTimeout)
	defer cancel()
	if err := s.watch(ctx, master, replica); err != nil {
		tb.Fatalf("redistest: set up a sentinel: %v", err)
	}
	return s
}

// Addr is the address of the sentinel.
func (s *Sentinel) Addr() string { return s.sentinel.Addr() }

// MasterName is the sentinel's name for the master.
func (s *Sentinel) MasterName() string { return masterName }

// Master returns the current master according to the sentinel. Call it from the goroutine
// of the test.
func (s *Sentinel) Master() *Server {
	s.tb.Helper()
	master, _ := s.roles()
	return master
}

// Replica returns the server that is not the Master.
func (s *Sentinel) Replica() *Server {
	s.tb.Helper()
	_, replica := s.roles()
	return replica
}

// Client returns a new client that gets the master from the sentinel, with the defaults of
// go-redis, changed by opts. It is closed at the latest when the test ends.
func (s *Sentinel) Client(opts ...func(*redis.FailoverOptions)) *redis.Client {
	options := &redis.FailoverOptions{MasterName: masterName, SentinelAddrs: []string{s.Addr()}}
	for _, opt := range opts {
		opt(options)
	}
	client := redis.NewFailoverClient(options)
	s.tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Failover makes the replica the master, and returns once the sentinel reports that. The
// old master accepts writes for about half a second more, until it becomes a replica:
// these writes are lost.
func (s *Sentinel) Failover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sentinelTimeout)
	defer cancel()
	if err := s.failover(ctx); err != nil {
		return fmt.Errorf("redistest: failover: %w", err)
	}
	return nil
}

func (s *Sentinel) failover(ctx context.Context) error {
	old, err := s.masterAddr(ctx)
	if err != nil {
		return err
	}
	// The sentinel refuses until an earlier failover is complete.
	err = until(ctx, func(ctx context.Context) error {
		return s.sentinel.do(ctx, "sentinel", "failover", masterName).Err()
	})
	if err != nil {
		return err
	}
	return until(ctx, func(ctx context.Context) error {
		addr, err := s.masterAddr(ctx)
		if err == nil && addr == old {
			err = fmt.Errorf("%s is still the master", old)
		}
		return err
	})
}

func (s *Sentinel) roles() (master, replica *Server) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), sentinelTimeout)
	defer cancel()
	addr, err := s.masterAddr(ctx)
	if err != nil {
		s.tb.Fatalf("redistest: get the master from the sentinel: %v", err)
	}
	if addr == s.servers[0].Addr() {
		return s.servers[0], s.servers[1]
	}
	return s.servers[1], s.servers[0]
}

func (s *Sentinel) masterAddr(ctx context.Context) (string, error) {
	addr, err := s.sentinel.do(ctx, "sentinel", "get-master-addr-by-name", masterName).StringSlice()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(addr[0], addr[1]), nil
}

// watch configures the sentinel with the master, and waits until it has found the replica.
func (s *Sentinel) watch(ctx context.Context, master, replica *Server) error {
	err := until(ctx, func(ctx context.Context) error { return synced(ctx, replica) })
	if err != nil {
		return err
	}
	for _, command := range [][]any{
		// The default period of 10 s is too long for tests.
		{"sentinel", "debug", "info-period", 100, "publish-period", 100},
		// By default a sentinel does nothing for 30 s after a moment without CPU.
		{"sentinel", "debug", "tilt-period", 1000},
		{"sentinel", "monitor", masterName, loopback, master.port, 1},
		{"sentinel", "set", masterName, "down-after-milliseconds", 500, "failover-timeout", 10_000},
	} {
		if err := s.sentinel.do(ctx, command...).Err(); err != nil {
			return fmt.Errorf("%v: %w", command, err)
		}
	}
	return until(ctx, s.foundReplica)
}

func (s *Sentinel) foundReplica(ctx context.Context) error {
	client := redis.NewSentinelClient(&redis.Options{Addr: s.Addr()})
	defer client.Close()
	replicas, err := client.Replicas(ctx, masterName).Result()
	if err != nil {
		return err
	}
	for _, replica := range replicas {
		if replica["flags"] == "slave" && replica["master-link-status"] == "ok" {
			return nil
		}
	}
	return fmt.Errorf("the sentinel has no healthy replica: %v", replicas)
}
