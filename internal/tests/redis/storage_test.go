package redis_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

var hourLimits = infuse.Limits{FailMax: 5, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour}

// sender makes changes as one process does.
type sender struct {
	*testing.T
	*infuse.RedisStorage
	limits infuse.Limits
	source string
	number uint64
	seen   infuse.Record
}

func newSender(t *testing.T, client redis.UniversalClient, source string) *sender {
	s := &sender{T: t, RedisStorage: infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: 50 * time.Millisecond}), limits: hourLimits, source: source}
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func (s *sender) send(c infuse.Change) (infuse.Verdict, error) {
	s.number++
	c.Source, c.Number, c.Seen, c.Limits = s.source, s.number, s.seen, s.limits
	record, verdict, err := s.Apply(s.Context(), "circuit", c)
	if err == nil {
		s.seen = record
	}
	return verdict, err
}

func (s *sender) must(c infuse.Change) infuse.Verdict {
	s.Helper()
	verdict, err := s.send(c)
	require.NoError(s, err)
	return verdict
}

func (s *sender) load() infuse.Record {
	s.Helper()
	r, err := s.Load(s.Context(), "circuit")
	require.NoError(s, err)
	return r
}

func failures(n int) infuse.Change {
	return infuse.Change{Calls: infuse.Calls{Failures: n, Lead: n, Streak: n}}
}
func success() infuse.Change             { return infuse.Change{Calls: infuse.Calls{Successes: 1}} }
func move(to infuse.State) infuse.Change { return infuse.Change{Manual: &infuse.ManualState{To: to}} }

// scripts is a hook that counts runs of scripts, and makes of each what around does.
type scripts struct {
	runs   atomic.Int64
	around func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error
}

func (h *scripts) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *scripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (h *scripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !strings.HasPrefix(cmd.Name(), "eval") {
			return next(ctx, cmd)
		}
		h.runs.Add(1)
		if h.around != nil {
			return h.around(ctx, cmd, next)
		}
		return next(ctx, cmd)
	}
}

// loadScripts has Redis know the scripts: else the first run of each is an EVAL, too.
func loadScripts(t *testing.T, client *redis.Client) {
	t.Helper()
	s := newSender(t, client, "loader")
	for i, c := range []infuse.Change{failures(1), move(infuse.StateOpen)} {
		c.Source, c.Number, c.Limits = "loader", uint64(i+1), hourLimits
		_, _, err := s.Apply(t.Context(), "loader", c)
		require.NoError(t, err)
	}
	_, err := s.Load(t.Context(), "loader")
	require.NoError(t, err)
	require.NoError(t, client.Del(t.Context(), "infuse:{loader}", "infuse:{loader}:log").Err())
}

// onBoth runs a test on a real Redis and on miniredis.
func onBoth(t *testing.T, run func(t *testing.T, client *redis.Client)) {
	t.Run("redis", func(t *testing.T) { run(t, redistest.Start(t).Client()) })
	t.Run("miniredis", func(t *testing.T) {
		run(t, redistest.StartMini(t).Client())
	})
}

func TestRoundTrips(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		hook := &scripts{}
		one, other := newSender(t, client, "one"), newSender(t, client, "other")
		one.load()
		other.load()
		loadScripts(t, client)
		client.AddHook(hook)
		takes := func(want int64, what string, s *sender, c infuse.Change) {
			t.Helper()
			before := hook.runs.Load()
			s.must(c)
			assert.Equal(t, want, hook.runs.Load()-before, what)
		}
		takes(1, "a failure", one, failures(1))
		takes(1, "a failure, of one who has not received the first", other, failures(1))
		takes(1, "a failure", other, failures(1))
		takes(1, "a failure", other, failures(1))
		takes(2, "the failure that opens, of one who missed three", one, failures(1))
		require.Equal(t, infuse.StateOpen, one.seen.State)
		takes(1, "a move", one, move(infuse.StateHalfOpen))
		takes(2, "a trial, of one who missed two transitions", other, infuse.Change{RequestTrial: "a"})
		require.Len(t, other.seen.Trials, 1)
		takes(1, "a refused trial", one, infuse.Change{RequestTrial: "b"})
		takes(1, "the end of a trial", other, infuse.Change{Settled: []infuse.Settlement{{ID: "a", Outcome: infuse.OutcomeFailure}}})
		takes(1, "a failure that comes too late", other, failures(1))
		takes(1, "a change that says nothing", other, infuse.Change{})
	})
}

