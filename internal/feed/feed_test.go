package feed

// This file tests the Feed with a fake Redis in fake time, and with a real one.

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

func (refusal) RedisError() {}

func TestPush(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var one, same, other recorder
		f.Watch("a", one.record)
		stop := f.Watch("a", same.record)
		f.Watch("b", other.record)
		synctest.Wait()
		r.set("a", 1)
		synctest.Wait()
		require.Equal(t, int64(1), one.last(), "immediately")
		for v := range int64(9) {
			r.set("a", v+2)
		}
		time.Sleep(hintPause)
		synctest.Wait()
		require.Equal(t, int64(10), one.last())
		require.Equal(t, one.all, same.all)
		require.IsIncreasing(t, one.all[1:])
		require.Zero(t, other.last(), "only the load after the subscription")
		stop()
		r.set("a", 11)
		time.Sleep(hintPause)
		synctest.Wait()
		require.Equal(t, int64(11), one.last())
		require.Equal(t, int64(10), same.last())
	})
}

func TestUnwatchedChannelsAreUnsubscribed(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		stop := f.Watch("a", func(int64) {})
		f.Watch("b", func(int64) {})
		synctest.Wait()
		require.Len(t, r.subscribed(), 2)
		stop()
		synctest.Wait()
		require.Equal(t, map[string]bool{"b": true}, r.subscribed())
		require.Len(t, f.watched, 1)
	})
}

func TestChangesDuringReconnectAreLoaded(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e recorder
		f.Watch("a", e.record)
		synctest.Wait()
		_ = r.session().Close()
		synctest.Wait()
		r.set("a", 5)
		synctest.Wait()
		require.Zero(t, e.last())
		time.Sleep(300 * time.Millisecond) // longer than the pause with jitter
		synctest.Wait()
		require.Equal(t, int64(5), e.last())
	})
}

func TestDeadConnectionIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		f.Watch("a", func(int64) {})
		synctest.Wait()
		r.session().hanging.Store(true)
		time.Sleep(2*pingAfter + time.Second)
		require.Len(t, r.allSessions(), 2)
		time.Sleep(time.Minute)
		require.Len(t, r.allSessions(), 2, "a connection that replies to pings is kept")
	})
}

// A version decreases if Redis has lost its data.
func TestLostValueIsDetected(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e recorder
		r.values["a"] = 100
		f.Watch("a", e.record)
		synctest.Wait()
		require.Equal(t, int64(100), e.last())
		r.set("a", 3)
		synctest.Wait()
		require.Equal(t, int64(3), e.last())
	})
}

// One forbidden channel stopped the messages of all channels.
func TestForbiddenChannels(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		r.forbidden["no1"], r.forbidden["no2"] = true, true
		var allowed, forbidden recorder
		for i := range 10 {
			f.Watch(fmt.Sprint("a", i), func(int64) {})
		}
		f.Watch("a", allowed.record)
		f.Watch("no1", forbidden.record)
		f.Watch("no2", func(int64) {})
		synctest.Wait()
		require.Len(t, r.allSessions(), 1)
		require.Len(t, r.subscribed(), 11)
		r.set("a", 1)
		r.set("no1", 1)
		synctest.Wait()
		require.Equal(t, int64(1), allowed.last())
		time.Sleep(2 * time.Second)
		require.Equal(t, int64(1), forbidden.last(), "by a poll")
		require.Len(t, r.allSessions(), 1)
		f.Watch("later", func(int64) {})
		synctest.Wait()
		require.Len(t, r.subscribed(), 12)
	})
}

// A value that is not quiet does not change.
func TestPollPausesGrow(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e recorder
		f.Watch("a", e.record)
		f.Watch("quiet", func(int64) {})
		synctest.Wait()
		r.set("a", 1)
		loadsIn := func(d time.Duration, channel string) int {
			before := r.loaded(channel)
			time.Sleep(d)
			return r.loaded(channel) - before
		}
		first := loadsIn(15*time.Second, "a")
		require.True(t, first >= 3 && first <= 8, "%d loads in the first 15 s", first)
		hour := loadsIn(time.Hour, "a")
		require.True(t, hour > 120 && hour < 500, "%d loads in an hour", hour)
		quiet := loadsIn(time.Hour, "quiet")
		require.True(t, quiet > 120 && quiet < 500, "%d loads in an hour", quiet)

		r.mu.Lock()
		r.silent = true
		r.mu.Unlock()
		r.set("a", 3)
		began := time.Now()
		for e.last() != 3 {
			time.Sleep(10 * time.Millisecond)
		}
		require.Less(t, time.Since(began), 24*time.Second, "without a message")
		again := loadsIn(15*time.Second, "a")
		require.GreaterOrEqual(t, again, 3, "after a change")
	})
}

// A flood of messages from another database causes some loads, and hides no change.
func TestForeignMessages(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e recorder
		r.values["a"] = 2
		f.Watch("a", e.record)
		synctest.Wait()
		before := r.loaded("a")
		for i := range 10_000 {
			r.publish("a", strconv.Itoa(i*1_000_000))
			time.Sleep(time.Millisecond)
			if i == 5_000 {
				r.set("a", 4)
			}
			if i == 5_000+int(maxHintPause/time.Millisecond) {
				synctest.Wait()
				require.Equal(t, int64(4), e.last())
			}
		}
		loads := r.loaded("a") - before
		require.Less(t, loads, 120, "in 10 s")
		e.mu.Lock()
		defer e.mu.Unlock()
		require.Subset(t, []int64{2, 4}, e.all)
	})
}

