package fleettest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// After Stop and Close, nothing is left that runs.

// requireNoneLeft fails the test unless all goroutines that do starts end.
// The test must not be a parallel one.
func requireNoneLeft(t *testing.T, do func()) {
	t.Helper()
	before := goroutines()
	do()
	require.Empty(t, strings.Join(leftSince(before), "\n\n"), "goroutines are left")
}

func TestNothingIsLeftAfterStopInMemory(t *testing.T) {
	requireNoneLeft(t, func() {
		b, err := infuse.New("prices", infuse.Config{ResetTimeout: time.Hour})
		require.NoError(t, err)
		trip(t, b)
		b.Stop()
		b.Stop() // does nothing
	})
}

func TestNothingIsLeftAfterStopAndClose(t *testing.T) {
	server := redistest.Start(t)
	requireNoneLeft(t, func() {
		client := server.Client()
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
		group, err := infuse.NewGroup(infuse.Config{Storage: storage, StorageTimeout: patience})
		require.NoError(t, err)
		for _, name := range []string{"a", "b", "c"} {
			b, err := group.Breaker(name)
			require.NoError(t, err)
			trip(t, b)
		}
		b, err := infuse.New("d", infuse.Config{Storage: storage, StorageTimeout: patience})
		require.NoError(t, err)
		require.NoError(t, b.Call(t.Context(), succeeds))
		b.Stop()
		group.Stop()
		require.NoError(t, storage.Close())
		require.NoError(t, storage.Close())
		require.NoError(t, client.Close())
	})
}

// A breaker may be stopped while calls run, in a closed circuit and as a
// trial; they end as they would.
func TestNothingIsLeftAfterStopWithCallsUnderWay(t *testing.T) {
	server := redistest.Start(t)
	requireNoneLeft(t, func() {
		client := server.Client()
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
		cfg := infuse.Config{Storage: storage, StorageTimeout: time.Second}
		plain, err := infuse.New("plain", cfg)
		require.NoError(t, err)
		tried, err := infuse.New("tried", cfg)
		require.NoError(t, err)
		require.NoError(t, tried.SetState(t.Context(), infuse.StateHalfOpen))

		started, end, ended := make(chan struct{}), make(chan struct{}), make(chan error)
		calls := 0
		call := func(b *infuse.Breaker) {
			calls++
			go func() {
				ended <- b.Call(t.Context(), func(context.Context) error {
					started <- struct{}{}
					<-end
					return errUnhealthy
				})
			}()
			<-started
		}
		for range 10 {
			call(plain)
		}
		call(tried)
		plain.Stop()
		tried.Stop()
		require.NoError(t, storage.Close())
		close(end)
		for range calls {
			require.Equal(t, errUnhealthy, <-ended)
		}
		require.NoError(t, client.Close())
	})
}

// With a server that hangs, Stop and Close return in their time, and what
// waits behind it is gone once the client gives up.
func TestNothingIsLeftAfterStopBehindAServerThatHangs(t *testing.T) {
	server := redistest.Start(t)
	requireNoneLeft(t, func() {
		client := server.Client()
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
		b, err := infuse.New("prices", infuse.Config{Storage: storage})
		require.NoError(t, err)
		server.Pause()
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		b.Stop()
		_ = storage.Close() // may tell that the client still waits
		require.NoError(t, client.Close())
		server.Resume()
	})
}
