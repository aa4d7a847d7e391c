package infuse_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// counted is a storage that counts its requests.
type counted struct {
	*infuse.MemoryStorage
	requests atomic.Int64
}

func (c *counted) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	c.requests.Add(1)
	return c.MemoryStorage.Load(ctx, circuit)
}

func (c *counted) Apply(ctx context.Context, circuit string, change infuse.Change) (infuse.Record, infuse.Verdict, error) {
	c.requests.Add(1)
	return c.MemoryStorage.Apply(ctx, circuit, change)
}

// A breaker that was stopped while the fleet was asked used its storage, which
// may be closed by then, when the suspicion was over.
func TestAStoppedBreakerAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &counted{MemoryStorage: infuse.NewMemoryStorage()}
		b, err := infuse.New("prices", infuse.Config{Storage: storage})
		require.NoError(t, err)
		for range 5 {
			_ = b.Call(t.Context(), fails)
		}
		b.Stop()
		before := storage.requests.Load()
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		require.Equal(t, before, storage.requests.Load())
	})
}

// An opening that is refuted late, and one that holds, are told once each.
func TestTheHistoryOfLateRefutation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := infuse.NewMemoryStorage()
		limits := infuse.Limits{FailMax: 5, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, Suspicion: 50 * time.Millisecond}
		apply := func(c infuse.Change) infuse.Record {
			c.Limits = limits
			r, _, err := s.Apply(t.Context(), "prices", c)
			require.NoError(t, err)
			return r
		}
		suspect := apply(infuse.Change{Calls: infuse.Calls{Failures: 5, Lead: 5, Streak: 5}, By: "a", Cause: "ill"})
		time.Sleep(time.Second)
		apply(infuse.Change{Seen: suspect, Calls: infuse.Calls{Failures: 30, Lead: 30, Streak: 30}, By: "a", Cause: "ill"})
		apply(infuse.Change{Seen: suspect, OpenFor: 2 * time.Minute, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}, By: "a", Cause: "ill"})
		all, err := s.History(t.Context(), "prices")
		require.NoError(t, err)
		require.Len(t, all, 1, "%+v", all)
		apply(infuse.Change{Seen: suspect, Calls: infuse.Calls{Successes: 100}, By: "b"})
		all, err = s.History(t.Context(), "prices")
		require.NoError(t, err)
		require.Len(t, all, 2, "%+v", all)
		require.Equal(t, infuse.StateClosed, all[0].To)
	})
}
