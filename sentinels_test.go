package infuse_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A timeout around the breaker that cancels, as failsafe-go's, or a proxy whose
// clients leave: a service that hangs was never counted (H6).
func TestACancelledCallThatWasSlowIsAFailure(t *testing.T) {
	hangs := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, call := range map[string]func(context.Context, *infuse.Breaker){
		"Call": func(ctx context.Context, b *infuse.Breaker) { _ = b.Call(ctx, hangs) },
		"Do": func(ctx context.Context, b *infuse.Breaker) {
			_, _ = infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 0, hangs(ctx) })
		},
		"a permit that is done": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				p.Done(hangs(ctx))
			}
		},
		"a permit that is settled": func(ctx context.Context, b *infuse.Breaker) {
			if p, err := b.Acquire(ctx); err == nil {
				_ = hangs(ctx)
				p.Settle(infuse.OutcomeIgnored)
			}
		},
		"ErrAbortHandler": func(ctx context.Context, b *infuse.Breaker) {
			defer func() { _ = recover() }()
			_ = b.Call(ctx, func(ctx context.Context) error {
				_ = hangs(ctx)
				panic(http.ErrAbortHandler)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				slowCall time.Duration
				failures int
			}{{0, 0}, {time.Second, 3}, {time.Minute, 0}} {
				synctest.Test(t, func(t *testing.T) {
					b := startBreaker(t, "inventory", infuse.Config{FailMax: 100, SlowCall: test.slowCall})
					for range 3 {
						ctx, cancel := context.WithCancelCause(t.Context())
						time.AfterFunc(2*time.Second, func() { cancel(errors.New("timeout exceeded")) })
						call(ctx, b)
						cancel(nil)
					}
					require.Equal(t, test.failures, failuresOf(b))
				})
			}
		})
	}
}
