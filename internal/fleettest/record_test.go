package fleettest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What becomes of the record in Redis: lost, for ever, unreadable.

// The key was gone, and so was the open circuit: all processes went back to a
// service that was down. Any process that still knows puts it back.
// R39.
func TestAnOpenCircuitThatRedisLosesIsRestored(t *testing.T) {
	t.Parallel()
	for how, lose := range map[string]func(context.Context, *redis.Client) error{
		"FLUSHALL": func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() },
		"evicted":  func(ctx context.Context, c *redis.Client) error { return c.Del(ctx, pricesKey).Err() },
		"expired": func(ctx context.Context, c *redis.Client) error {
			return c.PExpire(ctx, pricesKey, time.Millisecond).Err()
		},
	} {
		t.Run(how, func(t *testing.T) {
			server := redistest.Start(t)
			cfg := patiently(infuse.Config{ResetTimeout: time.Hour, Storage: host(t, server)})
			holder := startBreaker(t, "prices", cfg)
			require.NoError(t, holder.SetState(t.Context(), infuse.StateOpen)) // one by time is restored once it is confirmed

			require.NoError(t, server.Client().HSet(t.Context(), pricesKey, "mark", 1).Err())
			require.NoError(t, lose(t.Context(), server.Client()))
			require.Eventually(t, func() bool { // it is another key than before
				return !server.Client().HExists(t.Context(), pricesKey, "mark").Val()
			}, patience, pace)
			require.Eventually(t, func() bool {
				r := recordOf(t, holder)
				return r.State == infuse.StateOpen && time.Until(r.DueAt) > 59*time.Minute
			}, patience, pace)
			newcomer := cfg
			newcomer.Storage = host(t, server)
			requireRejected(t, startBreaker(t, "prices", newcomer))
			requireRejected(t, holder)
		})
	}
}

// Nobody calls a circuit that is ready for a trial. Its record expires, and nobody restores
// it: the shared circuit is closed then.
// R23, R39.
func TestAnOpenCircuitWithoutCallsClosesWhenItsRecordExpires(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{ResetTimeout: 50 * time.Millisecond, Storage: host(t, server)}))
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	require.Eventually(t, b.Ready, patience, pace)
	require.Equal(t, infuse.StateOpen, b.State(), "without a call there is no trial")
	life := server.Client().PTTL(t.Context(), pricesKey).Val()
	require.Greater(t, life, 50*time.Minute)
	require.LessOrEqual(t, life, time.Hour+50*time.Millisecond)

	require.NoError(t, server.Client().PExpire(t.Context(), pricesKey, time.Millisecond).Err())
	require.Eventually(t, func() bool { return b.State() == infuse.StateClosed }, patience, pace)
	require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
}

// A record was lost in the middle of calls: their outcomes are no errors, and
// the circuit is not stuck.
func TestARecordLostUnderCallsLeavesNothingStuck(t *testing.T) {
	server := redistest.Start(t)
	var heard edges
	b := startBreaker(t, "prices", patiently(infuse.Config{
		ResetTimeout: 50 * time.Millisecond,
		TrialTimeout: time.Hour,
		Storage:      host(t, server),
		Listeners:    []*infuse.Listener{heard.Listener()},
	}))
	losesIn := func(result error) func(context.Context) error {
		return func(ctx context.Context) error {
			require.NoError(t, server.Client().FlushAll(ctx).Err())
			return result
		}
	}
	recovers := func() {
		t.Helper()
		require.Eventually(t, func() bool {
			return b.Call(t.Context(), succeeds) == nil && b.State() == infuse.StateClosed && recordOf(t, b).Healthy()
		}, patience, pace)
	}

	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.Equal(t, errUnhealthy, b.Call(t.Context(), losesIn(errUnhealthy)))
	require.Equal(t, 1, recordOf(t, b).Failures, "what was counted is lost, what comes is counted")
	recovers()

	for result, err := range map[string]error{"a success": nil, "a failure": errUnhealthy} {
		trip(t, b)
		var ended error
		require.Eventually(t, func() bool {
			ended = b.Call(t.Context(), losesIn(err))
			return !errors.Is(ended, infuse.ErrOpen)
		}, patience, pace)
		require.Equal(t, err, ended, "of a trial that ends in %s", result)
		recovers()
	}
	heard.Require(t, 0, 0) // to have lost a record is no error
}

