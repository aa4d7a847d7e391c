package grpcinfuse

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

// rejection is an OpenError that is also a status of gRPC. The status is made
// only if somebody asks for it, so that a rejection costs little.
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

// GRPCStatus is what status.FromError and a server look for.
func (r *rejection) GRPCStatus() *status.Status { return unavailable(r.open.Error(), r.open) }

func unavailable(text string, open *infuse.OpenError) *status.Status {
	s := status.New(codes.Unavailable, text)
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(rpc.RetryDelay(open))})
	if err != nil {
		return s
	}
	return detailed
}

// Status returns the status with which a server answers a call that failed with
// err. If err is or wraps the *infuse.OpenError of a circuit that the server
// depends on, that is Unavailable with a google.rpc.RetryInfo, whatever other
// status is in the chain: retrying later helps. Its text names no circuit, because
// clients read it. Any other error has the
// status that a gRPC server gives it.
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

// UnaryServer is a grpc.UnaryServerInterceptor. It answers a call whose handler
// returns a rejection with the status of Status. Interceptors outside of it, for
// logging say, still find the handler's error by errors.Is and errors.As. It
// changes no other error.
func UnaryServer(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	response, err := handle(ctx, request)
	return response, answer(err)
}

// StreamServer is a grpc.StreamServerInterceptor, and does for streams what
// UnaryServer does.
func StreamServer(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return answer(handle(server, stream))
}

// answer returns the error with which a server answers.
func answer(err error) error {
	var open *infuse.OpenError
	if err == nil || !errors.As(err, &open) {
		return err
	}
	return &answered{err}
}

// answered is an error that is answered by its Status.
type answered struct{ err error }

func (a *answered) Error() string              { return a.err.Error() }
func (a *answered) Unwrap() error              { return a.err }
func (a *answered) GRPCStatus() *status.Status { return Status(a.err) }
