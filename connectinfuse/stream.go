package connectinfuse

// This file contains the client stream that reports its progress to a tracker.

import (
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// stream is a StreamingClientConn that reports its progress to a tracker.
type stream struct {
	connect.StreamingClientConn
	tracker          rpc.Tracker
	classify         func(error) infuse.Outcome
	establishedAfter time.Duration
	trial            bool
	unwatch          func() bool // stops watching the context of a trial
}

func (s *stream) Receive(m any) error {
	returned := false
	defer s.tracker.Guard(&returned)
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

// isEnd reports whether a stream has ended without an error. An io.EOF in an error with a
// code does not count.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) && connect.CodeOf(err) == connect.CodeUnknown
}

// Send returns io.EOF if Receive returns the error. Any other error ends the stream.
func (s *stream) Send(m any) error {
	returned := false
	defer s.tracker.Guard(&returned)
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
	defer s.tracker.Guard(&returned)
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

// hasHeaders waits for the headers, or for the end of the stream. gRPC headers with a
// status are trailers of a response without headers.
func (s *stream) hasHeaders() bool {
	headers := s.ResponseHeader()
	return len(headers) > 0 && headers.Get("Grpc-Status") == ""
}

// gotHeaders ends a trial without messages. It is also called for informational responses
// (103), and for responses without a body.
func (s *stream) gotHeaders() {
	if s.trial {
		time.AfterFunc(s.establishedAfter, func() {
			defer func() {
				if value := recover(); value != nil { // of an inner interceptor
					s.tracker.Panicked(value)
				}
			}()
			if s.hasHeaders() {
				s.tracker.HeadersStand()
			}
		})
	}
}
