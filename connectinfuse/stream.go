package connectinfuse

import (
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
)

// stream is a StreamingClientConn that tells its life how it goes.
type stream struct {
	connect.StreamingClientConn
	life
	classify func(error) infuse.Outcome
	trial    bool
}

func (s *stream) Receive(m any) error {
	err := s.StreamingClientConn.Receive(m)
	switch {
	case err == nil:
		s.message(s.trial)
	case errors.Is(err, io.EOF) && !isError(err):
		s.end(infuse.OutcomeSuccess, nil, nil)
	default:
		s.end(s.classify(err), err, s.hasHeaders)
	}
	return err
}

// isError reports whether err has a code, and so is no end of a stream: that of a
// connection may be an io.EOF, too.
func isError(err error) bool {
	var e *connect.Error
	return errors.As(err, &e)
}

// Send says io.EOF where Receive will say more. Any other error is the end.
func (s *stream) Send(m any) error {
	err := s.StreamingClientConn.Send(m)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		s.doubt()
	default:
		s.end(s.classify(err), err, func() bool { return false })
	}
	return err
}

func (s *stream) CloseResponse() error {
	s.leave()
	return s.StreamingClientConn.CloseResponse()
}

// hasHeaders is asked after a Receive, when they have come or never will. The
// headers of gRPC that have a status are all that there was.
func (s *stream) hasHeaders() bool {
	headers := s.ResponseHeader()
	return len(headers) > 0 && headers.Get("Grpc-Status") == ""
}

// gotHeaders ends a trial without a message.
func (s *stream) gotHeaders() {
	if s.trial {
		time.AfterFunc(s.proof, s.stood)
	}
}
