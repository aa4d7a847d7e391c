// Package breakertest has what tests of breakers in several packages need.
package breakertest

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	Patience = 30 * time.Second // for what happens soon, on a machine that has other things to do
	Pace     = 5 * time.Millisecond

	Suspicion = 60 * time.Millisecond // longer than Config.Suspicion by default
)

// ErrUnhealthy is the error of Fails.
var ErrUnhealthy = errors.New("the service is unhealthy")

func Succeeds(context.Context) error { return nil }
func Fails(context.Context) error    { return ErrUnhealthy }

// Start is New for a test: the breaker is stopped when the test ends.
func Start(t testing.TB, name string, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b, err := infuse.New(name, cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return b
}

// Host is a storage on a server with a client of its own, as another process
// would have it. A call waits for it as long as it takes: see Patiently.
func Host(t testing.TB, s *redistest.Server) *infuse.RedisStorage {
	t.Helper()
	return HostOn(t, s.Client())
}

func HostOn(t testing.TB, client redis.UniversalClient) *infuse.RedisStorage {
	t.Helper()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: 50 * time.Millisecond})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	return storage
}

// Patiently gives the storage all the time that a busy machine may take, in
// tests where a breaker that goes on by itself would prove nothing.
func Patiently(cfg infuse.Config) infuse.Config {
	cfg.StorageTimeout = Patience
	return cfg
}

// split is the client of Pub/Sub, with the scripts of another.
type split struct {
	*redis.Client
	scripts redis.Scripter
}

// Split returns a client that runs scripts on one server and uses Pub/Sub of another.
func Split(scripts redis.Scripter, pubsub *redis.Client) redis.UniversalClient {
	return split{pubsub, scripts}
}

func (s split) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return s.scripts.Eval(ctx, script, keys, args...)
}

func (s split) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return s.scripts.EvalSha(ctx, sha, keys, args...)
}

// Trip has the calls of b fail until the circuit is open.
func Trip(t testing.TB, b *infuse.Breaker) {
	t.Helper()
	for range 1000 {
		if b.State() == infuse.StateOpen {
			return
		}
		require.ErrorIs(t, b.Call(context.Background(), Fails), ErrUnhealthy)
	}
	require.FailNow(t, "a thousand failures did not open the circuit")
}

// TripFleet opens the shared circuit: the calls of the first breaker fail until it
// is suspect and, when the shortest suspicion is over, those of the others until it
// is open. One process alone opens nothing.
func TripFleet(t testing.TB, first *infuse.Breaker, others ...*infuse.Breaker) {
	t.Helper()
	Trip(t, first)
	require.Eventually(t, func() bool { return RecordOf(t, first).Suspect() }, Patience, Pace)
	time.Sleep(Suspicion)
	for _, b := range others {
		for range 1000 {
			if RecordOf(t, b).State == infuse.StateOpen {
				return
			}
			if b.Call(context.Background(), Fails) != ErrUnhealthy {
				break // its local circuit is open, or it is notified already
			}
		}
	}
	require.Eventually(t, func() bool { return RecordOf(t, first).State == infuse.StateOpen }, Patience, Pace)
}

func RequireRejected(t testing.TB, b *infuse.Breaker) *infuse.OpenError {
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

// RequireTrial acquires a permit and fails the test where there is none.
func RequireTrial(t testing.TB, b *infuse.Breaker) infuse.Permit {
	t.Helper()
	p, err := b.Acquire(context.Background())
	require.NoError(t, err)
	require.Equal(t, infuse.StateHalfOpen, b.State())
	return p
}

func RequireState(t testing.TB, want infuse.State, breakers ...*infuse.Breaker) {
	t.Helper()
	for _, b := range breakers {
		require.Equal(t, want, b.State())
	}
}

// EventuallyState waits until the news has reached all of the breakers.
func EventuallyState(t testing.TB, want infuse.State, breakers ...*infuse.Breaker) {
	t.Helper()
	for i, b := range breakers {
		require.Eventually(t, func() bool { return b.State() == want }, Patience, Pace,
			"breaker %d of %d is to be %v", i+1, len(breakers), want)
	}
}

func RecordOf(t testing.TB, b *infuse.Breaker) infuse.Record {
	t.Helper()
	r, err := b.Record(context.Background())
	require.NoError(t, err)
	return r
}

// WaitOf returns how long a call takes whose own work takes no time.
func WaitOf(b *infuse.Breaker, fn func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	err := b.Call(context.Background(), fn)
	return time.Since(began), err
}

// StateLog keeps what a listener has received, in order.
type StateLog struct {
	mu     sync.Mutex
	events []string
}

func (l *StateLog) Add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *StateLog) All() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func (l *StateLog) Listener() *infuse.Listener {
	return &infuse.Listener{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
		l.Add(t.From.String() + ">" + t.To.String())
	}}
}

// Edges counts the outages of a storage, and their ends, that listeners receive.
type Edges struct{ Unavailable, Available atomic.Int32 }

func (e *Edges) Listener() *infuse.Listener {
	return &infuse.Listener{
		StorageUnavailable: func(error) { e.Unavailable.Add(1) },
		StorageAvailable:   func(time.Duration) { e.Available.Add(1) },
	}
}

func (e *Edges) Require(t testing.TB, unavailable, available int32) {
	t.Helper()
	require.Equal(t, [2]int32{unavailable, available}, [2]int32{e.Unavailable.Load(), e.Available.Load()}, "reported as unavailable, and as available")
}

// Goroutines returns the stacks of all goroutines, by what stays the same of
// one as long as it lives: its number.
func Goroutines() map[string]string {
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

// LeftSince returns the goroutines that were not there before and do not end.
func LeftSince(before map[string]string) (left []string) {
	for deadline := time.Now().Add(Patience); time.Now().Before(deadline); time.Sleep(Pace) {
		left = nil
		for number, stack := range Goroutines() {
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
