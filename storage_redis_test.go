package infuse

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

var hourLimits = Limits{FailMax: 5, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour}

// sender makes changes as one process does.
type sender struct {
	*testing.T
	*RedisStorage
	limits Limits
	source string
	number uint64
	seen   Record
}

func newSender(t *testing.T, client RedisClient, source string) *sender {
	s := &sender{T: t, RedisStorage: NewRedisStorage(client, RedisOptions{PollInterval: 50 * time.Millisecond}), limits: hourLimits, source: source}
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func (s *sender) send(c Change) (Verdict, error) {
	s.number++
	c.Source, c.Number, c.Seen, c.Limits = s.source, s.number, s.seen, s.limits
	record, verdict, err := s.Apply(s.Context(), "circuit", c)
	if err == nil {
		s.seen = record
	}
	return verdict, err
}

func (s *sender) must(c Change) Verdict {
	s.Helper()
	verdict, err := s.send(c)
	require.NoError(s, err)
	return verdict
}

func (s *sender) load() Record {
	s.Helper()
	r, err := s.Load(s.Context(), "circuit")
	require.NoError(s, err)
	return r
}

func failures(n int) Change { return Change{Calls: Calls{Failures: n, Lead: n, Streak: n}} }
func success() Change       { return Change{Calls: Calls{Successes: 1}} }
func move(to State) Change  { return Change{Move: &Move{to}} }

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
		for _, script := range []*redis.Script{countScript, swapScript} {
			require.NoError(t, script.Load(t.Context(), client).Err())
		}
		client.AddHook(hook)
		takes := func(want int64, what string, s *sender, c Change) {
			t.Helper()
			before := hook.runs.Load()
			s.must(c)
			assert.Equal(t, want, hook.runs.Load()-before, what)
		}
		takes(1, "a failure", one, failures(1))
		takes(1, "a failure, of one who has not heard of the first", other, failures(1))
		takes(1, "a failure", other, failures(1))
		takes(1, "a failure", other, failures(1))
		takes(2, "the failure that opens, of one who missed three", one, failures(1))
		require.Equal(t, StateOpen, one.seen.State)
		takes(1, "a move", one, move(StateHalfOpen))
		takes(2, "a trial, of one who missed two transitions", other, Change{Ask: "a"})
		require.Len(t, other.seen.Trials, 1)
		takes(1, "a refused trial", one, Change{Ask: "b"})
		takes(1, "the end of a trial", other, Change{Settled: []Settlement{{ID: "a", Outcome: OutcomeFailure}}})
		takes(1, "a failure that comes too late", other, failures(1))
		takes(1, "a change that says nothing", other, Change{})
	})
}

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
		var bad *RecordError
		require.ErrorContains(t, err, "infuse: redis: ")
		require.Regexp(t, "can't run this command|has no permissions", err) // Redis's words, and Valkey's
		require.False(t, errors.As(err, &bad))
	}
	requirePlain(err)
	_, err = s.send(failures(1))
	requirePlain(err)
	_, err = s.send(move(StateOpen))
	requirePlain(err)
}

// TestLostReply (attack 3): a command whose reply was lost is sent again by
// go-redis. It counted twice where the row had been broken in between.
func TestLostReply(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		one, other := newSender(t, client, "one"), newSender(t, client, "other")
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
		one.client = lossy

		one.must(failures(1))
		require.Equal(t, 1, one.load().Failures, "a count")
		between = func() { other.must(failures(3)) }
		require.Equal(t, VerdictApplied, one.must(success()))
		require.Equal(t, 3, one.load().Failures, "a success that broke a row, and others' failures since")

		one.must(success())
		between = func() { other.must(failures(1)) }
		one.must(Change{Calls: Calls{Failures: 4, Successes: 1, Lead: 4}})
		require.Equal(t, 1, one.load().Failures, "four failures and a success, and another's failure since")
		require.Equal(t, StateClosed, one.load().State)

		between = func() { other.must(move(StateOpen)) }
		require.Equal(t, VerdictApplied, one.must(move(StateClosed)))
		require.Equal(t, StateOpen, one.load().State, "a closing, and another's opening since")

		between = func() { other.must(move(StateClosed)) }
		one.must(move(StateOpen))
		require.Equal(t, StateClosed, one.load().State, "an opening, and another's closing since")

		between = func() {}
		require.NotEqual(t, VerdictRefused, one.must(failures(5)))
		require.Equal(t, StateOpen, one.load().State)
		require.Equal(t, 5, one.load().Failures, "the failures that opened it")
	})
}

