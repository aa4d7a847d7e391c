package connectinfuse

import (
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// stream is a StreamingClientConn that reports to its tracker how it goes.
type stream struct {
	connect.StreamingClientConn
	tracker          rpc.Tracker
	classify         func(error) infuse.Outcome
	establishedAfter time.Duration
	trial            bool
	unwatch          func() bool // ends the watching of a trial's context
}

func (s *stream) Receive(m any) error {
	returned := false
	defer func() {
		if !returned {
			s.tracker.Unwound(recover())
		}
	}()
	err := s.StreamingClientConn.Receive(m)
	if err != nil && s.trial {
		s.unwatch()
	}
	switch {
	case err == nil:
		s.tracker.Message()
	case isEnd(err):
		s.tracker.End(infuse.OutcomeSuccess, nil, nil)
	default:
		s.tracker.End(s.classify(err), err, func() bool { return !connect.IsWireError(err) && s.hasHeaders() })
	}
	returned = true
	return err
}

// isEnd reports whether a stream has ended without an error. An io.EOF inside of
// an error with a code is none.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) && connect.CodeOf(err) == connect.CodeUnknown
}

// Send returns io.EOF if Receive has the error. Any other error is the end.
func (s *stream) Send(m any) error {
	returned := false
	defer func() {
		if !returned {
			s.tracker.Unwound(recover())
		}
	}()
	err := s.StreamingClientConn.Send(m)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		s.tracker.Failing()
	default:
		s.tracker.End(s.classify(err), err, func() bool { return false })
	}
	returned = true
	return err
}

func (s *stream) CloseRequest() error {
	returned := false
	defer func() {
		if !returned {
			s.tracker.Unwound(recover())
		}
	}()
	err := s.StreamingClientConn.CloseRequest()
	returned = true
	return err
}

func (s *stream) CloseResponse() error {
	s.tracker.Close()
	if s.trial {
		s.unwatch()
	}
	return s.StreamingClientConn.CloseResponse()
}

// hasHeaders waits for the headers, or for the end of a stream without any. If the
// headers of gRPC have a status, they are the whole response.
func (s *stream) hasHeaders() bool {
	headers := s.ResponseHeader()
	return len(headers) > 0 && headers.Get("Grpc-Status") == ""
}

// gotHeaders ends a trial without a message. It is called for an informational
// response (103), too, and for a response without a body.
func (s *stream) gotHeaders() {
	if s.trial {
		time.AfterFunc(s.establishedAfter, func() {
			defer func() {
				if recover() != nil { // of an interceptor below
					s.tracker.Panicked()
				}
			}()
			if s.hasHeaders() {
				s.tracker.HeadersStand()
			}
		})
	}
}
