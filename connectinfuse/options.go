package connectinfuse

import (
	"context"
	"errors"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
)

// Option changes a default.
type Option func(*Interceptor)

// WithCircuit names the circuit of a call. name gets the default name, which is
// that of the host, and the full procedure: "/package.Service/Method". If it
// returns an empty name, the call bypasses the breakers. Keep names
// low-cardinality and out of a client's control. name must be safe for concurrent
// use.
//
// By default a host has one circuit. Its name is the host of the client's URL in
// lower case, without a dot at its end, and the port unless that is 80 or 443.
func WithCircuit(name func(ctx context.Context, target, procedure string) string) Option {
	return func(i *Interceptor) { i.circuit = name }
}

// ByMethod is for WithCircuit: each procedure of a host has a circuit of its own,
// named "host/package.Service/Method". A failing method then does not close off
// the others, but each circuit must detect an outage of the whole host by itself.
func ByMethod(_ context.Context, target, procedure string) string { return target + procedure }

func byTarget(_ context.Context, target, _ string) string { return target }

// WithFailures replaces the codes that Classify takes for failures. Canceled is
// ignored even if it is one of them.
func WithFailures(failures ...connect.Code) Option {
	failures = slices.Clone(failures)
	return WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
		return classify(err, func(c connect.Code) bool { return slices.Contains(failures, c) })
	})
}

// WithClassify replaces Classify. classify is called with a nil error, too, and
// must be safe for concurrent use.
func WithClassify(classify func(ctx context.Context, procedure string, err error) infuse.Outcome) Option {
	return func(i *Interceptor) { i.classify = classify }
}

// Classify returns the default outcome of a call that ended with err.
// DeadlineExceeded, ResourceExhausted, Internal, Unavailable and DataLoss are
// failures. Canceled is ignored. Any other code is a success: also Unknown, which
// is what an application's own error becomes, and Unimplemented, because one
// method that a server does not have would close off all the others. Whatever its
// code, a response that is truncated or is none of the protocol is a failure, and
// so is an HTTP 5xx without a code, which a proxy sends.
//
// Classify ignores a message that cannot be marshalled, compressed or
// unmarshalled, one that is larger than a limit of the client's own, and a call
// whose headers net/http does not send.
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
	case code == connect.CodeCanceled || isOfMessage(err):
		return infuse.OutcomeIgnored
	case fails(code):
		return infuse.OutcomeFailure
	}
	return infuse.OutcomeSuccess
}

// codeOf is connect.CodeOf, and the code of a context's error, which an
// interceptor may return.
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

// local returns the text of an error that comes from the client and not from the
// service. Connect exports no values for these errors, but their texts are stable.
func local(err error) (text string, ok bool) {
	var e *connect.Error
	if !errors.As(err, &e) || connect.IsWireError(err) {
		return "", false
	}
	defer func() {
		if recover() != nil { // Error of the error in e, such as a typed nil
			text, ok = "", false
		}
	}()
	return e.Message(), true
}

// isOfMessage reports whether a message or a header is at fault, and not the service.
func isOfMessage(err error) bool {
	text, ok := local(err)
	if !ok {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeInternal:
		return beginsWith(text, "marshal message", "compress: ")
	case connect.CodeInvalidArgument:
		return beginsWith(text, "unmarshal message: ")
	case connect.CodeUnavailable:
		return beginsWith(text, "net/http: invalid header field ", "http2: request header list larger than peer's advertised limit")
	case connect.CodeResourceExhausted:
		return !beginsWith(text, "bandwidth exhausted") // which is how a peer resets a stream
	}
	return false
}

// isBroken reports whether there was no response of the protocol: it was
// truncated, or is an HTTP 5xx or a page. Connect gives these a code that has
// another meaning otherwise.
func isBroken(err error) bool {
	text, ok := local(err)
	if !ok {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeCanceled: // of a connection or a stream that the service has reset
		return !errors.Is(err, context.Canceled)
	case connect.CodeUnknown, connect.CodeInvalidArgument:
		return isBareServerError(text) || beginsWith(text,
			"protocol error: ", "read message: ", "read enveloped message: ", "write message: ", "write envelope: ",
			"invalid content-type: ", "get decompressor: ", "decompress: ")
	}
	return false
}

func beginsWith(text string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
}

func isBareServerError(text string) bool {
	text = strings.TrimPrefix(text, "HTTP status ")
	return len(text) > 3 && text[0] == '5' && text[3] == ' '
}
