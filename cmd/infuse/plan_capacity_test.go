package main

// This file tests the capacity in docs/redis.md against the plan, and the plan against Redis.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// microsOfCommand is the processor time that Redis spends on a command.
const microsOfCommand = 40

// commands returns the commands a second of the plan: an error rate of 1 is an outage.
func (p *planInput) commands() float64 {
	if p.errors == 1 {
		outage := *p
		outage.errors = 0
		return outage.estimate().Outage
	}
	return p.estimate().Baseline
}

// TestDocumentsCapacity computes the table of docs/redis.md.
func TestDocumentsCapacity(t *testing.T) {
	t.Parallel()
	table := "| the service | 1 call/s, `FailMax` 5 | CPU | 10 calls/s, `FailMax` 5 | CPU | 10 calls/s, `FailMax` 20 | CPU |\n|---|--:|--:|--:|--:|--:|--:|\n"
	for _, row := range []struct {
		name   string
		errors float64
	}{{"no errors", 0}, {"1 % errors", 0.01}, {"10 % errors", 0.1}, {"50 % errors", 0.5}, {"outage, circuits open", 1}} {
		table += "| " + row.name
		for _, column := range []struct {
			calls   float64
			failMax int
		}{{1, 5}, {10, 5}, {10, 20}} {
			n := (&planInput{
				calls: column.calls, processes: 300, circuits: 10, errors: row.errors, failMax: column.failMax,
				minCalls: 20, window: 10 * time.Second, resetTimeout: time.Minute, suspicion: 50 * time.Millisecond, pollInterval: 2 * time.Second,
			}).commands()
			digits := math.Pow10(int(math.Log10(n)) - 1)
			cpu := 100 * n * microsOfCommand / 1e6
			table += fmt.Sprintf(" | %s | %.*f %%", grouped(int(math.Round(n/digits)*digits)), map[bool]int{true: 0, false: 1}[cpu >= 10], cpu)
		}
		table += " |\n"
	}
	require.True(t, strings.Contains(redisDocument(t), table), "docs/redis.md is to have:\n%s", table)
}

// grouped returns the number with commas between thousands.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}

// TestCapacityAgreesWithRedis has a fleet call for a while, and compares what Redis
// received with the formula. The tolerance is that of the document.
func TestCapacityAgreesWithRedis(t *testing.T) {
	if os.Getenv("CI") == "" {
		t.Skip("takes 40 s: set CI=true")
	}
	t.Parallel()
	require.Contains(t, redisDocument(t), "within a factor of 2")
	server := redistest.Start(t)
	c := planInput{
		calls: 10, processes: 60, circuits: 2, failMax: 5, minCalls: 20, window: 10 * time.Second,
		resetTimeout: 2 * time.Second, suspicion: 50 * time.Millisecond, pollInterval: 200 * time.Millisecond,
	}
	var share, calls atomic.Uint64 // of the calls that fail; all calls
	pause := float64(time.Second) / c.calls
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	defer callers.Wait()
	defer cancel()
	for range c.processes {
		client := server.Client(func(o *redis.Options) { o.PoolSize = 4 })
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: c.pollInterval})
		group, err := infuse.NewGroup(infuse.Config{Storage: storage, FailMax: c.failMax, ResetTimeout: c.resetTimeout, StorageTimeout: 5 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { group.Stop(); _ = storage.Close() })
		for circuit := range c.circuits {
			b, err := group.Breaker(fmt.Sprint("service-", circuit))
			require.NoError(t, err)
			callers.Go(func() {
				for ctx.Err() == nil {
					time.Sleep(time.Duration(rand.ExpFloat64() * pause))
					calls.Add(1)
					_ = b.Call(ctx, func(context.Context) error {
						if rand.Float64() < math.Float64frombits(share.Load()) {
							return errors.New("503 Service Unavailable")
						}
						return nil
					})
				}
			})
		}
	}
	received := func() float64 { return float64(commandsOf(t, server)) }
	for _, phase := range []struct {
		errors float64
		lasts  time.Duration
	}{{0, 4 * time.Second}, {0.01, 4 * time.Second}, {0.1, 10 * time.Second}, {0.5, 4 * time.Second}, {1, 5 * time.Second}} {
		c.errors = phase.errors
		share.Store(math.Float64bits(c.errors))
		requireAgreement(t, server, fmt.Sprintf("%.0f %% errors", 100*c.errors), 2, func() (got, want float64) {
			time.Sleep(2500 * time.Millisecond)
			before, called, began := received(), calls.Load(), time.Now()
			time.Sleep(phase.lasts)
			lasted := time.Since(began).Seconds()
			c.calls = float64(calls.Load()-called) / lasted / float64(c.processes*c.circuits) // a busy machine makes fewer
			return (received() - before) / lasted, c.commands()
		})
	}
}

func redisDocument(t *testing.T) string {
	text, err := os.ReadFile("../../docs/redis.md")
	require.NoError(t, err)
	return string(text)
}
