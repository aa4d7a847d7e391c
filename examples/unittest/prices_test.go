package prices

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/stretchr/testify/require"
)

// The reset timeout of a minute takes no time: a breaker uses the fake clock of
// testing/synctest. Without a storage there is only the local circuit.
func TestUnhealthyPriceServiceIsNotCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		unhealthy, calls := errors.New("unhealthy"), 0
		var answer error = unhealthy
		prices, err := New(func(context.Context, string) (int, error) {
			calls++
			return 250, answer
		}, nil)
		require.NoError(t, err)
		defer prices.Stop()

		for range 3 {
			_, err = prices.Price(ctx, "tea")
			require.ErrorIs(t, err, unhealthy)
		}
		_, err = prices.Price(ctx, "tea")
		require.ErrorIs(t, err, ErrLater)
		require.Equal(t, 3, calls, "the fourth call is not sent")

		time.Sleep(time.Minute)
		answer = nil
		cents, err := prices.Price(ctx, "tea")
		require.NoError(t, err)
		require.Equal(t, 250, cents)
	})
}

// Two of three processes open the shared circuit. The third one then rejects calls after a
// single failure of its own.
func TestOneFailureIsEnoughWhileTheSharedCircuitIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unhealthy, fleet := errors.New("unhealthy"), infuse.NewMemoryStorage()
		start := func() *Prices {
			prices, err := New(func(context.Context, string) (int, error) { return 0, unhealthy }, fleet)
			require.NoError(t, err)
			t.Cleanup(prices.Stop)
			return prices
		}
		one, two, three := start(), start(), start()
		for _, prices := range []*Prices{one, two} {
			for range 3 {
				_, err := prices.Price(t.Context(), "tea")
				require.ErrorIs(t, err, unhealthy)
			}
			_, err := prices.Price(t.Context(), "tea")
			require.ErrorIs(t, err, ErrLater, "the local circuit is open")
			time.Sleep(60 * time.Millisecond) // longer than Config.Suspicion
		}
		_, err := three.Price(t.Context(), "tea")
		require.ErrorIs(t, err, unhealthy)
		_, err = three.Price(t.Context(), "tea")
		require.ErrorIs(t, err, ErrLater)
	})
}

// A test can start with an open circuit.
func TestOpenCircuit(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	require.NoError(t, infuse.Announce(t.Context(), storage, "prices", infuse.StateOpen))
	prices, err := New(func(context.Context, string) (int, error) { return 250, nil }, storage)
	require.NoError(t, err)
	defer prices.Stop()

	_, err = prices.Price(t.Context(), "tea")
	require.ErrorIs(t, err, ErrLater)
}
