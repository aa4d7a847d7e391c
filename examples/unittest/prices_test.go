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
// time: memory storage keeps to the fake clock of testing/synctest.
func TestASickPriceServiceIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		sick, asked := errors.New("sick"), 0
		var answer error = sick
		prices, err := New(func(context.Context, string) (int, error) {
			asked++
			return 250, answer
		}, infuse.NewMemoryStorage())
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