// TestLostReply (attack 3): a command whose reply was lost is sent again by
// go-redis. It counted twice where the row had been broken in between.
// R13.
func TestLostReply(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		other := newSender(t, client, "other")
		lossy := redis.NewClient(client.Options())
		t.Cleanup(func() { _ = lossy.Close() })
		between := func() {}
		lossy.AddHook(&scripts{around: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if err := next(ctx, cmd); err != nil {
				return err
			}
			then := between
			between = func() {}
			then()
			return next(ctx, cmd)
		}})
		one := newSender(t, lossy, "one")

		one.must(failures(1))
		require.Equal(t, 1, one.load().Failures, "a count")
		between = func() { other.must(failures(3)) }
		require.Equal(t, infuse.VerdictApplied, one.must(success()))
		require.Equal(t, 3, one.load().Failures, "a success that broke a row, and others' failures since")

		one.must(success())
		between = func() { other.must(failures(1)) }
		one.must(infuse.Change{Calls: infuse.Calls{Failures: 4, Successes: 1, Lead: 4}})
		require.Equal(t, 1, one.load().Failures, "four failures and a success, and another's failure since")
		require.Equal(t, infuse.StateClosed, one.load().State)

		between = func() { other.must(move(infuse.StateOpen)) }
		require.Equal(t, infuse.VerdictApplied, one.must(move(infuse.StateClosed)))
		require.Equal(t, infuse.StateOpen, one.load().State, "a closing, and another's opening since")

		between = func() { other.must(move(infuse.StateClosed)) }
		one.must(move(infuse.StateOpen))
		require.Equal(t, infuse.StateClosed, one.load().State, "an opening, and another's closing since")

		between = func() {}
		require.NotEqual(t, infuse.VerdictRefused, one.must(failures(5)))
		require.Equal(t, infuse.StateOpen, one.load().State)
		require.Equal(t, 5, one.load().Failures, "the failures that opened it")
	})
}

// TestAClockThatStepsBack (review, B32; attack 5): open circuits stayed open,
// and dead leases stayed, for as long as the step.
// R40.
func TestAClockThatStepsBack(t *testing.T) {
	mini := redistest.StartMini(t)
	client := mini.Client()
	now := time.UnixMilli(1_790_000_000_000)
	mini.SetTime(now)
	one, newcomer := newSender(t, client, "one"), newSender(t, client, "newcomer")
	one.limits.ResetTimeout, one.limits.TrialTimeout = time.Second, time.Second

	one.must(move(infuse.StateOpen))
	mini.SetTime(now.Add(-time.Hour))
	require.WithinDuration(t, time.Now(), newcomer.load().DueAt, time.Minute, "for a newcomer")
	one.seen.DueAt = time.Now()
	require.Equal(t, infuse.VerdictChanged, one.must(infuse.Change{RequestTrial: "a"}), "for one who knew when it is due")

	mini.SetTime(now.Add(-2 * time.Hour))
	require.WithinDuration(t, time.Now(), newcomer.load().Trials[0].Deadline, time.Minute, "a lease")
	one.seen.Trials[0].Deadline = time.Now()
	one.must(infuse.Change{RequestTrial: "b"})
	require.Equal(t, "b", one.load().Trials[0].ID)

	one.limits.ResetTimeout = time.Hour
	one.must(move(infuse.StateOpen))
	mini.SetTime(now.Add(-3 * time.Hour))
	one.seen.DueAt = time.Now().Add(time.Minute)
	one.must(infuse.Change{})
	require.WithinDuration(t, time.Now(), newcomer.load().DueAt, 2*time.Minute, "what one knows, a newcomer hears")
}