// A process that has not received the transitions yet reports what it knows:
// results of calls that were admitted before them.
// R4.
func TestLateResultsOfADeafProcessChangeNothing(t *testing.T) {
	server, elsewhere := redistest.Start(t), redistest.Start(t)
	cfg := patiently(infuse.Config{FailMax: 2, ResetTimeout: time.Hour})
	b := startBreaker(t, "prices", withStorage(cfg, host(t, server)))
	fleetFails(t, b, 1) // so that there is a record, and its answer is a count
	require.NoError(t, b.Call(t.Context(), succeeds))
	var late []*infuse.Breaker // each sends what it knows once, and learns from the answer
	for range 3 {
		deaf := infuse.NewRedisStorage(split(server.Client(), elsewhere.Client()), infuse.RedisOptions{PollInterval: time.Hour})
		t.Cleanup(func() { require.NoError(t, deaf.Close()) })
		late = append(late, startBreaker(t, "prices", withStorage(cfg, deaf)))
	}
	for _, l := range late { // its feed loads once, after it has subscribed
		require.Eventually(t, func() bool {
			n, err := elsewhere.Client().PubSubNumSub(t.Context(), pricesKey).Result()
			return err == nil && n[pricesKey] == int64(len(late))
		}, patience, pace)
		recordOf(t, l)
	}

	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	opened := recordOf(t, b)
	require.Equal(t, errUnhealthy, late[0].Call(t.Context(), fails))
	require.Equal(t, opened.Generation, recordOf(t, b).Generation)
	requireState(t, infuse.StateOpen, late[0])

	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	trial := requireTrial(t, b)
	require.Equal(t, errUnhealthy, late[1].Call(t.Context(), fails))
	require.Len(t, recordOf(t, b).Trials, 1)
	trial.Done(nil)

	require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
	require.Equal(t, errUnhealthy, late[2].Call(t.Context(), fails))
	require.Zero(t, recordOf(t, b).Failures)
	require.Equal(t, errUnhealthy, late[2].Call(t.Context(), fails))
	require.Equal(t, 1, recordOf(t, b).Failures, "now it has heard")
}

func withStorage(cfg infuse.Config, s infuse.Storage) infuse.Config {
	cfg.Storage = s
	return cfg
}

// fleetFails has n calls fail of which the storage has heard then.
func fleetFails(t testing.TB, b *infuse.Breaker, n int) {
	t.Helper()
	for range n {
		require.Equal(t, errUnhealthy, b.Call(context.Background(), fails))
	}
}

// The key's life was shorter than the open time, and the circuit closed when it
// ended; or a key that was made anew had no end at all.
func TestTheKeyOutlivesItsDeadlinesAndHasAnEnd(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{
		FailMax: 2, ResetTimeout: 10 * time.Hour, TrialTimeout: 20 * time.Hour, Storage: host(t, server),
	}))
	requireLife := func(least time.Duration) {
		t.Helper()
		life := server.Client().PTTL(t.Context(), pricesKey).Val() // without an end: -1
		require.Greater(t, life, least)
		require.LessOrEqual(t, life, least+time.Hour)
	}
	almost := func(d time.Duration) time.Duration { return d - time.Minute }
	for range 2 { // the second time with a key that is made anew
		fleetFails(t, b, 1)
		requireLife(almost(time.Hour))
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		requireLife(almost(11 * time.Hour))
		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		requireLife(0)
		trial := requireTrial(t, b)
		requireLife(almost(21 * time.Hour))
		require.NoError(t, server.Client().PExpire(t.Context(), pricesKey, time.Minute).Err())
		trial.Done(errUnhealthy)
		requireLife(almost(11 * time.Hour))
		require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
		requireLife(0)
		require.NoError(t, server.Client().Del(t.Context(), pricesKey).Err())
	}
}

