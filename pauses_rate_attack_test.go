package infuse

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// Redis dates what comes late by its own time, and so forgets the calls for which
// the circuit became suspect: a failure that came late closed the circuit.
func TestALateFailureOfARateClosesNothing(t *testing.T) {
	t.Parallel()
	limits := asking
	limits.FailMax, limits.FailureRate, limits.MinCalls, limits.Window = unlimited, 0.5, 10, time.Second
	failures := func(seen Record, at time.Time, n int) Change {
		return Change{Seen: seen, Limits: limits, Counted: []Bucket{{Start: at, Calls: n, Failures: n}}}
	}
	redis := NewRedisStorage(redistest.Start(t).Client(), RedisOptions{})
	t.Cleanup(func() { require.NoError(t, redis.Close()) })
	for name, s := range map[string]Storage{"memory": NewMemoryStorage(), "redis": redis} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			suspect, _, err := s.Apply(ctx, "prices", failures(Record{}, time.Now(), 10))
			require.NoError(t, err)
			require.True(t, suspect.rated())
			time.Sleep(time.Until(suspect.OpensAt.Add(limits.Window + limits.Window/2)))
			load := func() State {
				r, err := s.Load(ctx, "prices")
				require.NoError(t, err)
				return r.State
			}
			require.Equal(t, StateOpen, load())
			_, _, err = s.Apply(ctx, "prices", failures(suspect, suspect.OpensAt.Add(-time.Millisecond), 1))
			require.NoError(t, err)
			require.Equal(t, StateOpen, load())
		})
	}
}
