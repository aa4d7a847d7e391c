package connectinfuse_test

// This file tests streams that are trials of a half-open circuit.

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func TestTrialEndsAtTheFirstMessage(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens, end := make(chan struct{}, 1), make(chan error, 1)
		f := start(t, &service{server: waits(tokens, end)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		_, err = f.serverStream()
		requireRejected(t, err)
		tokens <- struct{}{}
		require.True(t, from.Receive())
		f.requireState(infuse.StateClosed)
		f.requireCounts(1, 0, 0)

		end <- codeError(connect.CodeUnavailable)
		require.False(t, from.Receive())
		f.requireCounts(1, 1, 0)
	})
}

func TestTrialEndsAfterHeadersWithoutError(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		end := make(chan error, 1)
		f := start(t, &service{server: waits(nil, end)}, connectinfuse.EstablishedAfter(soon))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		require.Eventually(t, func() bool { return f.breaker.State() == infuse.StateClosed }, patience, time.Millisecond)
		end <- nil
		require.False(t, from.Receive())
		require.NoError(t, from.Err())
		f.requireCounts(1, 0, 0)
	})
}

// Responses that are not a success closed the circuit before the caller received them.
func TestTrialWithoutHeaders(t *testing.T) {
	refuses := &service{bidi: func(context.Context, *connect.BidiStream[bytes, bytes]) error {
		return codeError(connect.CodeUnavailable)
	}}
	for name, c := range map[string]struct {
		handler  http.Handler
		protocol string
	}{
		"a 503 to Connect": {status(http.StatusServiceUnavailable), "connect"},
		"a 503 to gRPC":    {status(http.StatusServiceUnavailable), "grpc"},
		"a status alone":   {refuses.handler(), "grpcweb"},
		"an early hint":    {status(http.StatusEarlyHints), "connect"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startOn(t, refuses, c.handler, infuse.Config{}, connectinfuse.EstablishedAfter(soon))
			f.protocol = protocols[c.protocol]
			f.halfOpen()
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			both := client[bytes, bytes](f, "Bidi").CallBidiStream(ctx)
			require.NoError(t, both.Send(nil))
			time.Sleep(5 * soon)
			f.requireState(infuse.StateHalfOpen)
		})
	}
}

// status returns a proxy that replies with a status.
func status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		if code < http.StatusOK {
			<-r.Context().Done()
		}
	})
}

// The deadline had passed when the failure was counted, so it was ignored.
func TestStallAfterATrialIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens := make(chan struct{}, 1)
		f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		tokens <- struct{}{}
		f.halfOpen()
		ctx, cancel := context.WithTimeout(f.ctx, time.Second)
		defer cancel()
		from, err := f.serverStreamWith(ctx)
		require.NoError(t, err)
		require.True(t, from.Receive())
		require.False(t, from.Receive())
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(from.Err()))
		f.requireCounts(1, 1, 0)
	})
}

func TestErrorAfterHeadersFailsTheTrial(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		end := make(chan error, 1)
		f := start(t, &service{server: waits(nil, end)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		end <- codeError(connect.CodeUnavailable)
		require.False(t, from.Receive())
		f.requireState(infuse.StateOpen)
	})
}

// failingSend is an inner interceptor. Its streams have headers, and accept no message;
// Receive returns the error later.
type failingSend struct {
	connect.StreamingClientConn
	headers func()
}

func (s *failingSend) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

func (s *failingSend) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (s *failingSend) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		s.StreamingClientConn = next(ctx, spec)
		s.headers = httptrace.ContextClientTrace(ctx).GotFirstResponseByte
		return s
	}
}

func (s *failingSend) Send(any) error {
	s.headers()
	return io.EOF
}

func (s *failingSend) Receive(any) error {
	return connect.NewWireError(connect.CodeUnavailable, errors.New("unhealthy"))
}

func TestTrialWhoseSendFailsWaitsForTheReason(t *testing.T) {
	f := start(t, healthyStreams(), connectinfuse.EstablishedAfter(soon))
	f.protocol = []connect.ClientOption{connect.WithInterceptors(new(failingSend))}
	f.halfOpen()
	both := f.bidiStream()
	require.ErrorIs(t, both.Send(new(bytes)), io.EOF)
	time.Sleep(2 * soon) // the trial would have succeeded after its headers
	f.requireState(infuse.StateHalfOpen)
	_, err := both.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	f.requireState(infuse.StateOpen)
}

// An abandoned trial kept its trial slot.
func TestAbandonedTrial(t *testing.T) {
	for name, sends := range map[string]bool{"after a message": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy, bidi: func(ctx context.Context, _ *connect.BidiStream[bytes, bytes]) error {
				<-ctx.Done()
				return nil
			}}, connectinfuse.EstablishedAfter(never))
			f.halfOpen()
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			both := client[bytes, bytes](f, "Bidi").CallBidiStream(ctx)
			if sends {
				require.NoError(t, both.Send(new(bytes)))
			}
			requireRejected(t, f.call())
			cancel()
			require.Eventually(t, func() bool { return f.call() == nil }, patience, time.Millisecond)
			f.requireState(infuse.StateClosed)
			f.requireCounts(1, 0, 1)
		})
	}
}

func TestClosedTrial(t *testing.T) {
	f := start(t, &service{unary: healthy, server: waits(nil, nil)}, connectinfuse.EstablishedAfter(never))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	requireRejected(t, f.call())
	require.NoError(t, from.Close())
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
	f.requireCounts(1, 0, 1)
}
