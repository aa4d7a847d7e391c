package connectinfuse

import (
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/infuse-go/infuse"
)

// rejected returns the error of Breaker.Acquire as one of Connect.
func rejected(err error) error {
	var open *infuse.OpenError
	if !errors.As(err, &open) {
		return err
	}
	rejection := connect.NewError(connect.CodeUnavailable, open)
	detail, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay(open))})
	if err == nil {
		rejection.AddDetail(detail)
	}
	return rejection
}

// retryDelay returns how long a rejection lasts. Where that is not known it is a
// second: 0 would invite an immediate retry.
func retryDelay(open *infuse.OpenError) time.Duration {
	if left := open.RetryAfter(); left > 0 {
		return left
	}
	return time.Second
}

// rejectedStream is a stream that is never sent. Below it is one that has not
// been begun, which would wait for a response for ever.
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
