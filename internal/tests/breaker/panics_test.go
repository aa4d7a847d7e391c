package breaker_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Calls that do not return: they panic, or end their goroutine.

//go:noinline
func explodes(value any) { panic(value) }

// unwind runs do. It returns the value of its panic, and the stack at the recover.
func unwind(do func()) (value any, stack string) {
	defer func() {
		value, stack = recover(), string(debug.Stack())
	}()
	do()
	return nil, ""
}

// R3.
func TestAPanicGoesOnWithTheStackOfWhereItBegan(t *testing.T) {
	ctx := context.Background()
	exploding := func(context.Context) error {
		explodes(errUnhealthy)
		return nil
	}
	for where, c := range map[string]struct {
		config infuse.Config
		use    func(b *infuse.Breaker)
	}{
		"Call": {use: func(b *infuse.Breaker) { _ = b.Call(ctx, exploding) }},
		"Do": {use: func(b *infuse.Breaker) {
			_, _ = infuse.Do(ctx, b, func(ctx context.Context) (int, error) { return 1, exploding(ctx) })
		}},
		"Call, heard": {
			config: infuse.Config{Listeners: []*infuse.Listener{{}}},
			use:    func(b *infuse.Breaker) { _ = b.Call(ctx, exploding) },
		},
		"Classify": {
			config: infuse.Config{Classify: func(context.Context, error) infuse.Outcome {
				explodes(errUnhealthy)
				return infuse.OutcomeSuccess
			}},
			use: func(b *infuse.Breaker) { _ = b.Call(ctx, succeeds) },
		},
		"Exclude": {
			config: infuse.Config{Exclude: []func(error) bool{func(error) bool {
				explodes(errUnhealthy)
				return true
			}}},
			use: func(b *infuse.Breaker) { _ = b.Call(ctx, fails) },
		},
		"Done": {
			config: infuse.Config{Classify: func(context.Context, error) infuse.Outcome {
				explodes(errUnhealthy)
				return infuse.OutcomeSuccess
			}},
			use: func(b *infuse.Breaker) {
				p, err := b.Acquire(ctx)
				require.NoError(t, err)
				p.Done(nil)
			},
		},
	} {
		t.Run(where, func(t *testing.T) {
			cfg := c.config
			cfg.FailMax = 2
			b := startBreaker(t, "prices", cfg)
			for failures := 1; failures <= 2; failures++ { // closed
				value, stack := unwind(func() { c.use(b) })
				require.Equal(t, errUnhealthy, value)
				require.Contains(t, stack, "breaker_test.explodes(")
				require.Equal(t, failures, recordOf(t, b).Failures)
			}
			requireState(t, infuse.StateOpen, b)
			require.EqualError(t, requireRejected(t, b).Cause, "panic: "+errUnhealthy.Error())

			require.NoError(t, b.SetState(ctx, infuse.StateHalfOpen))
			value, stack := unwind(func() { c.use(b) })
			require.Equal(t, errUnhealthy, value)
			require.Contains(t, stack, "breaker_test.explodes(")
			requireState(t, infuse.StateOpen, b)
			require.Empty(t, recordOf(t, b).Trials)
		})
	}
}

// TestAPermitReportsAPanicWithItsCause: an interceptor that settled its permit as a
// failure lost the value of the panic.
func TestAPermitReportsAPanicWithItsCause(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx      context.Context
		value    any
		failures int
		cause    string
	}{
		"a panic":                        {t.Context(), "bang", 1, "panic: bang"},
		"a panic of a cancelled call":    {cancelled, errUnhealthy, 1, "panic: " + errUnhealthy.Error()},
		"the end of a goroutine":         {t.Context(), nil, 0, ""},
		"an abort":                       {t.Context(), http.ErrAbortHandler, 1, "panic: " + http.ErrAbortHandler.Error()},
		"an abort whose caller has left": {cancelled, http.ErrAbortHandler, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
			p, err := b.Acquire(c.ctx)
			require.NoError(t, err)
			p.Panicked(c.value)
			p.Panicked("once more")
			p.Done(errUnhealthy)
			require.Equal(t, c.failures, failuresOf(b))
			if c.cause != "" {
				require.EqualError(t, requireRejected(t, b).Cause, c.cause)
			}
		})
	}
}

func TestAPanicWithNilIsAPanic(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	value, _ := unwind(func() {
		_ = b.Call(t.Context(), func(context.Context) error { panic(nil) })
	})
	require.IsType(t, &runtime.PanicNilError{}, value)
	require.Equal(t, 1, failuresOf(b))
}

// A panic that the func recovers itself is its own business.
func TestARecoveredPanicIsAResult(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	require.Equal(t, errUnhealthy, b.Call(t.Context(), func(context.Context) (err error) {
		defer func() { err = recover().(error) }()
		panic(errUnhealthy)
	}))
	require.Equal(t, 1, failuresOf(b))
}

// R3.
func TestACallThatEndsItsGoroutineIsIgnored(t *testing.T) {
	exits := func(context.Context) error {
		runtime.Goexit()
		return nil
	}
	for where, c := range map[string]struct {
		config infuse.Config
		use    func(b *infuse.Breaker)
	}{
		"Call": {use: func(b *infuse.Breaker) { _ = b.Call(context.Background(), exits) }},
		"Do": {use: func(b *infuse.Breaker) {
			_, _ = infuse.Do(context.Background(), b, func(ctx context.Context) (int, error) { return 1, exits(ctx) })
		}},
		"Classify": {
			config: infuse.Config{Classify: func(_ context.Context, err error) infuse.Outcome {
				if errors.Is(err, errUnhealthy) {
					return infuse.OutcomeFailure
				}
				runtime.Goexit()
				return infuse.OutcomeFailure
			}},
			use: func(b *infuse.Breaker) { _ = b.Call(context.Background(), succeeds) },
		},
	} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBreaker(t, "prices", c.config)
				exit := func() {
					ended, wentOn := make(chan struct{}), false
					go func() {
						defer close(ended)
						c.use(b)
						wentOn = true
					}()
					<-ended
					require.False(t, wentOn)
				}
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				exit()
				require.Equal(t, 1, failuresOf(b), "neither a failure nor a success")

				require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
				exit()
				requireState(t, infuse.StateHalfOpen, b)
				require.Empty(t, recordOf(t, b).Trials, "its place is free")
			})
		})
	}
}
