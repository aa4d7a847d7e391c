package connectinfuse

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// rejected returns the error of Breaker.Acquire as one of Connect.
func rejected(err error) error {
	var open *infuse.OpenError
	if !errors.As(err, &open) {
		return err
	}
	return unavailable(open, open)
}

func unavailable(open *infuse.OpenError, err error) *connect.Error {
	rejection := connect.NewError(connect.CodeUnavailable, err)
	detail, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(rpc.RetryDelay(open))})
	if err == nil {
		rejection.AddDetail(detail)
	}
	return rejection
}

// Error returns the error with which a handler answers a call that failed with
// err. If err is or wraps the *infuse.OpenError of a circuit that the handler
// depends on, that is Unavailable with a google.rpc.RetryInfo, whatever other code
// is in the chain: retrying later helps. Its text names no circuit, because
// clients read it; errors.Is and errors.As still find err. Any other error, and
// nil, is returned as it is.
//
// HandlerInterceptor does this for all methods of a handler.
func Error(err error) error {
	var open *infuse.OpenError
	if err == nil || !errors.As(err, &open) {
		return err
	}
	return unavailable(open, &answered{err})
}

// answered is an error that clients do not read.
type answered struct{ err error }

func (a *answered) Error() string { return rpc.RejectedText }
func (a *answered) Unwrap() error { return a.err }

// HandlerInterceptor returns an interceptor for handlers, which applies Error to
// what they return. It does nothing in a client.
func HandlerInterceptor() connect.Interceptor { return handlerInterceptor{} }

type handlerInterceptor struct{}

func (handlerInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		if request.Spec().IsClient {
			return response, err
		}
		return response, Error(err)
	}
}

func (handlerInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (handlerInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error { return Error(next(ctx, conn)) }
}

// rejectedStream is a stream that is never sent. The one below has not begun, and
// would wait for a response for ever.
type rejectedStream struct {
	connect.StreamingClientConn
	err error
}

func (s *rejectedStream) Send(any) error               { return s.err }
func (s *rejectedStream) CloseRequest() error          { return nil }
func (s *rejectedStream) Receive(any) error            { return s.err }
func (s *rejectedStream) ResponseHeader() http.Header  { return make(http.Header) }
func (s *rejectedStream) ResponseTrailer() http.Header { return make(http.Header) }
func (s *rejectedStream) CloseResponse() error         { return nil }
