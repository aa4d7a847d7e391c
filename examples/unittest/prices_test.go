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

// TestASickPriceServiceIsSpared waits out the reset timeout of a minute in no
// time: a breaker keeps to the fake clock of testing/synctest. It needs no
// storage: this process alone decides.
func TestASickPriceServiceIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		sick, asked := errors.New("sick"), 0
		var answer error = sick
		prices, err := New(func(context.Context, string) (int, error) {
			asked++
			return 250, answer
		}, nil)
		require.NoError(t, err)
		defer prices.Stop()

		for range 3 {
			_, err = prices.Price(ctx, "tea")
			require.ErrorIs(t, err, sick)
		}
		_, err = prices.Price(ctx, "tea")
		require.ErrorIs(t, err, ErrLater)
		require.Equal(t, 3, asked, "the fourth call must not reach the service")

		time.Sleep(time.Minute)
		answer = nil
		cents, err := prices.Price(ctx, "tea")
		require.NoError(t, err)
		require.Equal(t, 250, cents)
	})
}

// TestOneFailureIsEnoughOnceTheFleetAgrees has three processes of a fleet: what two
// of them have found out spares the third, after one failed call of its own.
func TestOneFailureIsEnoughOnceTheFleetAgrees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sick, fleet := errors.New("sick"), infuse.NewMemoryStorage()
		start := func() *Prices {
			prices, err := New(func(context.Context, string) (int, error) { return 0, sick }, fleet)
			require.NoError(t, err)
			t.Cleanup(prices.Stop)
			return prices
		}
		one, two, three := start(), start(), start()
		for _, prices := range []*Prices{one, two} {
			for range 3 {
				_, err := prices.Price(t.Context(), "tea")
				require.ErrorIs(t, err, sick)
			}
			_, err := prices.Price(t.Context(), "tea")
			require.ErrorIs(t, err, ErrLater, "its local circuit")
			time.Sleep(60 * time.Millisecond) // longer than Config.Suspicion
		}
		_, err := three.Price(t.Context(), "tea")
		require.ErrorIs(t, err, sick)
		_, err = three.Price(t.Context(), "tea")
		require.ErrorIs(t, err, ErrLater)
	})
}

// TestAnyStateCanBeSetUp starts a test in an open circuit, by hand.
func TestAnyStateCanBeSetUp(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	require.NoError(t, infuse.Announce(t.Context(), storage, "prices", infuse.StateOpen))
	prices, err := New(func(context.Context, string) (int, error) { return 250, nil }, storage)
	require.NoError(t, err)
	defer prices.Stop()

	_, err = prices.Price(t.Context(), "tea")
	require.ErrorIs(t, err, ErrLater)
}
