package grpcinfuse_test

// This file tests unary calls, and the classification of errors.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func healthy(context.Context) error   { return nil }
func unhealthy(context.Context) error { return codeError(codes.Unavailable) }

func TestUnaryServiceBecomesUnhealthy(t *testing.T) {
	f := start(t, &service{unary: unhealthy})
	for range 2 {
		err := f.call()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.NotErrorIs(t, err, infuse.ErrOpen)
	}
	open := requireRejected(t, f.call())
	require.Equal(t, f.address, open.Circuit)
	require.ErrorContains(t, open.Cause, "code = Unavailable desc = unhealthy")
	f.requireCounts(0, 2, 0)

	f.halfOpen()
	require.Error(t, f.call())
	requireRejected(t, f.call())

	f.halfOpen()
	f.service.unary = healthy
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
}

func TestServerBecomesUnavailableAndRecovers(t *testing.T) {
	f := start(t, &service{unary: healthy})
	require.NoError(t, f.call())
	f.server.Stop()
	for f.breaker.State() == infuse.StateClosed {
		require.Equal(t, codes.Unavailable, status.Code(f.call()))
	}
	requireRejected(t, f.call())

	serve(t, f.service, f.address)
	f.halfOpen()
	_, err := f.EmptyCall(f.ctx, new(testpb.Empty), grpc.WaitForReady(true))
	require.NoError(t, err)
	f.requireState(infuse.StateClosed)
}

func TestRejectionIsAStatusWithRetryInfo(t *testing.T) {
	f := start(t, &service{unary: unhealthy})
	f.setState(infuse.StateOpen)
	err := f.call()
	requireRejected(t, err)
	require.ErrorIs(t, err, infuse.ErrOpen)

	for _, err := range []error{err, fmt.Errorf("buying: %w", err)} {
		s, ok := status.FromError(err)
		require.True(t, ok)
		require.Equal(t, codes.Unavailable, s.Code())
		require.Len(t, s.Details(), 1)
		delay := s.Details()[0].(*errdetails.RetryInfo).GetRetryDelay().AsDuration()
		require.InDelta(t, time.Hour, delay, float64(time.Minute))
	}
	require.ErrorContains(t, err, "rpc error: code = Unavailable desc = infuse: circuit")
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
	s, _ := status.FromError(err)
	require.Equal(t, time.Second, s.Details()[0].(*errdetails.RetryInfo).GetRetryDelay().AsDuration())
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
	s, _ := status.FromError(err)
	require.Equal(t, codes.Unavailable, s.Code())
	require.IsType(t, new(errdetails.RetryInfo), s.Details()[0])
}

func TestCodes(t *testing.T) {
	failures := map[codes.Code]bool{
		codes.DeadlineExceeded: true, codes.ResourceExhausted: true, codes.Internal: true, codes.Unavailable: true, codes.DataLoss: true,
	}
	var code codes.Code
	f := start(t, &service{unary: func(context.Context) error { return status.Error(code, "") }})
	for code = codes.OK; code <= codes.Unauthenticated; code++ {
		f.setState(infuse.StateClosed)
		want := f.counts()
		switch {
		case code == codes.Canceled:
			want[2]++
		case failures[code]:
			want[1]++
		default:
			want[0]++
		}
		require.Equal(t, code, status.Code(f.call()))
		require.Equal(t, want, f.counts(), code)
	}
}

// An unimplemented method opened the circuit of all methods.
func TestUnimplementedMethodDoesNotBlockOthers(t *testing.T) {
	f := start(t, &service{unary: healthy})
	for range 3 {
		_, err := f.UnimplementedCall(f.ctx, new(testpb.Empty))
		require.Equal(t, codes.Unimplemented, status.Code(err))
		s, err := f.HalfDuplexCall(f.ctx)
		require.NoError(t, err)
		_, err = s.Recv()
		require.Equal(t, codes.Unimplemented, status.Code(err))
	}
	require.NoError(t, f.call())
	f.requireCounts(7, 0, 0)
}

