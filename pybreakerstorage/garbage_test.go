package pybreakerstorage

// This file tests invalid content of the keys.

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Invalid content of the keys affects only its circuit. A version that was
// not a number made the script fail after it had written Python's keys, and made the
// storage unavailable for all circuits.
func TestInvalidContentAffectsOnlyItsCircuit(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	ctx := t.Context()
	s, err := New(client, Options{})
	require.NoError(t, err)
	keys := s.layout.keys("orders")
	values := []string{
		"", " ", "-1", "+5", "5.5", "nan", "inf", "0x10", "open", "closed", "half-open", "Open", "\x00\xff", "99999999999999999999",
		"9223372036854775807", "4503599627370496", fmt.Sprint(time.Now().UnixMilli()), fmt.Sprint(time.Now().AddDate(99, 0, 0).UnixMilli()),
		"{}", "null", `{"v":3}`, `{"v":3,"readable":99}`, `{"v":3,"readable":2,"state":1,"gen":5,"due":9223372036854775807}`,
		`{"v":3,"readable":3,"override":{"state":1,"reason":"x"}}`, "closed 0 0 0", "open 9 9 9", strings.Repeat("9", 1000),
	}
	problems := 0
	own := func(err error, what string) {
		t.Helper()
		var bad *infuse.RecordError
		if err != nil {
			problems++
			require.ErrorAs(t, err, &bad, what)
		}
	}
	for range 500 {
		require.NoError(t, client.Del(ctx, keys...).Err())
		for range rand.IntN(3) {
			_, _, err := s.Apply(ctx, "orders", []infuse.Change{oneFailure, {Limits: manyLimits, Manual: &infuse.ManualState{To: infuse.State(rand.IntN(3))}}}[rand.IntN(2)])
			require.NoError(t, err)
		}
		what, wrongType := "", false
		for range 1 + rand.IntN(3) {
			value := values[rand.IntN(len(values))]
			switch i := rand.IntN(12); {
			case i < 4 && !wrongType:
				field := []string{"v", "r", "p", "t"}[i]
				what += fmt.Sprintf("%s %q, ", field, value)
				err = client.HSet(ctx, keys[0], field, value).Err()
			case i < 11:
				key := keys[1+i%4]
				what += fmt.Sprintf("%s %q, ", key, value)
				err = client.Set(ctx, key, value, 0).Err()
			default:
				key := keys[rand.IntN(len(keys))]
				client.Del(ctx, key)
				what, wrongType = what+key+" is a list", true
				err = client.RPush(ctx, key, "x").Err()
			}
			require.NoError(t, err, what)
		}
		for range 3 {
			_, err = s.Load(ctx, "orders")
			own(err, what)
			_, _, err = s.Apply(ctx, "orders", oneFailure)
			own(err, what)
		}
		_, _, err = s.Apply(ctx, "orders", infuse.Change{Limits: manyLimits, Manual: &infuse.ManualState{To: infuse.StateClosed}})
		if wrongType { // until the key is deleted
			own(err, what)
			continue
		}
		require.NoError(t, err, "%s: a manual change repairs the record", what)
		_, err = s.Load(ctx, "orders")
		require.NoError(t, err, "%s: the record is readable", what)
	}
	require.Greater(t, problems, 300)
}

// Databases of one Redis are independent: this storage sends no messages.
func TestDatabasesAreIndependent(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var storages [2]*Storage
	var clients [2]*redis.Client
	for i := range storages {
		clients[i] = server.Client(func(o *redis.Options) { o.DB = i })
		var err error
		storages[i], err = New(clients[i], Options{PollInterval: 10 * time.Millisecond})
		require.NoError(t, err)
	}
	b, err := infuse.New("orders", infuse.Config{Storage: storages[0]})
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	_, _, err = storages[1].Apply(t.Context(), "orders", infuse.Change{Limits: manyLimits, Override: &infuse.Override{State: infuse.StateOpen, Reason: "staging"}})
	require.NoError(t, err)
	time.Sleep(200 * time.Millisecond)
	require.Equal(t, infuse.StateClosed, b.State())
	require.Zero(t, clients[0].Exists(t.Context(), "orders:pybreaker:state").Val())
	published, err := server.Commands(t.Context())
	require.NoError(t, err)
	require.Zero(t, published["publish"])
}
