// Package prices is an example of a service that can be tested without Redis: its
// constructor takes the storage.
package prices

import (
	"context"
	"errors"

	"github.com/infuse-go/infuse"
)

// ErrLater is returned while calls to the price service are rejected.
var ErrLater = errors.New("prices: not available now")

// Lookup calls the price service.
type Lookup func(ctx context.Context, item string) (cents int, err error)

// Prices looks up prices. It does not call the price service while that is unhealthy.
type Prices struct {
	lookup  Lookup
	breaker *infuse.Breaker
}

// New returns Prices that share a circuit through the storage: a RedisStorage in
// production; in a unit test nil, or a MemoryStorage to simulate a fleet.
func New(lookup Lookup, storage infuse.Storage) (*Prices, error) {
	breaker, err := infuse.New("prices", infuse.Config{FailMax: 3, Storage: storage})
	if err != nil {
		return nil, err
	}
	return &Prices{lookup, breaker}, nil
}

// Price returns an item's price, or ErrLater.
func (p *Prices) Price(ctx context.Context, item string) (cents int, err error) {
	cents, err = infuse.Do(ctx, p.breaker, func(ctx context.Context) (int, error) {
		return p.lookup(ctx, item)
	})
	if errors.Is(err, infuse.ErrOpen) {
		return 0, ErrLater
	}
	return cents, err
}

// Stop stops the breaker.
func (p *Prices) Stop() { p.breaker.Stop() }
