package connectinfuse

// This file contains the options, and the classification of errors.

import (
	"context"
	"errors"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Option is an option of New.
type Option func(*Interceptor)

// WithCircuit names the circuit of a call with name instead of by host. name receives the
// default name and the full procedure: "/package.Service/Method". If it returns an empty
// name, the call bypasses the breakers. Keep the number of names small, and do not let
// clients choose them. name must be safe for concurrent use.
//
// By default there is one circuit per host. Its name is the host of the client's URL in
// lower case, without a trailing dot, and the port unless it is 80 or 443.
func WithCircuit(name func(ctx context.Context, target, procedure string) string) Option {
	return func(i *Interceptor) { i.circuit = name }
}

// ByMethod is for WithCircuit: each procedure of a host has its own circuit, named
// "host/package.Service/Method". A failing procedure then does not block the others, but
// each circuit must detect an outage of the whole host separately.
func ByMethod(_ context.Context, target, procedure string) string { return target + procedure }

func byTarget(_ context.Context, target, _ string) string { return target }

// WithFailures replaces the codes that Classify counts as failures. Canceled is always
// ignored.
func WithFailures(failures ...connect.Code) Option {
	failures = slices.Clone(failures)
	return WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
		return classify(err, func(c connect.Code) bool { return slices.Contains(failures, c) })
	})
}

// WithClassify replaces Classify. classify is also called for a nil error. It must be
// safe for concurrent use.
func WithClassify(classify func(ctx context.Context, procedure string, err error) infuse.Outcome) Option {
	return func(i *Interceptor) { i.classify = classify }
}

// Classify returns the default outcome of a call that ended with err. DeadlineExceeded,
// ResourceExhausted, Internal, Unavailable and DataLoss are failures. Canceled is
// ignored. Any other code is a success. This includes Unknown, the code of application
// errors without a code, and Unimplemented, because a missing method must not block the
// others. A response that is truncated or does not conform to the protocol is a failure,
// whatever its code. So is a proxy's HTTP 5xx without a code.
//
// Classify ignores messages that cannot be marshalled, compressed or unmarshalled,
// messages that exceed a size limit of the client, and calls whose headers net/http does
// not send.
func Classify(err error) infuse.Outcome { return classify(err, isFailure) }

func byCode(_ context.Context, _ string, err error) infuse.Outcome { return Classify(err) }

func isFailure(c connect.Code) bool {
	switch c {
	case connect.CodeDeadlineExceeded, connect.CodeResourceExhausted, connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss:
		return true
	}
	return false
}

func classify(err error, fails func(connect.Code) bool) infuse.Outcome {
	if err == nil {
		return infuse.OutcomeSuccess
	}
	code := codeOf(err)
	switch {
	case isBroken(err):
		return infuse.OutcomeFailure
	case code == connect.CodeCanceled || isCallersFault(err):
		return infuse.OutcomeIgnored
	case fails(code):
		return infuse.OutcomeFailure
	}
	return infuse.OutcomeSuccess
}

// codeOf is connect.CodeOf, extended to context errors, which an interceptor may return.
func codeOf(err error) connect.Code {
	if code := connect.CodeOf(err); code != connect.CodeUnknown {
		return code
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	}
	return connect.CodeUnknown
}

// local returns the text of an error that the client created. Connect exports no values
// for these errors, but their texts are stable.
func local(err error) (text string, ok bool) {
	var e *connect.Error
	if !errors.As(err, &e) || connect.IsWireError(err) {
		return "", false
	}
	defer func() {
		if recover() != nil { // Error of the wrapped error panicked, for example on a typed nil
			text, ok = "", false
		}
	}()
	return e.Message(), true
}

// isCallersFault reports whether the caller's message or headers caused the error.
func isCallersFault(err error) bool {
	text, ok := local(err)
	if !ok {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeInternal:
		return rpc.HasPrefix(text, "marshal message", "compress: ")
	case connect.CodeInvalidArgument:
		return rpc.HasPrefix(text, "unmarshal message: ")
	case connect.CodeUnavailable:
		return rpc.HasPrefix(text, "net/http: invalid header field ", "http2: request header list larger than peer's advertised limit")
	case connect.CodeResourceExhausted:
		return !rpc.HasPrefix(text, "bandwidth exhausted") // the text of a stream that the peer has reset
	}
	return false
}

// isBroken reports whether the response was truncated, or was an HTTP 5xx or a web page.
// Connect reports these with codes that otherwise have another meaning.
func isBroken(err error) bool {
	text, ok := local(err)
	if !ok {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeCanceled: // the service has reset the connection or the stream
		return !errors.Is(err, context.Canceled)
	case connect.CodeUnknown, connect.CodeInvalidArgument:
		return isBareServerError(text) || rpc.HasPrefix(text,
			"protocol error: ", "read message: ", "read enveloped message: ", "write message: ", "write envelope: ",
			"invalid content-type: ", "get decompressor: ", "decompress: ")
	}
	return false
}

func isBareServerError(text string) bool {
	text = strings.TrimPrefix(text, "HTTP status ")
	return len(text) > 3 && text[0] == '5' && text[3] == ' '
}
