package grpcinfuse

import (
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/infuse-go/infuse"
)

// rejection is an OpenError that is a status of gRPC, too. The status is made
// when somebody asks: a rejection costs little.
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

// GRPCStatus is what status.FromError and a server that hands the error on look
// for.
func (r *rejection) GRPCStatus() *status.Status {
	s := status.New(codes.Unavailable, r.open.Error())
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay(r.open))})
	if err != nil {
		return s
	}
	return detailed
}

// retryDelay returns how long a rejection lasts. Where that is not known it is a
// second: 0 would invite an immediate retry.
func retryDelay(open *infuse.OpenError) time.Duration {
	if left := open.RetryAfter(); left > 0 {
		return left
	}
	return time.Second
}
