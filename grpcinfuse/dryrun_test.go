package grpcinfuse_test

// This file tests Config.DryRun.

import (
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/infuse-go/infuse"
)

// With Config.DryRun, calls and streams of an open circuit run, and are not counted.
func TestDryRunRejectsNothing(t *testing.T) {
	s := &service{
		unary:  func(context.Context) error { return nil },
		server: func(to grpc.ServerStreamingServer[output]) error { return to.Send(new(output)) },
	}
	f := startWith(t, s, infuse.Config{DryRun: true})
	f.setState(infuse.StateOpen)
	require.NoError(t, f.call())
	s.unary = func(context.Context) error { return codeError(codes.Unavailable) }
	require.Error(t, f.call())
	stream, err := f.StreamingOutputCall(f.ctx, new(question))
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, infuse.CallCounts{WouldReject: 3}, f.breaker.Stats().Calls)
	require.Equal(t, infuse.StateOpen, f.breaker.State())
}
