package grpcinfuse

// This file contains the status of a rejection, in clients and in servers.

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// rejection is an OpenError with a gRPC status, which is created on demand.
type rejection struct{ open *infuse.OpenError }

// rejected returns the error of Breaker.Acquire as a rejection.
func rejected(err error) error {
	var open *infuse.OpenError
	if errors.As(err, &open) {
		return &rejection{open}
	}
	return err
}

func (r *rejection) Error() string { return r.GRPCStatus().Err().Error() }

func (r *rejection) Unwrap() error { return r.open }

// GRPCStatus returns the status. status.FromError and gRPC servers call it.
func (r *rejection) GRPCStatus() *status.Status { return unavailable(r.open.Error(), r.open) }

func unavailable(text string, open *infuse.OpenError) *status.Status {
	s := status.New(codes.Unavailable, text)
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(rpc.RetryDelay(open))})
	if err != nil {
		return s
	}
	return detailed
}

// Status returns the status that a server should return for err. If err is or wraps an
// *infuse.OpenError, the status is Unavailable with a google.rpc.RetryInfo, even if err
// also has another status. Its text does not name the circuit, because clients receive
// it. For any other error, Status returns the status that a gRPC server returns.
//
//	return nil, grpcinfuse.Status(err).Err()
//
// UnaryServer and StreamServer do this for all methods of a server.
func Status(err error) *status.Status {
	var open *infuse.OpenError
	if errors.As(err, &open) {
		return unavailable(rpc.RejectedText, open)
	}
	if s, ok := status.FromError(err); ok {
		return s
	}
	return status.FromContextError(err)
}

// UnaryServer is a grpc.UnaryServerInterceptor. If a handler returns a rejection, the
// client receives the status of Status. Outer interceptors, for example for logging, can
// still find the handler's error with errors.Is and errors.As. Other errors do not change.
func UnaryServer(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	response, err := handle(ctx, request)
	return response, answer(err)
}

// StreamServer is a grpc.StreamServerInterceptor. It is UnaryServer for streams.
func StreamServer(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return answer(handle(server, stream))
}

// answer adds the status of a rejection to err.
func answer(err error) error {
	var open *infuse.OpenError
	if err == nil || !errors.As(err, &open) {
		return err
	}
	return &answered{err}
}

// answered is an error whose gRPC status is Status of the error.
type answered struct{ err error }

func (a *answered) Error() string              { return a.err.Error() }
func (a *answered) Unwrap() error              { return a.err }
func (a *answered) GRPCStatus() *status.Status { return Status(a.err) }