// TestAClockThatStepsBack (review, B32; attack 5): open circuits stayed open,
// and dead leases stayed, for as long as the step.
func TestAClockThatStepsBack(t *testing.T) {
	mini := redistest.StartMini(t)
	client := mini.Client()
	now := time.UnixMilli(1_790_000_000_000)
	mini.SetTime(now)
	one, newcomer := newSender(t, client, "one"), newSender(t, client, "newcomer")
	one.limits.ResetTimeout, one.limits.TrialTimeout = time.Second, time.Second

	one.must(move(StateOpen))
	mini.SetTime(now.Add(-time.Hour))
	require.WithinDuration(t, time.Now(), newcomer.load().DueAt, 1100*time.Millisecond, "for a newcomer")
	one.seen.DueAt = time.Now()
	require.Equal(t, VerdictMoved, one.must(Change{Ask: "a"}), "for one who knew when it is due")

	mini.SetTime(now.Add(-2 * time.Hour))
	require.WithinDuration(t, time.Now(), newcomer.load().Trials[0].Deadline, 1100*time.Millisecond, "a lease")
	one.seen.Trials[0].Deadline = time.Now()
	one.must(Change{Ask: "b"})
	require.Equal(t, "b", one.load().Trials[0].ID)

	one.limits.ResetTimeout = time.Hour
	one.must(move(StateOpen))
	mini.SetTime(now.Add(-3 * time.Hour))
	one.seen.DueAt = time.Now().Add(time.Minute)
	one.must(Change{})
	require.WithinDuration(t, time.Now(), newcomer.load().DueAt, 61*time.Second, "what one knows, a newcomer hears")
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
			s.must(move(StateOpen))
			require.NoError(t, spoil(s.key("circuit")))
			var bad *RecordError
			_, err := s.Load(ctx, "circuit")
			require.ErrorAs(t, err, &bad, name)
			_, err = s.send(failures(1))
			require.ErrorAs(t, err, &bad, name)
			require.Equal(t, VerdictMoved, s.must(move(StateHalfOpen)), name)
			require.Equal(t, StateHalfOpen, s.load().State, name)
			require.Equal(t, StateHalfOpen, newSender(t, client, "other").load().State, name)
		}
	})
}

// FuzzParseKnown has any values in a reply: anybody may have written the hash.
func FuzzParseKnown(f *testing.F) {
	text := string(AppendRecord(nil, Record{State: StateOpen, DueAt: time.UnixMilli(1_790_000_001_000)}, time.UnixMilli(1_790_000_000_000)))
	f.Add("1790000000000001", "0", "1790000000000", "3", "", text)
	f.Add("1", "1", "1", "0", "1000;1,1,1", "")
	f.Fuzz(func(t *testing.T, v, g, written, count, window, record string) {
		k := parseKnown([replyParts]string{v, g, "1790000000000", written, count, window, record}, time.Now())
		require.Equal(t, time.UnixMilli(1_790_000_000_000), k.told, "the time is Redis's own")
		if k.problem != nil {
			require.Equal(t, Record{}, k.record)
			return
		}
		requireBounds(t, k.local(), time.Now())
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
		require.Equal(t, "infuse:{%7Ba%7D+%2F}", s.key("{a} /"))
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
			require.LessOrEqual(t, client.HLen(t.Context(), s.key("circuit")).Val(), int64(7+maxHeard))
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
		life := func() time.Duration { return client.PTTL(t.Context(), s.key("circuit")).Val().Round(time.Minute) }
		s.must(failures(1))
		require.Equal(t, time.Hour, life())
		s.limits.ResetTimeout = 5 * time.Hour
		s.must(move(StateOpen))
		require.Equal(t, 6*time.Hour, life())
		s.must(failures(1))
		require.Equal(t, 6*time.Hour, life())
	})
}

