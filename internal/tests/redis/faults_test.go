package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// TestAMissingPermissionIsSaidSo (review, S18): it was reported as a record that
// is not a hash, and so as the trouble of one circuit.
func TestAMissingPermissionIsSaidSo(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client()
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "limited", "on", ">pw", "~*", "&*", "+@all", "-hmget").Err())
	limited := server.Client(func(o *redis.Options) { o.Username, o.Password = "limited", "pw" })
	s := newSender(t, limited, "one")
	_, err := s.Load(t.Context(), "circuit")
	requirePlain := func(err error) {
		t.Helper()
		var bad *infuse.RecordError
		require.ErrorContains(t, err, "infuse: redis: ")
		require.Regexp(t, "can't run this command|has no permissions", err) // Redis's words, and Valkey's
		require.False(t, errors.As(err, &bad))
	}
	requirePlain(err)
	_, err = s.send(failures(1))
	requirePlain(err)
	_, err = s.send(move(infuse.StateOpen))
	requirePlain(err)
}

func TestUnreadableRecords(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		ctx := t.Context()
		for name, spoil := range map[string]func(key string) error{
			"garbage":             func(key string) error { return client.HSet(ctx, key, "r", "garbage").Err() },
			"a newer schema":      func(key string) error { return client.HSet(ctx, key, "r", `{"v":9,"readable":9}`).Err() },
			"a long record":       func(key string) error { return client.HSet(ctx, key, "r", strings.Repeat("x", 1<<20)).Err() },
			"no number":           func(key string) error { return client.HSet(ctx, key, "t", "soon").Err() },
			"no version":          func(key string) error { return client.HSet(ctx, key, "v", "first").Err() },
			"an infinite version": func(key string) error { return client.HSet(ctx, key, "v", "1e308").Err() },
			"a negative count":    func(key string) error { return client.HSet(ctx, key, "n", "-1").Err() },
			"an infinite count":   func(key string) error { return client.HSet(ctx, key, "n", "inf").Err() },
			"a stranger's hash": func(key string) error {
				client.Del(ctx, key)
				return client.HSet(ctx, key, "name", "value").Err()
			},
			"a string": func(key string) error { return client.Set(ctx, key, "text", 0).Err() },
			"a list": func(key string) error {
				client.Del(ctx, key)
				return client.LPush(ctx, key, "text").Err()
			},
		} {
			require.NoError(t, client.FlushAll(ctx).Err())
			s := newSender(t, client, "one")
			s.must(move(infuse.StateOpen))
			require.NoError(t, spoil("infuse:{circuit}"))
			var bad *infuse.RecordError
			_, err := s.Load(ctx, "circuit")
			require.ErrorAs(t, err, &bad, name)
			_, err = s.send(failures(1))
			require.ErrorAs(t, err, &bad, name)
			require.Equal(t, infuse.VerdictChanged, s.must(move(infuse.StateHalfOpen)), name)
			require.Equal(t, infuse.StateHalfOpen, s.load().State, name)
			require.Equal(t, infuse.StateHalfOpen, newSender(t, client, "other").load().State, name)
		}
	})
}

func TestScriptsAreLoadedAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		for i := range 3 {
			require.NoError(t, client.ScriptFlush(t.Context()).Err())
			s.must(failures(1))
			require.Equal(t, i+1, s.load().Failures)
		}
	})
}

// TestADialerThatPanics (attack 8): it ended the process.
func TestADialerThatPanics(t *testing.T) {
	client := redistest.Start(t).Client()
	hook := &panickingDial{}
	hook.on.Store(true)
	client.AddHook(hook)
	s := newSender(t, client, "one")
	heard := make(chan infuse.Record, 10)
	s.Watch("circuit", func(r infuse.Record) { heard <- r })
	require.Eventually(t, func() bool { return hook.panics.Load() > 2 }, 10*time.Second, time.Millisecond)
	hook.on.Store(false)
	require.Eventually(t, func() bool {
		_, err := s.send(move(infuse.StateOpen))
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return (<-heard).State == infuse.StateOpen }, 10*time.Second, time.Millisecond)
}

type panickingDial struct {
	scripts
	on     atomic.Bool
	panics atomic.Int64
}

func (h *panickingDial) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if h.on.Load() {
			h.panics.Add(1)
			panic("a hook")
		}
		return next(ctx, network, addr)
	}
}

// TestOneForbiddenChannel (attack 12): it took the push from all circuits.
func TestOneForbiddenChannel(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	require.NoError(t, server.Client().Do(t.Context(), "acl", "setuser", "limited", "on", ">pw", "~*", "&infuse:{a*}", "+@all").Err())
	limited := server.Client(func(o *redis.Options) { o.Username, o.Password = "limited", "pw" })
	// One finds nothing by a poll, the other soon.
	pushed, polled := infuse.NewRedisStorage(limited, infuse.RedisOptions{PollInterval: time.Hour}), infuse.NewRedisStorage(limited, infuse.RedisOptions{PollInterval: time.Second})
	t.Cleanup(func() { _, _ = pushed.Close(), polled.Close() })
	var allowed, forbidden atomic.Int64
	for i := range 5 {
		pushed.Watch(fmt.Sprint("a", i), func(r infuse.Record) { allowed.Store(max(allowed.Load(), r.Generation)) })
	}
	pushed.Watch("forbidden", func(infuse.Record) {})
	polled.Watch("forbidden", func(r infuse.Record) { forbidden.Store(r.Generation) })
	channels := func() int {
		list, err := server.Client().PubSubChannels(t.Context(), "*").Result()
		require.NoError(t, err)
		return len(list)
	}
	require.Eventually(t, func() bool { return channels() == 5 }, 10*time.Second, 5*time.Millisecond)
	other := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	for range 5 {
		r, _, err := other.Apply(t.Context(), "a1", infuse.Change{Limits: hourLimits, Manual: &infuse.ManualState{To: infuse.StateOpen}})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return allowed.Load() >= r.Generation }, 30*time.Second, time.Millisecond)
	}
	r, _, err := other.Apply(t.Context(), "forbidden", infuse.Change{Limits: hourLimits, Manual: &infuse.ManualState{To: infuse.StateOpen}})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return forbidden.Load() == r.Generation }, 30*time.Second, 5*time.Millisecond)
}

// TestAFullRedis is a Redis that answers, and takes nothing.
func TestAFullRedis(t *testing.T) {
	client := redistest.Start(t).Client()
	s := newSender(t, client, "one")
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err := s.send(failures(1))
	require.ErrorContains(t, err, "infuse: redis: OOM")
	_, err = s.send(move(infuse.StateOpen))
	require.ErrorContains(t, err, "infuse: redis: OOM")
	require.Equal(t, infuse.Record{}, s.load())
}
