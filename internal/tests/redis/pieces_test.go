package redis_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A record is in pieces of 64 bytes up to 512 bytes, and in one field above that. Nothing
// is left behind when its length changes, and a piece that is lost or foreign is an
// error of its circuit until a manual change.
// R36, R42.
func TestARecordOfAnyLengthIsInPiecesOrWhole(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	s := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	t.Cleanup(func() { _ = s.Close() })
	const key = "infuse:{circuit}"
	ctx := t.Context()
	force := func(by, reason int) int {
		o := &infuse.Override{State: infuse.StateOpen, By: strings.Repeat("b", by), Reason: strings.Repeat("r", reason)}
		_, _, err := s.Apply(ctx, "circuit", infuse.Change{Limits: hourLimits, By: strings.Repeat("i", 40), Override: o})
		require.NoError(t, err)
		r, err := s.Load(ctx, "circuit")
		require.NoError(t, err)
		require.Equal(t, o, r.Override)
		fields := client.HGetAll(ctx, key).Val()
		whole, pieces := fields["r"], ""
		for _, name := range []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"} {
			require.LessOrEqual(t, len(fields[name]), 64)
			pieces += fields[name]
		}
		require.True(t, (whole == "") != (pieces == ""), "%q and %q", whole, pieces)
		require.True(t, len(whole) > 512 || len(pieces) > 0 && len(pieces) <= 512)
		return len(whole + pieces)
	}
	_, _, err := s.Apply(ctx, "circuit", infuse.Change{Limits: hourLimits, By: strings.Repeat("i", 40), Manual: &infuse.ManualState{To: infuse.StateOpen}})
	require.NoError(t, err)
	lengths := make(map[int]bool)
	for i := range 200 {
		lengths[force(100, 1+i)] = true
	}
	for i := range 200 {
		lengths[force(100, 200-i)] = true
	}
	for _, n := range []int{448, 449, 511, 512, 513} {
		require.True(t, lengths[n], "no record of %d bytes", n)
	}
	require.Greater(t, force(200, 200), 513)
	require.Less(t, force(1, 1), 449)

	manual := func() {
		_, _, err := s.Apply(ctx, "circuit", infuse.Change{Limits: hourLimits, Manual: &infuse.ManualState{To: infuse.StateOpen}})
		require.NoError(t, err)
		_, err = s.Load(ctx, "circuit")
		require.NoError(t, err)
	}
	for i, damage := range []func() error{
		func() error { return client.HDel(ctx, key, "r2").Err() },
		func() error { return client.HSet(ctx, key, "r1", "").Err() },
		func() error { return client.HSet(ctx, key, "r3", strings.Repeat("x", 300_000)).Err() },
		func() error { return client.HSet(ctx, key, "r8", "}").Err() },
		func() error { return client.HSet(ctx, key, "r", "{").Err() },
		func() error { return client.HDel(ctx, key, "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8").Err() },
		func() error { return client.Set(ctx, key, "x", time.Hour).Err() },
	} {
		require.NoError(t, damage())
		_, err := s.Load(ctx, "circuit")
		var unreadable *infuse.RecordError
		require.ErrorAs(t, err, &unreadable, "%d: %v", i, client.HGetAll(ctx, key).Val())
		_, _, err = s.Apply(ctx, "circuit", infuse.Change{Source: "a", Number: 1, Limits: hourLimits, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1}})
		require.ErrorAs(t, err, &unreadable)
		manual()
		force(50, 50)
	}
}
