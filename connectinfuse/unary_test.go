package connectinfuse_test

// This file tests unary calls, and the classification of errors.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func healthy(context.Context) error   { return nil }
func unhealthy(context.Context) error { return codeError(connect.CodeUnavailable) }

func TestUnaryServiceBecomesUnhealthy(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{unary: unhealthy})
		f.protocol = protocol
		for range 2 {
			err := f.call()
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
			require.NotErrorIs(t, err, infuse.ErrOpen)
		}
		open := requireRejected(t, f.call())
		require.Equal(t, f.address, open.Circuit)
		require.ErrorContains(t, open.Cause, "unavailable: unhealthy")
		f.requireCounts(0, 2, 0)

		f.halfOpen()
		require.Error(t, f.call())
		requireRejected(t, f.call())

		f.halfOpen()
		f.service.unary = healthy
		require.NoError(t, f.call())
		f.requireState(infuse.StateClosed)
	})
}

func TestServerBecomesUnavailableAndRecovers(t *testing.T) {
	f := start(t, &service{unary: healthy})
	require.NoError(t, f.call())
	require.NoError(t, f.server.Close())
	for range 2 {
		require.Error(t, f.call()) // Unavailable; Canceled by some versions of Connect while the connection is being reset
	}
	requireRejected(t, f.call())

	serve(t, f.service.handler(), f.address)
	f.halfOpen()
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
}

func retryDelay(t *testing.T, err error) time.Duration {
	t.Helper()
	var e *connect.Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Details(), 1)
	detail, err := e.Details()[0].Value()
	require.NoError(t, err)
	return detail.(*errdetails.RetryInfo).GetRetryDelay().AsDuration()
}

func TestRejectionHasRetryInfo(t *testing.T) {
	f := start(t, &service{unary: unhealthy})
	f.setState(infuse.StateOpen)
	err := f.call()
	requireRejected(t, err)
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.False(t, connect.IsWireError(err))
	require.InDelta(t, time.Hour, retryDelay(t, fmt.Errorf("buying: %w", err)), float64(time.Minute))
}

func TestRetryDelayDuringATrialIsOneSecond(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, 1)
	f := start(t, &service{unary: func(context.Context) error {
		began <- struct{}{}
		<-release
		return nil
	}})
	f.halfOpen()
	trial := make(chan error)
	go func() { trial <- f.call() }()
	<-began
	err := f.call()
	require.Zero(t, requireRejected(t, err).RetryAfter())
	require.Equal(t, time.Second, retryDelay(t, err))
	close(release)
	require.NoError(t, <-trial)
	f.requireState(infuse.StateClosed)
}

func TestServerForwardsARejection(t *testing.T) {
	upstream := start(t, &service{unary: unhealthy})
	require.NoError(t, upstream.breaker.SetState(upstream.ctx, infuse.StateOpen))
	f := start(t, &service{unary: func(context.Context) error { return upstream.call() }})
	err := f.call()
	require.NotErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	require.InDelta(t, time.Hour, retryDelay(t, err), float64(time.Minute))
}

func TestCodes(t *testing.T) {
	failures := map[connect.Code]bool{
		connect.CodeDeadlineExceeded: true, connect.CodeResourceExhausted: true, connect.CodeInternal: true, connect.CodeUnavailable: true, connect.CodeDataLoss: true,
	}
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		var code connect.Code
		f := start(t, &service{unary: func(context.Context) error { return codeError(code) }})
		f.protocol = protocol
		for code = connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
			f.setState(infuse.StateClosed)
			want := f.counts()
			switch {
			case code == connect.CodeCanceled:
				want[2]++
			case failures[code]:
				want[1]++
			default:
				want[0]++
			}
			require.Equal(t, code, connect.CodeOf(f.call()))
			require.Equal(t, want, f.counts(), code)
		}
	})
}

// An unimplemented method opened the circuit of all methods.
func TestUnimplementedMethodDoesNotBlockOthers(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{unary: healthy})
		f.protocol = protocol
		for range 3 {
			_, err := client[bytes, bytes](f, "Missing").CallUnary(f.ctx, connect.NewRequest(new(bytes)))
			require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err))
			from, err := client[bytes, bytes](f, "Missing").CallServerStream(f.ctx, connect.NewRequest(new(bytes)))
			require.NoError(t, err)
			require.False(t, from.Receive())
			require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(from.Err()))
			require.NoError(t, from.Close())
		}
		require.NoError(t, f.call())
		f.requireCounts(7, 0, 0)
	})
}

func TestResponseWithoutACode(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		proxy := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "unhealthy", http.StatusInternalServerError)
		})
		f := startOn(t, nil, proxy, infuse.Config{})
		f.protocol = protocol
		require.Equal(t, connect.CodeUnknown, connect.CodeOf(f.call()))
		f.requireCounts(0, 1, 0)
		require.Equal(t, connect.CodeUnknown, connect.CodeOf(call(f)))
		f.requireCounts(0, 2, 0)
		requireRejected(t, call(f))
	})
}

// A web page of a proxy, and malformed messages, closed a circuit.
func TestInvalidResponseIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		for kind, want := range map[string][3]int{"text/html": {0, 1, 0}, "application/octet-stream": {0, 1, 0}} {
			f := startOn(t, &service{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", kind)
				_, _ = io.WriteString(w, "hello")
			}), infuse.Config{})
			f.protocol = protocol
			require.Error(t, f.call())
			require.Equal(t, want, f.counts(), kind)
		}
	})
	for encoding, want := range map[string][3]int{"gzip": {0, 1, 0}, "identity": {0, 0, 1}} {
		f := startOn(t, &service{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			w.Header().Set("Content-Encoding", encoding)
			_, _ = io.WriteString(w, "garbage")
		}), infuse.Config{})
		require.Error(t, f.call())
		require.Equal(t, want, f.counts(), encoding)
	}
}

