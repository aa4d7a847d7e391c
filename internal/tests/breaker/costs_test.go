package breaker_test

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"math"
	"runtime"
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

// Strict trades round trips for exactness: nothing needs to be pushed.
// R45.
func TestStrictKnowsWhatOthersDidBeforeTheCall(t *testing.T) {
	server, deaf := redistest.Start(t), redistest.Start(t)
	cfg := infuse.Config{FailMax: 3, SuccessThreshold: 2, ResetTimeout: time.Hour}
	breaker := func(strict bool) *infuse.Breaker {
		cfg.Strict = strict
		return startDeafBreaker(t, server, deaf, cfg)
	}
	one, two, lax := breaker(true), breaker(true), breaker(false)

	require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
	require.Equal(t, errUnhealthy, two.Call(t.Context(), fails))
	require.Equal(t, 2, failuresOf(two))
	require.NoError(t, one.Call(t.Context(), succeeds))
	require.Zero(t, recordOf(t, two).Failures, "a success is counted before the call returns")
	require.NoError(t, two.Call(t.Context(), succeeds), "its own streak")
	tripFleet(t, one, two)
	requireRejected(t, two)
	require.NoError(t, lax.Call(t.Context(), succeeds), "this is what Strict is for")

	require.NoError(t, one.SetState(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, two.Call(t.Context(), succeeds))
	require.NoError(t, one.Call(t.Context(), succeeds))
	require.NoError(t, two.Call(t.Context(), succeeds))
	requireState(t, infuse.StateClosed, one, two)
}

// The reply to a script got lost, the client sent the script
// again, and one failure counted as two, or one trial took two places.
// R13.
func TestAScriptThatRunsTwiceCountsOnce(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), PoolSize: 1})
	t.Cleanup(func() { _ = client.Close() })
	// It receives no message, which would have it read the record.
	storage := infuse.NewRedisStorage(split(client, redistest.Start(t).Client()), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	b := startQuietly(t, server, infuse.Config{
		FailMax: 3, SuccessThreshold: 2, MaxTrials: 2, ResetTimeout: 300 * time.Millisecond, Storage: storage,
	})
	twice := func(what string, do func()) infuse.Record {
		t.Helper()
		proxy.DropReplies(1)
		cost := costOf(t, server, do)
		require.EqualValues(t, 2, runsOf(cost), "%s: the script is to run twice", what)
		return recordOf(t, b)
	}

	r := twice("a failure", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Equal(t, 1, r.Failures)
	r = twice("another", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Equal(t, 2, r.Failures)
	opened := r.Generation
	r = twice("the last", func() { require.Equal(t, errUnhealthy, b.Call(t.Context(), fails)) })
	require.Greater(t, r.Generation, opened)
	require.True(t, r.Suspect())

	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	var trial infuse.Permit
	time.Sleep(time.Until(recordOf(t, b).DueAt) + 2*time.Millisecond)
	r = twice("a trial", func() {
		require.Eventually(t, func() bool { // the breaker may be a little late to notice
			var err error
			trial, err = b.Acquire(t.Context())
			return err == nil
		}, patience, pace)
	})
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Len(t, r.Trials, 1)
	r = twice("its end", func() { trial.Done(nil) })
	require.Equal(t, infuse.StateHalfOpen, r.State)
	require.Equal(t, 1, r.Successes)
	require.Empty(t, r.Trials)

	generation := r.Generation
	r = twice("a manual change", func() { require.NoError(t, b.SetState(t.Context(), infuse.StateOpen)) })
	require.Equal(t, infuse.StateOpen, r.State)
	require.Greater(t, r.Generation, generation)
}

// What a call costs: commands to Redis, and allocations.

// commands returns how often the server has run each command since it started,
// but for those that clients send of their own accord, and the test itself.
func commands(t *testing.T, s *redistest.Server) map[string]int64 {
	t.Helper()
	counts, err := s.Commands(t.Context())
	require.NoError(t, err)
	for _, name := range []string{"info", "hello", "ping", "client", "client|setinfo", "client|maint_notifications", "client|setname"} {
		delete(counts, name)
	}
	return counts
}

// costOf returns the commands that the server has run meanwhile.
func costOf(t *testing.T, s *redistest.Server, do func()) map[string]int64 {
	t.Helper()
	before := commands(t, s)
	do()
	cost := commands(t, s)
	for name, n := range before {
		cost[name] -= n
	}
	maps.DeleteFunc(cost, func(_ string, n int64) bool { return n == 0 })
	return cost
}

// runsOf counts the runs of the script: what a breaker sends.
func runsOf(cost map[string]int64) int64 { return cost["evalsha"] + cost["eval"] }

// rarelyPolled is a storage whose breakers hear by push, and only so.
func rarelyPolled(t *testing.T, s *redistest.Server) *infuse.RedisStorage {
	t.Helper()
	storage := infuse.NewRedisStorage(s.Client(), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	return storage
}

// startQuietBreaker starts a breaker that has nothing more to say, and hears
// by push alone.
func startQuietBreaker(t *testing.T, s *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	cfg.Storage = rarelyPolled(t, s)
	return startQuietly(t, s, cfg)
}

// startDeafBreaker starts a breaker that hears nothing: its Pub/Sub goes to
// another server.
func startDeafBreaker(t *testing.T, s, other *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	storage := infuse.NewRedisStorage(split(s.Client(), other.Client()), infuse.RedisOptions{PollInterval: time.Hour})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	cfg.Storage = storage
	return startQuietly(t, s, cfg)
}

// startQuietly waits until the breaker has read its circuit, subscribed, and
// read it again. Nobody else may use the server meanwhile.
func startQuietly(t *testing.T, s *redistest.Server, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	warm, err := infuse.New("warm", patiently(cfg)) // has Redis know the scripts
	require.NoError(t, err)
	_ = warm.Call(t.Context(), fails)
	require.NoError(t, warm.SetState(t.Context(), infuse.StateClosed))
	warm.Stop()
	reads := func() int64 { return commands(t, s)["hmget"] } // by the script, which is sent more often until it is known
	before := reads()
	b := startBreaker(t, "prices", patiently(cfg))
	require.Eventually(t, func() bool { return reads() >= before+2 }, patience, pace)
	recordOf(t, b) // not before what is under way has been answered, if there is one connection
	return b
}

// R10, R44.
func TestAMillionSuccessfulCallsSendNothing(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{})
	ctx := t.Context()
	require.Empty(t, costOf(t, server, func() {
		for range 1_000_000 {
			if b.Call(ctx, succeeds) != nil {
				t.Fatal("a call was rejected")
			}
		}
	}))
}

// R44.
func TestAHundredThousandRejectionsSendNothing(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{ResetTimeout: time.Hour})
	trip(t, b)
	ctx := t.Context()
	require.Empty(t, costOf(t, server, func() {
		for range 100_000 {
			if b.Call(ctx, succeeds) == nil {
				t.Fatal("a call ran")
			}
		}
	}))
}

// R10.
func TestAFailingCallSendsOneCommand(t *testing.T) {
	server := redistest.Start(t)
	// It receives no message: those of the opening have each process read it.
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{FailMax: 5, ResetTimeout: time.Hour})
	for range 5 { // the fifth opens the circuit, and costs no more
		cost := costOf(t, server, func() {
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		})
		require.EqualValues(t, 1, runsOf(cost))
		for name := range cost {
			require.Contains(t, []string{"eval", "evalsha", "time", "hmget", "hlen", "hset", "pttl", "pexpire", "publish"}, name,
				"the script and what it runs, and nothing else")
		}
	}
	requireState(t, infuse.StateOpen, b)
}

