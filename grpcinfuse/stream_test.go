package grpcinfuse_test

// This file tests streams.

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

const (
	never = time.Hour             // longer than any test
	soon  = 20 * time.Millisecond // short enough to wait for
)

// sends sends n messages, and then ends the stream with err.
func sends(n int, err error) func(grpc.ServerStreamingServer[output]) error {
	return func(to grpc.ServerStreamingServer[output]) error {
		for range n {
			if err := to.Send(new(output)); err != nil {
				return err
			}
		}
		return err
	}
}

// echoes returns n messages, and then ends the stream with err.
func echoes(n int, err error) func(grpc.BidiStreamingServer[question, output]) error {
	return func(both grpc.BidiStreamingServer[question, output]) error {
		for range n {
			if _, err := both.Recv(); err != nil {
				return err
			}
			if err := both.Send(new(output)); err != nil {
				return err
			}
		}
		return err
	}
}

// waits sends headers, and then a message for each token, until end sends an error or the
// service stops.
func waits(tokens <-chan struct{}, end <-chan error) func(grpc.ServerStreamingServer[output]) error {
	return func(to grpc.ServerStreamingServer[output]) error {
		if err := to.SendHeader(nil); err != nil {
			return err
		}
		for {
			select {
			case <-tokens:
				if err := to.Send(new(output)); err != nil {
					return err
				}
			case err := <-end:
				return err
			case <-to.Context().Done():
				return to.Context().Err()
			}
		}
	}
}

func (f *fixture) serverStream() (grpc.ServerStreamingClient[output], error) {
	return f.StreamingOutputCall(f.ctx, new(question))
}

// drain reads a stream to its end.
func (f *fixture) drain(from grpc.ServerStreamingClient[output], err error) (n int, _ error) {
	for err == nil {
		if _, err = from.Recv(); err == nil {
			n++
		}
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// kinds are complete calls, one for each kind of stream.
var kinds = map[string]func(*fixture) error{
	"server": func(f *fixture) error {
		_, err := f.drain(f.serverStream())
		return err
	},
	"client": func(f *fixture) error {
		to, err := f.StreamingInputCall(f.ctx)
		if err != nil {
			return err
		}
		for range 3 {
			if to.Send(new(input)) != nil {
				break // CloseAndRecv returns the reason
			}
		}
		_, err = to.CloseAndRecv()
		return err
	},
	"bidi": func(f *fixture) error {
		both, err := f.FullDuplexCall(f.ctx)
		if err != nil {
			return err
		}
		for range 3 {
			if both.Send(new(question)) != nil {
				break
			}
		}
		if err := both.CloseSend(); err != nil {
			return err
		}
		_, err = f.drain(both, nil)
		return err
	},
}

// ending returns a service whose streams end with err.
func ending(err error) *service {
	return &service{
		server: sends(0, err),
		client: func(grpc.ClientStreamingServer[input, inputs]) error { return err },
		bidi:   echoes(0, err),
	}
}

// healthyStreams returns a service whose streams end without an error.
func healthyStreams() *service {
	return &service{
		server: sends(3, nil),
		client: func(from grpc.ClientStreamingServer[input, inputs]) error {
			for {
				if _, err := from.Recv(); err == io.EOF {
					return from.SendAndClose(new(inputs))
				} else if err != nil {
					return err
				}
			}
		},
		bidi: echoes(3, nil),
	}
}

func TestStreamServiceBecomesUnhealthy(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, ending(codeError(codes.Unavailable)))
			for range 2 {
				err := call(f)
				require.Equal(t, codes.Unavailable, status.Code(err))
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
}

func TestStreamWithoutErrorIsASuccess(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, healthyStreams())
			require.NoError(t, call(f))
			f.requireCounts(1, 0, 0)
		})
	}
}

func TestStreamWithApplicationErrorIsASuccess(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, ending(codeError(codes.NotFound)))
			require.Equal(t, codes.NotFound, status.Code(call(f)))
			f.requireCounts(1, 0, 0)
		})
	}
}

