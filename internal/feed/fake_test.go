package feed

// This file contains a fake Redis, and the helpers of the tests.

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// fakeRedis stores a number for each channel, and publishes a message for each change.
type fakeRedis struct {
	mu        sync.Mutex
	values    map[string]int64
	sessions  []*fakeSubscription
	loads     map[string]int
	forbidden map[string]bool
	load      func(channel string) // called first in each load
	silent    bool                 // publishes nothing
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

// subscribed returns the channels of the current session.
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
		if s.channels[channel] && !r.silent {
			s.replies <- &redis.Message{Channel: channel, Payload: strconv.FormatInt(value, 10)}
		}
	}
}

// publish sends a message without a change, as other databases and clients can.
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
	hanging  atomic.Bool // does not reply to pings
}

type refusal struct{ error }

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
	if s.pings.Add(1) > 1 && !s.hanging.Load() {
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

// recorder records the values of a watcher.
type recorder struct {
	mu  sync.Mutex
	all []int64
}

func (e *recorder) record(v int64) { e.mu.Lock(); e.all = append(e.all, v); e.mu.Unlock() }

func (e *recorder) last() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.all) == 0 {
		return -1
	}
	return e.all[len(e.all)-1]
}

// bubble runs a test with a feed in fake time.
func bubble(t *testing.T, run func(t *testing.T, r *fakeRedis, f *Feed[int64])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newFakeRedis()
		f := New(r.options())
		defer func() { require.True(t, f.Close()) }()
		run(t, r, f)
	})
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