// An outage costs a handful of round trips, not one a call: what fails while
// a report is under way goes together in the next.
// R10.
func TestManyFailuresAtOnceShareTheirReports(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{FailMax: 1000})
	cost := costOf(t, server, func() {
		server.Pause()
		var failed atomic.Int64
		done := make(chan int, 1)
		go func() { done <- failAtOnce(b, 500, func(context.Context) error { failed.Add(1); return errUnhealthy }) }()
		require.Eventually(t, func() bool { return failed.Load() == 500 }, patience, pace)
		require.Never(t, func() bool { return len(done) > 0 }, 100*time.Millisecond, pace,
			"a failing call returns when its failure is counted")
		server.Resume()
		require.Equal(t, 500, <-done)
	})
	require.LessOrEqual(t, runsOf(cost), int64(50))
	require.Equal(t, 500, recordOf(t, b).Failures)
}

// A success after failures says that the row is broken, but its caller does
// not wait for that.
// R10.
func TestTheSuccessThatEndsAStreakDoesNotWait(t *testing.T) {
	server := redistest.Start(t)
	b := startQuietBreaker(t, server, infuse.Config{})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))

	server.Pause()
	began := time.Now()
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Less(t, time.Since(began), 2*time.Second, "it is not to wait for Redis, which hangs")
	server.Resume()
	require.Eventually(t, func() bool { return recordOf(t, b).Failures == 0 }, patience, pace)
	require.Eventually(t, func() bool { return failuresOf(b) == 0 }, patience, pace)
	require.Empty(t, costOf(t, server, func() {
		require.NoError(t, b.Call(t.Context(), succeeds))
	}), "the circuit is quiet again")
}

