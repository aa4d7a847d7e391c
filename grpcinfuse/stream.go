package grpcinfuse

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/infuse-go/infuse"
)

// stream is a ClientStream that tells its life how it goes.
type stream struct {
	grpc.ClientStream
	life
	classify  func(error) infuse.Outcome
	trial     bool
	oneAnswer bool // a message is all there is, and RecvMsg has waited for the end
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	switch {
	case err == io.EOF || err == nil && s.oneAnswer:
		s.ends(nil)
	case err != nil:
		s.ends(err)
	default:
		s.message(s.trial)
	}
	return err
}

// SendMsg says io.EOF where RecvMsg will say more. Any other error is the end.
func (s *stream) SendMsg(m any) error {
	err := s.ClientStream.SendMsg(m)
	if err != nil && err != io.EOF {
		s.ends(err)
	}
	return err
}

func (s *stream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	if err != nil {
		s.ends(err)
	}
	return header, err
}

func (s *stream) ends(err error) { s.end(s.classify(err), err, s.hasHeaders) }

// hasHeaders waits for the headers, or for the end of a stream without any.
func (s *stream) hasHeaders() bool {
	header, err := s.ClientStream.Header()
	return err == nil && header != nil
}

// try ends a trial without a message. It runs as long as the stream has no
// headers, and no longer than the stream.
func (s *stream) try() {
	switch {
	case s.hasHeaders():
		time.AfterFunc(s.proof, s.stood)
	case s.ctx.Err() == context.Canceled: // the caller may not ask for the end any more
		s.ends(s.ctx.Err())
	}
}