// An invalid header opened a circuit.
func TestInvalidHeaderIsIgnored(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{unary: healthy})
		f.protocol = protocol
		request := connect.NewRequest(new(bytes))
		request.Header().Set("no name", "x")
		_, err := client[bytes, bytes](f, "Unary").CallUnary(f.ctx, request)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		f.requireCounts(0, 0, 1)
	})
}

func TestClassifyOfOtherErrors(t *testing.T) {
	require.Equal(t, infuse.OutcomeSuccess, connectinfuse.Classify(nil))
	require.Equal(t, infuse.OutcomeSuccess, connectinfuse.Classify(errors.New("no code")))
	require.Equal(t, infuse.OutcomeSuccess, connectinfuse.Classify(connect.NewError(connect.CodeInvalidArgument, errors.New("from an interceptor"))))
	require.Equal(t, infuse.OutcomeIgnored, connectinfuse.Classify(context.Canceled))
	require.Equal(t, infuse.OutcomeIgnored, connectinfuse.Classify(connect.NewError(connect.CodeCanceled, context.Canceled)))
	require.Equal(t, infuse.OutcomeIgnored, connectinfuse.Classify(connect.NewWireError(connect.CodeCanceled, errors.New("sent by the service"))))
	require.Equal(t, infuse.OutcomeFailure, connectinfuse.Classify(connect.NewError(connect.CodeCanceled, syscall.ECONNRESET)))
	require.Equal(t, infuse.OutcomeFailure, connectinfuse.Classify(context.DeadlineExceeded))
	require.Equal(t, infuse.OutcomeFailure, connectinfuse.Classify(fmt.Errorf("quote: %w", codeError(connect.CodeInternal))))
}

func TestCallersFaultsAreIgnored(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{unary: healthy})
		f.protocol = protocol
		late, cancel := context.WithDeadline(f.ctx, time.Now().Add(-time.Second))
		defer cancel()
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(f.callWith(late)))
		f.requireCounts(0, 0, 1)

		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(f.callWith(f.ctx, connect.WithSendMaxBytes(1))))
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(f.callWith(f.ctx, connect.WithReadMaxBytes(1))))
		require.Equal(t, connect.CodeInternal, connect.CodeOf(f.callWith(f.ctx, connect.WithCodec(brokenCodec{}))))
		f.requireCounts(0, 0, 4)

		began := make(chan struct{}, 1)
		f.service.unary = func(ctx context.Context) error {
			began <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		cancelled, cancel := context.WithCancel(f.ctx)
		go func() {
			<-began
			cancel()
		}()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(f.callWith(cancelled)))
		f.requireCounts(0, 0, 5)
	})
}

// brokenCodec fails to marshal.
type brokenCodec struct{}

func (brokenCodec) Marshal(any) ([]byte, error) { return nil, errors.New("no") }
func (brokenCodec) Unmarshal([]byte, any) error { return nil }
func (brokenCodec) Name() string                { return "proto" }

func TestDeadlineDuringTheCallIsAFailure(t *testing.T) {
	f := start(t, &service{unary: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithTimeout(f.ctx, 100*time.Millisecond)
	defer cancel()
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(f.callWith(ctx)))
	f.requireCounts(0, 1, 0)
}

func TestConfigMayExclude(t *testing.T) {
	f := startWith(t, &service{unary: unhealthy}, infuse.Config{Exclude: []func(error) bool{
		func(err error) bool { return connect.CodeOf(err) == connect.CodeUnavailable },
	}})
	require.Error(t, f.call())
	f.requireCounts(1, 0, 0)
}

func TestOtherCodes(t *testing.T) {
	f := start(t, &service{unary: unhealthy}, connectinfuse.WithFailures(connect.CodeUnknown, connect.CodeCanceled))
	require.Error(t, f.call())
	f.requireCounts(1, 0, 0)
	f.service.unary = func(context.Context) error { return errors.New("bug") }
	require.Error(t, f.call())
	f.requireCounts(1, 1, 0)
	f.service.unary = func(context.Context) error { return codeError(connect.CodeCanceled) }
	require.Error(t, f.call())
	f.requireCounts(1, 1, 1)
}

func TestOwnClassify(t *testing.T) {
	f := start(t, &service{unary: healthy}, connectinfuse.WithClassify(func(_ context.Context, procedure string, err error) infuse.Outcome {
		if procedure == "/test.Test/Unary" && err == nil {
			return infuse.OutcomeFailure
		}
		return connectinfuse.Classify(err)
	}))
	require.NoError(t, f.call())
	require.NoError(t, f.call())
	requireRejected(t, f.call())
}

func TestHandlersPassThrough(t *testing.T) {
	interceptor := connectinfuse.New(nil)
	handler := connect.NewUnaryHandler("/test.Test/Unary", func(context.Context, *connect.Request[bytes]) (*connect.Response[bytes], error) {
		return nil, codeError(connect.CodeInternal)
	}, connect.WithInterceptors(interceptor))
	f := startOn(t, nil, handler, infuse.Config{}, connectinfuse.WithFailures())
	for range 10 {
		require.Equal(t, connect.CodeInternal, connect.CodeOf(f.call()))
	}
}