// What was in the key was not what the breaker expected: calls failed with the
// storage's error, or the circuit was reset.
func TestAnUnreadableRecordIsOnlyAnErrorOfRecord(t *testing.T) {
	t.Parallel()
	with := func(field string, value any) func(context.Context, *redis.Client) error {
		return func(ctx context.Context, c *redis.Client) error {
			record := infuse.AppendRecord(nil, infuse.Record{Generation: 1}, time.Now())
			whole := map[string]any{"v": 1, "g": 1, "t": 1, "n": 1, "r": record}
			whole[field] = value
			return c.HSet(ctx, pricesKey, whole).Err()
		}
	}
	for what, c := range map[string]struct {
		put  func(context.Context, *redis.Client) error
		says string
	}{
		"a string": {func(ctx context.Context, c *redis.Client) error {
			return c.Set(ctx, pricesKey, "closed", 0).Err()
		}, "another type"},
		"another's hash": {func(ctx context.Context, c *redis.Client) error {
			return c.HSet(ctx, pricesKey, "name", "tea").Err()
		}, "none"},
		"a newer schema":           {with("r", `{"v":99,"readable":99}`), "99"},
		"garbage":                  {with("r", "garbage"), "JSON"},
		"an unknown state":         {with("r", `{"v":2,"readable":2,"state":3}`), "state"},
		"a fraction":               {with("n", "1.5"), "1.5"},
		"a negative number":        {with("t", "-1"), "-1"},
		"a number past all bounds": {with("n", "99999999999999999999"), "9999"},
	} {
		t.Run(what, func(t *testing.T) {
			server := redistest.Start(t)
			require.NoError(t, c.put(t.Context(), server.Client()))
			before := server.Client().Dump(t.Context(), pricesKey).Val()
			var heard edges
			var warnings atomic.Int32
			cfg := patiently(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Storage: host(t, server)})
			cfg.Listeners = []*infuse.Listener{heard.Listener(), {Warning: func(b *infuse.Breaker, err error) {
				var unreadable *infuse.RecordError
				if b.Name() == "prices" && errors.As(err, &unreadable) {
					warnings.Add(1)
				}
			}}}
			b := startBreaker(t, "prices", cfg)
			other := startBreaker(t, "rates", cfg)

			var unreadable *infuse.RecordError
			_, err := b.Record(t.Context())
			require.ErrorAs(t, err, &unreadable)
			require.Equal(t, "prices", unreadable.Circuit)
			require.ErrorContains(t, err, c.says)

			require.NoError(t, b.Call(t.Context(), succeeds))
			trip(t, b) // on its own
			requireRejected(t, b)
			require.Equal(t, before, server.Client().Dump(t.Context(), pricesKey).Val(), "what is not ours stays as it is")

			require.Equal(t, errUnhealthy, other.Call(t.Context(), fails))
			require.Equal(t, 1, recordOf(t, other).Failures, "another circuit is as it was")
			require.Eventually(t, func() bool { return warnings.Load() == 1 }, patience, pace)

			require.NoError(t, server.Client().Del(t.Context(), pricesKey).Err())
			require.Eventually(t, func() bool {
				r, err := b.Record(t.Context())
				return err == nil && r.Suspect()
			}, patience, pace, "it is shared again, and reports what it has counted")
			require.EqualValues(t, 1, warnings.Load())
			heard.Require(t, 0, 0) // the storage is available
		})
	}
}

// A record turned bad under its breakers: calls do not notice.
func TestARecordThatTurnsBadIsNoErrorOfCalls(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Storage: host(t, server)}))
	fleetFails(t, b, 1)
	bad := `{"v":9,"readable":9}`
	require.NoError(t, server.Client().HSet(t.Context(), pricesKey, "r", bad, "v", 1<<50).Err())
	fleetFails(t, b, 2)
	requireRejected(t, b)
	var unreadable *infuse.RecordError
	_, err := b.Record(t.Context())
	require.ErrorAs(t, err, &unreadable)
	require.Equal(t, bad, server.Client().HGet(t.Context(), pricesKey, "r").Val())
}

// Redis had forgotten the script, and from then on the storage answered nothing
// but errors, which passed for health.
func TestTheScriptIsLoadedAgain(t *testing.T) {
	server := redistest.Start(t)
	var outages atomic.Int32
	b := startBreaker(t, "prices", patiently(infuse.Config{
		FailMax: 100, Storage: host(t, server),
		Listeners: []*infuse.Listener{{StorageUnavailable: func(error) { outages.Add(1) }}},
	}))
	fleetFails(t, b, 1)
	require.NoError(t, server.Client().ScriptFlush(t.Context()).Err())
	fleetFails(t, b, 1)
	require.Equal(t, 2, recordOf(t, b).Failures)
	require.Zero(t, outages.Load())

	require.NoError(t, server.Restart())
	require.Eventually(t, func() bool {
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		r, err := b.Record(t.Context())
		return err == nil && r.Failures > 0
	}, patience, 10*pace, "it is shared again")
	require.Positive(t, server.Client().Exists(t.Context(), pricesKey).Val())
}
