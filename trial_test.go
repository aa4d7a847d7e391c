package infuse_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// lateStorage takes its time with each change, before it makes it.
type lateStorage struct {
	infuse.Storage
	asks, settles atomic.Int64 // how long
}

func (s *lateStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	switch {
	case c.Ask != "":
		time.Sleep(time.Duration(s.asks.Load()))
	case len(c.Settled) > 0:
		time.Sleep(time.Duration(s.settles.Load()))
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A process whose trial succeeded found the circuit half-open when its call
// returned, if the storage was slow to grant the trial, and slower to receive its
// outcome.
func TestWhoRanTheTrialSeesTheCircuitClosed(t *testing.T) {
	for name, fallback := range map[string]infuse.StorageDownPolicy{"local": infuse.StorageDownLocal, "closed": infuse.StorageDownAllow} {
		for _, asks := range []time.Duration{0, 10 * time.Millisecond, 60 * time.Millisecond, 94 * time.Millisecond} {
			for _, settles := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 97 * time.Millisecond, 10 * time.Second} {
				t.Run(fmt.Sprintf("%s, %v to ask, %v to settle", name, asks, settles), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						storage := &lateStorage{Storage: infuse.NewMemoryStorage()}
						const timeout = 100 * time.Millisecond
						b := startBreaker(t, "prices", infuse.Config{Storage: storage, StorageTimeout: timeout, StorageDown: fallback})
						other := startBreaker(t, "prices", infuse.Config{Storage: storage.Storage})
						tripFleet(t, b, other)
						time.Sleep(time.Minute)
						storage.asks.Store(int64(asks))
						storage.settles.Store(int64(settles))
						began := time.Now()
						require.NoError(t, b.Call(t.Context(), succeeds))
						require.LessOrEqual(t, time.Since(began), timeout)
						requireState(t, infuse.StateClosed, b)
						require.NoError(t, b.Call(t.Context(), succeeds))

						time.Sleep(time.Minute)
						synctest.Wait()
						requireState(t, infuse.StateClosed, b, other)
						require.NoError(t, b.Stats().StorageErr)
						require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
					})
				})
			}
		}
	}
}
