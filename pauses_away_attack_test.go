package infuse_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// mortal is a storage that answers until it is dead.
type mortal struct {
	infuse.Storage
	dead atomic.Bool
}

var errDead = errors.New("the storage is dead")

func (m *mortal) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if m.dead.Load() {
		return infuse.Record{}, errDead
	}
	return m.Storage.Load(ctx, circuit)
}

func (m *mortal) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if m.dead.Load() {
		return infuse.Record{}, infuse.VerdictRefused, errDead
	}
	return m.Storage.Apply(ctx, circuit, c)
}

// What takes the service away often takes the storage, too. A storage that died
// 200 ms after the outage began let every process run into it anew: without a
// storage that would be five calls of each.
func TestAnOutageThatTakesTheStorageWithItStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const processes = 100
		storage := &mortal{Storage: infuse.NewMemoryStorage()}
		var ran atomic.Int64
		var all sync.WaitGroup
		began := time.Now()
		for i := range processes {
			b := startBreaker(t, "prices", infuse.Config{Storage: storage})
			roll := rand.New(rand.NewPCG(1, uint64(i)))
			all.Go(func() {
				for time.Since(began) < 30*time.Second {
					time.Sleep(time.Duration(roll.ExpFloat64() * float64(50*time.Millisecond)))
					_ = b.Call(t.Context(), func(context.Context) error {
						if storage.dead.Load() {
							ran.Add(1)
						}
						return errIll
					})
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		storage.dead.Store(true)
		all.Wait()
		require.Less(t, ran.Load(), int64(2*processes), "calls that ran into the outage after the storage was gone")
	})
}
