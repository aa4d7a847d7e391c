package grpcinfuse_test

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
	never = time.Hour             // no stream of a test lives so long
	soon  = 20 * time.Millisecond // a test can wait for it
)

// brings is a stream of n messages that then ends with err.
func brings(n int, err error) func(grpc.ServerStreamingServer[output]) error {
	return func(to grpc.ServerStreamingServer[output]) error {
		for range n {
			if err := to.Send(new(output)); err != nil {
				return err
			}
		}
		return err
	}
}

// echoes answers each message, and then ends with err.
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

// waits sends headers, and then a message for each token, until the service is
// told how to end, or is stopped.
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

// kinds are a call of each kind of stream that goes on to its end.
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
				break // the answer says why
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

// ending has the streams of each kind end with err.
func ending(err error) *service {
	return &service{
		server: brings(0, err),
		client: func(grpc.ClientStreamingServer[input, inputs]) error { return err },
		bidi:   echoes(0, err),
	}
}

// healthyStreams has the streams of each kind end well.
func healthyStreams() *service {
	return &service{
		server: brings(3, nil),
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
			f := start(t, ending(says(codes.Unavailable)))
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

func TestStreamThatEndsWell(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, healthyStreams())
			require.NoError(t, call(f))
			f.requireCounts(1, 0, 0)
		})
	}
}

func TestStreamThatEndsWithAnErrorOfTheApplication(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			f := start(t, ending(says(codes.NotFound)))
			require.Equal(t, codes.NotFound, status.Code(call(f)))
			f.requireCounts(1, 0, 0)
		})
	}
}

func TestStreamToAServerThatIsUnavailable(t *testing.T) {
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

func TestStreamThatBreaksOffEarly(t *testing.T) {
	f := start(t, &service{server: brings(2, says(codes.Internal)), bidi: echoes(2, says(codes.DataLoss))}, grpcinfuse.EstablishedAfter(never))
	n, err := f.drain(f.serverStream())
	require.Equal(t, 2, n)
	require.Equal(t, codes.Internal, status.Code(err))
	f.requireCounts(0, 1, 0)
	require.Equal(t, codes.DataLoss, status.Code(kinds["bidi"](f)))
	f.requireCounts(0, 2, 0)
	_, err = f.serverStream()
	requireRejected(t, err)
}

func TestConnectionThatIsCutEarly(t *testing.T) {
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

func TestUploadThatIsCut(t *testing.T) {
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

func TestUploadThatIsAnsweredAndFails(t *testing.T) {
	f := start(t, &service{client: func(from grpc.ClientStreamingServer[input, inputs]) error {
		if err := from.SendAndClose(new(inputs)); err != nil {
			return err
		}
		return says(codes.Unavailable)
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
	time.Sleep(soon) // it has lived for so long then, however late this goes on
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
	end <- says(codes.Internal)
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
		{"that has lasted counts for nothing", withHeaders, soon, 0},
		{"that is cut early is a failure", withHeaders, never, 1},
		{"that may be a stall is a failure", without, soon, 1},
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
			if c.name != "that may be a stall is a failure" {
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

	end <- says(codes.Unavailable)
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireCounts(1, 1, 0)
}

// TestStallAfterATrialIsAFailure: the deadline had passed when that failure was
// counted, so it was ignored.
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

func TestTrialEndsAtHeadersThatStand(t *testing.T) {
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

func TestErrorBehindTheHeadersFailsTheTrial(t *testing.T) {
	end := make(chan error, 1)
	f := start(t, &service{server: waits(nil, end)}, grpcinfuse.EstablishedAfter(never))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	_, err = from.Header()
	require.NoError(t, err)
	end <- says(codes.Unavailable)
	_, err = from.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	f.requireState(infuse.StateOpen)
}

func TestTrialThatTheCallerLeaves(t *testing.T) {
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

func TestCancelledStream(t *testing.T) {
	for name, c := range map[string]struct {
		proof time.Duration
		want  [3]int
	}{
		"is ignored":                           {never, [3]int{0, 0, 1}},
		"is a success where it is established": {0, [3]int{1, 0, 0}},
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

func TestMessageOfAStreamThatIsTooLarge(t *testing.T) {
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

// TestManyAtOnce has calls of all kinds, trials and moves at once: each call is
// counted, and no trial keeps its place.
func TestManyAtOnce(t *testing.T) {
	some := func() error {
		return says([]codes.Code{codes.OK, codes.OK, codes.NotFound, codes.Unavailable, codes.Canceled}[rand.IntN(5)])
	}
	f := startWith(t, &service{
		unary:  func(context.Context) error { return some() },
		server: func(to grpc.ServerStreamingServer[output]) error { return brings(rand.IntN(3), some())(to) },
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
	require.GreaterOrEqual(t, c.Success+c.Failure+c.Ignored+c.Rejected, uint64(processes*each)) // more where a stream broke off after its trial
	f.service.unary = healthy
	f.halfOpen()
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
}

// bothWaysAtOnce sends, receives and cancels a stream at once.
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
