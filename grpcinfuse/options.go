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

// Option changes what an Interceptor does by default.
type Option func(*Interceptor)

// WithCircuit has name give a call's circuit in place of its target. It is
// given the name that the target has by default, and the full method:
// "/package.Service/Method". An empty name has the call go past the breakers.
// Keep names low-cardinality and out of a client's control. name must be safe
// for concurrent use.
//
// By default a connection has one circuit. Its name is the host of a target that
// a DNS name or an address stands for, in lower case and without a dot at its
// end, and the port unless that is 443, which gRPC takes where there is none. Of
// any other target (unix, xds) it is all of it.
func WithCircuit(name func(ctx context.Context, target, method string) string) Option {
	return func(i *Interceptor) { i.circuit = name }
}

// ByMethod is for WithCircuit: each method of a target has a circuit of its
// own, named "target/package.Service/Method". A method that fails then does not
// shut out the others, but each must find out by itself that all of them are
// away.
func ByMethod(_ context.Context, target, method string) string { return target + method }

func byTarget(_ context.Context, target, _ string) string { return target }

// WithFailures has these codes, in place of those of Classify, be failures.
// Canceled can be none.
func WithFailures(failures ...codes.Code) Option {
	failures = slices.Clone(failures)
	return WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
		return classify(err, func(c codes.Code) bool { return slices.Contains(failures, c) })
	})
}

// WithClassify has classify decide what the end of a call says of the service,
// in place of Classify. It is called with a nil error, too, and must be safe for
// concurrent use.
func WithClassify(classify func(ctx context.Context, method string, err error) infuse.Outcome) Option {
	return func(i *Interceptor) { i.classify = classify }
}

// Classify is what the error of a call says by default. The codes are those of
// infuse.GRPCStatus: DeadlineExceeded, ResourceExhausted, Unimplemented,
// Internal, Unavailable and DataLoss are failures. Canceled is ignored. Any
// other code is a success, also Unknown: it is what an application's own error
// becomes. But whatever its code, a stream that the service has reset without a
// status is a failure, and so is a 5xx or a page without a code, as a proxy sends it.
//
// It also ignores a call or a message that gRPC did not send, because it cannot
// be marshalled or compressed, came after CloseSend, has metadata that cannot be, or
// its per-RPC credentials had no token; a message that cannot be unmarshalled; and
// one that is larger than a limit of either side.
func Classify(err error) infuse.Outcome { return classify(err, isFailure) }

func byCode(_ context.Context, _ string, err error) infuse.Outcome { return Classify(err) }

func isFailure(c codes.Code) bool {
	switch c {
	case codes.DeadlineExceeded, codes.ResourceExhausted, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

func classify(err error, fails func(codes.Code) bool) infuse.Outcome {
	if err == nil {
		return infuse.OutcomeSuccess
	}
	s := status.FromContextError(err) // of an interceptor that returns ctx.Err()
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) { // status.FromError would have the text of what wraps it
		s = coded.GRPCStatus()
	}
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

// These errors of gRPC have no names, but their texts are stable.

const notOfGRPC = "unexpected HTTP status code received from server: "

// isBroken reports whether the response was none: the service reset the stream
// without a status, or it was a 5xx or a page that says nothing more.
func isBroken(s *status.Status) bool {
	switch text := s.Message(); s.Code() {
	case codes.Canceled:
		return strings.HasPrefix(text, "stream terminated by RST_STREAM")
	case codes.Unknown:
		return beginsWith(text, notOfGRPC+"5", notOfGRPC+"2")
	}
	return false
}

// isCallersFault reports whether a message is at fault, or how it was to be sent,
// and not the service.
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
