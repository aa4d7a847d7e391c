package grpcinfuse

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
)

// Option changes a default.
type Option func(*settings)

// WithCircuit names the circuit of a call. name gets the default name, which is
// that of the target, and the full method: "/package.Service/Method". If it
// returns an empty name, the call bypasses the breakers. Keep names
// low-cardinality and out of a client's control. name must be safe for concurrent
// use.
//
// By default a target has one circuit. If the target is a DNS name or an address,
// the circuit's name is the host in lower case, without a dot at its end, and the
// port unless that is 443, which gRPC takes by default. Any other target (unix,
// xds) is the name as it is.
func WithCircuit(name func(ctx context.Context, target, method string) string) Option {
	return func(s *settings) { s.circuit = name }
}

// ByMethod is for WithCircuit: each method of a target has a circuit of its own,
// named "target/package.Service/Method". A failing method then does not close off
// the others, but each circuit must detect an outage of the whole target by
// itself.
func ByMethod(_ context.Context, target, method string) string { return target + method }

func byTarget(_ context.Context, target, _ string) string { return target }

// WithFailures replaces the codes that Classify takes for failures. Canceled is
// ignored even if it is one of them.
func WithFailures(failures ...codes.Code) Option {
	failures = slices.Clone(failures)
	return WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
		return classify(err, func(c codes.Code) bool { return slices.Contains(failures, c) })
	})
}

// WithClassify replaces Classify. classify is called with a nil error, too, and
// must be safe for concurrent use.
func WithClassify(classify func(ctx context.Context, method string, err error) infuse.Outcome) Option {
	return func(s *settings) { s.classify = classify }
}

// Classify returns the default outcome of a call that ended with err.
// DeadlineExceeded, ResourceExhausted, Internal, Unavailable and DataLoss are
// failures. Canceled is ignored. Any other code is a success: also Unknown, which
// is what an application's own error becomes, and Unimplemented, because one
// method that a server does not have would close off all the others. Whatever its
// code, a stream that the service has reset without a status is a failure, and so
// is an HTTP 5xx or a page without a code, which a proxy sends.
//
// Classify ignores a call or a message that gRPC did not send: it cannot be
// marshalled or compressed, it came after CloseSend, its metadata is invalid, or
// its per-RPC credentials had no token. It also ignores a message that cannot be
// unmarshalled, and one that is larger than a limit of either side.
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

// statusOf is status.FromError, and the code of a context's error, which an
// interceptor may return. It needs no text of an error without a status, and so
// calls no Error, which panics on a typed nil.
func statusOf(err error) *status.Status {
	var coded interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &coded): // status.FromError would have the text of what wraps it
		return coded.GRPCStatus()
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "")
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "")
	}
	return status.New(codes.Unknown, "")
}

// gRPC exports no values for these errors, but their texts are stable.

const notOfGRPC = "unexpected HTTP status code received from server: "

// isBroken reports whether there was no response of gRPC: the service reset the
// stream without a status, or the response was an HTTP 5xx or a page.
func isBroken(s *status.Status) bool {
	switch text := s.Message(); s.Code() {
	case codes.Canceled:
		return strings.HasPrefix(text, "stream terminated by RST_STREAM")
	case codes.Unknown:
		return beginsWith(text, notOfGRPC+"5", notOfGRPC+"2")
	}
	return false
}

// isCallersFault reports whether the message or the metadata is at fault, and not
// the service.
func isCallersFault(s *status.Status) bool {
	text := s.Message()
	switch s.Code() {
	case codes.Internal, codes.Unauthenticated:
		return beginsWith(text,
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

func beginsWith(text string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
}
