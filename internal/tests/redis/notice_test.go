package redis_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A suspicion of one process among 30 healthy ones: each of these read the record when
// it began and when it was dismissed, 60 commands. Now two report a success. R15, R42.
func TestASuspicionIsNotReadByHealthyProcesses(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	const processes = 30
	var all []*infuse.Breaker
	for range processes {
		storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{PollInterval: time.Hour})
		b, err := infuse.New("inventory.internal", infuse.Config{Storage: storage})
		require.NoError(t, err)
		t.Cleanup(func() { b.Stop(); _ = storage.Close() })
		all = append(all, b)
	}
	requireSubscribers(t, client, processes)
	call := func(b *infuse.Breaker, err error) {
		_ = b.Call(t.Context(), func(context.Context) error { return err })
	}
	for _, b := range all {
		call(b, nil)
	}
	before := quietCommands(t, server)
	for range 5 {
		call(all[0], errors.New("failed"))
	}
	suspect := func() bool {
		r, err := all[0].Record(t.Context())
		require.NoError(t, err)
		return r.Suspect()
	}
	require.True(t, suspect())
	_ = quietCommands(t, server) // the notice was received
	for i := 1; i < processes && suspect(); i++ {
		call(all[i], nil)
		time.Sleep(20 * time.Millisecond) // a success may wait for Suspicion/4
	}
	require.False(t, suspect(), "the successes of processes that did not read the record dismiss it")
	after := quietCommands(t, server)
	require.Less(t, after["evalsha"]-before["evalsha"], int64(25))
}
