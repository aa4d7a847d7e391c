package connectinfuse_test

// This file tests Config.SlowCall with cancelled calls.

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

// hanging returns a service that never replies. It sends a token for each call that it
// receives.
func hanging(received chan<- struct{}) *service {
	hang := func(ctx context.Context) error {
		received <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	return &service{
		unary:  hang,
		server: func(ctx context.Context, _ *connect.ServerStream[bytes]) error { return hang(ctx) },
		client: func(ctx context.Context, _ *connect.ClientStream[bytes]) error { return hang(ctx) },
		bidi:   func(ctx context.Context, _ *connect.BidiStream[bytes, bytes]) error { return hang(ctx) },
	}
}

// cancelled calls a hanging service, and cancels the call after a time.
func cancelled(t *testing.T, cfg infuse.Config, protocol []connect.ClientOption, after time.Duration, call func(*fixture) error) *fixture {
	t.Helper()
	received := make(chan struct{}, 1)
	s := hanging(received)
	f := startOn(t, s, s.handler(), cfg, connectinfuse.EstablishedAfter(never))
	f.protocol = protocol
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	f.ctx = ctx
	go func() {
		<-received
		time.Sleep(after)
		cancel()
	}()
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(call(f)))
	return f
}

// A service that does not reply never counted as failing if the caller cancelled its
// calls.
func TestCallCancelledAfterSlowCallIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := cancelled(t, infuse.Config{SlowCall: soon}, protocol, 2*soon, (*fixture).call)
		f.requireCounts(0, 1, 0)
	})
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := cancelled(t, infuse.Config{SlowCall: soon}, protocol, 2*soon, call)
		f.requireCounts(0, 1, 0)
	})
}

func TestCallCancelledBeforeSlowCallIsIgnored(t *testing.T) {
	for _, call := range []func(*fixture) error{(*fixture).call, kinds["server"]} {
		f := cancelled(t, infuse.Config{SlowCall: time.Hour}, nil, 0, call)
		f.requireCounts(0, 0, 1)
	}
}

func TestCancelledCallIsIgnoredWithoutSlowCall(t *testing.T) {
	for _, call := range []func(*fixture) error{(*fixture).call, kinds["server"]} {
		f := cancelled(t, infuse.Config{}, nil, 2*soon, call)
		f.requireCounts(0, 0, 1)
	}
}

// The caller cancels a trial and does not call Receive again.
func TestAbandonedTrialCancelledAfterSlowCallIsAFailure(t *testing.T) {
	received := make(chan struct{}, 1)
	f := startWith(t, hanging(received), infuse.Config{SlowCall: soon})
	f.halfOpen()
	ctx, cancel := context.WithCancel(f.ctx)
	f.ctx = ctx
	require.NoError(t, f.bidiStream().Send(new(bytes)))
	<-received
	time.Sleep(2 * soon)
	cancel()
	require.Eventually(t, func() bool { return f.breaker.State() == infuse.StateOpen }, patience, time.Millisecond)
	f.requireCounts(0, 1, 0)
}
