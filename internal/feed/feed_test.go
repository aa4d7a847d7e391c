package feed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
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

// fakeRedis holds a number for each channel, and publishes it.
type fakeRedis struct {
	mu        sync.Mutex
	values    map[string]int64
	sessions  []*fakeSubscription
	loads     map[string]int
	forbidden map[string]bool
	load      func(channel string) // is called first in each load
	deaf      bool                 // publishes nothing
}

func newFakeRedis() *fakeRedis {
	return &fakeRedis{values: map[string]int64{}, loads: map[string]int{}, forbidden: map[string]bool{}}
}

func (r *fakeRedis) options() Options[int64] {
	return Options[int64]{
		Subscribe: func(context.Context) Subscription { return r.connect() },
		Load: func(_ context.Context, channel string) (int64, error) {
			r.mu.Lock()
			r.loads[channel]++
			value, load := r.values[channel], r.load
			r.mu.Unlock()
			if load != nil {
				load(channel)
			}
			return value, nil
		},
		Version:      func(v int64) int64 { return v },
		Quiet:        func(v int64) bool { return v%2 == 0 },
		Urgent:       func(v int64) bool { return v%7 == 0 && v > 0 },
		PollInterval: time.Second,
	}
}

func (r *fakeRedis) loaded(channel string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loads[channel]
}

func (r *fakeRedis) connect() *fakeSubscription {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &fakeSubscription{redis: r, channels: map[string]bool{}, replies: make(chan any, 1<<15), closed: make(chan struct{})}
	r.sessions = append(r.sessions, s)
	return s
}

func (r *fakeRedis) allSessions() []*fakeSubscription {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sessions)
}

func (r *fakeRedis) session() *fakeSubscription {
	all := r.allSessions()
	return all[len(all)-1]
}

// subscribed are the channels of the present session.
func (r *fakeRedis) subscribed() map[string]bool {
	s := r.session()
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(s.channels)
}

func (r *fakeRedis) set(channel string, value int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[channel] = value
	for _, s := range r.sessions {
		if s.channels[channel] && !r.deaf {
			s.replies <- &redis.Message{Channel: channel, Payload: strconv.FormatInt(value, 10)}
		}
	}
}

// publish sends a message of no value, as another database or a stranger does.
func (r *fakeRedis) publish(channel, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		if s.channels[channel] {
			s.replies <- &redis.Message{Channel: channel, Payload: message}
		}
	}
}

type fakeSubscription struct {
	redis    *fakeRedis
	channels map[string]bool
	replies  chan any
	closed   chan struct{}
	once     sync.Once
	pings    atomic.Int64
	dead     atomic.Bool // answers no ping
}

type refusal struct{ error }

func (refusal) RedisError() {}

func (s *fakeSubscription) Subscribe(_ context.Context, channels ...string) error {
	s.redis.mu.Lock()
	defer s.redis.mu.Unlock()
	for _, channel := range channels {
		if s.redis.forbidden[channel] {
			s.replies <- refusal{errors.New("NOPERM")}
			return nil
		}
	}
	for _, channel := range channels {
		s.channels[channel] = true
		s.replies <- &redis.Subscription{Kind: "subscribe", Channel: channel}
	}
	return nil
}

func (s *fakeSubscription) Unsubscribe(_ context.Context, channels ...string) error {
	s.redis.mu.Lock()
	defer s.redis.mu.Unlock()
	for _, channel := range channels {
		delete(s.channels, channel)
	}
	return nil
}

func (s *fakeSubscription) Ping(context.Context, ...string) error {
	if s.pings.Add(1) > 1 && !s.dead.Load() {
		s.replies <- &redis.Pong{}
	}
	return nil
}

func (s *fakeSubscription) ReceiveTimeout(_ context.Context, timeout time.Duration) (any, error) {
	select {
	case reply := <-s.replies:
		if err, ok := reply.(error); ok {
			return nil, err
		}
		return reply, nil
	case <-s.closed:
		return nil, net.ErrClosed
	case <-time.After(timeout):
		return nil, os.ErrDeadlineExceeded
	}
}

func (s *fakeSubscription) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// ear remembers what it has heard.
type ear struct {
	mu  sync.Mutex
	all []int64
}

func (e *ear) hear(v int64) { e.mu.Lock(); e.all = append(e.all, v); e.mu.Unlock() }
func (e *ear) last() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.all) == 0 {
		return -1
	}
	return e.all[len(e.all)-1]
}

