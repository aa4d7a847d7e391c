package otelinfuse_test

// This file contains the helpers of the tests.

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
)

var errFailing = errors.New("failing")

func succeeds(context.Context) error { return nil }
func fails(context.Context) error    { return errFailing }

var (
	newGroup  = breakertest.Group
	breakerOf = breakertest.Of
)

// trip fails calls until the circuit is open.
func trip(tb testing.TB, b *infuse.Breaker) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		_ = b.Call(tb.Context(), fails)
		return b.State() == infuse.StateOpen
	}, 10*time.Second, time.Millisecond)
}

// nowhere returns a storage that is unavailable.
func nowhere(tb testing.TB) infuse.Storage {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	tb.Cleanup(func() {
		_ = storage.Close()
		_ = client.Close()
	})
	return storage
}
