package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What becomes of the record in Redis: lost, for ever, unreadable.

const pricesKey = "infuse:{prices}"

// Scenario 20. The key was gone, and so was the open circuit: all processes
// went back to a service that was down. Any process that still knows puts it
// back.
func TestAnOpenCircuitThatRedisLosesIsPutBack(t *testing.T) {
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
			trip(t, holder)

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

// Scenario 20, in the middle of calls: their outcomes are no errors, and the
// circuit is not stuck.
func TestARecordLostUnderCallsLeavesNoErrorAndNothingStuck(t *testing.T) {
	server := redistest.Start(t)
	var away atomic.Int64
	b := startBreaker(t, "prices", patiently(infuse.Config{
		ResetTimeout: 50 * time.Millisecond,
		TrialTimeout: time.Hour,
		Storage:      host(t, server),
		Listeners:    []*infuse.Listener{{StorageError: func(*infuse.Breaker, error) { away.Add(1) }}},
	}))
	losesIn := func(result error) func(context.Context) error {
		return func(ctx context.Context) error {
			require.NoError(t, server.Client().FlushAll(ctx).Err())
			return result
		}
	}
	recovers := func() {
		require.Eventually(t, func() bool {
			return b.Call(t.Context(), succeeds) == nil && b.State() == infuse.StateClosed && recordOf(t, b).Healthy()
		}, patience, pace)
	}

	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.Equal(t, errIll, b.Call(t.Context(), losesIn(errIll)))
	require.Equal(t, 1, recordOf(t, b).Failures, "what was counted is lost, what comes is counted")
	recovers()

	for result, err := range map[string]error{"a success": nil, "a failure": errIll} {
		trip(t, b)
		var ended error
		require.Eventually(t, func() bool {
			ended = b.Call(t.Context(), losesIn(err))
			return !errors.Is(ended, infuse.ErrOpen)
		}, patience, pace)
		require.Equal(t, err, ended, "of a trial that ends in %s", result)
		recovers()
	}
	require.Zero(t, away.Load(), "to have lost a record is no error")
}

// A process that has not heard of the transitions yet reports what it knows:
// results of calls that were admitted before them.
func TestLateResultsOfAProcessThatHasNotHeardChangeNothing(t *testing.T) {
	server, deaf := redistest.Start(t), redistest.Start(t)
	cfg := patiently(infuse.Config{FailMax: 2, ResetTimeout: time.Hour})
	var late []*infuse.Breaker // each sends what it knows once, and learns from the answer
	for range 3 {
		late = append(late, startDeafBreaker(t, server, deaf, cfg))
	}
	cfg.Storage = host(t, server)
	b := startBreaker(t, "prices", cfg)

	trip(t, b)
	opened := recordOf(t, b)
	require.Equal(t, errIll, late[0].Call(t.Context(), fails))
	require.Equal(t, opened.Generation, recordOf(t, b).Generation)
	requireState(t, infuse.StateOpen, late[0])

	require.NoError(t, b.HalfOpen(t.Context()))
	trial := requireTrial(t, b)
	require.Equal(t, errIll, late[1].Call(t.Context(), fails))
	require.Len(t, recordOf(t, b).Trials, 1)
	trial.Done(nil)

	require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
	require.Equal(t, errIll, late[2].Call(t.Context(), fails))
	require.Zero(t, recordOf(t, b).Failures)
	require.Equal(t, errIll, late[2].Call(t.Context(), fails))
	require.Equal(t, 1, recordOf(t, b).Failures, "now it has heard")
}

// Scenario 21. The key's life was shorter than the open time, and the circuit
// closed when it ended; or a key that was made anew had no end at all.
func TestTheKeyOutlivesItsDeadlinesAndNeverLivesForEver(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{
		FailMax: 2, ResetTimeout: 10 * time.Hour, TrialTimeout: 20 * time.Hour, Storage: host(t, server),
	}))
	lifeIsOver := func(least time.Duration) {
		t.Helper()
		require.Greater(t, server.Client().PTTL(t.Context(), pricesKey).Val(), least) // without an end: -1
	}
	for range 2 { // the second time with a key that is made anew
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		lifeIsOver(time.Minute)
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		requireState(t, infuse.StateOpen, b)
		lifeIsOver(10 * time.Hour)
		require.NoError(t, b.HalfOpen(t.Context()))
		lifeIsOver(time.Minute)
		trial := requireTrial(t, b)
		lifeIsOver(20 * time.Hour)
		require.NoError(t, server.Client().PExpire(t.Context(), pricesKey, time.Minute).Err())
		trial.Done(errIll)
		lifeIsOver(10 * time.Hour)
		require.NoError(t, b.Close(t.Context()))
		lifeIsOver(0)
		require.NoError(t, server.Client().Del(t.Context(), pricesKey).Err())
	}
}

func TestAHealthyCircuitCostsNothing(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 2, ResetTimeout: time.Second, Storage: host(t, server)}))
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Eventually(t, func() bool {
		return server.Client().Exists(t.Context(), pricesKey).Val() == 0
	}, patience, pace, "the row is broken, and with it goes the key")

	trip(t, b)
	require.NoError(t, b.Close(t.Context()))
	life := server.Client().PTTL(t.Context(), pricesKey).Val()
	require.Positive(t, life)
	require.Less(t, life, 15*time.Second, "what is left of it is for those who missed that it closed")
}

