package connectinfuse

import (
	"context"
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
	unwatch  func() bool // ends the watching of the context of a trial
}

// watch has a trial end when its caller cancels it, and may ask for nothing more.
func (s *stream) watch() {
	s.unwatch = context.AfterFunc(s.ctx, func() {
		if err := s.ctx.Err(); err == context.Canceled {
			s.end(s.classify(err), err, func() bool { return false })
		}
	})
}

func (s *stream) Receive(m any) error {
	err := s.StreamingClientConn.Receive(m)
	if err != nil && s.trial {
		s.unwatch()
	}
	switch {
	case err == nil:
		s.message(s.trial)
	case isEnd(err):
		s.end(infuse.OutcomeSuccess, nil, nil)
	default:
		s.end(s.classify(err), err, func() bool { return !connect.IsWireError(err) && s.hasHeaders() })
	}
	return err
}

// isEnd reports whether a stream has ended well. Any other error that has an
// io.EOF in it has a code.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) && connect.CodeOf(err) == connect.CodeUnknown
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
	if s.trial {
		s.unwatch()
	}
	return s.StreamingClientConn.CloseResponse()
}

// hasHeaders waits for the headers, or for the end of a stream without any. The
// headers of gRPC that have a status are all that there was.
func (s *stream) hasHeaders() bool {
	headers := s.ResponseHeader()
	return len(headers) > 0 && headers.Get("Grpc-Status") == ""
}

// gotHeaders ends a trial without a message. What has come may be a hint (a 103)
// before the headers, or the end.
func (s *stream) gotHeaders() {
	if s.trial {
		time.AfterFunc(s.proof, func() {
			if s.hasHeaders() {
				s.stood()
			}
		})
	}
}
