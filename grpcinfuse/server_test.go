package grpcinfuse_test

// This file tests the server interceptors.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

// statusOver is an error with a status that wraps another error.
type statusOver struct {
	code codes.Code
	err  error
}

func (s *statusOver) Error() string              { return "over: " + s.err.Error() }
func (s *statusOver) Unwrap() error              { return s.err }
func (s *statusOver) GRPCStatus() *status.Status { return status.New(s.code, "over") }

// rejections returns errors of handlers that contain a rejection.
func rejections() map[string]error {
	open := &infuse.OpenError{Circuit: "upstream.internal", State: infuse.StateOpen, Reason: "ticket 7", DueAt: time.Now().Add(time.Hour)}
	return map[string]error{
		"itself":                            open,
		"wrapped":                           fmt.Errorf("buying: %w", open),
		"joined":                            errors.Join(errors.New("other"), open),
		"one of two wrapped":                fmt.Errorf("%w: %w", codeError(codes.Internal), open),
		"below a status":                    &statusOver{codes.FailedPrecondition, open},
		"wrapped below a status":            fmt.Errorf("buying: %w", &statusOver{codes.Unknown, errors.Join(open)}),
		"below a status, in a joined error": errors.Join(errors.New("other"), &statusOver{codes.Internal, open}),
	}
}

func requireUnavailable(t *testing.T, s *status.Status) {
	t.Helper()
	require.Equal(t, codes.Unavailable, s.Code())
	require.Len(t, s.Details(), 1)
	delay := s.Details()[0].(*errdetails.RetryInfo).GetRetryDelay().AsDuration()
	require.InDelta(t, time.Hour, delay, float64(time.Minute))
	for _, secret := range []string{"upstream.internal", "ticket 7"} {
		require.False(t, strings.Contains(s.Message(), secret), "clients receive %q", s.Message())
	}
}

func TestStatusOfARejectionIsUnavailableWithRetryInfo(t *testing.T) {
	for name, err := range rejections() {
		t.Run(name, func(t *testing.T) { requireUnavailable(t, grpcinfuse.Status(err)) })
	}
	s := grpcinfuse.Status(&infuse.OpenError{State: infuse.StateHalfOpen})
	require.Equal(t, time.Second, s.Details()[0].(*errdetails.RetryInfo).GetRetryDelay().AsDuration())
}

func TestStatusOfOtherErrors(t *testing.T) {
	require.NoError(t, grpcinfuse.Status(nil).Err())
	for err, code := range map[error]codes.Code{
		codeError(codes.NotFound):                           codes.NotFound,
		fmt.Errorf("buying: %w", codeError(codes.NotFound)): codes.NotFound,
		errors.New("a bug"):                                 codes.Unknown,
		context.DeadlineExceeded:                            codes.DeadlineExceeded,
	} {
		require.Equal(t, code, grpcinfuse.Status(err).Code(), err)
	}
}

// The code was Unknown.
func TestServerAnswersARejectionWithUnavailable(t *testing.T) {
	var result, logged error
	f := start(t, &service{
		unary:  func(context.Context) error { return result },
		server: func(grpc.ServerStreamingServer[output]) error { return result },
		client: func(grpc.ClientStreamingServer[input, inputs]) error { return result },
		bidi:   func(grpc.BidiStreamingServer[question, output]) error { return result },
	})
	_, f.address = serve(t, f.service, "127.0.0.1:0",
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			response, err := handle(ctx, request)
			logged = err
			return response, err
		}, grpcinfuse.UnaryServer),
		grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			logged = handle(server, stream)
			return logged
		}, grpcinfuse.StreamServer))
	f.calls = grpcinfuse.New(nil, grpcinfuse.WithFailures())
	f.connect()
	calls := map[string]func(*fixture) error{"unary": (*fixture).call}
	for kind, call := range kinds {
		calls[kind] = call
	}
	for kind, call := range calls {
		for name, err := range rejections() {
			t.Run(kind+", "+name, func(t *testing.T) {
				result = err
				got := call(f)
				require.NotErrorIs(t, got, infuse.ErrOpen, "ErrOpen is for circuits of the client")
				requireUnavailable(t, status.Convert(got))
				require.ErrorIs(t, logged, infuse.ErrOpen)
				require.Contains(t, logged.Error(), "upstream.internal")
			})
		}
		result = codeError(codes.NotFound)
		require.Equal(t, codes.NotFound, status.Code(call(f)))
		require.Equal(t, result, logged)
	}
}