// TestADialerThatPanics (attack 8): it ended the process.
func TestADialerThatPanics(t *testing.T) {
	client := redistest.Start(t).Client()
	hook := &panickingDial{}
	hook.on.Store(true)
	client.AddHook(hook)
	s := newSender(t, client, "one")
	heard := make(chan Record, 10)
	s.Watch("circuit", func(r Record) { heard <- r })
	require.Eventually(t, func() bool { return hook.panics.Load() > 2 }, 10*time.Second, time.Millisecond)
	hook.on.Store(false)
	require.Eventually(t, func() bool {
		_, err := s.send(move(StateOpen))
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return (<-heard).State == StateOpen }, 10*time.Second, time.Millisecond)
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
	s := NewRedisStorage(limited, RedisOptions{PollInterval: 3 * time.Second})
	t.Cleanup(func() { _ = s.Close() })
	var allowed, forbidden atomic.Int64
	for i := range 5 {
		s.Watch(fmt.Sprint("a", i), func(r Record) { allowed.Store(max(allowed.Load(), r.Generation)) })
	}
	s.Watch("forbidden", func(r Record) { forbidden.Store(r.Generation) })
	// Give it time to subscribe, before the poll would help.
	channels := func() int {
		list, err := server.Client().PubSubChannels(t.Context(), "*").Result()
		require.NoError(t, err)
		return len(list)
	}
	require.Eventually(t, func() bool { return channels() == 5 }, 10*time.Second, 5*time.Millisecond)
	other := NewRedisStorage(server.Client(), RedisOptions{})
	for range 5 {
		before := time.Now()
		r, _, err := other.Apply(t.Context(), "a1", Change{Limits: hourLimits, Move: &Move{StateOpen}})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return allowed.Load() >= r.Generation }, 10*time.Second, time.Millisecond)
		require.Less(t, time.Since(before), time.Second, "it was polled, not pushed")
	}
	r, _, err := other.Apply(t.Context(), "forbidden", Change{Limits: hourLimits, Move: &Move{StateOpen}})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return forbidden.Load() == r.Generation }, 20*time.Second, 5*time.Millisecond)
}

// TestAFullRedis is a Redis that answers, and takes nothing.
func TestAFullRedis(t *testing.T) {
	client := redistest.Start(t).Client()
	s := newSender(t, client, "one")
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err := s.send(failures(1))
	require.ErrorContains(t, err, "infuse: redis: OOM")
	_, err = s.send(move(StateOpen))
	require.ErrorContains(t, err, "infuse: redis: OOM")
	require.Equal(t, Record{}, s.load())
}

func TestInvalidSettings(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	t.Cleanup(func() { _ = client.Close() })
	for _, s := range []*RedisStorage{NewRedisStorage(nil, RedisOptions{}), NewRedisStorage(client, RedisOptions{PollInterval: time.Microsecond})} {
		require.Error(t, s.invalidSettings())
		_, err := s.Load(t.Context(), "circuit")
		require.Equal(t, s.invalidSettings(), err)
		_, _, err = s.Apply(t.Context(), "circuit", Change{})
		require.Equal(t, s.invalidSettings(), err)
		s.Watch("circuit", func(Record) {})()
		require.NoError(t, s.Close())
	}
}

