package fleettest

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// pausing is a storage that stands still whenever it has become suspicious of a
// circuit: just then the fleet is asked, and what refutes comes too late.
type pausing struct {
	infuse.Storage
	pause time.Duration

	mu      sync.Mutex
	until   time.Time
	suspect bool
	pauses  int
}

func (p *pausing) wait() {
	p.mu.Lock()
	until := p.until
	p.mu.Unlock()
	time.Sleep(time.Until(until))
}

func (p *pausing) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	p.wait()
	return p.Storage.Load(ctx, circuit)
}

func (p *pausing) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	p.wait()
	r, v, err := p.Storage.Apply(ctx, circuit, c)
	p.mu.Lock()
	defer p.mu.Unlock()
	suspect := !r.OpensAt.IsZero()
	if suspect && !p.suspect {
		p.pauses++
		p.until = time.Now().Add(p.pause)
	}
	p.suspect = suspect
	return r, v, err
}

// A storage that stood still for longer than a suspicion kept back all that
// refuted it: the circuit of a healthy service was open for 99 % of the time.
func TestAStorageThatPausesOpensNoHealthyCircuit(t *testing.T) {
	pauses := []time.Duration{200 * time.Millisecond}
	if os.Getenv("CI") == "true" {
		pauses = []time.Duration{60 * time.Millisecond, 90 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}
	}
	for _, pause := range pauses {
		inFakeTime(t, func(t *testing.T) {
			storage := &pausing{Storage: infuse.NewMemoryStorage(), pause: pause}
			var calls, rejected atomic.Int64
			var all sync.WaitGroup
			for i := range 20 {
				b := startBreaker(t, "prices", infuse.Config{Storage: &way{Storage: storage}}) // each process has a link of its own
				roll := rand.New(rand.NewPCG(1, uint64(i)))
				all.Go(func() {
					for began := time.Now(); time.Since(began) < 10*time.Minute; {
						time.Sleep(time.Duration(roll.ExpFloat64() * float64(50*time.Millisecond)))
						call := succeeds
						if roll.Float64() < 0.2 {
							call = fails
						}
						calls.Add(1)
						var open *infuse.OpenError
						if errors.As(b.Call(t.Context(), call), &open) && !open.Local {
							rejected.Add(1)
						}
					}
				})
			}
			all.Wait()
			t.Logf("%v: %d pauses, %d of %d calls rejected by the fleet's circuit", pause, storage.pauses, rejected.Load(), calls.Load())
			assert.Greater(t, storage.pauses, 100)
			// By chance it may open for a minute, as it may without pauses.
			assert.Less(t, rejected.Load(), calls.Load()/4)
		})
	}
}

// Redis hears of the successes after the suspicion is over: the circuit closes
// again, in the process that saw none of them as well.
func TestRedisStandsStillDuringASuspicion(t *testing.T) {
	t.Parallel()
	quietRedis()
	s := redistest.Start(t)
	cfg := infuse.Config{Suspicion: 2 * time.Second, ResetTimeout: time.Hour, StorageTimeout: patience}
	cfg.Storage = host(t, s)
	one := startBreaker(t, "prices", cfg)
	cfg.Storage = host(t, s)
	two := startBreaker(t, "prices", cfg)
	for i := range 5 { // no row of either is long enough to open its own circuit
		require.ErrorIs(t, []*infuse.Breaker{one, two}[i%2].Call(t.Context(), fails), errIll)
	}
	require.Eventually(t, func() bool { return one.Stats().Failures == 5 && two.Stats().Failures == 5 }, patience, pace)

	s.Pause()
	for range 4 {
		require.NoError(t, two.Call(t.Context(), succeeds))
	}
	require.Eventually(t, func() bool { return one.State() == infuse.StateOpen }, patience, pace)
	s.Resume()
	require.Eventually(t, func() bool {
		return one.State() == infuse.StateClosed && two.State() == infuse.StateClosed
	}, patience, pace)
	record, err := one.Record(t.Context())
	require.NoError(t, err)
	require.Equal(t, infuse.StateClosed, record.State)
	require.Zero(t, record.OpensAt)
}
