package connectinfuse

// This file contains the error of a rejection, in clients and in handlers.

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

// rejected returns the error of Breaker.Acquire as a *connect.Error.
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

// Error returns the error that a handler should return for err. If err is or wraps an
// *infuse.OpenError, that is Unavailable with a google.rpc.RetryInfo, even if err also
// has another code. Its text does not name the circuit, because clients receive it;
// errors.Is and errors.As still find err. Error returns any other error, and nil,
// unchanged.
//
// HandlerInterceptor applies Error to all methods of a handler.
func Error(err error) error {
	var open *infuse.OpenError
	if err == nil || !errors.As(err, &open) {
		return err
	}
	return unavailable(open, &answered{err})
}

// answered hides the text of an error from clients.
type answered struct{ err error }

func (a *answered) Error() string { return rpc.RejectedText }
func (a *answered) Unwrap() error { return a.err }

// HandlerInterceptor returns an interceptor that applies Error to the errors of handlers.
// It does nothing in a client.
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

// rejectedStream is a stream that is never sent. It overrides all methods that would wait
// for a response.
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
