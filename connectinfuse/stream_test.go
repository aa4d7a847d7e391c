package connectinfuse_test

// This file tests streams.

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

// sends sends n messages, and then ends the stream with err.
func sends(n int, err error) func(context.Context, *connect.ServerStream[bytes]) error {
	return func(_ context.Context, to *connect.ServerStream[bytes]) error {
		for range n {
			if err := to.Send(new(bytes)); err != nil {
				return err
			}
		}
		return err
	}
}

// echoes returns n messages, and then ends the stream with err.
func echoes(n int, err error) func(context.Context, *connect.BidiStream[bytes, bytes]) error {
	return func(_ context.Context, both *connect.BidiStream[bytes, bytes]) error {
		for range n {
			if _, err := both.Receive(); err != nil {
				return err
			}
			if err := both.Send(new(bytes)); err != nil {
				return err
			}
		}
		return err
	}
}

// waits sends headers, and then a message for each token, until end sends an error or the
// service stops.
func waits(tokens <-chan struct{}, end <-chan error) func(context.Context, *connect.ServerStream[bytes]) error {
	return func(ctx context.Context, to *connect.ServerStream[bytes]) error {
		if err := to.Send(nil); err != nil { // the headers
			return err
		}
		for {
			select {
			case <-tokens:
				if err := to.Send(new(bytes)); err != nil {
					return err
				}
			case err := <-end:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// ending returns a service whose streams end with err.
func ending(err error) *service {
	return &service{
		server: sends(0, err),
		client: func(context.Context, *connect.ClientStream[bytes]) error { return err },
		bidi:   echoes(0, err),
	}
}

// healthyStreams returns a service whose streams end without an error.
func healthyStreams() *service {
	return &service{
		server: sends(3, nil),
		client: func(_ context.Context, from *connect.ClientStream[bytes]) error {
			for from.Receive() {
			}
			return from.Err()
		},
		bidi: echoes(3, nil),
	}
}

func TestStreamServiceBecomesUnhealthy(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, ending(codeError(connect.CodeUnavailable)))
		f.protocol = protocol
		for range 2 {
			err := call(f)
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
			require.NotErrorIs(t, err, infuse.ErrOpen)
		}
		requireRejected(t, call(f))
		f.requireCounts(0, 2, 0)

		f.halfOpen()
		require.Error(t, call(f))
		requireRejected(t, call(f))

		well := healthyStreams()
		f.service.server, f.service.client, f.service.bidi = well.server, well.client, well.bidi
		f.halfOpen()
		require.NoError(t, call(f))
		f.requireState(infuse.StateClosed)
		f.requireCounts(1, 3, 0)
	})
}

func TestStreamWithoutErrorIsASuccess(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, healthyStreams())
		f.protocol = protocol
		require.NoError(t, call(f))
		f.requireCounts(1, 0, 0)
	})
}

func TestStreamWithApplicationErrorIsASuccess(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, ending(codeError(connect.CodeNotFound)))
		f.protocol = protocol
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(call(f)))
		f.requireCounts(1, 0, 0)
	})
}

func TestStreamToUnavailableServer(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, healthyStreams())
		f.protocol = protocol
		require.NoError(t, call(f))
		require.NoError(t, f.server.Close())
		for range 2 {
			require.Error(t, call(f))
		}
		requireRejected(t, call(f))
	})
}

func TestStreamTruncatedEarlyIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{server: sends(2, codeError(connect.CodeInternal)), bidi: echoes(2, codeError(connect.CodeDataLoss))}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		require.Equal(t, connect.CodeInternal, connect.CodeOf(kinds["server"](f)))
		f.requireCounts(0, 1, 0)
		require.Equal(t, connect.CodeDataLoss, connect.CodeOf(kinds["bidi"](f)))
		f.requireCounts(0, 2, 0)
		requireRejected(t, kinds["server"](f))
	})
}

func TestConnectionClosedEarlyIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens := make(chan struct{}, 1)
		f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		from, err := f.serverStream()
		require.NoError(t, err)
		tokens <- struct{}{}
		require.True(t, from.Receive())
		require.NoError(t, f.server.Close())
		require.False(t, from.Receive())
		require.Error(t, from.Err())
		f.requireCounts(0, 1, 0)
	})
}

func TestTruncatedUpload(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		got := make(chan struct{}, 1)
		f := start(t, &service{client: func(_ context.Context, from *connect.ClientStream[bytes]) error {
			for from.Receive() {
				got <- struct{}{}
			}
			return from.Err()
		}})
		f.protocol = protocol
		to := client[bytes, empty](f, "Client").CallClientStream(f.ctx)
		require.NoError(t, to.Send(new(bytes)))
		<-got
		require.NoError(t, f.server.Close())
		_, err := to.CloseAndReceive()
		require.Error(t, err)
		f.requireCounts(0, 1, 0)
	})
}