// However many calls meet a circuit that is due, a process asks for one trial.
func TestOneCallOfAProcessAsksForATrialAtATime(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{})
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	cost := costOf(t, server, func() {
		server.Pause()
		results := make(chan error, 50)
		for range cap(results) {
			go func() { results <- b.Call(context.Background(), succeeds) }()
		}
		for range cap(results) - 1 {
			require.ErrorIs(t, <-results, infuse.ErrOpen, "rejected while the one waits for Redis")
		}
		server.Resume()
		require.NoError(t, <-results)
	})
	require.EqualValues(t, 2, runsOf(cost), "to ask, and to settle")
	requireState(t, infuse.StateClosed, b)
}

// R45.
func TestStrictReadsTheRecordBeforeEveryCall(t *testing.T) {
	server := redistest.Start(t)
	b := startDeafBreaker(t, server, redistest.Start(t), infuse.Config{Strict: true, ResetTimeout: time.Hour})
	cost := costOf(t, server, func() {
		for range 10 {
			require.NoError(t, b.Call(t.Context(), succeeds))
		}
	})
	require.EqualValues(t, 10, runsOf(cost))
	require.Zero(t, cost["hset"], "to read is not to move")

	trip(t, b)
	cost = costOf(t, server, func() {
		for range 10 {
			requireRejected(t, b)
		}
	})
	require.EqualValues(t, 10, runsOf(cost))
}

// R44.
func TestTheHotPathsDoNotAllocate(t *testing.T) {
	if underRace {
		t.Skip("sync.Pool allocates under the race detector")
	}
	ctx := context.Background()
	server := redistest.Start(t)
	for name, storage := range map[string]infuse.Storage{
		"memory": infuse.NewMemoryStorage(),
		"redis":  rarelyPolled(t, server),
	} {
		b := startBreaker(t, "prices", patiently(infuse.Config{Storage: storage, ResetTimeout: time.Hour}))
		for what, call := range map[string]func(){
			"a successful call": func() { _ = b.Call(ctx, succeeds) },
			"Acquire and Done": func() {
				p, _ := b.Acquire(ctx)
				p.Done(nil)
			},
		} {
			require.Zero(t, testing.AllocsPerRun(1000, call), "%s, with %s", what, name)
		}
		trip(t, b)
		for what, call := range map[string]func(){
			"a rejected call":    func() { _ = b.Call(ctx, succeeds) },
			"a rejected Acquire": func() { _, _ = b.Acquire(ctx) },
			"State":              func() { _, _ = b.State(), failuresOf(b) },
		} {
			require.Zero(t, testing.AllocsPerRun(1000, call), "%s, with %s", what, name)
		}
	}
}

// failAtOnce makes so many calls that fail, all at once, and returns how many ran.
func failAtOnce(b *infuse.Breaker, calls int, fails func(context.Context) error) int {
	var ran atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for range calls {
		all.Go(func() {
			<-start
			if b.Call(context.Background(), fails) == errUnhealthy {
				ran.Add(1)
			}
		})
	}
	close(start)
	all.Wait()
	return int(ran.Load())
}