// Scenario 22. What was in the key was not what the breaker expected: calls
// failed with the storage's error, or the circuit was reset.
func TestAnUnreadableRecordIsAnErrorInRecordAndCallsGoOn(t *testing.T) {
	whole := map[string]any{
		"schema": 1, "state": 0, "generation": 1, "failures": 1, "successes": 0, "due": 0, "trials": "", "tokens": "",
	}
	with := func(field string, value any) func(context.Context, *redis.Client) error {
		fields := make(map[string]any, len(whole))
		for k, v := range whole {
			fields[k] = v
		}
		fields[field] = value
		return func(ctx context.Context, c *redis.Client) error { return c.HSet(ctx, pricesKey, fields).Err() }
	}
	for what, c := range map[string]struct {
		put  func(context.Context, *redis.Client) error
		says string
	}{
		"a string": {func(ctx context.Context, c *redis.Client) error {
			return c.Set(ctx, pricesKey, "closed", 0).Err()
		}, "not a hash"},
		"a list": {func(ctx context.Context, c *redis.Client) error {
			return c.RPush(ctx, pricesKey, 1, 2).Err()
		}, "not a hash"},
		"another's hash": {func(ctx context.Context, c *redis.Client) error {
			return c.HSet(ctx, pricesKey, "name", "tea").Err()
		}, "lacks"},
		"half of its fields": {func(ctx context.Context, c *redis.Client) error {
			return c.HSet(ctx, pricesKey, "schema", 1, "state", 1).Err()
		}, "lacks"},
		"a newer schema":             {with("schema", 2), "newer"},
		"a newer schema, other data": {with("schema", 99), "99"},
		"no number as its state":     {with("state", "open"), "state"},
		"an unknown state":           {with("state", 3), "state"},
		"a fraction":                 {with("failures", "1.5"), "failures"},
		"a negative number":          {with("due", "-1"), "due"},
		"an exponent":                {with("generation", "1.7e+12"), "generation"},
		"a number past all bounds":   {with("generation", "99999999999999999999"), "generation"},
		"an empty number":            {with("successes", ""), "successes"},
	} {
		t.Run(what, func(t *testing.T) {
			server := redistest.Start(t)
			require.NoError(t, c.put(t.Context(), server.Client()))
			before := server.Client().Dump(t.Context(), pricesKey).Val()
			storage := host(t, server)
			var troubles stateLog
			cfg := patiently(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Storage: storage, Listeners: []*infuse.Listener{{
				StorageError: func(b *infuse.Breaker, err error) { troubles.add(fmt.Sprint(b.Name(), ": ", err != nil)) },
			}}})
			b, other := startBreaker(t, "prices", cfg), startBreaker(t, "rates", cfg)

			var unreadable *infuse.RecordError
			_, err := b.Record(t.Context())
			require.ErrorAs(t, err, &unreadable)
			require.Equal(t, "prices", unreadable.Circuit)
			require.ErrorContains(t, err, c.says)

			require.NoError(t, b.Call(t.Context(), succeeds))
			trip(t, b) // on its own
			requireRejected(t, b)
			require.Equal(t, before, server.Client().Dump(t.Context(), pricesKey).Val(), "what is not ours stays as it is")

			require.Equal(t, errIll, other.Call(t.Context(), fails))
			require.Equal(t, 1, recordOf(t, other).Failures, "another circuit is as it was")
			require.Eventually(t, func() bool { return len(troubles.all()) > 0 }, patience, pace)

			require.NoError(t, server.Client().Del(t.Context(), pricesKey).Err())
			require.Eventually(t, func() bool {
				r, err := b.Record(t.Context())
				return err == nil && r.State == infuse.StateOpen
			}, patience, pace, "it is shared again, and offers what it knows")
			require.Eventually(t, func() bool { return len(troubles.all()) == 2 }, patience, pace)
			require.Equal(t, []string{"prices: true", "prices: false"}, troubles.all())
		})
	}
}

// A record may turn bad while its breakers run.
func TestARecordThatTurnsBadUnderCallsIsNoErrorOfTheirs(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 3, ResetTimeout: time.Hour, Storage: host(t, server)}))
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.NoError(t, server.Client().HSet(t.Context(), pricesKey, "schema", 7).Err())
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	requireRejected(t, b)
	var unreadable *infuse.RecordError
	_, err := b.Record(t.Context())
	require.ErrorAs(t, err, &unreadable)
	require.Equal(t, "7", server.Client().HGet(t.Context(), pricesKey, "schema").Val())
}

// Scenario 23. Redis had forgotten the script, and from then on the storage
// answered nothing but errors, which passed for health.
func TestTheScriptIsLoadedAgain(t *testing.T) {
	server := redistest.Start(t)
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 100, Storage: host(t, server)}))
	require.Equal(t, errIll, b.Call(t.Context(), fails))

	require.NoError(t, server.Client().ScriptFlush(t.Context()).Err())
	require.Equal(t, errIll, b.Call(t.Context(), fails))
	require.Equal(t, 2, recordOf(t, b).Failures)

	require.NoError(t, server.Restart())
	require.Eventually(t, func() bool {
		require.Equal(t, errIll, b.Call(t.Context(), fails))
		r, err := b.Record(t.Context())
		return err == nil && r.Failures > 0
	}, patience, 10*pace, "it is shared again")
	require.Positive(t, server.Client().Exists(t.Context(), pricesKey).Val())
}
