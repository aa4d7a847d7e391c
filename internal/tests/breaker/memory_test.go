package breaker_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// inUse is the memory that is reachable, stacks included.
func inUse() float64 {
	for range 3 { // also what finalizers and pools hold
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// The bounds hold for 10,000 circuits of a Group. A MemoryStorage is part of its
// circuits' memory.
func TestACircuitIsSmall(t *testing.T) {
	if underRace {
		t.Skip("the race detector takes memory of its own")
	}
	const circuits = 10_000
	for _, c := range []struct {
		name    string
		storage func(t *testing.T) infuse.Storage
		most    float64
	}{
		{"without a storage", func(*testing.T) infuse.Storage { return nil }, 1024},
		{"memory", func(*testing.T) infuse.Storage { return infuse.NewMemoryStorage() }, 1088},
		{"Redis", func(t *testing.T) infuse.Storage {
			// A connection has buffers of 64 KB, and is no circuit's.
			client := redistest.Start(t).Client(func(o *redis.Options) { o.PoolSize = 2 })
			storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
			t.Cleanup(func() { _ = storage.Close() })
			return storage
		}, 1536},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := infuse.Config{Storage: c.storage(t), MaxCircuits: circuits, FailMax: 1, StorageTimeout: time.Minute}
			before := inUse()
			group, err := infuse.NewGroup(cfg)
			require.NoError(t, err)
			defer group.Stop()
			all := func(do func(*infuse.Breaker) error) float64 {
				for i := range circuits {
					b, err := group.Breaker(fmt.Sprintf("service-%d.example", i))
					require.NoError(t, err)
					require.NoError(t, do(b))
				}
				return (inUse() - before) / circuits
			}
			healthy := all(func(b *infuse.Breaker) error { return b.Call(t.Context(), succeeds) })
			t.Logf("healthy: %.0f bytes", healthy)
			require.LessOrEqual(t, healthy, c.most)
			if cfg.Storage == nil {
				open := all(func(b *infuse.Breaker) error {
					requireState(t, infuse.StateClosed, b)
					_ = b.Call(t.Context(), fails)
					return nil
				})
				again := all(func(b *infuse.Breaker) error { return b.SetState(t.Context(), infuse.StateClosed) })
				t.Logf("open: %.0f bytes, closed again: %.0f", open, again)
				require.LessOrEqual(t, again, c.most)
			}
			runtime.KeepAlive(group)
		})
	}
}

// Redis keeps a hash of short values in little memory: an open circuit takes 600 bytes
// at most, without its history, which is a key of its own.
func TestAnOpenCircuitIsSmallInRedis(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	cfg := patiently(infuse.Config{Storage: host(t, server), Suspicion: time.Millisecond, ResetTimeout: time.Hour})
	bytesOf := func(circuit string) int64 {
		key := "infuse:{" + circuit + "}"
		bytes := client.MemoryUsage(t.Context(), key, 0).Val()
		t.Logf("%s: %d bytes, its history %d", circuit, bytes, client.MemoryUsage(t.Context(), key+":log", 0).Val())
		return bytes
	}
	manually := startBreaker(t, "service-1.example", cfg)
	require.NoError(t, manually.SetState(t.Context(), infuse.StateOpen))
	require.LessOrEqual(t, bytesOf(manually.Name()), int64(600))
	one, two := startBreaker(t, "service-2.example", cfg), startBreaker(t, "service-2.example", cfg)
	require.Eventually(t, func() bool {
		_, _ = one.Call(t.Context(), fails), two.Call(t.Context(), fails)
		return recordOf(t, one).State == infuse.StateOpen
	}, patience, time.Millisecond)
	require.LessOrEqual(t, bytesOf(one.Name()), int64(600))
	require.NoError(t, one.SetState(t.Context(), infuse.StateClosed))
	require.LessOrEqual(t, bytesOf(one.Name()), int64(600), "closed again")
}

// A hash may have its record in one field, as older versions wrote it, and as any
// version writes a long one. Of a record in both, that field counts.
func TestARecordInRedisIsInOneFieldOrInPieces(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	const key = "infuse:{prices}"
	b := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, server), MaxTrials: 100}))
	fields := func() (whole, pieces string) {
		all := client.HGetAll(t.Context(), key).Val()
		for i := 1; i <= 8; i++ {
			pieces += all[fmt.Sprint("r", i)]
		}
		return all["r"], pieces
	}
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	whole, pieces := fields()
	require.Empty(t, whole)
	require.Contains(t, pieces, `"state":1`)

	require.NoError(t, client.HSet(t.Context(), key, "r", pieces, "r1", "garbage").Err())
	require.Equal(t, infuse.StateOpen, recordOf(t, b).State)

	long := strings.Repeat("long ", 40)
	require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: long, Reason: long}))
	require.Equal(t, long, recordOf(t, b).Override.Reason)
	whole, pieces = fields()
	require.Contains(t, whole, long)
	require.Empty(t, pieces)

	require.NoError(t, b.ClearOverride(t.Context(), ""))
	require.Nil(t, recordOf(t, b).Override)
	whole, pieces = fields()
	require.Empty(t, whole)
	require.NotContains(t, pieces, "long")
}
