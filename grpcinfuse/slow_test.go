package grpcinfuse_test

// This file tests Config.SlowCall with cancelled calls.

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
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
		server: func(to grpc.ServerStreamingServer[output]) error { return hang(to.Context()) },
		client: func(from grpc.ClientStreamingServer[input, inputs]) error { return hang(from.Context()) },
		bidi:   func(both grpc.BidiStreamingServer[question, output]) error { return hang(both.Context()) },
	}
}

// cancelled calls a hanging service, and cancels the call after a time.
func cancelled(t *testing.T, cfg infuse.Config, after time.Duration, kind string) *fixture {
	t.Helper()
	received := make(chan struct{}, 1)
	f := startWith(t, hanging(received), cfg, grpcinfuse.EstablishedAfter(never))
	call := (*fixture).call
	if kind != "unary" {
		call = kinds[kind]
	}
	patient := f.ctx
	ctx, cancel := context.WithCancel(patient)
	defer cancel()
	f.ctx = ctx
	go func() {
		<-received
		time.Sleep(after)
		cancel()
	}()
	require.Equal(t, codes.Canceled, status.Code(call(f)))
	f.ctx = patient
	return f
}

// A service that does not reply never counted as failing if the caller cancelled its
// calls.
func TestCallCancelledAfterSlowCallIsAFailure(t *testing.T) {
	for _, kind := range []string{"unary", "server", "client", "bidi"} {
		t.Run(kind, func(t *testing.T) {
			f := cancelled(t, infuse.Config{SlowCall: soon}, 2*soon, kind)
			f.requireCounts(0, 1, 0)
		})
	}
}

func TestCallCancelledBeforeSlowCallIsIgnored(t *testing.T) {
	for _, kind := range []string{"unary", "server"} {
		f := cancelled(t, infuse.Config{SlowCall: time.Hour}, 0, kind)
		f.requireCounts(0, 0, 1)
	}
}

func TestCancelledCallIsIgnoredWithoutSlowCall(t *testing.T) {
	for _, kind := range []string{"unary", "server"} {
		f := cancelled(t, infuse.Config{}, 2*soon, kind)
		f.requireCounts(0, 0, 1)
	}
}

// The caller cancels a trial and does not call RecvMsg again.
func TestAbandonedTrialCancelledAfterSlowCallIsAFailure(t *testing.T) {
	received := make(chan struct{}, 1)
	f := startWith(t, hanging(received), infuse.Config{SlowCall: soon})
	f.halfOpen()
	ctx, cancel := context.WithCancel(f.ctx)
	_, err := f.StreamingOutputCall(ctx, new(question))
	require.NoError(t, err)
	<-received
	time.Sleep(2 * soon)
	cancel()
	f.eventually(infuse.StateOpen)
	f.requireCounts(0, 1, 0)
}

// Ignored calls that were not cancelled stay ignored, however long they took.
func TestOnlyCancelledSlowCallsBecomeFailures(t *testing.T) {
	f := startWith(t, &service{}, infuse.Config{SlowCall: soon})
	slow := func(outcome infuse.Outcome) *grpcinfuse.Interceptor {
		return grpcinfuse.New(f.group, grpcinfuse.WithClassify(func(context.Context, string, error) infuse.Outcome { return outcome }))
	}
	invoke := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		time.Sleep(2 * soon)
		return codeError(codes.Canceled) // sent by the service: the context is not cancelled
	}
	require.Error(t, slow(infuse.OutcomeIgnored).Unary(f.ctx, "/test/Call", nil, nil, f.conn, invoke))
	f.requireCounts(0, 0, 1)
	require.True(t, goexits(func() {
		_ = f.calls.Unary(f.ctx, "/test/Call", nil, nil, f.conn,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				time.Sleep(2 * soon)
				runtime.Goexit()
				return nil
			})
	}))
	f.requireCounts(0, 0, 2)
}