// BenchmarkRedis reports what a change costs Redis, beside the whole round trip.
func BenchmarkRedis(b *testing.B) {
	server := redistest.Start(b)
	client := server.Client()
	s := NewRedisStorage(client, RedisOptions{})
	limits := hourLimits
	limits.FailMax = 1_000_000_000
	for _, name := range []string{"count", "swap", "read"} {
		change := map[string]Change{"count": failures(1), "swap": move(StateOpen)}[name]
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

// These tests hold RedisStorage against Record.Apply: the same random changes
// go through both, sent by several storages that each know what they heard
// last. After every step, verdicts and records are the same.

func TestRedisDoesWhatApplyDoesOnARealRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	twins := twinsOf(server.Client(), realClock{}, newDice(seedOf(t), 0))
	twins.compare(t, 6_000)
}

func TestRedisDoesWhatApplyDoesOnMiniredis(t *testing.T) {
	t.Parallel()
	twins := twinsOnMiniredis(t)
	twins.roll = newDice(seedOf(t), 1)
	twins.compare(t, 6_000)
}

func FuzzRedisAgainstApply(f *testing.F) {
	for seed := range uint64(8) {
		roll := newDice(seed, 2)
		corpus := make([]byte, 100*(seed+1))
		for i := range corpus {
			corpus[i] = byte(roll(256))
		}
		f.Add(corpus)
	}
	shared := twinsOnMiniredis(f)
	clock := shared.clock.(*miniClock)
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, shared.client.FlushAll(t.Context()).Err())
		data = data[:min(len(data), 1<<12)]
		w := twinsOf(shared.client, clock, bytesAsDice(&data)).newTwin()
		for len(data) > 0 {
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// dice returns a number from 0 to n-1.
type dice func(n int) int

func newDice(seed, stream uint64) dice { return rand.New(rand.NewPCG(seed, stream)).IntN }

// bytesAsDice uses up a byte a roll, and rolls zeros in the end.
func bytesAsDice(data *[]byte) dice {
	return func(n int) int {
		if len(*data) == 0 {
			return 0
		}
		b := (*data)[0]
		*data = (*data)[1:]
		return int(b) % n
	}
}

func (roll dice) oneIn(n int) bool { return roll(n) == 0 }

// seedOf is new in every run; MODEL_SEED repeats one.
func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("MODEL_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: MODEL_SEED=%d", seed)
	return seed
}

// redisClock is Redis's clock. unit is long beside the time that a test takes,
// or what a step may take at most: no step is judged within it of a deadline.
type redisClock interface {
	now() time.Time
	advance(d time.Duration)
	unit() time.Duration
	width() time.Duration         // of a bucket, whose edges no step is near
	stalled(since time.Time) bool // whether a step that began then has taken longer than it may
}

type realClock struct{}

func (realClock) now() time.Time                 { return time.Now() }
func (realClock) advance(d time.Duration)        { time.Sleep(d) }
func (realClock) unit() time.Duration            { return 30 * time.Millisecond }
func (realClock) width() time.Duration           { return 320 * time.Millisecond }
func (c realClock) stalled(since time.Time) bool { return time.Since(since) > c.unit() }

// miniClock moves both of miniredis's clocks: TIME, and that by which keys expire.
type miniClock struct {
	mini *redistest.Mini
	at   time.Time
}

func newMiniClock(mini *redistest.Mini) *miniClock {
	c := &miniClock{mini: mini, at: time.UnixMilli(1_790_000_000_000)}
	c.advance(0)
	return c
}

func (c *miniClock) now() time.Time       { return c.at }
func (c *miniClock) unit() time.Duration  { return 2 * time.Second }
func (c *miniClock) width() time.Duration { return 8 * time.Second }

// The storages of this process go by its own clock, and times agree to a second.
func (c *miniClock) stalled(since time.Time) bool { return time.Since(since) > time.Second/2 }
func (c *miniClock) advance(d time.Duration) {
	c.at = c.at.Add(d)
	c.mini.SetTime(c.at)
	if d > 0 {
		c.mini.FastForward(d)
	}
}

// twins are circuits on one server, each beside the Record that it should be.
type twins struct {
	client   *redis.Client
	storages []*RedisStorage
	clock    redisClock
	roll     dice
	circuits int
}

func twinsOf(client *redis.Client, clock redisClock, roll dice) *twins {
	all := &twins{client: client, clock: clock, roll: roll}
	for range 3 {
		all.storages = append(all.storages, NewRedisStorage(client, RedisOptions{}))
	}
	return all
}

func twinsOnMiniredis(tb testing.TB) *twins {
	mini := redistest.StartMini(tb)
	return twinsOf(mini.Client(), newMiniClock(mini), nil)
}

func (all *twins) compare(t *testing.T, steps int) {
	if testing.Short() {
		steps /= 10
	} else if !long() {
		steps /= 10
	}
	for stalls := 0; steps > 0; {
		w := all.newTwin()
		for range 1 + all.roll(100) {
			steps--
			err := w.step()
			if errors.Is(err, errStalled) && stalls < 200 {
				stalls++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

var errStalled = errors.New("the machine stalled")

// twin is one circuit twice: in Redis, and as the Record that Apply makes.
type twin struct {
	*twins
	circuit string
	model   Record   // its times are on Redis's clock
	seen    []Record // by storage: what it was told last, on this process's clock
	numbers []uint64
	sent    []Change // all, for changes that come twice
	story   []string
	checked time.Time // when no deadline was near
}

func (all *twins) newTwin() *twin {
	all.circuits++
	n := len(all.storages)
	return &twin{twins: all, circuit: fmt.Sprint("twin", all.circuits), seen: make([]Record, n), numbers: make([]uint64, n)}
}

func (w *twin) step() error {
	i := w.roll(len(w.storages))
	c := w.change(i)
	if err := w.passTime(c); err != nil {
		return err
	}
	c.Seen = w.see(i)
	here, now := time.Now(), w.clock.now()
	theirs := c
	theirs.Seen, theirs.Counted = c.Seen.translated(here, now), translated(c.Counted, here, now)
	want, wantVerdict := w.model.Apply(theirs, now)
	got, verdict, err := w.storages[i].Apply(context.Background(), w.circuit, c)
	w.story = append(w.story, fmt.Sprintf("%v storage %d: %+v\n\t-> %v %+v %v", now.Sub(time.UnixMilli(1_790_000_000_000)), i, theirs, verdict, got, err))
	if err == nil && wantVerdict != verdict {
		err = fmt.Errorf("verdict %d, want %d", verdict, wantVerdict)
	}
	if err == nil {
		w.keep(want, wantVerdict, c, got)
		err = w.agrees(got, here, now)
	}
	if err == nil && w.roll.oneIn(3) {
		got, err = w.storages[w.roll(len(w.storages))].Load(context.Background(), w.circuit)
		if err == nil {
			err = w.agrees(got, time.Now(), w.clock.now())
		}
	}
	if err != nil && w.clock.stalled(w.checked) {
		return fmt.Errorf("%w: %w", errStalled, err)
	}
	if err != nil {
		return fmt.Errorf("%w\nThe steps of this circuit:\n%s", err, strings.Join(w.story, "\n"))
	}
	w.seen[i] = got
	return nil
}

// keep makes the wanted record the model's, with the generation that the
// storage gave it by its clock.
func (w *twin) keep(want Record, verdict Verdict, c Change, got Record) {
	if verdict == VerdictRefused {
		return
	}
	if says := len(c.Settled) > 0 || c.counts() || c.Move != nil; !says && !w.remembers(c) {
		want.heard = w.model.heard // which is as good: it says nothing the second time, too
	}
	if want.Generation > w.model.Generation && got.Generation > w.model.Generation {
		theirs := []int64{got.Since, got.Opened, got.Moved, got.Generation}
		for i, g := range []*int64{&want.Since, &want.Opened, &want.Moved, &want.Generation} {
			if *g > w.model.Generation && theirs[i] > w.model.Generation {
				*g = theirs[i]
			}
		}
	}
	w.model = want
}

func (w *twin) remembers(c Change) bool {
	number := w.client.HGet(context.Background(), w.storages[0].key(w.circuit), "s:"+c.Source).Val()
	return strings.HasPrefix(number, fmt.Sprintf("%020d", c.Number))
}

// agrees compares a record with the model's. The one's clock says here, the
// other's says now.
func (w *twin) agrees(got Record, here, now time.Time) error {
	got, want := got.At(here), w.model.At(now).translated(now, here)
	text := func(r Record) string {
		return fmt.Sprint(r.State, r.Generation, r.Since, r.Opened, r.Moved, r.Failures, r.Successes, r.Threshold, r.Score, r.Rated, r.Witness, r.OpenTime, r.By, r.Cause, r.Window.Width, len(r.Window.Buckets), len(r.Trials))
	}
	if text(got) != text(want) {
		return fmt.Errorf("%s is\n%s, not\n%s", w.circuit, text(got), text(want))
	}
	times := func(r Record) []time.Time {
		all := append([]time.Time{r.DueAt, r.RetryAt}, deadlines(r.Trials)...)
		for i, t := range all {
			if !t.IsZero() && t.Before(here) { // it is over: since when is not kept
				all[i] = here
			}
		}
		return append(all, r.SuspectAt, r.DismissedAt, r.ClosedAt)
	}
	for i, t := range times(got) {
		if t.IsZero() != times(want)[i].IsZero() || t.Sub(times(want)[i]).Abs() > time.Second {
			return fmt.Errorf("%s has the times\n%v, not\n%v", w.circuit, times(got), times(want))
		}
	}
	for i, b := range got.Window.Buckets {
		if theirs := want.Window.Buckets[i]; b.Start.Sub(theirs.Start).Abs() > time.Second || b.Calls != theirs.Calls || b.Failures != theirs.Failures {
			return fmt.Errorf("%s has the window %v, not %v", w.circuit, got.Window, want.Window)
		}
	}
	for i := range got.Trials {
		if got.Trials[i].ID != want.Trials[i].ID || got.Trials[i].Stale != want.Trials[i].Stale {
			return fmt.Errorf("%s has the trials %v, not %v", w.circuit, got.Trials, want.Trials)
		}
	}
	return nil
}

// passTime moves the clock, and then away from all deadlines. On miniredis, the
// key may have expired: then there is nothing left that was worth keeping.
func (w *twin) passTime(c Change) error {
	_, virtual := w.clock.(*miniClock)
	switch {
	case !virtual || w.roll.oneIn(2):
	case w.roll.oneIn(100):
		w.advance(5 * time.Hour)
	default:
		w.advance(time.Duration(w.roll(10)) * w.clock.unit())
	}
	for w.checked = time.Now(); w.nearDeadline(c); w.checked = time.Now() {
		w.advance(w.clock.unit() / 3)
	}
	if !virtual {
		return nil
	}
	kept, err := w.client.Exists(context.Background(), w.storages[0].key(w.circuit)).Result()
	if err != nil || kept == 1 || w.model.Generation == 0 && w.model.Failures == 0 && w.model.heard == nil {
		return err
	}
	if w.clock.now().Before(w.model.keepUntil(time.Time{})) {
		return fmt.Errorf("%s: lost: %+v", w.circuit, w.model)
	}
	w.story = append(w.story, "the key expires")
	w.model = Record{}
	return nil
}

// advance moves a clock that is not this process's: so that the two go on
// together, what it knows becomes older instead.
func (w *twin) advance(d time.Duration) {
	w.clock.advance(d)
	if _, virtual := w.clock.(*miniClock); !virtual {
		return
	}
	for i, s := range w.storages {
		for key, k := range s.known.all {
			k.at = k.at.Add(-d)
			s.known.all[key] = k
		}
		w.seen[i] = w.seen[i].translated(time.Now(), time.Now().Add(-d))
	}
}

func (w *twin) nearDeadline(c Change) bool {
	now := w.clock.now()
	for _, seen := range w.seen { // of which one may be restored
		if seen = seen.translated(time.Now(), now); seen.Generation > 0 && w.near(&seen, &c, now) {
			return true
		}
	}
	return w.near(&w.model, &c, now)
}

func (w *twin) near(r *Record, c *Change, now time.Time) bool {
	l := &c.Limits
	all := append([]time.Time{r.DueAt, r.dueAt(l), r.RetryAt, r.calmUntil(l), r.DueAt.Add(l.Suspicion - c.OpenFor)}, deadlines(r.Trials)...)
	all = append(all, r.SuspectAt.Add(l.Suspicion), r.SuspectAt.Add(time.Duration(evidence.rated)*l.Suspicion))
	for i := range r.Trials {
		all = append(all, r.Trials[i].deadline(l))
	}
	edge := now.Truncate(w.clock.width()) // of buckets
	all = append(all, edge, edge.Add(w.clock.width()))
	for last := r.OpenTime; last > time.Second; last /= 2 { // each step of what it forgets
		all = append(all, r.ClosedAt.Add(2*(r.OpenTime-last)), r.ClosedAt.Add(2*r.OpenTime-last))
	}
	return slices.ContainsFunc(all, func(t time.Time) bool { return t.Sub(now).Abs() <= w.clock.unit() })
}

// change makes any change, or sends an old one again.
func (w *twin) change(storage int) Change {
	if n := len(w.sent); n > 0 && w.roll.oneIn(8) {
		return w.sent[n-1-w.roll(min(n, 30))]
	}
	c := Change{Limits: w.limits(), By: fmt.Sprint("instance", storage), Cause: fmt.Sprint("cause ", w.roll(3))}
	if !w.roll.oneIn(8) {
		w.numbers[storage]++
		c.Source, c.Number = fmt.Sprint("source", storage), math.MaxUint64-1_000_000+w.numbers[storage]
	}
	if !w.roll.oneIn(3) {
		lead, streak := w.roll(3), w.roll(3)
		c.Calls = Calls{Failures: lead + streak, Successes: 1 + w.roll(2), Lead: lead, Streak: streak}
		if w.roll.oneIn(2) {
			c.Calls = Calls{Failures: 1 + lead, Lead: 1 + lead, Streak: 1 + lead}
		}
	}
	for range w.roll(3) { // in the middle of buckets
		failures, middle := w.roll(4), w.clock.width()/2+time.Duration(w.roll(14))*w.clock.width()
		c.Counted = append(c.Counted, Bucket{
			Start: time.Now().Add(-time.Duration(w.clock.now().UnixMilli()%w.clock.width().Milliseconds())*time.Millisecond - middle + w.clock.width()),
			Calls: 1 + failures + w.roll(10), Failures: failures,
		})
	}
	if w.roll.oneIn(4) {
		c.OpenFor = w.duration()
	}
	if w.roll.oneIn(4) {
		c.Ask = fmt.Sprint("trial", w.roll(6))
	}
	for range w.roll(3) {
		if !w.roll.oneIn(3) {
			c.Settled = append(c.Settled, Settlement{ID: fmt.Sprint("trial", w.roll(6)), Outcome: Outcome(w.roll(3)), OpenFor: time.Duration(w.roll(2)) * w.duration()})
		}
	}
	if w.roll.oneIn(8) {
		c.Move = &Move{State(w.roll(3))}
	}
	w.sent = append(w.sent, c)
	return c
}

// see is what the storage heard last, or the present, or of the future.
func (w *twin) see(storage int) Record {
	switch {
	case w.roll.oneIn(3):
		return w.model.translated(w.clock.now(), time.Now())
	case w.roll.oneIn(12):
		seen := w.seen[storage]
		seen.Generation += int64(w.roll(4))
		seen.State = State(w.roll(3))
		if _, virtual := w.clock.(*miniClock); virtual {
			seen.DueAt = time.Now().Add(time.Duration(w.roll(3)-1) * 6 * time.Hour)
		}
		return seen
	}
	return w.seen[storage]
}

func (w *twin) limits() Limits {
	l := Limits{
		FailMax:          1 + w.roll(6),
		ResetTimeout:     w.duration(),
		SuccessThreshold: 1 + w.roll(3),
		MaxTrials:        1 + w.roll(3),
		TrialTimeout:     w.duration(),
		Suspicion:        time.Millisecond + time.Duration(w.roll(2))*w.duration(), // 0 is for local records, which are in no storage
	}
	if w.roll.oneIn(2) {
		l.FailureRate, l.MinCalls = float64(1+w.roll(10))/10, 1+w.roll(20)
		l.Window = windowBuckets * w.clock.width() * time.Duration(1+w.roll(2))
		if w.roll.oneIn(2) {
			l.FailMax = unlimited
		}
	}
	if w.roll.oneIn(2) {
		l.MaxResetTimeout = l.ResetTimeout * time.Duration(1+w.roll(8))
	}
	return l
}

// duration is one that ends in a few steps, or not in this test.
func (w *twin) duration() time.Duration {
	if _, virtual := w.clock.(*miniClock); virtual && w.roll.oneIn(3) {
		return time.Duration(2+w.roll(5)) * w.clock.unit()
	}
	if w.roll.oneIn(5) {
		return 3 * w.clock.unit()
	}
	return time.Duration(2+w.roll(3)) * time.Hour
}

// TestManyWritersCountExactly has storages that know nothing of each other.
func TestManyWritersCountExactly(t *testing.T) {
	const writers, each = 8, 50
	server := redistest.Start(t)
	for _, suspicion := range []time.Duration{0, time.Hour / 4} {
		limits := Limits{FailMax: writers*each + 1, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour, Suspicion: suspicion}
		circuit := fmt.Sprint("suspicion ", suspicion)
		var running sync.WaitGroup
		for writer := range writers {
			running.Go(func() {
				s := NewRedisStorage(server.Client(), RedisOptions{})
				for i := range each {
					c := Change{Source: fmt.Sprint(writer), Number: uint64(i + 1), Limits: limits, Calls: Calls{Failures: 1, Lead: 1, Streak: 1}}
					if writer == 0 && i == each/2 {
						c.Calls.Failures, c.Calls.Lead, c.Calls.Streak = 2, 2, 2 // so the limit is reached
					}
					_, verdict, err := s.Apply(t.Context(), circuit, c)
					if err != nil || verdict == VerdictRefused {
						t.Errorf("failure %d: verdict %d, %v", i, verdict, err)
					}
				}
			})
		}
		running.Wait()
		r, err := NewRedisStorage(server.Client(), RedisOptions{}).Load(t.Context(), circuit)
		require.NoError(t, err)
		if suspicion == 0 {
			require.Equal(t, StateOpen, r.State)
			require.Equal(t, limits.FailMax, r.Failures)
		} else {
			require.True(t, r.suspect())
			require.Equal(t, limits.FailMax, r.Score)
		}
	}
}

// What a stranger has put into a history is left out, and the rest is shown.
func TestForeignEvents(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		s := newSender(t, client, "one")
		s.must(move(StateOpen))
		key := s.key("circuit") + historySuffix
		for _, event := range []string{"garbage", `{"at":-1}`, `{"to":7}`, `{"by":"` + strings.Repeat("x", 201) + `"}`, strings.Repeat("x", 1<<20), "{}"} {
			require.NoError(t, client.LPush(t.Context(), key, event).Err())
		}
		events, err := s.History(t.Context(), "circuit")
		require.NoError(t, err)
		require.Len(t, events, 2, "an empty event can be read")
		require.Equal(t, StateOpen, events[1].To)
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
		var bad *RecordError
		require.ErrorAs(t, err, &bad)
		s.must(move(StateClosed)) // and yet the circuit moves
		require.Equal(t, StateClosed, s.load().State)
	})
}
