package pybreakerstorage

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// This file tests breakers of two Go processes against commands of Python.

func TestBreakersFollowPython(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	m := mixed{newReplay(t, server.Client(), 0, time.Minute)}
	one := startService(t, server, m.namespace, infuse.Config{ResetTimeout: time.Minute})
	other := startService(t, server, m.namespace, infuse.Config{ResetTimeout: time.Minute})

	m.opens(0)
	one.waitFor(t, infuse.StateOpen)
	other.waitFor(t, infuse.StateOpen)
	require.Equal(t, "rejected", one.do(t, "success"))

	m.set("success_counter", 0)
	m.set("fail_counter", 0)
	m.set("state", "closed")
	one.waitFor(t, infuse.StateClosed)
	other.waitFor(t, infuse.StateClosed)
	require.Equal(t, "ok", one.do(t, "success"))
}

func TestPythonFollowsBreakers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	m := mixed{newReplay(t, server.Client(), 0, time.Minute)}
	cfg := infuse.Config{FailMax: 2, ResetTimeout: 100 * time.Millisecond}
	s, other := startService(t, server, m.namespace, cfg), startService(t, server, m.namespace, cfg)

	requireState := func(state string) {
		t.Helper()
		require.Eventually(t, func() bool { return m.value("state") == state }, patience, time.Millisecond)
	}
	for m.value("state") != "open" { // opens by the failures of two processes
		s.do(t, "failure")
		time.Sleep(60 * time.Millisecond)
		other.do(t, "failure")
	}
	require.InDelta(t, m.second(), m.number("opened_at"), 5)
	require.Eventually(t, func() bool { return s.do(t, "success") == "ok" }, patience, time.Millisecond)
	requireState("closed")
	require.Zero(t, m.number("fail_counter"))
}

func TestMinimalACL(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "least", "on", ">secret", "~*",
		"+evalsha", "+eval", "+get", "+set", "+hmget", "+hset", "+time").Err())
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "least", "secret" })
	s, err := New(client, Options{})
	require.NoError(t, err)
	_, _, err = s.Apply(t.Context(), "orders", oneFailure)
	require.NoError(t, err)
	record, err := s.Load(t.Context(), "orders")
	require.NoError(t, err)
	require.Equal(t, 1, record.Failures)
}