// bubble runs a test of a feed in fake time.
func bubble(t *testing.T, run func(t *testing.T, r *fakeRedis, f *Feed[int64])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		f := New(r.options())
		defer func() { require.True(t, f.Close()) }()
		run(t, r, f)
	})
}

func TestPush(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var one, same, other ear
		f.Watch("a", one.hear)
		stop := f.Watch("a", same.hear)
		f.Watch("b", other.hear)
		synctest.Wait()
		r.set("a", 1)
		synctest.Wait()
		require.Equal(t, int64(1), one.last(), "at once")
		for v := range int64(9) {
			r.set("a", v+2)
		}
		time.Sleep(hintPause)
		synctest.Wait()
		require.Equal(t, int64(10), one.last())
		require.Equal(t, one.all, same.all)
		require.IsIncreasing(t, one.all[1:])
		require.Zero(t, other.last(), "but what was loaded after the subscription")
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

func TestWhatWasMissedWhileReconnectingIsLoaded(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e ear
		f.Watch("a", e.hear)
		synctest.Wait()
		_ = r.session().Close()
		synctest.Wait()
		r.set("a", 5)
		synctest.Wait()
		require.Zero(t, e.last())
		time.Sleep(300 * time.Millisecond) // the longest pause before the next, and jitter
		synctest.Wait()
		require.Equal(t, int64(5), e.last())
	})
}

func TestADeadConnectionIsNoticed(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		f.Watch("a", func(int64) {})
		synctest.Wait()
		r.session().dead.Store(true)
		time.Sleep(2*pingAfter + time.Second)
		require.Len(t, r.allSessions(), 2)
		time.Sleep(time.Minute)
		require.Len(t, r.allSessions(), 2, "one that answers pings lives on")
	})
}

// TestALostValueIsFound has a version fall, as where Redis lost its data.
func TestALostValueIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e ear
		r.values["a"] = 100
		f.Watch("a", e.hear)
		synctest.Wait()
		require.Equal(t, int64(100), e.last())
		r.set("a", 3)
		synctest.Wait()
		require.Equal(t, int64(3), e.last())
	})
}

// TestForbiddenChannels (attack 12): one took the push from all.
func TestForbiddenChannels(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		r.forbidden["no1"], r.forbidden["no2"] = true, true
		var allowed, forbidden ear
		for i := range 10 {
			f.Watch(fmt.Sprint("a", i), func(int64) {})
		}
		f.Watch("a", allowed.hear)
		f.Watch("no1", forbidden.hear)
		f.Watch("no2", func(int64) {})
		synctest.Wait()
		require.Len(t, r.allSessions(), 1)
		require.Len(t, r.subscribed(), 11)
		r.set("a", 1)
		r.set("no1", 1)
		synctest.Wait()
		require.Equal(t, int64(1), allowed.last())
		time.Sleep(2 * time.Second)
		require.Equal(t, int64(1), forbidden.last(), "by the poll")
		require.Len(t, r.allSessions(), 1)
		f.Watch("later", func(int64) {})
		synctest.Wait()
		require.Len(t, r.subscribed(), 12)
	})
}

// TestPollsGrowRare has a value that is not quiet, and that nobody changes.
func TestPollsGrowRare(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e ear
		f.Watch("a", e.hear)
		f.Watch("quiet", func(int64) {})
		synctest.Wait()
		r.set("a", 1)
		loadsIn := func(d time.Duration, channel string) int {
			before := r.loaded(channel)
			time.Sleep(d)
			return r.loaded(channel) - before
		}
		first := loadsIn(15*time.Second, "a")
		require.True(t, first >= 3 && first <= 8, "%d loads in the first quarter of a minute", first)
		hour := loadsIn(time.Hour, "a")
		require.True(t, hour > 120 && hour < 500, "%d loads in an hour", hour)
		quiet := loadsIn(time.Hour, "quiet")
		require.True(t, quiet > 120 && quiet < 500, "%d loads in an hour", quiet)

		r.mu.Lock()
		r.deaf = true
		r.mu.Unlock()
		r.set("a", 3)
		began := time.Now()
		for e.last() != 3 {
			time.Sleep(10 * time.Millisecond)
		}
		require.Less(t, time.Since(began), 24*time.Second, "though no message came")
		again := loadsIn(15*time.Second, "a")
		require.GreaterOrEqual(t, again, 3, "after news")
	})
}