// A lost override was restored only after 16 to 38 s, because the pauses between polls
// grew.
func TestUrgentValueIsPolledEveryInterval(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e recorder
		r.values["a"] = 7
		f.Watch("a", e.record)
		for i := range 100 {
			f.Watch(fmt.Sprint("quiet", i), func(int64) {})
		}
		synctest.Wait()
		r.mu.Lock()
		r.silent = true
		r.mu.Unlock()
		for range 50 {
			time.Sleep(time.Minute)
			r.set("a", 0) // lost, without a message
			began := time.Now()
			for e.last() != 0 {
				time.Sleep(time.Millisecond)
			}
			require.LessOrEqual(t, time.Since(began), 1700*time.Millisecond, "1.5 intervals, plus 1/8")
			r.set("a", 7)
			for e.last() != 7 {
				time.Sleep(time.Second)
			}
		}
	})
}

// One node of a Cluster does not reply. Values of the other nodes are loaded immediately
// after their messages.
func TestHangingLoadDelaysNoOtherValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		release := make(chan struct{})
		r.load = func(channel string) {
			if channel == "hangs" {
				<-release
			}
		}
		f := New(r.options())
		var e recorder
		f.Watch("hangs", func(int64) {})
		f.Watch("a", e.record)
		time.Sleep(10 * time.Second)
		for v := range int64(100) {
			r.set("a", 2*v)
			time.Sleep(hintPause)
			synctest.Wait()
			require.Equal(t, 2*v, e.last())
			time.Sleep(33 * time.Millisecond)
		}
		require.True(t, f.Close())
		close(release)
	})
}

func TestConcurrentLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		r.load = func(string) { time.Sleep(time.Millisecond) }
		f := New(r.options())
		received := make(map[string]bool)
		var mu sync.Mutex
		began := time.Now()
		for i := range 10_000 {
			channel := fmt.Sprint("a", i)
			f.Watch(channel, func(int64) { mu.Lock(); received[channel] = true; mu.Unlock() })
		}
		for {
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			n := len(received)
			mu.Unlock()
			if n == 10_000 {
				break
			}
		}
		require.Less(t, time.Since(began), 1500*time.Millisecond)
		require.True(t, f.Close())
	})
}

// A client never replies for one channel. The other channels continue, and the number of
// waiting goroutines is limited.
func TestHangingLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		release := make(chan struct{})
		r.load = func(channel string) {
			if channel == "hangs" {
				<-release
			}
		}
		f := New(r.options())
		var e recorder
		f.Watch("hangs", func(int64) {})
		f.Watch("a", e.record)
		time.Sleep(time.Second)
		r.set("a", 1)
		synctest.Wait()
		require.Equal(t, int64(1), e.last())
		time.Sleep(time.Hour)
		require.Less(t, runtime.NumGoroutine(), 100)
		began := time.Now()
		require.True(t, f.Close())
		require.LessOrEqual(t, time.Since(began), 2*time.Second)
		close(release)
	})
}

// Each func and method panics, or ends its goroutine.
func TestPanicsAndGoexits(t *testing.T) {
	for name, fail := range map[string]func(){"panic": func() { panic("a hook") }, "goexit": runtime.Goexit} {
		synctest.Test(t, func(t *testing.T) {
			r := newFakeRedis()
			r.values["a"] = 1
			opts := r.options()
			var fails atomic.Int64
			failing := func() {
				if fails.Add(1)%3 != 0 {
					fail()
				}
			}
			connect := opts.Subscribe
			opts.Subscribe = func(ctx context.Context) Subscription {
				failing()
				return failingSubscription{connect(ctx), failing}
			}
			r.load = func(string) { failing() }
			f := New(opts)
			var e recorder
			f.Watch("a", e.record)
			time.Sleep(time.Minute)
			require.Equal(t, int64(1), e.last(), name)
			r.set("a", 3)
			time.Sleep(time.Minute)
			require.Equal(t, int64(3), e.last(), name)
			require.True(t, f.Close())
		})
	}
}

func TestClose(t *testing.T) {
	f := New(newFakeRedis().options())
	require.True(t, f.Close(), "without watchers")
	f.Watch("a", func(int64) { t.Error("notified after Close") })()
	require.True(t, f.Close())
}

// A real subscription is cut, and another one is refused.
func TestOnRedis(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	proxy := redistest.StartProxy(t, server.Addr())
	through := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	t.Cleanup(func() { _ = through.Close() })
	f := New(Options[int64]{
		Subscribe:    func(ctx context.Context) Subscription { return through.Subscribe(ctx) },
		Load:         func(ctx context.Context, channel string) (int64, error) { return client.Get(ctx, channel).Int64() },
		Version:      func(v int64) int64 { return v },
		Quiet:        func(int64) bool { return true },
		Urgent:       func(int64) bool { return false },
		PollInterval: time.Hour,
	})
	set := func(v int64) {
		require.NoError(t, client.Set(t.Context(), "a", v, 0).Err())
		require.NoError(t, client.Publish(t.Context(), "a", v).Err())
	}
	set(1)
	var e recorder
	f.Watch("a", e.record)
	requireReceived := func(v int64) {
		t.Helper()
		require.Eventually(t, func() bool { return e.last() == v }, 10*time.Second, time.Millisecond)
	}
	requireReceived(1)
	set(2)
	requireReceived(2)
	proxy.CutAll()
	set(3)
	requireReceived(3)
	require.NoError(t, server.Restart())
	set(4)
	requireReceived(4)
	require.True(t, f.Close())
}
