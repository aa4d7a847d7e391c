package infuse_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience = 30 * time.Second // for what happens soon, on a machine that has other things to do
	pace     = 5 * time.Millisecond
)

var errIll = errors.New("the service is ill")

func succeeds(context.Context) error { return nil }
func fails(context.Context) error    { return errIll }

// startBreaker is New for a test: the breaker is stopped when the test ends.
func startBreaker(t testing.TB, name string, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b, err := infuse.New(name, cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return b
}

// host is a storage on a server with a client of its own, as another process
// would have it. A call waits for it as long as it takes: see patiently.
func host(t testing.TB, s *redistest.Server) *infuse.RedisStorage {
	t.Helper()
	return hostOn(t, s.Client())
}

func hostOn(t testing.TB, client infuse.RedisClient) *infuse.RedisStorage {
	t.Helper()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: 50 * time.Millisecond})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	return storage
}

// patiently gives the storage all the time that a busy machine may take, in
// tests where a breaker that goes on by itself would prove nothing.
func patiently(cfg infuse.Config) infuse.Config {
	cfg.StorageTimeout = patience
	return cfg
}

// split talks to a storage on two clients: changes go one way, Pub/Sub another.
type split struct {
	redis.Scripter
	pubsub *redis.Client
}

func (s split) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	return s.pubsub.Subscribe(ctx, channels...)
}

// trip has the calls of b fail until the circuit is open.
func trip(t testing.TB, b *infuse.Breaker) {
	t.Helper()
	for range 1000 {
		if b.State() == infuse.StateOpen {
			return
		}
		require.ErrorIs(t, b.Call(context.Background(), fails), errIll)
	}
	require.FailNow(t, "a thousand failures did not open the circuit")
}

func requireRejected(t testing.TB, b *infuse.Breaker) *infuse.OpenError {
	t.Helper()
	var rejection *infuse.OpenError
	err := b.Call(context.Background(), func(context.Context) error {
		t.Error("a rejected call ran")
		return nil
	})
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.ErrorAs(t, err, &rejection)
	return rejection
}

// requireTrial acquires a permit and fails the test where there is none.
func requireTrial(t testing.TB, b *infuse.Breaker) infuse.Permit {
	t.Helper()
	p, err := b.Acquire(context.Background())
	require.NoError(t, err)
	require.Equal(t, infuse.StateHalfOpen, b.State())
	return p
}

func requireState(t testing.TB, want infuse.State, breakers ...*infuse.Breaker) {
	t.Helper()
	for _, b := range breakers {
		require.Equal(t, want, b.State())
	}
}

// eventuallyState waits until the news has reached all of the breakers.
func eventuallyState(t testing.TB, want infuse.State, breakers ...*infuse.Breaker) {
	t.Helper()
	for i, b := range breakers {
		require.Eventually(t, func() bool { return b.State() == want }, patience, pace,
			"breaker %d of %d is to be %v", i+1, len(breakers), want)
	}
}

func recordOf(t testing.TB, b *infuse.Breaker) infuse.Record {
	t.Helper()
	r, err := b.Record(context.Background())
	require.NoError(t, err)
	return r
}
