package infuse_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// What takes the service away often takes the storage, too. A storage that died
// 200 ms after the outage began let every process run into it anew: without a
// storage that would be five calls of each.
func TestAnOutageThatTakesTheStorageWithItStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const processes = 100
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
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
						if storage.ill.Load() {
							ran.Add(1)
						}
						return errIll
					})
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		storage.ill.Store(true)
		all.Wait()
		require.Less(t, ran.Load(), int64(2*processes), "calls that ran into the outage after the storage was gone")
	})
}
