package fleettest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// startFault starts a server for a fault, and a client for each of two
// processes and for a newcomer.
func startFault(t *testing.T, opts ...func(*redis.Options)) (s *redistest.Server, clients [2]redis.UniversalClient, newcomer redis.UniversalClient) {
	t.Helper()
	t.Parallel()
	quietRedis()
	s = redistest.Start(t)
	return s, [2]redis.UniversalClient{s.Client(opts...), s.Client(opts...)}, s.Client(opts...)
}

// Redis is down when the processes
// start: they start all the same, and share what they found out on their own.
func TestRedisIsDownAtStart(t *testing.T) {
	s, clients, _ := startFault(t)
	s.Kill()
	tr := &traffic{t: t}
	for i := range tr.fleet {
		tr.fleet[i] = startProcess(t, clients[i])
		t.Logf("started within %v", tr.fleet[i].startedWithin.Round(time.Millisecond))
		require.Less(t, tr.fleet[i].startedWithin, faultTimeout+faultMargin)
	}
	for _, p := range tr.fleet {
		trip(t, p.held)
	}
	tr.start()
	time.Sleep(500 * time.Millisecond)
	require.NoError(t, s.Restart())
	shared := tr.awaitShared()
	for _, p := range tr.fleet { // each by its local circuit: all have reported at once
		requireState(t, infuse.StateOpen, p.held)
	}
	tr.finish(shared)
}

// gobreaker's shared mode ran no request, each after 1.7 s.
func TestRedisIsKilled(t *testing.T) {
	s, clients, newcomer := startFault(t)
	tr := endure(t, clients, newcomer, func(tr *traffic) {
		s.Kill()
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		require.NoError(t, s.Restart())
	})
	tr.requireToldOnce()
}

// requireToldOnce is for faults that are one outage.
func (tr *traffic) requireToldOnce() {
	tr.t.Helper()
	tr.requireTold(1, anyCircuit)
}

// gobreaker's shared mode ran no request, each after 10 s, and one hung for
// five minutes.
func TestRedisIsStoppedForThreeSeconds(t *testing.T) {
	takesLong(t)
	s, clients, newcomer := startFault(t)
	tr := endure(t, clients, newcomer, func(tr *traffic) {
		s.Pause()
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		s.Resume()
	})
	tr.requireToldOnce()
}

// What was open is restored, by those who hold it open.
func TestRedisRestartsEmpty(t *testing.T) {
	s, clients, newcomer := startFault(t)
	endure(t, clients, newcomer, func(*traffic) { require.NoError(t, s.Restart()) })
}

// pybreaker forgot that the circuit was open.
func TestRedisIsFlushed(t *testing.T) {
	s, clients, newcomer := startFault(t)
	tr := endure(t, clients, newcomer, func(*traffic) {
		require.NoError(t, s.Client().FlushAll(t.Context()).Err())
	})
	tr.requireToldNever()
}

// Stoplight 5 stayed green until the process was restarted.
func TestRedisForgetsItsScripts(t *testing.T) {
	s, clients, newcomer := startFault(t)
	tr := endure(t, clients, newcomer, func(*traffic) {
		for range 20 {
			require.NoError(t, s.Client().ScriptFlush(t.Context()).Err())
			time.Sleep(10 * time.Millisecond)
		}
	})
	tr.requireToldNever()
}

// Redis answers, reads even, but takes no change.
func TestRedisIsOutOfMemory(t *testing.T) {
	s, clients, newcomer := startFault(t)
	admin := s.Client()
	tr := endure(t, clients, newcomer, func(tr *traffic) {
		require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
	})
	tr.requireRefusedOnce()
}

// requireRefusedOnce is for faults that are one outage, in which Redis answers
// reads. The failing circuit may come back with one, and be on its own again when it
// asks for its next trial.
func (tr *traffic) requireRefusedOnce() {
	tr.t.Helper()
	tr.requireTold(1, func(p *process, b *infuse.Breaker) bool { return b != p.failing })
}