func TestStreamIsEstablished(t *testing.T) {
	require.Equal(t, 2*time.Second, connectinfuse.DefaultEstablishedAfter)
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens := make(chan struct{}, 1)
		f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(soon))
		f.protocol = protocol
		from, err := f.serverStream()
		require.NoError(t, err)
		tokens <- struct{}{}
		require.True(t, from.Receive())
		f.requireCounts(0, 0, 0)
		time.Sleep(soon) // at least so long after the first message
		require.NoError(t, f.server.Close())
		require.False(t, from.Receive())
		require.Error(t, from.Err())
		f.requireCounts(1, 0, 0)
	})
}

func TestStreamIsASuccessBeforeItsEnd(t *testing.T) {
	tokens, end := make(chan struct{}, 1), make(chan error, 1)
	f := start(t, &service{server: waits(tokens, end)}, connectinfuse.EstablishedAfter(soon))
	from, err := f.serverStream()
	require.NoError(t, err)
	for range 2 {
		tokens <- struct{}{}
		require.True(t, from.Receive())
		time.Sleep(soon)
	}
	f.requireCounts(1, 0, 0)
	end <- codeError(connect.CodeInternal)
	require.False(t, from.Receive())
	require.Equal(t, connect.CodeInternal, connect.CodeOf(from.Err()))
	f.requireCounts(1, 0, 0)
}

func TestSilentStream(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		for _, c := range []struct {
			name    string
			proof   time.Duration
			failure int
		}{
			{"truncated later is ignored", soon, 0},
			{"truncated early is a failure", never, 1},
		} {
			t.Run(c.name, func(t *testing.T) {
				f := start(t, &service{server: waits(nil, nil)}, connectinfuse.EstablishedAfter(c.proof))
				f.protocol = protocol
				from, err := f.serverStream() // returns after the headers
				require.NoError(t, err)
				time.Sleep(soon)
				require.NoError(t, f.server.Close())
				require.False(t, from.Receive())
				require.Error(t, from.Err())
				f.requireCounts(0, c.failure, 1-c.failure)
			})
		}
	})
}

func TestStreamThatStallsIsAFailure(t *testing.T) {
	running := make(chan struct{})
	f := start(t, &service{bidi: func(ctx context.Context, _ *connect.BidiStream[bytes, bytes]) error {
		close(running)
		<-ctx.Done()
		return nil
	}}, connectinfuse.EstablishedAfter(soon))
	both := f.bidiStream()
	require.NoError(t, both.Send(nil))
	<-running
	time.Sleep(soon)
	require.NoError(t, f.server.Close())
	_, err := both.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	f.requireCounts(0, 1, 0)
}

func TestClosedStream(t *testing.T) {
	tokens := make(chan struct{}, 1)
	f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(never))
	from, err := f.serverStream()
	require.NoError(t, err)
	tokens <- struct{}{}
	require.True(t, from.Receive())
	require.NoError(t, from.Close())
	f.requireCounts(1, 0, 0)
	require.NoError(t, from.Close())
	f.requireCounts(1, 0, 0)
}

func TestCancelledStream(t *testing.T) {
	for name, c := range map[string]struct {
		proof time.Duration
		want  [3]int
	}{
		"is ignored":                        {never, [3]int{0, 0, 1}},
		"is a success if it is established": {0, [3]int{1, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			tokens := make(chan struct{}, 1)
			f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(c.proof))
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			from, err := f.serverStreamWith(ctx)
			require.NoError(t, err)
			tokens <- struct{}{}
			require.True(t, from.Receive())
			cancel()
			require.False(t, from.Receive())
			require.Equal(t, connect.CodeCanceled, connect.CodeOf(from.Err()))
			require.Equal(t, c.want, f.counts())
		})
	}
}

func TestMessageAboveLimitIsIgnored(t *testing.T) {
	f := start(t, healthyStreams())
	f.protocol = []connect.ClientOption{connect.WithSendMaxBytes(1)}
	err := f.bidiStream().Send(&bytes{Value: make([]byte, 100)})
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	f.requireCounts(0, 0, 1)
}

func TestRejectedStreamReturnsTheErrorEverywhere(t *testing.T) {
	f := start(t, healthyStreams())
	f.setState(infuse.StateOpen)
	both := f.bidiStream()
	requireRejected(t, both.Send(new(bytes)))
	_, err := both.Receive()
	requireRejected(t, err)
	require.Empty(t, both.ResponseHeader())
	require.Empty(t, both.ResponseTrailer())
	require.NoError(t, both.CloseRequest())
	require.NoError(t, both.CloseResponse())
}
