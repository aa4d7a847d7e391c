package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Anybody who may write a circuit's key may have written anything. These tests
// check that it is the trouble of this circuit alone.

var megabyte = strings.Repeat("x", 1<<20)

// garbage returns a value for any field of a circuit's hash.
func garbage(roll redistest.Dice) string {
	if roll.OneIn(100) {
		return megabyte
	}
	texts := []string{
		"", " ", "0", "-0", "-1", "+5", " 7", "5.5", "1e308", "inf", "-inf", "nan", "0x10", "none", "WRONGTYPE", "\x00\xff", "٣",
		"4503599627370496", "9007199254740993", "99999999999999999999", "99999999999999999999 nan", "99999999999999999999 99999999999999999999",
		strings.Repeat("9", 400), "1000;1,1,1", "1000;" + strings.Repeat("1,1,1;", 1000), "0;0,0,0", "1;9999999999999999999,1,1",
		fmt.Sprint(time.Now().UnixMilli()), fmt.Sprint(time.Now().AddDate(99, 0, 0).UnixMilli()), fmt.Sprint(time.Now().AddDate(200, 0, 0).UnixMilli()),
		"{}", "[]", "null", `{"v":3}`, `{"v":3,"readable":99}`, `{"v":3,"trials":[{"id":"\u0000"}]}`,
	}
	switch roll(4) {
	case 0: // bytes
		b := make([]byte, roll(40))
		for i := range b {
			b[i] = byte(roll(256))
		}
		return string(b)
	case 1: // a record of any values
		numbers := []int64{0, 1, -1, 5, 1 << 31, 1 << 52, 1<<63 - 1, time.Now().UnixMilli(), time.Now().AddDate(100, 0, 0).UnixMilli()}
		var b strings.Builder
		fmt.Fprintf(&b, `{"v":3,"readable":2,"state":%d`, roll(3))
		for _, field := range []string{"gen", "since", "opened", "moved", "failures", "row", "successes", "due", "suspect", "opens", "balance", "calm", "width", "opentime", "closed"} {
			if roll.OneIn(3) {
				fmt.Fprintf(&b, `,"%s":%d`, field, numbers[roll(len(numbers))])
			}
		}
		if roll.OneIn(3) {
			fmt.Fprintf(&b, `,"rated":true,"trials":[{"id":"a","left":%d,"stale":%t}]`, numbers[roll(len(numbers))], roll.OneIn(2))
		}
		if roll.OneIn(3) {
			fmt.Fprintf(&b, `,"override":{"state":%d,"reason":"x","left":%d}`, roll(3), numbers[roll(len(numbers))])
		}
		return b.String() + "}"
	}
	return texts[roll(len(texts))]
}

// sourceOf returns a value for the field of a source.
func sourceOf(roll redistest.Dice) string {
	return fmt.Sprintf("%020d %s", roll(100), []string{"nan", "inf", "", "-1", "99999999999999999999", "1790000000000", "\xff"}[roll(7)])
}

// spoil writes anything into the circuit's key.
func spoil(ctx context.Context, client *redis.Client, roll redistest.Dice, key string) (what string, err error) {
	if roll.OneIn(10) {
		client.Del(ctx, key)
		switch roll(4) {
		case 0:
			return "a string", client.Set(ctx, key, garbage(roll), 0).Err()
		case 1:
			return "a list", client.RPush(ctx, key, garbage(roll)).Err()
		case 2:
			return "a set", client.SAdd(ctx, key, garbage(roll)).Err()
		default:
			return "a sorted set", client.ZAdd(ctx, key, redis.Z{Member: garbage(roll)}).Err()
		}
	}
	if roll.OneIn(10) || client.Type(ctx, key).Val() != "hash" {
		client.Del(ctx, key)
		what = "nothing but "
	}
	for range 1 + roll(3) {
		field := []string{"v", "g", "t", "n", "w", "r", "s:one", "s:newcomer", "name"}[roll(9)]
		if roll.OneIn(6) {
			what += fmt.Sprintf("no %s, ", field)
			err = errors.Join(err, client.HDel(ctx, key, field).Err())
			continue
		}
		value := garbage(roll)
		what += fmt.Sprintf("%s %.60q, ", field, value)
		err = errors.Join(err, client.HSet(ctx, key, field, value).Err())
	}
	if roll.OneIn(20) {
		what += "530 sources"
		sources := make(map[string]string)
		for i := range 530 {
			sources[fmt.Sprint("s:", i)] = sourceOf(roll)
		}
		err = errors.Join(err, client.HSet(ctx, key, sources).Err())
	}
	return what, err
}

