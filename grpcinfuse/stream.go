package grpcinfuse

// This file contains the client stream that reports its progress to a tracker.

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// stream is a ClientStream that reports its progress to a tracker.
type stream struct {
	grpc.ClientStream
	ctx              context.Context
	tracker          rpc.Tracker
	classify         func(error) infuse.Outcome
	errorOf          func(error) error // returns the error to classify at the end; nil: the error itself
	establishedAfter time.Duration
	oneAnswer        bool // the response is one message, and RecvMsg waits for the end of the stream
}

func (s *settings) track(ctx context.Context, desc *grpc.StreamDesc, method string, from grpc.ClientStream, attempt func() rpc.Attempt) *stream {
	t := &stream{ClientStream: from, ctx: ctx, establishedAfter: s.establishedAfter, oneAnswer: !desc.ServerStreams}
	t.classify = func(err error) infuse.Outcome { return s.classify(ctx, method, err) }
	t.tracker.Start(ctx, s.establishedAfter, attempt)
	if t.tracker.IsTrial() {
		go t.endTrial()
	}
	return t
}

func (s *stream) RecvMsg(m any) error {
	returned := false
	defer s.tracker.Guard(&returned)
	err := s.ClientStream.RecvMsg(m)
	switch {
	case err == io.EOF || err == nil && s.oneAnswer:
		s.end(nil)
	case err != nil:
		s.end(err)
	default:
		s.tracker.Message()
	}
	returned = true
	return err
}

// SendMsg returns io.EOF if RecvMsg returns the error. Any other error ends the stream.
func (s *stream) SendMsg(m any) error {
	returned := false
	defer s.tracker.Guard(&returned)
	err := s.ClientStream.SendMsg(m)
	if err != nil && err != io.EOF {
		s.end(err)
	}
	returned = true
	return err
}

func (s *stream) Header() (metadata.MD, error) {
	returned := false
	defer s.tracker.Guard(&returned)
	header, err := s.ClientStream.Header()
	if err != nil {
		s.end(err)
	}
	returned = true
	return header, err
}

func (s *stream) CloseSend() error {
	returned := false
	defer s.tracker.Guard(&returned)
	err := s.ClientStream.CloseSend()
	returned = true
	return err
}

func (s *stream) end(err error) {
	if s.errorOf != nil {
		err = s.errorOf(err)
	}
	s.tracker.End(s.classify(err), err, s.hasHeaders)
}

// hasHeaders waits for the headers, or for the end of the stream.
func (s *stream) hasHeaders() bool {
	header, err := s.ClientStream.Header()
	return err == nil && header != nil
}

// endTrial ends a trial without messages. It returns when the stream has headers, or
// ends.
func (s *stream) endTrial() {
	defer func() {
		if value := recover(); value != nil { // of an inner interceptor
			s.tracker.Panicked(value)
		}
	}()
	switch {
	case s.hasHeaders():
		time.AfterFunc(s.establishedAfter, s.tracker.HeadersStand)
	case s.ctx.Err() == context.Canceled: // the caller may not call RecvMsg again
		s.tracker.Cancelled()
	}
}