// BenchmarkCall is what a call costs. In parallel it is wall time by all calls:
// what scales takes a share of the time that it takes alone.
func BenchmarkCall(b *testing.B) {
	quiet := infuse.LogListener(slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, c := range []struct {
		name      string
		state     infuse.State
		fn        func(context.Context) error // in turn with one that succeeds
		listeners []*infuse.Listener
	}{
		{"closed", infuse.StateClosed, succeeds, nil},
		{"closed, CountCalls", infuse.StateClosed, succeeds, nil},
		{"open, CountCalls", infuse.StateOpen, succeeds, nil},
		{"closed, rate", infuse.StateClosed, succeeds, nil},
		{"closed, rate, failures in the window", infuse.StateClosed, succeeds, nil},
		{"closed, LogListener", infuse.StateClosed, succeeds, []*infuse.Listener{quiet}},
		{"open", infuse.StateOpen, succeeds, nil},
		{"open, LogListener", infuse.StateOpen, succeeds, []*infuse.Listener{quiet}},
		{"half failing", infuse.StateClosed, fails, nil},
		{"half failing, LogListener", infuse.StateClosed, fails, []*infuse.Listener{quiet}},
	} {
		cfg := infuse.Config{FailMax: 1000, ResetTimeout: time.Hour, Listeners: c.listeners}
		cfg.CountCalls = strings.Contains(c.name, "CountCalls")
		if strings.Contains(c.name, "rate") {
			cfg.FailureRate, cfg.Window = 0.5, time.Hour
		}
		breaker := startBreaker(b, "prices", cfg)
		require.NoError(b, breaker.SetState(b.Context(), c.state))
		if strings.Contains(c.name, "failures in the window") {
			require.Error(b, breaker.Call(b.Context(), fails))
			require.NoError(b, breaker.Call(b.Context(), succeeds))
		}
		calls := func(n int) {
			ctx := context.Background()
			for i := 0; i < n; i += 2 {
				_ = breaker.Call(ctx, succeeds)
				_ = breaker.Call(ctx, c.fn)
			}
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			calls(b.N)
		})
		b.Run(c.name+", in parallel", func(b *testing.B) {
			b.ReportAllocs()
			procs := runtime.GOMAXPROCS(0)
			var all sync.WaitGroup
			for range procs {
				all.Go(func() { calls((b.N + procs - 1) / procs) })
			}
			all.Wait()
		})
	}
}

// R44.
func TestASuccessAllocatesNothingUnderAnySetting(t *testing.T) {
	ctx := context.Background()
	ok, failed := func(context.Context) error { return nil }, func(context.Context) error { return errUnhealthy }
	for name, cfg := range map[string]infuse.Config{
		"plain": {FailMax: 1000}, "rate": {FailureRate: 0.9, MinCalls: math.MaxInt32}, "rate and row": {FailureRate: 0.9, MinCalls: math.MaxInt32, FailMax: 1000},
		"counts": {FailMax: 1000, CountCalls: true}, "slow": {FailMax: 1000, SlowCall: time.Minute}, "ramp": {FailMax: 1000, Ramp: time.Second},
	} {
		b := startBreaker(t, "service", cfg)
		health := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ok) })
		_ = b.Call(ctx, failed)
		_ = b.Call(ctx, ok)
		after := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ok) })
		failing := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, failed); _ = b.Call(ctx, ok) })
		t.Log(name, "health", health, "with a failure", after, "failure and success", failing)
		require.Zero(t, health, name)
		require.Zero(t, after, name)
	}
	// A ramp long over.
	b := startBreaker(t, "service", infuse.Config{Ramp: time.Millisecond, ResetTimeout: time.Millisecond, FailMax: 3})
	for range 3 {
		_ = b.Call(ctx, failed)
	}
	time.Sleep(5 * time.Millisecond)
	_ = b.Call(ctx, ok)
	time.Sleep(20 * time.Millisecond)
	failing := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, failed); _ = b.Call(ctx, ok) })
	t.Log("after a ramp: failure and success", failing)
}
