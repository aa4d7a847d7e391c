package connectinfuse_test

// This file tests Config.DryRun.

import (
	"context"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// With Config.DryRun, calls and streams of an open circuit run, and are not counted.
func TestDryRunRejectsNothing(t *testing.T) {
	s := &service{
		unary:  func(context.Context) error { return nil },
		server: func(_ context.Context, to *connect.ServerStream[bytes]) error { return to.Send(new(bytes)) },
	}
	f := startWith(t, s, infuse.Config{DryRun: true})
	require.NoError(t, f.breaker.SetState(f.ctx, infuse.StateOpen))
	require.NoError(t, f.call())
	s.unary = func(context.Context) error { return codeError(connect.CodeUnavailable) }
	require.Error(t, f.call())
	stream, err := f.serverStream()
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.False(t, stream.Receive())
	require.NoError(t, stream.Err())
	require.Equal(t, infuse.CallCounts{WouldReject: 3}, f.breaker.Stats().Calls)
	require.Equal(t, infuse.StateOpen, f.breaker.State())
}