// After a failover, a client may go on talking to what has become a replica. Its
// master is down: a copy of one that is empty, sooner or later, would be another fault.
func TestRedisIsReadOnly(t *testing.T) {
	takesLong(t)
	s, clients, newcomer := startFault(t)
	master := redistest.Start(t)
	master.Kill()
	admin := s.Client()
	tr := endure(t, clients, newcomer, func(tr *traffic) {
		host, port, err := net.SplitHostPort(master.Addr())
		require.NoError(t, err)
		require.NoError(t, admin.ReplicaOf(t.Context(), host, port).Err())
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		require.NoError(t, admin.ReplicaOf(t.Context(), "NO", "ONE").Err())
	})
	tr.requireRefusedOnce()
}

// The password is changed, and all are thrown out; then it is changed back.
func TestRedisHasAnotherPassword(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	admin := s.Client()
	// At once: who connects between the two would be thrown out after the fault.
	setPassword := func(password string) {
		_, err := admin.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Do(t.Context(), "acl", "setuser", "app", "reset", "on", ">"+password, "~*", "&*", "+@all")
			p.Do(t.Context(), "client", "kill", "user", "app")
			return nil
		})
		require.NoError(t, err)
	}
	setPassword("old")
	app := func(o *redis.Options) { o.Username, o.Password = "app", "old" }
	tr := endure(t, [2]redis.UniversalClient{s.Client(app), s.Client(app)}, s.Client(app), func(tr *traffic) {
		setPassword("new")
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		setPassword("old")
	})
	tr.requireToldOnce()
}

// Every answer comes, but too late for any call.
func TestRedisIsSlow(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	proxy := redistest.StartProxy(t, s.Addr())
	through := through(proxy)
	tr := endure(t, [2]redis.UniversalClient{s.Client(through), s.Client(through)}, s.Client(through), func(tr *traffic) {
		proxy.SetDelay(3 * faultTimeout / 2)
		tr.awaitOutage()
		time.Sleep(2 * time.Second)
		proxy.SetDelay(0)
	})
	tr.requireToldOnce()
}

// The network swallows what is sent, without a reset: go-redis by itself would
// hold every command for 20 s.
func TestTheNetworkSwallowsEverything(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	proxy := redistest.StartProxy(t, s.Addr())
	through := through(proxy)
	tr := endure(t, [2]redis.UniversalClient{s.Client(through), s.Client(through)}, s.Client(through), func(tr *traffic) {
		proxy.Swallow(true)
		tr.awaitOutage()
		time.Sleep(3 * time.Second)
		proxy.Swallow(false)
	})
	tr.requireToldOnce()
}

// Somebody writes garbage to the keys: of another type, half of
// the fields, a newer schema. It is the trouble of those circuits alone.
func TestTheKeysHoldGarbage(t *testing.T) {
	takesLong(t)
	for name, write := range map[string]func(ctx context.Context, c *redis.Client, key string) error{
		"of another type": func(ctx context.Context, c *redis.Client, key string) error {
			return c.Set(ctx, key, "garbage", 0).Err()
		},
		"half its fields": func(ctx context.Context, c *redis.Client, key string) error {
			return c.HDel(ctx, key, "r", "t").Err()
		},
		"a newer schema": func(ctx context.Context, c *redis.Client, key string) error {
			return c.HSet(ctx, key, "r", `{"v":9,"readable":9}`).Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, clients, newcomer := startFault(t)
			admin := s.Client()
			keys := []string{"infuse:{busy}", "infuse:{held}", "infuse:{failing}"}
			tr := endure(t, clients, newcomer, func(*traffic) {
				for range 20 {
					for _, key := range keys {
						require.NoError(t, write(t.Context(), admin, key))
					}
					time.Sleep(50 * time.Millisecond)
				}
				require.NoError(t, admin.Del(t.Context(), keys...).Err())
			})
			tr.requireTold(0, func(p *process, b *infuse.Breaker) bool { return b == p.signal })
		})
	}
}