func TestOneSlotAScript(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		client.AddHook(&scripts{around: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			for i := range cmd.Args()[2].(int) { // all on one slot of a Cluster
				require.True(t, strings.HasPrefix(cmd.Args()[3+i].(string), "infuse:{circuit}"), cmd)
			}
			return next(ctx, cmd)
		}})
		s.must(failures(5))
		s.load()
		require.ElementsMatch(t, []string{"infuse:{circuit}", "infuse:{circuit}:log"}, client.Keys(t.Context(), "*").Val())
		other := failures(1)
		other.Limits = hourLimits
		_, _, err := infuse.NewRedisStorage(redis.NewClient(client.Options()), infuse.RedisOptions{}).Apply(t.Context(), "{a} /", other)
		require.NoError(t, err)
		require.Equal(t, "infuse:{%7Ba%7D+%2F}", client.Keys(t.Context(), "infuse:{%*}").Val()[0])
	})
}

func TestSourcesOnRedisAreBounded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		s.limits.FailMax = 10_000
		for i := range 600 {
			s.source = fmt.Sprint("source", i)
			s.must(failures(1))
			if i < 500 {
				continue
			}
			require.LessOrEqual(t, client.HLen(t.Context(), "infuse:{circuit}").Val(), int64(7+512))
			s.number--
			s.must(failures(1))
		}
		require.Equal(t, 600, s.load().Failures)
	})
}

// TestKeysDie checks that no key stays for good, and none goes too early.
func TestKeysDie(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		life := func() time.Duration { return client.PTTL(t.Context(), "infuse:{circuit}").Val().Round(time.Minute) }
		s.must(failures(1))
		require.Equal(t, time.Hour, life())
		s.limits.ResetTimeout = 5 * time.Hour
		s.must(move(infuse.StateOpen))
		require.Equal(t, 6*time.Hour, life())
		s.must(failures(1))
		require.Equal(t, 6*time.Hour, life())
	})
}

// BenchmarkRedis reports what a change costs Redis, beside the whole round trip.
func BenchmarkRedis(b *testing.B) {
	server := redistest.Start(b)
	client := server.Client()
	s := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	limits := hourLimits
	limits.FailMax = 1_000_000_000
	for _, name := range []string{"count", "swap", "read"} {
		change := map[string]infuse.Change{"count": failures(1), "swap": move(infuse.StateOpen)}[name]
		b.Run(name, func(b *testing.B) {
			require.NoError(b, client.ConfigResetStat(b.Context()).Err())
			change.Source, change.Limits, change.By, change.Cause = "bench", limits, "host-1", "connection refused"
			change.Number = uint64(time.Now().UnixNano())
			for b.Loop() {
				change.Number++
				var err error
				if name == "read" {
					_, err = s.Load(b.Context(), "swap")
				} else {
					_, _, err = s.Apply(b.Context(), name, change)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			stats := client.Info(b.Context(), "commandstats").Val()
			_, stats, _ = strings.Cut(stats, "cmdstat_evalsha:")
			_, stats, _ = strings.Cut(stats, "usec_per_call=")
			var micros float64
			_, err := fmt.Sscanf(stats, "%f", &micros)
			require.NoError(b, err)
			b.ReportMetric(micros, "redis-µs/op")
		})
	}
}

// TestManyWritersCountExactly has storages that know nothing of each other.
func TestManyWritersCountExactly(t *testing.T) {
	const writers, each = 8, 50
	server := redistest.Start(t)
	for _, suspicion := range []time.Duration{0, time.Hour / 4} {
		limits := infuse.Limits{FailMax: writers*each + 1, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour, Suspicion: suspicion}
		circuit := fmt.Sprint("suspicion ", suspicion)
		var running sync.WaitGroup
		for writer := range writers {
			running.Go(func() {
				s := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
				for i := range each {
					c := infuse.Change{Source: fmt.Sprint(writer), Number: uint64(i + 1), Limits: limits, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}}
					if writer == 0 && i == each/2 {
						c.Calls.Failures, c.Calls.Lead, c.Calls.Streak = 2, 2, 2 // so the limit is reached
					}
					_, verdict, err := s.Apply(t.Context(), circuit, c)
					if err != nil || verdict == infuse.VerdictRefused {
						t.Errorf("failure %d: verdict %d, %v", i, verdict, err)
					}
				}
			})
		}
		running.Wait()
		r, err := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{}).Load(t.Context(), circuit)
		require.NoError(t, err)
		if suspicion == 0 {
			require.Equal(t, infuse.StateOpen, r.State)
			require.Equal(t, limits.FailMax, r.Failures)
		} else {
			require.True(t, r.Suspect())
			require.Equal(t, limits.FailMax, r.Score)
		}
	}
}

