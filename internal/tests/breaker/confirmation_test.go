package breaker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Evidence of one process is never taken for that of two, and nobody's settings
// decide for others.

// delayed is a storage whose answers take time.
type delayed struct {
	infuse.Storage
	by *atomic.Int64
}

func (s delayed) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	time.Sleep(time.Duration(s.by.Load()))
	return s.Storage.Load(ctx, circuit)
}

func (s delayed) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	time.Sleep(time.Duration(s.by.Load()))
	return s.Storage.Apply(ctx, circuit, c)
}

// A process that restarted, and received the record after its next failures, opened
// the shared circuit alone.
// R12.
func TestAProcessThatReadsTheRecordLateDoesNotOpenItAlone(t *testing.T) {
	for _, cfg := range []infuse.Config{{}, {FailureRate: 0.5, MinCalls: 5}} {
		for _, late := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				storage := infuse.NewMemoryStorage()
				by := new(atomic.Int64)
				cfg.Storage = delayed{storage, by}
				other := startBreaker(t, "service", cfg)
				for range 4 { // its lives
					b, err := infuse.New("service", cfg)
					require.NoError(t, err)
					for range 10 {
						_ = callOf(b, true)
						time.Sleep(20 * time.Millisecond)
					}
					by.Store(0)
					time.Sleep(3 * time.Second)
					rec, err := b.Record(t.Context())
					require.NoError(t, err)
					require.Equal(t, infuse.StateClosed, rec.State, "answers take %v", late)
					require.True(t, rec.Suspect())
					require.LessOrEqual(t, rec.Score, 5)
					b.Stop()
					by.Store(int64(late))
				}
				// Those of another process do.
				by.Store(0)
				for range 10 {
					_ = callOf(other, true)
					time.Sleep(20 * time.Millisecond)
				}
				time.Sleep(3 * time.Second)
				rec, err := other.Record(t.Context())
				require.NoError(t, err)
				require.Equal(t, infuse.StateOpen, rec.State, "%+v, answers took %v", rec, late)
			})
		}
	}
}

// A process with FailMax 1 and ResetTimeout 24 h made one failure of another open
// the circuit, for as long as a Retry-After may.
// R14, R17, R41.
func TestALowFailMaxOfOneTeamDoesNotDecideForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		low := infuse.Config{Storage: storage, FailMax: 1, ResetTimeout: 24 * time.Hour}
		one, two, three := startBreaker(t, "service", low), startBreaker(t, "service", low), startBreaker(t, "service", low)
		other := startBreaker(t, "service", infuse.Config{Storage: storage, ResetTimeout: 2 * time.Second})
		require.Error(t, callOf(one, true))
		time.Sleep(time.Second)
		require.Error(t, callOf(other, true)) // its only failure
		require.NoError(t, callOf(other, false))

		// If two of that team agree, another waits for no longer than its own settings say.
		time.Sleep(time.Second)
		require.Error(t, callOf(two, true))
		time.Sleep(time.Second)
		require.Error(t, callOf(three, true))
		require.Error(t, callOf(other, true))
		rec, err := other.Record(t.Context())
		require.NoError(t, err)
		require.Equal(t, infuse.StateOpen, rec.State)
		require.ErrorIs(t, callOf(other, false), infuse.ErrOpen)
		time.Sleep(2 * time.Second)
		require.NoError(t, callOf(other, false))
	})
}
