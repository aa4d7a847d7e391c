package fleettest

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Losses and delays of the network, on real servers. internal/tests/link has
// the rest.

// A circuit fell due just as Redis hung, and the lease that was granted in that
// moment blocked the whole fleet for 30 s: nobody held it.
func TestNoLeaseOfALostAnswerBlocksTheFleetOnRedis(t *testing.T) {
	takesLong(t)
	s, clients, _ := startFault(t)
	fleet := make([]*infuse.Breaker, 2)
	for i := range fleet {
		storage := infuse.NewRedisStorage(clients[i], infuse.RedisOptions{})
		t.Cleanup(func() { _ = storage.Close() })
		fleet[i] = startBreaker(t, "prices", infuse.Config{
			ResetTimeout: 500 * time.Millisecond, TrialTimeout: time.Hour, StorageTimeout: faultTimeout, Storage: storage,
		})
	}
	require.NoError(t, fleet[0].SetState(t.Context(), infuse.StateOpen))
	eventuallyState(t, infuse.StateOpen, fleet[1])
	time.Sleep(time.Until(recordOf(t, fleet[0]).DueAt) + 10*time.Millisecond)
	s.Pause()
	require.ErrorIs(t, fleet[0].Call(t.Context(), succeeds), infuse.ErrOpen, "it may be that one answer is late")
	require.Eventually(t, func() bool { return fleet[0].Call(t.Context(), succeeds) == nil }, patience, pace, "its own trial")
	time.Sleep(6 * time.Second) // the client has given up, Redis has not
	s.Resume()
	began := time.Now()
	for _, b := range fleet {
		require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
	}
	t.Logf("calls ran again after %v", time.Since(began).Round(time.Millisecond))
	require.Eventually(t, func() bool {
		r := recordOf(t, fleet[1])
		return r.State == infuse.StateClosed && len(r.Trials) == 0
	}, patience, pace)
}

// A connection broke before the reply, the client sent the change again, and
// it counted twice where its token had been forgotten.
// R13.
func TestEveryFailureCountsOnceThroughABadNetwork(t *testing.T) {
	for name, harm := range map[string]func(p *redistest.Proxy, round int){
		"replies are lost": func(p *redistest.Proxy, _ int) { p.SetLoss(0.01) },
		"connections are cut": func(p *redistest.Proxy, _ int) {
			p.CutAll()
		},
		"everything is swallowed": func(p *redistest.Proxy, round int) { p.Swallow(round%4 == 0) },
		"replies are late":        func(p *redistest.Proxy, round int) { p.SetDelay(time.Duration(round%4/3) * 150 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _, _ := startFault(t)
			var calls sync.WaitGroup
			var made, waited atomic.Int64
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			stalled := standstill(ctx)
			var proxies []*redistest.Proxy
			var breakers []*infuse.Breaker
			for range 3 {
				proxy := redistest.StartProxy(t, s.Addr())
				proxies = append(proxies, proxy)
				storage := infuse.NewRedisStorage(s.Client(through(proxy)), infuse.RedisOptions{})
				t.Cleanup(func() { _ = storage.Close() })
				breakers = append(breakers, startBreaker(t, "prices", infuse.Config{FailMax: 1 << 30, Storage: storage}))
			}
			for _, b := range breakers { // what fails before a process has received the record is not reported
				require.Eventually(t, func() bool { return b.Stats().StorageErr == nil }, patience, pace)
			}
			for _, b := range breakers {
				for range 4 {
					calls.Go(func() {
						for ctx.Err() == nil {
							took, err := waitOf(b, fails)
							if err != errUnhealthy {
								t.Error(err)
							}
							made.Add(1)
							for seen := waited.Load(); int64(took) > seen && !waited.CompareAndSwap(seen, int64(took)); seen = waited.Load() {
							}
							time.Sleep(4 * time.Millisecond)
						}
					})
				}
			}
			for round := range 16 {
				for _, p := range proxies {
					harm(p, round)
				}
				time.Sleep(200 * time.Millisecond)
			}
			for _, p := range proxies {
				p.SetLoss(0)
				p.SetDelay(0)
				p.Swallow(false)
			}
			stop()
			calls.Wait()
			var counted int
			near := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, s)}))
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				for i, b := range breakers { // each has reported everything
					require.NoError(c, b.Stats().StorageErr, "process %d", i)
				}
				counted = recordOf(t, near).Failures
				require.GreaterOrEqual(c, counted, int(made.Load()))
			}, patience, 10*pace)
			time.Sleep(200 * time.Millisecond) // for what would be too many
			counted = recordOf(t, near).Failures
			t.Logf("%d failures, %d counted, worst extra wait %v", made.Load(), counted, time.Duration(waited.Load()).Round(time.Millisecond))
			require.EqualValues(t, made.Load(), counted)
			require.Less(t, time.Duration(waited.Load()), storageTimeout+faultMargin+2*stalled())
		})
	}
}

