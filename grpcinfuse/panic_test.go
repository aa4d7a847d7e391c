package grpcinfuse_test

// This file tests panics and runtime.Goexit in inner interceptors.

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func panics() { panic("below") }

// below connects with inner interceptors that run do.
func (f *fixture) below(do func()) {
	conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(f.calls.Unary,
			func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
				do()
				return nil
			}),
		grpc.WithChainStreamInterceptor(f.calls.Stream,
			func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
				do()
				return nil, nil
			}))
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	f.TestServiceClient = testpb.NewTestServiceClient(conn)
}

// brokenStream is a stream whose methods run do.
type brokenStream struct{ do func() }

func (s brokenStream) Header() (metadata.MD, error) { s.do(); return metadata.MD{}, nil }
func (s brokenStream) Trailer() metadata.MD         { return nil }
func (s brokenStream) CloseSend() error             { s.do(); return nil }
func (s brokenStream) Context() context.Context     { return context.Background() }
func (s brokenStream) SendMsg(any) error            { s.do(); return nil }
func (s brokenStream) RecvMsg(any) error            { s.do(); return nil }

// goexits reports whether do ends its goroutine.
func goexits(do func()) bool {
	returned := false
	var done sync.WaitGroup
	done.Go(func() {
		do()
		returned = true
	})
	done.Wait()
	return !returned
}

// calledBelow are the places in which inner code may panic.
var calledBelow = map[string]func(f *fixture, do func()){
	"an interceptor of calls": func(f *fixture, do func()) {
		f.below(do)
		_ = f.call()
	},
	"an interceptor of streams": func(f *fixture, do func()) {
		f.below(do)
		_, _ = f.FullDuplexCall(f.ctx)
	},
	"a Classify": func(f *fixture, do func()) {
		calls := grpcinfuse.New(f.group, grpcinfuse.WithClassify(func(context.Context, string, error) infuse.Outcome {
			do()
			return infuse.OutcomeSuccess
		}))
		_, _ = testpb.NewTestServiceClient(dial(f.t, f.address, calls)).EmptyCall(f.ctx, new(testpb.Empty))
	},
	"a stream that sends":             func(f *fixture, do func()) { _ = f.brokenStream(do).SendMsg(nil) },
	"a stream that receives":          func(f *fixture, do func()) { _ = f.brokenStream(do).RecvMsg(nil) },
	"a stream that waits for headers": func(f *fixture, do func()) { _, _ = f.brokenStream(do).Header() },
	"a stream that stops sending":     func(f *fixture, do func()) { _ = f.brokenStream(do).CloseSend() },
}

func (f *fixture) brokenStream(do func()) grpc.ClientStream {
	f.t.Helper()
	s, err := f.calls.Stream(f.ctx, &grpc.StreamDesc{ServerStreams: true}, f.conn, "/test/Stream",
		func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
			return brokenStream{do}, nil
		})
	require.NoError(f.t, err)
	return s
}

// Panics of inner interceptors were ignored, while Breaker.Call counts them.
func TestPanicIsAFailureAndIsPropagated(t *testing.T) {
	for name, call := range calledBelow {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy})
			require.PanicsWithValue(t, "below", func() { call(f, panics) })
			f.requireCounts(0, 1, 0)
		})
	}
}

func TestGoexitIsIgnored(t *testing.T) {
	for name, call := range calledBelow {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy})
			require.True(t, goexits(func() { call(f, runtime.Goexit) }))
			f.requireCounts(0, 0, 1)
		})
	}
}

func TestPanicAndGoexitEndATrial(t *testing.T) {
	for _, name := range []string{"an interceptor of calls", "an interceptor of streams", "a Classify"} {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy})
			f.halfOpen()
			require.True(t, goexits(func() { calledBelow[name](f, runtime.Goexit) }))
			require.Panics(t, func() { calledBelow[name](f, panics) }, "the trial slot is free again")
			f.requireState(infuse.StateOpen)
		})
	}
}

// The trial succeeded at its first message, so the panic is a failure of one more call.
func TestPanicAfterATrialCountsOnce(t *testing.T) {
	f := start(t, &service{})
	f.halfOpen()
	var panicking atomic.Bool
	s := f.brokenStream(func() {
		if panicking.Load() {
			panic("below")
		}
	})
	require.NoError(t, s.RecvMsg(nil))
	f.requireCounts(1, 0, 0)
	panicking.Store(true)
	for range 2 {
		require.PanicsWithValue(t, "below", func() { _ = s.RecvMsg(nil) })
	}
	f.requireCounts(1, 1, 0)
}

// A separate goroutine waits for the headers of a trial. A panic there would end the
// process.
func TestPanicInTheBackgroundOfATrialIsAFailure(t *testing.T) {
	f := start(t, &service{})
	f.halfOpen()
	f.brokenStream(panics)
	f.eventually(infuse.StateOpen)
	f.requireCounts(0, 1, 0)
}
