package infuse_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

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
	if raceDetector {
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
		{"Redis", func(t *testing.T) infuse.Storage { return host(t, redistest.Start(t)) }, 1536},
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