func TestStreamToUnavailableServer(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, healthyStreams())
			require.NoError(t, call(f))
			f.server.Stop()
			for f.breaker.State() == infuse.StateClosed {
				require.Equal(t, codes.Unavailable, status.Code(call(f)))
			}
			requireRejected(t, call(f))
		})
	}
}

func TestStreamTruncatedEarlyIsAFailure(t *testing.T) {
	f := start(t, &service{server: sends(2, codeError(codes.Internal)), bidi: echoes(2, codeError(codes.DataLoss))}, grpcinfuse.EstablishedAfter(never))
	n, err := f.drain(f.serverStream())
	require.Equal(t, 2, n)
	require.Equal(t, codes.Internal, status.Code(err))
	f.requireCounts(0, 1, 0)
	require.Equal(t, codes.DataLoss, status.Code(kinds["bidi"](f)))
	f.requireCounts(0, 2, 0)
	_, err = f.serverStream()
	requireRejected(t, err)
}

func TestConnectionClosedEarlyIsAFailure(t *testing.T) {
	tokens := make(chan struct{}, 1)
	f := start(t, &service{server: waits(tokens, nil)}, grpcinfuse.EstablishedAfter(never))
	from, err := f.serverStream()
	require.NoError(t, err)
	tokens <- struct{}{}
	_, err = from.Recv()
	require.NoError(t, err)
	f.server.Stop()
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireCounts(0, 1, 0)
}

func TestTruncatedUpload(t *testing.T) {
	got := make(chan struct{}, 1)
	f := start(t, &service{client: func(from grpc.ClientStreamingServer[input, inputs]) error {
		for {
			if _, err := from.Recv(); err != nil {
				return err
			}
			got <- struct{}{}
		}
	}})
	to, err := f.StreamingInputCall(f.ctx)
	require.NoError(t, err)
	require.NoError(t, to.Send(new(input)))
	<-got
	f.server.Stop()
	_, err = to.CloseAndRecv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireCounts(0, 1, 0)
}

func TestUploadWithResponseAndError(t *testing.T) {
	f := start(t, &service{client: func(from grpc.ClientStreamingServer[input, inputs]) error {
		if err := from.SendAndClose(new(inputs)); err != nil {
			return err
		}
		return codeError(codes.Unavailable)
	}})
	require.Equal(t, codes.Unavailable, status.Code(kinds["client"](f)))
	f.requireCounts(0, 1, 0)
}

func TestStreamIsEstablished(t *testing.T) {
	require.Equal(t, 2*time.Second, grpcinfuse.DefaultEstablishedAfter)
	tokens := make(chan struct{}, 1)
	f := start(t, &service{server: waits(tokens, nil)}, grpcinfuse.EstablishedAfter(soon))
	from, err := f.serverStream()
	require.NoError(t, err)
	tokens <- struct{}{}
	_, err = from.Recv()
	require.NoError(t, err)
	f.requireCounts(0, 0, 0)
	time.Sleep(soon) // at least so long after the first message
	f.server.Stop()
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireCounts(1, 0, 0)
}

func TestStreamIsASuccessBeforeItsEnd(t *testing.T) {
	tokens, end := make(chan struct{}, 1), make(chan error, 1)
	f := start(t, &service{server: waits(tokens, end)}, grpcinfuse.EstablishedAfter(soon))
	from, err := f.serverStream()
	require.NoError(t, err)
	for range 2 {
		tokens <- struct{}{}
		_, err = from.Recv()
		require.NoError(t, err)
		time.Sleep(soon)
	}
	f.requireCounts(1, 0, 0)
	end <- codeError(codes.Internal)
	_, err = from.Recv()
	require.Equal(t, codes.Internal, status.Code(err))
	f.requireCounts(1, 0, 0)
}

