package grpcinfuse_test

// This file tests streams that are trials of a half-open circuit.

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func TestTrialEndsAtTheFirstMessage(t *testing.T) {
	tokens, end := make(chan struct{}, 1), make(chan error, 1)
	f := start(t, &service{server: waits(tokens, end)}, grpcinfuse.EstablishedAfter(never))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	_, err = f.serverStream()
	requireRejected(t, err)
	tokens <- struct{}{}
	_, err = from.Recv()
	require.NoError(t, err)
	f.requireState(infuse.StateClosed)
	f.requireCounts(1, 0, 0)

	end <- codeError(codes.Unavailable)
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireCounts(1, 1, 0)
}

// The deadline had passed when the failure was counted, so it was ignored.
func TestStallAfterATrialIsAFailure(t *testing.T) {
	tokens := make(chan struct{}, 1)
	f := start(t, &service{server: waits(tokens, nil)}, grpcinfuse.EstablishedAfter(never))
	tokens <- struct{}{}
	f.halfOpen()
	ctx, cancel := context.WithTimeout(f.ctx, time.Second)
	defer cancel()
	from, err := f.StreamingOutputCall(ctx, new(question))
	require.NoError(t, err)
	_, err = from.Recv()
	require.NoError(t, err)
	_, err = from.Recv()
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	f.requireCounts(1, 1, 0)
}

func TestTrialEndsAfterHeadersWithoutError(t *testing.T) {
	end := make(chan error, 1)
	f := start(t, &service{server: waits(nil, end)}, grpcinfuse.EstablishedAfter(soon))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	f.eventually(infuse.StateClosed)
	end <- nil
	_, err = from.Recv()
	require.Equal(t, io.EOF, err)
	f.requireCounts(1, 0, 0)
}

func TestErrorAfterHeadersFailsTheTrial(t *testing.T) {
	end := make(chan error, 1)
	f := start(t, &service{server: waits(nil, end)}, grpcinfuse.EstablishedAfter(never))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	_, err = from.Header()
	require.NoError(t, err)
	end <- codeError(codes.Unavailable)
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireState(infuse.StateOpen)
}

func TestAbandonedTrial(t *testing.T) {
	f := start(t, &service{unary: healthy, server: func(to grpc.ServerStreamingServer[output]) error {
		<-to.Context().Done()
		return nil
	}}, grpcinfuse.EstablishedAfter(never))
	f.halfOpen()
	ctx, cancel := context.WithCancel(f.ctx)
	_, err := f.StreamingOutputCall(ctx, new(question))
	require.NoError(t, err)
	requireRejected(t, f.call())
	cancel()
	require.Eventually(t, func() bool { return f.call() == nil }, patience, time.Millisecond)
	f.requireState(infuse.StateClosed)
	f.requireCounts(1, 0, 1)
}
