package fleettest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Faults that begin while a circuit is suspect, when everybody is about to report
// (faults F3 and F4). Longer ones, with real processes: bench/agree.

const suspectedKey = "infuse:{suspected}"

// outlive makes the circuit suspect, and then the fault happens. The healthy
// processes call until the fault is over and the suspicion is dismissed: no call is
// rejected, and the circuit does not open. Then the service fails for all, and all
// processes reject.
func outlive(t *testing.T, client func() redis.UniversalClient, fault func()) {
	t.Helper()
	start := func() *infuse.Breaker {
		storage := infuse.NewRedisStorage(client(), infuse.RedisOptions{PollInterval: faultPoll})
		t.Cleanup(func() { _ = storage.Close() })
		return startBreaker(t, "suspected", infuse.Config{Storage: storage, StorageTimeout: faultTimeout, ResetTimeout: time.Second})
	}
	unhealthy, healthy := start(), []*infuse.Breaker{start(), start()}
	trip(t, unhealthy)
	require.Eventually(t, func() bool { return recordOf(t, unhealthy).Suspect() }, patience, pace)

	var calls, rejected atomic.Int64
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, b := range healthy {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * pace):
				}
				calls.Add(1)
				if b.Call(t.Context(), succeeds) != nil {
					rejected.Add(1)
				}
			}
		})
	}
	fault()
	require.Eventually(t, func() bool {
		r, err := healthy[0].Record(t.Context())
		return err == nil && !r.Suspect()
	}, patience, 10*pace, "dismissed")
	time.Sleep(2 * faultPoll) // both have read it
	close(stop)
	all.Wait()
	r := recordOf(t, healthy[0])
	t.Logf("%d calls, %d rejected, then the record is %v, opened at generation %d", calls.Load(), rejected.Load(), r.State, r.Opened)
	require.Zero(t, rejected.Load())
	require.Zero(t, r.Opened)
	requireState(t, infuse.StateClosed, healthy...)

	for _, b := range healthy {
		require.Eventually(t, func() bool { return errors.Is(b.Call(t.Context(), fails), infuse.ErrOpen) }, patience, pace, "an outage")
	}
}

// asSuspect copies the record. undo writes the copy, like a failover to a replica
// that has not received the dismissal.
func asSuspect(t *testing.T, server *redistest.Server) (undo func(promoted *redistest.Server)) {
	t.Helper()
	record, err := server.Client().Dump(t.Context(), suspectedKey).Result()
	require.NoError(t, err)
	return func(promoted *redistest.Server) {
		require.NoError(t, promoted.Client().RestoreReplace(t.Context(), suspectedKey, time.Hour, record).Err())
	}
}

func TestRedisIsStoppedInASuspicion(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	outlive(t, func() redis.UniversalClient { return s.Client() }, func() {
		s.Pause()
		time.Sleep(6 * time.Second) // longer than any late report once counted
		s.Resume()
	})
}

func TestRedisIsKilledInASuspicion(t *testing.T) {
	s, _, _ := startFault(t)
	outlive(t, func() redis.UniversalClient { return s.Client() }, func() {
		s.Kill()
		time.Sleep(time.Second)
		require.NoError(t, s.Restart())
	})
}

func TestASuspicionReturnsAfterItsDismissal(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	outlive(t, func() redis.UniversalClient { return s.Client() }, func() {
		undo := asSuspect(t, s)
		time.Sleep(2 * faultPoll)
		undo(s)
	})
}

func TestSentinelPromotesTheReplicaInASuspicion(t *testing.T) {
	for name, loses := range map[string]bool{"with the suspicion": false, "without the dismissal": true} {
		t.Run(name, func(t *testing.T) {
			takesLong(t)
			t.Parallel()
			quietRedis()
			s := redistest.StartSentinel(t)
			client := func() redis.UniversalClient {
				return s.Client(func(o *redis.FailoverOptions) { o.ReadTimeout, o.DialTimeout = time.Second, time.Second })
			}
			outlive(t, client, func() {
				undo := func(*redistest.Server) {}
				if loses {
					undo = asSuspect(t, s.Master())
				}
				require.NoError(t, s.Failover(t.Context()))
				undo(s.Master())
			})
		})
	}
}

func TestAMasterOfTheClusterIsKilledInASuspicion(t *testing.T) {
	takesLong(t)
	t.Parallel()
	quietRedis()
	c := redistest.StartClusterWithReplicas(t, 3, 1)
	client := func() redis.UniversalClient {
		return c.Client(func(o *redis.ClusterOptions) { o.ReadTimeout, o.DialTimeout = time.Second, time.Second })
	}
	outlive(t, client, func() {
		_, master := owner(t, c, "suspected")
		master.Kill()
		require.Eventually(t, func() bool {
			_, successor, err := c.Owner(t.Context(), suspectedKey)
			return err == nil && successor.Addr() != master.Addr()
		}, patience, 10*pace)
	})
}
