// Failover measures what the loss of a Redis master costs a fleet whose services
// are called all the time: how long calls wait, how long processes use their local
// circuits, and which calls are rejected or run that should not be.
//
//	cd bench && go run ./failover
//
// It prints the table of bench/RESULTS.md, takes two minutes, and needs a redis-server
// in the PATH.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	processes = 20
	pause     = 50 * time.Millisecond // between two calls of a process to a service
	errorRate = 0.02                  // of the healthy service
	noticed   = 10 * time.Millisecond // a call that waits longer for Redis has noticed the failover
)

var errUnavailable = errors.New("503 Service Unavailable")

// setup is a Redis whose master can be killed, and a client for each process.
type setup struct {
	name   string
	client func() redis.UniversalClient
	kill   func()
	back   func() error // ends the outage, if nobody else does; may be nil
}

// setups returns what is measured. Clients are closed with tb.
func setups() []func(tb testing.TB) setup {
	const once = "`DialerRetries: 1, MaxRetries: -1`"
	sentinel := func(name string, options ...func(*redis.FailoverOptions)) func(testing.TB) setup {
		return func(tb testing.TB) setup {
			s := redistest.StartSentinel(tb)
			return setup{name: "Sentinel, " + name, client: func() redis.UniversalClient { return s.Client(options...) }, kill: func() { s.Master().Kill() }}
		}
	}
	cluster := func(name string, options ...func(*redis.ClusterOptions)) func(testing.TB) setup {
		return func(tb testing.TB) setup {
			c := redistest.StartClusterWithReplicas(tb, 3, 1)
			return setup{name: "Cluster, " + name, client: func() redis.UniversalClient { return c.Client(options...) }, kill: func() {
				_, master, err := c.Owner(context.Background(), "infuse:{service}")
				if err != nil {
					tb.Fatal(err)
				}
				master.Kill()
			}}
		}
	}
	single := func(tb testing.TB) setup {
		s := redistest.Start(tb)
		return setup{name: "single server, back after 2 s", client: func() redis.UniversalClient { return s.Client() }, kill: s.Kill, back: func() error {
			time.Sleep(2 * time.Second)
			return s.Restart()
		}}
	}
	return []func(testing.TB) setup{
		single,
		sentinel("client as it is"),
		sentinel(once, func(o *redis.FailoverOptions) { o.DialerRetries, o.MaxRetries = 1, -1 }),
		cluster("client as it is"),
		cluster(once, func(o *redis.ClusterOptions) { o.DialerRetries, o.MaxRetries = 1, -1 }),
	}
}

// cost is what the loss of the master cost all processes.
type cost struct {
	waits    []time.Duration // of calls, above noticed, from the loss on
	local    []time.Duration // in local mode, each process
	rejected int64           // calls to the healthy service
	calls    int64           // to it
	leaked   int64           // calls that reached the unhealthy service though its circuit was open
	reason   string          // that a process gave
}

// measure kills the master under load, and watches for so long.
func measure(s setup, watched time.Duration) (cost, error) {
	var c cost
	var mu sync.Mutex
	var killed, ended atomic.Bool
	var callers sync.WaitGroup
	var members []*infuse.Breaker
	local := make([]time.Duration, processes)
	for i := range processes {
		storage := infuse.NewRedisStorage(s.client(), infuse.RedisOptions{})
		defer storage.Close()
		listener := &infuse.Listener{StorageUnavailable: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			c.reason = err.Error()
		}}
		cfg := infuse.Config{Storage: storage, Listeners: []*infuse.Listener{listener}, Instance: fmt.Sprint("process-", i)}
		healthy, err := infuse.New("service", cfg)
		if err != nil {
			return c, err
		}
		defer healthy.Stop()
		down, err := infuse.New("service-that-is-down", cfg)
		if err != nil {
			return c, err
		}
		defer down.Stop()
		members = append(members, healthy)
		callers.Go(func() {
			for !ended.Load() {
				time.Sleep(time.Duration(rand.ExpFloat64() * float64(pause)))
				fails := rand.Float64() < errorRate
				began, after := time.Now(), killed.Load()
				err := healthy.Call(context.Background(), func(context.Context) error {
					if fails {
						return errUnavailable
					}
					return nil
				})
				wait := time.Since(began)
				if after {
					mu.Lock()
					c.calls++
					if wait > noticed {
						c.waits = append(c.waits, wait)
					}
					if errors.Is(err, infuse.ErrOpen) {
						c.rejected++
					}
					mu.Unlock()
				}
			}
		})
		callers.Go(func() {
			for !ended.Load() {
				time.Sleep(time.Duration(rand.ExpFloat64() * float64(pause)))
				_ = down.Call(context.Background(), func(context.Context) error {
					if killed.Load() {
						atomic.AddInt64(&c.leaked, 1)
					}
					return errUnavailable
				})
			}
		})
	}
	time.Sleep(3 * time.Second) // the circuit of the service that is down has opened
	killed.Store(true)
	s.kill()
	failed := make(chan error, 1)
	go func() {
		if s.back != nil {
			failed <- s.back()
		}
	}()
	const look = time.Millisecond
	for began := time.Now(); time.Since(began) < watched; {
		from := time.Now()
		time.Sleep(look)
		for i, b := range members {
			if b.Stats().StorageErr != nil {
				local[i] += time.Since(from)
			}
		}
	}
	ended.Store(true)
	callers.Wait()
	for i, b := range members {
		if err := b.Stats().StorageErr; err != nil {
			return c, fmt.Errorf("process %d is still without its storage: %w", i, err)
		}
	}
	c.local = local
	select {
	case err := <-failed:
		return c, err
	default:
		return c, nil
	}
}

func (c cost) row(name string) string {
	slices.Sort(c.local)
	longest := time.Duration(0)
	if len(c.waits) > 0 {
		longest = slices.Max(c.waits)
	}
	return fmt.Sprintf("| %s | %.1f | %d ms | %.1f to %.1f s | %d of %d | %d |\n", name, float64(len(c.waits))/processes, longest.Milliseconds(),
		c.local[0].Seconds(), c.local[processes-1].Seconds(), c.rejected, c.calls, c.leaked)
}

const head = "| Redis, client | calls that waited, per process | longest wait | local mode | rejected healthy calls | calls to the unhealthy service |\n|---|--:|--:|--:|--:|--:|\n"

// program is a testing.TB for a program.
type program struct {
	testing.TB
	cleanups []func()
}

func (*program) Helper()            {}
func (p *program) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }
func (*program) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"failover:"}, args...)...)
	os.Exit(1)
}
func (p *program) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }
func (p *program) clean() {
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
	p.cleanups = nil
}

func main() {
	testing.Init()
	flag.Parse()
	logging.Disable()
	var table strings.Builder
	for _, start := range setups() {
		p := new(program)
		s := start(p)
		fmt.Fprintln(os.Stderr, s.name)
		c, err := measure(s, 15*time.Second)
		p.clean()
		if err != nil {
			p.Fatal(err)
		}
		fmt.Fprintln(os.Stderr, " ", c.reason)
		table.WriteString(c.row(s.name))
	}
	fmt.Print(head, table.String())
}