// Redis's clock was set back by an hour, and open circuits stayed open, and
// dead leases stayed, for that hour.
// R40.
func TestAClockSetBackProlongsNothing(t *testing.T) {
	t.Parallel()
	mini := redistest.StartMini(t)
	noon := time.UnixMilli(1_790_000_000_000)
	began := time.Now()
	var step atomic.Int64
	tick := func() { mini.SetTime(noon.Add(time.Since(began) + time.Duration(step.Load()))) }
	clock := func(to time.Duration) {
		step.Store(int64(to))
		tick()
	}
	clock(0)
	ticker := time.NewTicker(time.Millisecond)
	ctx, stop := context.WithCancel(t.Context())
	var ticking sync.WaitGroup
	ticking.Go(func() {
		for ctx.Err() == nil {
			<-ticker.C
			tick()
		}
	})
	t.Cleanup(ticking.Wait)
	t.Cleanup(stop)
	start := func(reset time.Duration) *infuse.Breaker {
		return startBreaker(t, "prices", patiently(infuse.Config{
			FailMax: 2, ResetTimeout: reset, TrialTimeout: reset, Storage: hostOn(t, mini.Client()),
		}))
	}
	const soon = 400 * time.Millisecond
	a, b := start(soon), start(soon)
	admitted := func(breaker *infuse.Breaker) infuse.Permit { // within patience, which is far less than an hour
		t.Helper()
		var p infuse.Permit
		require.Eventually(t, func() bool {
			var err error
			p, err = breaker.Acquire(t.Context())
			return err == nil
		}, patience, pace)
		return p
	}
	require.NoError(t, a.SetState(t.Context(), infuse.StateOpen))
	eventuallyState(t, infuse.StateOpen, b)
	clock(-time.Hour)
	admitted(a) // and never settled
	clock(-2 * time.Hour)
	admitted(b).Done(nil)
	eventuallyState(t, infuse.StateClosed, a, b)
}

// After an outage of a Redis that is far off and loses 0.5 %, 1,000 circuits were
// shared again after ten minutes, and each reported dozens of outages.
func TestLossOnRedis(t *testing.T) {
	quietRedis()
	const circuits = 1000
	s := redistest.Start(t)
	proxy := redistest.StartProxy(t, s.Addr())
	client := s.Client(through(proxy), func(o *redis.Options) { o.PoolSize = 20 })
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	var heard edges
	breakers := startGroup(t, circuits, infuse.Config{
		FailMax: 1000, Storage: storage, StorageTimeout: faultTimeout, Listeners: []*infuse.Listener{heard.Listener()},
	})
	proxy.SetDelay(faultTimeout / 20) // all circuits take longer than faultTimeout, and each far less
	s.Kill()
	for _, b := range breakers[:20] {
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	}
	detached := func() int { return len(detachedOf(breakers)) }
	require.Eventually(t, func() bool { return detached() == circuits }, patience, pace)
	require.Eventually(t, func() bool { return heard.Unavailable.Load() > 0 }, patience, pace)
	time.Sleep(time.Second)
	require.NoError(t, s.Restart())
	proxy.SetLoss(0.005)
	began := time.Now()
	require.Eventually(t, func() bool { return detached() == 0 }, patience, pace)
	took := time.Since(began)
	require.Eventually(t, func() bool { return heard.Available.Load() > 0 }, patience, pace)
	proxy.SetLoss(0)
	t.Logf("%d circuits shared again after %v", circuits, took.Round(time.Millisecond))
	require.Greater(t, took, faultTimeout, "or the outage would not show whether all were waited for together")
	heard.Require(t, 1, 1) // one outage, however many circuits
	failures := 0
	for _, b := range breakers[:20] {
		failures += recordOf(t, b).Failures
	}
	require.Equal(t, 20, failures)
}

// An open circuit that nobody called any more was restored whenever its key
// ended, and read every two seconds by every process, for ever.
// R23.
func TestADeadCircuitCostsNothing(t *testing.T) {
	t.Parallel()
	const poll = 20 * time.Millisecond
	s := redistest.Start(t)
	var breakers []*infuse.Breaker
	for range 3 {
		storage := infuse.NewRedisStorage(s.Client(), infuse.RedisOptions{PollInterval: poll})
		t.Cleanup(func() { require.NoError(t, storage.Close()) })
		breakers = append(breakers, startBreaker(t, "prices", patiently(infuse.Config{ResetTimeout: 300 * time.Millisecond, Storage: storage})))
	}
	require.NoError(t, breakers[0].SetState(t.Context(), infuse.StateOpen))
	eventuallyState(t, infuse.StateOpen, breakers...)
	due := recordOf(t, breakers[0]).DueAt
	most := time.Until(due) + time.Hour + 10*time.Millisecond // in whole milliseconds
	life := s.Client().PTTL(t.Context(), pricesKey).Val()
	require.Positive(t, life)
	require.LessOrEqual(t, life, most)
	time.Sleep(time.Until(due) + 50*time.Millisecond)
	require.NoError(t, s.Client().PExpire(t.Context(), pricesKey, time.Millisecond).Err()) // as in an hour

	before, err := s.Commands(t.Context())
	require.NoError(t, err)
	const long = 100 * poll
	time.Sleep(long)
	after, err := s.Commands(t.Context())
	require.NoError(t, err)
	require.Zero(t, s.Client().Exists(t.Context(), pricesKey).Val(), "it is not restored")
	require.Equal(t, before["hset"], after["hset"])
	require.Equal(t, before["publish"], after["publish"])
	reads := after["evalsha"] - before["evalsha"]
	t.Logf("%d processes read %d times in %d poll intervals", len(breakers), reads, long/poll)
	// Once there was no news for long: each fifteenth interval, give or take
	// half, as a healthy one. Until then at pauses that double.
	require.LessOrEqual(t, reads, int64(len(breakers)*20))
}
