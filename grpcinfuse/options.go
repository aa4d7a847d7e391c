package grpcinfuse

// This file contains the options, and the classification of errors.

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Option is an option of New and NewBackends.
type Option func(*settings)

// WithCircuit names the circuit of a call with name instead of by target. name receives
// the default name and the full method: "/package.Service/Method". If it returns an empty
// name, the call bypasses the breakers. Keep the number of names small, and do not let
// clients choose them. name must be safe for concurrent use.
//
// By default there is one circuit per target. If the target is a DNS name or an address,
// the circuit's name is the host in lower case, without a trailing dot. The port is added
// unless it is 443, gRPC's default. For any other target (unix, xds), the name is the
// target itself.
func WithCircuit(name func(ctx context.Context, target, method string) string) Option {
	return func(s *settings) { s.circuit = name }
}

// ByMethod is for WithCircuit: each method of a target has its own circuit, named
// "target/package.Service/Method". A failing method then does not block the others, but
// each circuit must detect an outage of the whole target separately.
func ByMethod(_ context.Context, target, method string) string { return target + method }

func byTarget(_ context.Context, target, _ string) string { return target }

// WithFailures replaces the codes that Classify counts as failures. Canceled is always
// ignored.
func WithFailures(failures ...codes.Code) Option {
	failures = slices.Clone(failures)
	return WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
		return classify(err, func(c codes.Code) bool { return slices.Contains(failures, c) })
	})
}

// WithClassify replaces Classify. classify is also called for a nil error. It must be
// safe for concurrent use.
func WithClassify(classify func(ctx context.Context, method string, err error) infuse.Outcome) Option {
	return func(s *settings) { s.classify = classify }
}

// Classify returns the default outcome of a call that ended with err. DeadlineExceeded,
// ResourceExhausted, Internal, Unavailable and DataLoss are failures. Canceled is
// ignored. Any other code is a success. This includes Unknown, the code of application
// errors without a status, and Unimplemented, because a missing method must not block
// the others. A stream that the service reset without a status is a failure, whatever
// its code. So is a proxy's HTTP 5xx or web page without a gRPC code.
//
// Classify ignores calls and messages that gRPC did not send: those that cannot be
// marshalled or compressed, messages after CloseSend, invalid metadata, and per-RPC
// credentials without a token. It also ignores messages that cannot be unmarshalled, and
// messages that exceed a size limit of either side.
func Classify(err error) infuse.Outcome { return classify(err, isFailure) }

func byCode(_ context.Context, _ string, err error) infuse.Outcome { return Classify(err) }

func isFailure(c codes.Code) bool {
	switch c {
	case codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

func classify(err error, fails func(codes.Code) bool) infuse.Outcome {
	if err == nil {
		return infuse.OutcomeSuccess
	}
	s := statusOf(err)
	switch {
	case isBroken(s):
		return infuse.OutcomeFailure
	case s.Code() == codes.Canceled || isCallersFault(s):
		return infuse.OutcomeIgnored
	case fails(s.Code()):
		return infuse.OutcomeFailure
	}
	return infuse.OutcomeSuccess
}

// statusOf is status.FromError for gRPC errors and context errors. It does not call
// Error on errors without a status: that may panic on a typed nil.
func statusOf(err error) *status.Status {
	var coded interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &coded): // status.FromError would add the text of the wrapping errors
		return coded.GRPCStatus()
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "")
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "")
	}
	return status.New(codes.Unknown, "")
}

// gRPC exports no values for the following errors, but their texts are stable.

const notOfGRPC = "unexpected HTTP status code received from server: "

// isBroken reports whether there was no gRPC response: the service reset the stream
// without a status, or the response was an HTTP 5xx or a web page.
func isBroken(s *status.Status) bool {
	switch text := s.Message(); s.Code() {
	case codes.Canceled:
		return strings.HasPrefix(text, "stream terminated by RST_STREAM")
	case codes.Unknown:
		return rpc.HasPrefix(text, notOfGRPC+"5", notOfGRPC+"2")
	}
	return false
}

// isCallersFault reports whether the caller's message or metadata caused the error.
func isCallersFault(s *status.Status) bool {
	text := s.Message()
	switch s.Code() {
	case codes.Internal, codes.Unauthenticated:
		return rpc.HasPrefix(text,
			"grpc: error while marshaling: ", "grpc: error while compressing: ", "SendMsg called after CloseSend",
			"grpc: failed to unmarshal the received message: ",
			"no codec registered for content-subtype ", "grpc: Compressor is not installed for requested grpc-encoding ",
			"header key ", "there is an empty key in the header", "header list size to send violates the maximum size ",
			"transport: per-RPC creds failed ", "transport: received per-RPC creds error ", "transport: cannot send secure credentials ")
	case codes.ResourceExhausted:
		return strings.Contains(text, "message larger than max") || strings.Contains(text, "after decompression larger than max")
	}
	return false
}