// 1,000 goroutines fail at once at a server that hangs: each waits once, a few
// dozen goroutines stay behind it, and they are gone when it is back. Not a
// parallel test: it counts goroutines.
func TestAThousandFailuresAtOnceAtARedisThatHangs(t *testing.T) {
	quietRedis()
	s := redistest.Start(t)
	storage := host(t, s)
	breakers := make([]*infuse.Breaker, 100)
	for i := range breakers {
		breakers[i] = startBreaker(t, fmt.Sprint("circuit ", i), infuse.Config{FailMax: 1 << 20, Storage: storage, StorageTimeout: faultTimeout})
	}
	stalled := standstill(t.Context())
	s.Pause()
	var all sync.WaitGroup
	waits := make([]time.Duration, 1000)
	for i := range waits {
		all.Go(func() {
			var err error
			waits[i], err = waitOf(breakers[i%len(breakers)], fails)
			assert.Equal(t, errUnhealthy, err)
		})
	}
	all.Wait()
	behind := goroutinesBehindTheStorage()
	t.Logf("worst extra wait %v, %d goroutines behind the server", slices.Max(waits).Round(time.Millisecond), behind)
	require.Less(t, slices.Max(waits), faultTimeout+faultMargin+2*stalled())
	require.LessOrEqual(t, behind, 64+2) // and the probe

	began := time.Now()
	for _, b := range breakers {
		for range 100 {
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		}
	}
	t.Logf("10,000 calls while it is known to be unavailable: %v in all", time.Since(began).Round(time.Millisecond))
	require.Less(t, time.Since(began), 5*time.Second)

	s.Resume()
	require.Eventually(t, func() bool { return goroutinesBehindTheStorage() == 0 }, patience, pace)
	failures := 0
	require.Eventually(t, func() bool {
		failures = 0
		for _, b := range breakers {
			r, err := b.Record(t.Context())
			if err != nil {
				return false
			}
			failures += r.Failures
		}
		return failures >= 11_000
	}, patience, 10*pace)
	require.Equal(t, 11_000, failures, "every failure counts, and counts once")
}

// goroutinesBehindTheStorage counts those that links have sent there.
func goroutinesBehindTheStorage() (n int) {
	for _, stack := range goroutines() {
		if strings.Contains(stack, "created by github.com/infuse-go/infuse.(*link).") {
			n++
		}
	}
	return n
}

// A Redis that is down is dialled by a process with a hundred circuits about
// as often as by one with a single circuit, and less and less.
func TestAHundredCircuitsDialAsOne(t *testing.T) {
	takesLong(t)
	t.Parallel()
	quietRedis()
	s := redistest.Start(t)
	dials := func(circuits int) (early, late int64) {
		var n atomic.Int64
		storage := hostOn(t, s.Client(func(o *redis.Options) {
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				n.Add(1)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			o.MaxRetries, o.DialerRetries = -1, 1 // so that what is counted is what the storage wants
		}))
		group, err := infuse.NewGroup(infuse.Config{Storage: storage})
		require.NoError(t, err)
		defer group.Stop()
		var breakers []*infuse.Breaker
		for i := range circuits {
			b, err := group.Breaker(fmt.Sprint("circuit ", i))
			require.NoError(t, err)
			breakers = append(breakers, b)
		}
		s.Kill()
		defer func() { require.NoError(t, s.Restart()) }()
		n.Store(0)
		for _, b := range breakers {
			_ = b.Call(t.Context(), fails)
		}
		time.Sleep(2 * time.Second)
		early = n.Swap(0)
		time.Sleep(2 * time.Second)
		return early, n.Load()
	}
	early1, late1 := dials(1)
	early100, late100 := dials(100)
	t.Logf("dials in the first 2 s and in the next 2 s: with one circuit %d and %d, with a hundred %d and %d", early1, late1, early100, late100)
	require.Less(t, early100, int64(60))
	require.Less(t, late100, int64(60))
}