func TestClassifyOfOtherErrors(t *testing.T) {
	require.Equal(t, infuse.OutcomeSuccess, grpcinfuse.Classify(nil))
	require.Equal(t, infuse.OutcomeSuccess, grpcinfuse.Classify(errors.New("no status")))
	require.Equal(t, infuse.OutcomeIgnored, grpcinfuse.Classify(context.Canceled))
	require.Equal(t, infuse.OutcomeFailure, grpcinfuse.Classify(status.Error(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL")))
	require.Equal(t, infuse.OutcomeFailure, grpcinfuse.Classify(context.DeadlineExceeded))
	require.Equal(t, infuse.OutcomeFailure, grpcinfuse.Classify(fmt.Errorf("quote: %w", codeError(codes.Internal))))
}

// The text of a wrapping error hid the text of the gRPC error.
func TestClassifyOfAWrappedError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want infuse.Outcome
	}{
		{status.Error(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL"), infuse.OutcomeFailure},
		{status.Error(codes.Unknown, "unexpected HTTP status code received from server: 503"), infuse.OutcomeFailure},
		{status.Error(codes.Internal, "grpc: error while marshaling: no"), infuse.OutcomeIgnored},
		{status.Error(codes.Internal, "header list size to send violates the maximum size (1 bytes) set by server"), infuse.OutcomeIgnored},
		{context.Canceled, infuse.OutcomeIgnored},
	} {
		require.Equal(t, c.want, grpcinfuse.Classify(fmt.Errorf("quote: %w", c.err)), c.err)
	}
}

// A token provider that was unavailable opened the circuit of the service, and a token
// that must not be sent closed it.
func TestCallThatIsNotSentIsIgnored(t *testing.T) {
	f := start(t, &service{unary: healthy})
	for name, c := range map[string]struct {
		metadata string
		option   grpc.CallOption
	}{
		"invalid metadata":      {"naïve", grpc.EmptyCallOption{}},
		"an unknown compressor": {"name", grpc.UseCompressor("unknown")},
		"an unknown codec":      {"name", grpc.CallContentSubtype("unknown")},
		"no token":              {"name", grpc.PerRPCCredentials(token{err: errors.New("unavailable")})},
		"a token without TLS":   {"name", grpc.PerRPCCredentials(token{secure: true})},
	} {
		ctx, before := metadata.AppendToOutgoingContext(f.ctx, c.metadata, "x"), f.counts()
		_, err := f.EmptyCall(ctx, new(testpb.Empty), c.option)
		require.Error(t, err, name)
		_, err = f.FullDuplexCall(ctx, c.option)
		require.Error(t, err, name)
		before[2] += 2
		require.Equal(t, before, f.counts(), name)
	}
}

// token is credentials with which a call cannot be sent.
type token struct {
	secure bool
	err    error
}

func (c token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return nil, c.err
}
func (c token) RequireTransportSecurity() bool { return c.secure }

func TestCallersFaultsAreIgnored(t *testing.T) {
	began := make(chan struct{}, 1)
	f := start(t, &service{unary: func(ctx context.Context) error {
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}})
	late, cancel := context.WithDeadline(f.ctx, time.Now().Add(-time.Second))
	defer cancel()
	_, err := f.EmptyCall(late, new(testpb.Empty))
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	f.requireCounts(0, 0, 1)

	cancelled, cancel := context.WithCancel(f.ctx)
	go func() {
		<-began
		cancel()
	}()
	_, err = f.EmptyCall(cancelled, new(testpb.Empty))
	require.Equal(t, codes.Canceled, status.Code(err))
	f.requireCounts(0, 0, 2)

	_, err = f.EmptyCall(f.ctx, (*testpb.Empty)(nil), grpc.ForceCodec(brokenCodec{}))
	require.Equal(t, codes.Internal, status.Code(err))
	_, err = f.UnaryCall(f.ctx, &testpb.SimpleRequest{ResponseSize: 100}, grpc.MaxCallSendMsgSize(1))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	_, err = f.UnaryCall(f.ctx, &testpb.SimpleRequest{ResponseSize: 100}, grpc.MaxCallRecvMsgSize(1))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	f.service.unary = healthy
	_, err = f.EmptyCall(f.ctx, new(testpb.Empty), grpc.ForceCodec(unreadableCodec{}))
	require.Equal(t, codes.Internal, status.Code(err))
	f.requireCounts(0, 0, 6)
}

// brokenCodec fails to marshal.
type brokenCodec struct{}

func (brokenCodec) Marshal(any) ([]byte, error) { return nil, errors.New("no") }
func (brokenCodec) Unmarshal([]byte, any) error { return nil }
func (brokenCodec) Name() string                { return "broken" }

// unreadableCodec fails to unmarshal.
type unreadableCodec struct{}

func (unreadableCodec) Marshal(any) ([]byte, error) { return nil, nil }
func (unreadableCodec) Unmarshal([]byte, any) error { return errors.New("no") }
func (unreadableCodec) Name() string                { return "proto" }

func TestDeadlineDuringTheCallIsAFailure(t *testing.T) {
	f := start(t, &service{unary: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithTimeout(f.ctx, 100*time.Millisecond)
	defer cancel()
	_, err := f.EmptyCall(ctx, new(testpb.Empty))
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	f.requireCounts(0, 1, 0)
}

func TestConfigMayExclude(t *testing.T) {
	f := startWith(t, &service{unary: unhealthy}, infuse.Config{Exclude: []func(error) bool{
		func(err error) bool { return status.Convert(err).Message() == "unhealthy" },
	}})
	require.Error(t, f.call())
	f.requireCounts(1, 0, 0)
}

func TestOtherCodes(t *testing.T) {
	f := start(t, &service{unary: unhealthy}, grpcinfuse.WithFailures(codes.Unknown, codes.Canceled))
	require.Error(t, f.call())
	f.requireCounts(1, 0, 0)
	f.service.unary = func(context.Context) error { return errors.New("bug") }
	require.Error(t, f.call())
	f.requireCounts(1, 1, 0)
	f.service.unary = func(context.Context) error { return codeError(codes.Canceled) }
	require.Error(t, f.call())
	f.requireCounts(1, 1, 1)
}

func TestOwnClassify(t *testing.T) {
	f := start(t, &service{unary: healthy}, grpcinfuse.WithClassify(func(_ context.Context, method string, err error) infuse.Outcome {
		if method == testpb.TestService_EmptyCall_FullMethodName && err == nil {
			return infuse.OutcomeFailure
		}
		return grpcinfuse.Classify(err)
	}))
	require.NoError(t, f.call())
	require.NoError(t, f.call())
	requireRejected(t, f.call())
}

// Calls and streams that succeed at their second attempt are successes, also in a trial.
func TestRetriesOfGRPC(t *testing.T) {
	var attempts atomic.Int32
	everySecond := func() error {
		if attempts.Add(1)%2 == 1 {
			return codeError(codes.Unavailable)
		}
		return nil
	}
	f := start(t, &service{
		unary:  func(context.Context) error { return everySecond() },
		server: func(grpc.ServerStreamingServer[output]) error { return everySecond() },
	})
	f.connect(grpc.WithDefaultServiceConfig(`{"methodConfig": [{
		"name": [{}],
		"retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}
	}]}`))
	for range 2 {
		require.NoError(t, f.call())
		require.NoError(t, kinds["server"](f))
		f.halfOpen()
	}
	f.requireCounts(4, 0, 0)
	require.EqualValues(t, 8, attempts.Load())
}

func TestResponseWithoutACode(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	answer := http.StatusInternalServerError
	proxy := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "unhealthy", answer)
		answer = http.StatusOK
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = proxy.Serve(listener)
	}()
	defer func() {
		_ = proxy.Close()
		<-done
	}()
	breakers, err := infuse.NewGroup(infuse.Config{FailMax: 2})
	require.NoError(t, err)
	defer breakers.Stop()
	client := testpb.NewTestServiceClient(dial(t, listener.Addr().String(), grpcinfuse.New(breakers)))
	for range 2 {
		_, err = client.EmptyCall(context.Background(), new(testpb.Empty))
		require.Equal(t, codes.Unknown, status.Code(err))
	}
	_, err = client.EmptyCall(context.Background(), new(testpb.Empty))
	requireRejected(t, err)
}