// TestAnyContentOfAKeyIsTheTroubleOfItsCircuitAlone: an empty version
// made the script fail, and with it the storage for all circuits.
// R36, R42.
func TestAnyContentOfAKeyIsTheTroubleOfItsCircuitAlone(t *testing.T) {
	t.Parallel()
	seed := redistest.Seed(t)
	onBoth(t, func(t *testing.T, client *redis.Client) {
		ctx, roll := t.Context(), redistest.NewDice(seed, 3)
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: time.Hour})
		t.Cleanup(func() { _ = storage.Close() })
		healthy, err := infuse.New("healthy", infuse.Config{Storage: storage, StorageTimeout: 10 * time.Second})
		require.NoError(t, err)
		t.Cleanup(healthy.Stop)
		key := "infuse:{circuit}"
		problems := 0
		for round := range 120 {
			client.Del(ctx, key, key+":log")
			one := newSender(t, client, "one")
			one.limits.FailMax = 3
			one.limits.Suspicion = time.Duration(roll(2)) * time.Hour / 4
			for range 1 + roll(4) {
				one.must([]infuse.Change{failures(1), failures(3), move(infuse.StateOpen), move(infuse.StateHalfOpen), {RequestTrial: "a"}, {Override: &infuse.Override{State: infuse.StateOpen, Reason: "x"}}}[roll(6)])
			}
			what, err := spoil(ctx, client, roll, key)
			require.NoError(t, err, what)
			newcomer := newSender(t, client, "newcomer")
			newcomer.limits = one.limits
			for _, s := range []*sender{one, newcomer} {
				for _, c := range []infuse.Change{failures(1), success(), {}, {RequestTrial: "b"}, {Settled: []infuse.Settlement{{ID: "b"}}}, failures(5)} {
					began := time.Now()
					_, err := s.send(c)
					require.Less(t, time.Since(began), 20*time.Second, "round %d: %s", round, what)
					problems += requireOwnTrouble(t, err, "round %d: %s: %+v", round, what, c)
					_, err = s.Load(ctx, "circuit")
					problems += requireOwnTrouble(t, err, "round %d: %s", round, what)
					if roll.OneIn(3) {
						what, err = spoil(ctx, client, roll, key)
						require.NoError(t, err, what)
					}
				}
			}
			if round%10 == 0 {
				b, err := infuse.New("circuit", infuse.Config{Storage: storage, StorageTimeout: 10 * time.Second})
				require.NoError(t, err)
				for range 3 {
					_ = b.Call(ctx, func(context.Context) error { return errors.New("failed") })
				}
				require.Error(t, healthy.Call(ctx, func(context.Context) error { return errors.New("failed") }))
				require.NoError(t, healthy.Call(ctx, func(context.Context) error { return nil }))
				require.NoError(t, healthy.Stats().StorageErr, "round %d: %s", round, what)
				b.Stop()
			}
			last := []*sender{one, newcomer}[roll(2)]
			last.seen = infuse.Record{}
			last.number += 1000 // a stranger's number may be in the hash
			last.source = fmt.Sprint("operator", round)
			_, err = last.send([]infuse.Change{move(infuse.StateHalfOpen), {Override: &infuse.Override{State: infuse.StateClosed, Reason: "x"}}}[roll(2)])
			require.NoError(t, err, "round %d: %s: a manual change repairs", round, what)
			_, err = newSender(t, client, "other").Load(ctx, "circuit")
			require.NoError(t, err, "round %d: %s: and all read it", round, what)
		}
		t.Logf("%d of the requests met a record that cannot be read", problems)
		require.Greater(t, problems, 500)
	})
}

// requireOwnTrouble requires no error, or one of this circuit's record alone.
func requireOwnTrouble(t *testing.T, err error, format string, args ...any) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var bad *infuse.RecordError
	require.ErrorAs(t, err, &bad, fmt.Sprintf(format, args...))
	return 1
}

// An empty version, alone.
func TestAnEmptyVersionIsATroubleOfOneCircuit(t *testing.T) {
	onBoth(t, func(t *testing.T, client *redis.Client) {
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
		t.Cleanup(func() { _ = storage.Close() })
		require.NoError(t, client.HSet(t.Context(), "infuse:{x}", "v", "").Err())
		_, err := storage.Load(t.Context(), "x")
		require.Equal(t, 1, requireOwnTrouble(t, err, "load"))
		require.Equal(t, map[string]string{"v": ""}, client.HGetAll(t.Context(), "infuse:{x}").Val(), "a read writes nothing")
		group, err := infuse.NewGroup(infuse.Config{Storage: storage, StorageTimeout: 10 * time.Second})
		require.NoError(t, err)
		t.Cleanup(group.Stop)
		healthy, err := group.Breaker("healthy")
		require.NoError(t, err)
		broken, err := group.Breaker("x")
		require.NoError(t, err)
		require.Error(t, broken.Stats().StorageErr)
		require.NoError(t, healthy.Stats().StorageErr)
	})
}