// What a stranger has put into a history is left out, and the rest is shown.
func TestForeignEvents(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		s.must(move(infuse.StateOpen))
		key := "infuse:{circuit}:log"
		for _, event := range []string{"garbage", `{"at":-1}`, `{"to":7}`, `{"by":"` + strings.Repeat("x", 201) + `"}`, strings.Repeat("x", 1<<20), "{}"} {
			require.NoError(t, client.LPush(t.Context(), key, event).Err())
		}
		events, err := s.History(t.Context(), "circuit")
		require.NoError(t, err)
		require.Len(t, events, 2, "an empty event can be read")
		require.Equal(t, infuse.StateOpen, events[1].To)
		require.NoError(t, client.Set(t.Context(), "infuse:{%zz}", "garbage", 0).Err())
		require.NoError(t, client.Set(t.Context(), "infuse:{a b}", "garbage", 0).Err())
		var names []string
		for name, err := range s.Circuits(t.Context()) {
			require.NoError(t, err)
			names = append(names, name)
		}
		require.Equal(t, []string{"circuit"}, names)
		require.NoError(t, client.Del(t.Context(), key).Err())
		require.NoError(t, client.Set(t.Context(), key, "garbage", 0).Err())
		_, err = s.History(t.Context(), "circuit")
		var bad *infuse.RecordError
		require.ErrorAs(t, err, &bad)
		s.must(move(infuse.StateClosed)) // and yet the circuit moves
		require.Equal(t, infuse.StateClosed, s.load().State)
	})
}

func TestInvalidSettings(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	t.Cleanup(func() { _ = client.Close() })
	for _, s := range []*infuse.RedisStorage{infuse.NewRedisStorage(nil, infuse.RedisOptions{}), infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: time.Microsecond})} {
		_, invalid := s.Load(t.Context(), "circuit")
		require.Error(t, invalid)
		_, _, err := s.Apply(t.Context(), "circuit", infuse.Change{})
		require.Equal(t, invalid, err)
		s.Watch("circuit", func(infuse.Record) {})()
		require.NoError(t, s.Close())
	}
}

// One report that cannot be makes the record unreadable for all.
func TestAnImpossibleCountSpoilsNoRecord(t *testing.T) {
	client := redistest.StartMini(t).Client()
	one, other := newSender(t, client, "one"), newSender(t, client, "other")
	one.limits.FailureRate, one.limits.Window, one.limits.MinCalls = 0.5, 10*time.Second, 20
	other.limits = one.limits
	other.must(failures(1))
	_, err := one.send(infuse.Change{Counted: []infuse.Bucket{{Start: time.Now(), Calls: 1, Failures: 2}}})
	t.Log("Apply:", err)
	_, err = other.send(failures(1))
	require.NoError(t, err, "and for another sender")
}

func TestAnOverrideKeepsCounts(t *testing.T) {
	client := redistest.StartMini(t).Client()
	busy := redis.NewClient(client.Options())
	t.Cleanup(func() { _ = busy.Close() })
	one, other := newSender(t, busy, "one"), newSender(t, client, "other")
	one.limits.FailureRate, one.limits.Window, one.limits.MinCalls, one.limits.FailMax = 0.5, time.Hour, 1<<20, 1<<20
	other.limits = one.limits
	count := func() {
		other.must(infuse.Change{Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}, Counted: []infuse.Bucket{{Start: time.Now(), Calls: 1, Failures: 1}}})
	}
	count()
	one.load()
	counts := 1
	busy.AddHook(&scripts{around: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		counts++
		count()
		return next(ctx, cmd)
	}})
	one.must(infuse.Change{Override: &infuse.Override{State: infuse.StateClosed, By: "ann"}})
	r := other.load()
	require.NotNil(t, r.Override)
	require.Equal(t, counts, r.Failures, "consecutive; the window is %+v", r.Window)
}
