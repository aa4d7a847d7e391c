package fleettest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience       = 30 * time.Second // for what happens soon, on a machine that has other things to do
	pace           = 5 * time.Millisecond
	storageTimeout = 100 * time.Millisecond // the default
	pricesKey      = "infuse:{prices}"
)

var errIll = errors.New("the service is ill")

func succeeds(context.Context) error { return nil }
func fails(context.Context) error    { return errIll }

// TestMain is also where the test binary begins as a process of a fleet.
func TestMain(m *testing.M) {
	for name, serve := range map[string]func(spec string) error{asMember: serveAsMember, asSoaker: serveAsSoaker} {
		if spec := os.Getenv(name); spec != "" {
			if err := serve(spec); err != nil {
				fmt.Fprintln(os.Stderr, name+":", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	// The tests wait for servers more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(redistest.Run(m))
}

// takesLong skips a test that is not for every day. CI runs all.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "true" {
		t.Skip("takes long: CI=true runs it")
	}
}

// startBreaker is New for a test: the breaker is stopped when the test ends.
func startBreaker(t testing.TB, name string, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b, err := infuse.New(name, cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return b
}

// startGroup returns the breakers of a group, which share the link to their storage.
func startGroup(t testing.TB, n int, cfg infuse.Config) []*infuse.Breaker {
	t.Helper()
	cfg.MaxCircuits = n
	group, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(group.Stop)
	breakers := make([]*infuse.Breaker, n)
	for i := range breakers {
		breakers[i], err = group.Breaker(fmt.Sprint("circuit ", i))
		require.NoError(t, err)
	}
	return breakers
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

// through has a client go through a proxy.
func through(proxy *redistest.Proxy) func(*redis.Options) {
	return func(o *redis.Options) { o.Addr = proxy.Addr() }
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

// trip has the calls of b fail until its own circuit is open.
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

// tripFleet trips b, and waits until the fleet has not refuted it.
func tripFleet(t testing.TB, b *infuse.Breaker) {
	t.Helper()
	trip(t, b)
	require.Eventually(t, func() bool { return recordOf(t, b).State == infuse.StateOpen }, patience, pace)
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

// waitOf returns how long a call takes whose own work takes no time.
func waitOf(b *infuse.Breaker, fn func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	err := b.Call(context.Background(), fn)
	return time.Since(began), err
}

// stateLog keeps what a listener has heard of, in order.
type stateLog struct {
	mu     sync.Mutex
	events []string
}

func (l *stateLog) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *stateLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func (l *stateLog) listener() *infuse.Listener {
	return &infuse.Listener{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
		l.add(t.From.String() + ">" + t.To.String())
	}}
}

// edges counts what listeners hear of the storage.
type edges struct{ away, back atomic.Int32 }

func (e *edges) listener() *infuse.Listener {
	return &infuse.Listener{
		StorageAway: func(*infuse.Breaker, error) { e.away.Add(1) },
		StorageBack: func(*infuse.Breaker, time.Duration) { e.back.Add(1) },
	}
}

func (e *edges) require(t testing.TB, away, back int32) {
	t.Helper()
	require.Equal(t, [2]int32{away, back}, [2]int32{e.away.Load(), e.back.Load()}, "told that it is away, and back")
}

// quietRedis keeps go-redis from logging every connection that a fault costs.
var quietRedis = sync.OnceFunc(logging.Disable)

// goroutines returns the stacks of all goroutines, by what stays the same of
// one as long as it lives: its number.
func goroutines() map[string]string {
	stacks := make([]byte, 1<<20)
	for {
		n := runtime.Stack(stacks, true)
		if n < len(stacks) {
			stacks = stacks[:n]
			break
		}
		stacks = make([]byte, 2*len(stacks))
	}
	byNumber := make(map[string]string)
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		number, _, _ := strings.Cut(stack, " [")
		byNumber[number] = stack
	}
	return byNumber
}

// leftSince returns the goroutines that were not there before and do not end.
func leftSince(before map[string]string) (left []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(pace) {
		left = nil
		for number, stack := range goroutines() {
			if _, old := before[number]; !old {
				left = append(left, stack)
			}
		}
		if left == nil {
			return nil
		}
	}
	return left
}