func TestSilentStream(t *testing.T) {
	withHeaders := waits(nil, nil)
	without := func(to grpc.ServerStreamingServer[output]) error {
		<-to.Context().Done()
		return nil
	}
	for _, c := range []struct {
		name    string
		server  func(grpc.ServerStreamingServer[output]) error
		proof   time.Duration
		failure int
	}{
		{"truncated later is ignored", withHeaders, soon, 0},
		{"truncated early is a failure", withHeaders, never, 1},
		{"without headers is a failure", without, soon, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			running := make(chan struct{}, 1)
			f := start(t, &service{server: func(to grpc.ServerStreamingServer[output]) error {
				running <- struct{}{}
				return c.server(to)
			}}, grpcinfuse.EstablishedAfter(c.proof))
			from, err := f.serverStream()
			require.NoError(t, err)
			<-running
			if c.name != "without headers is a failure" {
				_, err = from.Header()
				require.NoError(t, err)
			}
			time.Sleep(soon)
			f.server.Stop()
			_, err = from.Recv()
			require.Equal(t, codes.Unavailable, status.Code(err))
			f.requireCounts(0, c.failure, 1-c.failure)
		})
	}
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
			f := start(t, &service{server: waits(tokens, nil)}, grpcinfuse.EstablishedAfter(c.proof))
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			from, err := f.StreamingOutputCall(ctx, new(question))
			require.NoError(t, err)
			tokens <- struct{}{}
			_, err = from.Recv()
			require.NoError(t, err)
			cancel()
			_, err = from.Recv()
			require.Equal(t, codes.Canceled, status.Code(err))
			require.Equal(t, c.want, f.counts())
		})
	}
}

func TestMessageAboveLimitIsIgnored(t *testing.T) {
	f := start(t, healthyStreams())
	both, err := f.FullDuplexCall(f.ctx, grpc.MaxCallSendMsgSize(1))
	require.NoError(t, err)
	err = both.Send(&question{Payload: &testpb.Payload{Body: make([]byte, 100)}})
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	f.requireCounts(0, 0, 1)
}

func TestMessageAfterCloseSend(t *testing.T) {
	f := start(t, &service{bidi: func(both grpc.BidiStreamingServer[question, output]) error {
		<-both.Context().Done()
		return nil
	}})
	both, err := f.FullDuplexCall(f.ctx)
	require.NoError(t, err)
	require.NoError(t, both.CloseSend())
	require.Equal(t, codes.Internal, status.Code(both.Send(new(question))))
	f.requireCounts(0, 0, 1)
}

// Calls of all kinds, trials and manual changes are concurrent. Each call is counted, and
// no trial slot stays in use.
func TestConcurrentCalls(t *testing.T) {
	some := func() error {
		return codeError([]codes.Code{codes.OK, codes.OK, codes.NotFound, codes.Unavailable, codes.Canceled}[rand.IntN(5)])
	}
	f := startWith(t, &service{
		unary:  func(context.Context) error { return some() },
		server: func(to grpc.ServerStreamingServer[output]) error { return sends(rand.IntN(3), some())(to) },
		bidi: func(both grpc.BidiStreamingServer[question, output]) error {
			return echoes(rand.IntN(3), some())(both)
		},
	}, infuse.Config{MaxTrials: 2}, grpcinfuse.EstablishedAfter(time.Millisecond))
	const processes, each = 8, 60
	var all sync.WaitGroup
	for range processes {
		all.Go(func() {
			for i := range each {
				switch i % 4 {
				case 0:
					_ = f.call()
				case 1:
					_ = kinds["server"](f)
				case 2:
					_ = kinds["bidi"](f)
				default:
					_ = f.bothWaysAtOnce()
				}
				if rand.IntN(10) == 0 {
					_ = f.breaker.SetState(f.ctx, infuse.State(rand.IntN(3)))
				}
			}
		})
	}
	all.Wait()
	c := f.breaker.Stats().Calls
	require.GreaterOrEqual(t, c.Success+c.Failure+c.Ignored+c.Rejected, uint64(processes*each)) // more if a stream was truncated after its trial
	f.service.unary = healthy
	f.halfOpen()
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
}

// bothWaysAtOnce concurrently sends, receives and cancels a stream.
func (f *fixture) bothWaysAtOnce() error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	both, err := f.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		for range 3 {
			if both.Send(new(question)) != nil {
				return
			}
		}
		_ = both.CloseSend()
	})
	sending.Go(func() {
		if rand.IntN(2) == 0 {
			cancel()
		}
	})
	_, err = f.drain(both, nil)
	sending.Wait()
	return err
}
