package link_test

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

	"github.com/infuse-go/infuse"
)

// pausing is a storage that pauses whenever a circuit has become suspect: just then
// everybody reports.
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
	suspect := r.Suspect()
	if suspect && !p.suspect {
		p.pauses++
		p.until = time.Now().Add(p.pause)
	}
	p.suspect = suspect
	return r, v, err
}

// A storage that paused for longer than a suspicion held back every report that
// could dismiss it: the circuit of a healthy service was open for 99 % of the time.
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
				b := startBreaker(t, "prices", infuse.Config{Storage: &struct{ infuse.Storage }{storage}}) // each process has a link of its own
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
			// By chance it may open, as it may without pauses, until successes dismiss it.
			assert.Less(t, rejected.Load(), calls.Load()/100)
		})
	}
}
