package connectinfuse_test

// This file tests panics and runtime.Goexit in inner interceptors.

import (
	"context"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func panics() { panic("below") }

// brokenBelow is an inner interceptor that runs do in each call and in each method of a
// stream.
type brokenBelow struct{ do func() }

func (b brokenBelow) WrapUnary(connect.UnaryFunc) connect.UnaryFunc {
	return func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { b.do(); return nil, nil }
}

func (b brokenBelow) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return brokenStream{next(ctx, spec), b.do}
	}
}

func (b brokenBelow) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type brokenStream struct {
	connect.StreamingClientConn
	do func()
}

func (s brokenStream) Send(any) error              { s.do(); return nil }
func (s brokenStream) Receive(any) error           { s.do(); return nil }
func (s brokenStream) CloseRequest() error         { s.do(); return nil }
func (s brokenStream) CloseResponse() error        { return nil }
func (s brokenStream) ResponseHeader() http.Header { return http.Header{} }

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

// brokenBidi returns a stream with a broken inner interceptor.
func (f *fixture) brokenBidi(do func()) *connect.BidiStreamForClient[bytes, bytes] {
	return client[bytes, bytes](f, "Bidi", connect.WithInterceptors(brokenBelow{do})).CallBidiStream(f.ctx)
}

// calledBelow are the places in which inner code may panic.
var calledBelow = map[string]func(f *fixture, do func()){
	"an interceptor of calls": func(f *fixture, do func()) {
		_ = f.callWith(f.ctx, connect.WithInterceptors(brokenBelow{do}))
	},
	"a Classify": func(f *fixture, do func()) {
		f.interceptor = connectinfuse.New(f.group, connectinfuse.WithClassify(func(context.Context, string, error) infuse.Outcome {
			do()
			return infuse.OutcomeSuccess
		}))
		_ = f.call()
	},
	"a stream that sends":         func(f *fixture, do func()) { _ = f.brokenBidi(do).Send(new(bytes)) },
	"a stream that receives":      func(f *fixture, do func()) { _, _ = f.brokenBidi(do).Receive() },
	"a stream that stops sending": func(f *fixture, do func()) { _ = f.brokenBidi(do).CloseRequest() },
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
	for name, call := range calledBelow {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy})
			f.halfOpen()
			require.True(t, goexits(func() { call(f, runtime.Goexit) }))
			require.Panics(t, func() { call(f, panics) }, "the trial slot is free again")
			f.requireState(infuse.StateOpen)
		})
	}
}

// The trial succeeded at its first message, so the panic is a failure of one more call.
func TestPanicAfterATrialCountsOnce(t *testing.T) {
	f := start(t, &service{})
	f.halfOpen()
	panicking := false
	both := f.brokenBidi(func() {
		if panicking {
			panic("below")
		}
	})
	_, err := both.Receive()
	require.NoError(t, err)
	f.requireCounts(1, 0, 0)
	panicking = true
	for range 2 {
		require.PanicsWithValue(t, "below", func() { _, _ = both.Receive() })
	}
	f.requireCounts(1, 1, 0)
}