// TestAMessageChangesNothing has a flood of messages that belong to no value of
// this database: they cost some loads, and hide no change.
func TestAMessageChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e ear
		r.values["a"] = 2
		f.Watch("a", e.hear)
		synctest.Wait()
		before := r.loaded("a")
		for i := range 10_000 {
			r.publish("a", strconv.Itoa(i*1_000_000))
			time.Sleep(time.Millisecond)
			if i == 5_000 {
				r.set("a", 4)
			}
			if i == 5_000+int(hintPauseMost/time.Millisecond) {
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

// TestAnUrgentValueIsPolledEveryInterval: a lost override was
// restored after 16 to 38 s, because the pauses between two polls grew.
func TestAnUrgentValueIsPolledEveryInterval(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var e ear
		r.values["a"] = 7
		f.Watch("a", e.hear)
		for i := range 100 {
			f.Watch(fmt.Sprint("quiet", i), func(int64) {})
		}
		synctest.Wait()
		r.mu.Lock()
		r.deaf = true
		r.mu.Unlock()
		for range 50 {
			time.Sleep(time.Minute)
			r.set("a", 0) // it is lost, and nobody publishes that
			began := time.Now()
			for e.last() != 0 {
				time.Sleep(time.Millisecond)
			}
			require.LessOrEqual(t, time.Since(began), 1700*time.Millisecond, "1.5 intervals, and an eighth")
			r.set("a", 7)
			for e.last() != 7 {
				time.Sleep(time.Second)
			}
		}
	})
}

// TestAHangingLoadHoldsBackNoMessage has a Cluster's node that does not answer:
// the messages of the others' circuits are followed at once.
func TestAHangingLoadHoldsBackNoMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		release := make(chan struct{})
		r.load = func(channel string) {
			if channel == "hangs" {
				<-release
			}
		}
		f := New(r.options())
		var e ear
		f.Watch("hangs", func(int64) {})
		f.Watch("a", e.hear)
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

func TestManyAreLoadedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		r.load = func(string) { time.Sleep(time.Millisecond) }
		f := New(r.options())
		heard := make(map[string]bool)
		var mu sync.Mutex
		began := time.Now()
		for i := range 10_000 {
			channel := fmt.Sprint("a", i)
			f.Watch(channel, func(int64) { mu.Lock(); heard[channel] = true; mu.Unlock() })
		}
		for {
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			n := len(heard)
			mu.Unlock()
			if n == 10_000 {
				break
			}
		}
		require.Less(t, time.Since(began), 1500*time.Millisecond)
		require.True(t, f.Close())
	})
}

// TestHangingLoads has a client that answers nothing for one channel: others
// go on, and the goroutines that wait are few.
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
		var e ear
		f.Watch("hangs", func(int64) {})
		f.Watch("a", e.hear)
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

// TestWhatPanics (attack 8) has each thing that is called panic, or end its goroutine.
func TestWhatPanics(t *testing.T) {
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
			var e ear
			f.Watch("a", e.hear)
			time.Sleep(time.Minute)
			require.Equal(t, int64(1), e.last(), name)
			r.set("a", 3)
			time.Sleep(time.Minute)
			require.Equal(t, int64(3), e.last(), name)
			require.True(t, f.Close())
		})
	}
}

type failingSubscription struct {
	Subscription
	failing func()
}

func (s failingSubscription) Subscribe(ctx context.Context, channels ...string) error {
	s.failing()
	return s.Subscription.Subscribe(ctx, channels...)
}

func (s failingSubscription) Ping(ctx context.Context, payload ...string) error {
	s.failing()
	return s.Subscription.Ping(ctx, payload...)
}

func (s failingSubscription) Close() error {
	s.failing()
	return s.Subscription.Close()
}

func TestClose(t *testing.T) {
	f := New(newFakeRedis().options())
	require.True(t, f.Close(), "nothing was ever watched")
	f.Watch("a", func(int64) { t.Error("heard after Close") })()
	require.True(t, f.Close())
}

// TestOnRedis has a real subscription: one that is cut, and one refused.
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
	var e ear
	f.Watch("a", e.hear)
	hears := func(v int64) {
		t.Helper()
		require.Eventually(t, func() bool { return e.last() == v }, 10*time.Second, time.Millisecond)
	}
	hears(1)
	set(2)
	hears(2)
	proxy.CutAll()
	set(3)
	hears(3)
	require.NoError(t, server.Restart())
	set(4)
	hears(4)
	require.True(t, f.Close())
}
