package infuse_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// asksItsContext is a call that does nothing for a caller who is late.
func asksItsContext(ctx context.Context) error { return ctx.Err() }

// Callers who came too late opened the circuit of a service that had not heard
// of them.
func TestACallThatCameTooLateIsIgnored(t *testing.T) {
	var heard stateLog
	for name, cfg := range map[string]infuse.Config{
		"fast":          {FailMax: 2},
		"with listener": {FailMax: 2, Listeners: []*infuse.Listener{everyCall(&heard)}},
		"strict":        patiently(infuse.Config{FailMax: 2, Strict: true, Storage: infuse.NewMemoryStorage()}),
	} {
		t.Run(name, func(t *testing.T) {
			b := startBreaker(t, "prices", cfg)
			require.ErrorIs(t, b.Call(t.Context(), fails), errUnhealthy)
			for range 3 {
				require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
				_, err := infuse.Do(late(t), b, func(ctx context.Context) (int, error) { return 0, ctx.Err() })
				require.ErrorIs(t, err, context.DeadlineExceeded)
				p, err := b.Acquire(late(t))
				require.NoError(t, err)
				p.Done(context.DeadlineExceeded)
			}
			require.Equal(t, 1, failuresOf(b), "neither failures nor successes")

			require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
			if cfg.Storage != nil { // a trial is asked for, and the caller does not wait
				require.ErrorIs(t, b.Call(late(t), asksItsContext), infuse.ErrOpen)
				require.Empty(t, recordOf(t, b).Trials)
				return
			}
			require.ErrorIs(t, b.Call(late(t), asksItsContext), context.DeadlineExceeded)
			requireState(t, infuse.StateHalfOpen, b)
			require.NoError(t, b.Call(late(t), succeeds), "what succeeds all the same is a success")
			requireState(t, infuse.StateClosed, b)
		})
	}
}
