package connectinfuse_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

// brings is a stream of n messages that then ends with err.
func brings(n int, err error) func(context.Context, *connect.ServerStream[bytes]) error {
	return func(_ context.Context, to *connect.ServerStream[bytes]) error {
		for range n {
			if err := to.Send(new(bytes)); err != nil {
				return err
			}
		}
		return err
	}
}

// echoes answers each message, and then ends with err.
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

// waits sends headers, and then a message for each token, until the service is
// told how to end, or is stopped.
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

// ending has the streams of each kind end with err.
func ending(err error) *service {
	return &service{
		server: brings(0, err),
		client: func(context.Context, *connect.ClientStream[bytes]) error { return err },
		bidi:   echoes(0, err),
	}
}

// healthyStreams has the streams of each kind end well.
func healthyStreams() *service {
	return &service{
		server: brings(3, nil),
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
		f := start(t, ending(says(connect.CodeUnavailable)))
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

func TestStreamThatEndsWell(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, healthyStreams())
		f.protocol = protocol
		require.NoError(t, call(f))
		f.requireCounts(1, 0, 0)
	})
}

func TestStreamThatEndsWithAnErrorOfTheApplication(t *testing.T) {
	eachKind(t, func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error) {
		f := start(t, ending(says(connect.CodeNotFound)))
		f.protocol = protocol
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(call(f)))
		f.requireCounts(1, 0, 0)
	})
}

func TestStreamToAServerThatIsUnavailable(t *testing.T) {
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

func TestStreamThatBreaksOffEarly(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		f := start(t, &service{server: brings(2, says(connect.CodeInternal)), bidi: echoes(2, says(connect.CodeDataLoss))}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		require.Equal(t, connect.CodeInternal, connect.CodeOf(kinds["server"](f)))
		f.requireCounts(0, 1, 0)
		require.Equal(t, connect.CodeDataLoss, connect.CodeOf(kinds["bidi"](f)))
		f.requireCounts(0, 2, 0)
		requireRejected(t, kinds["server"](f))
	})
}

func TestConnectionThatIsCutEarly(t *testing.T) {
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

func TestUploadThatIsCut(t *testing.T) {
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
		time.Sleep(soon) // it has lived for so long then, however late this goes on
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
	end <- says(connect.CodeInternal)
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
			{"that has lasted counts for nothing", soon, 0},
			{"that is cut early is a failure", never, 1},
		} {
			t.Run(c.name, func(t *testing.T) {
				f := start(t, &service{server: waits(nil, nil)}, connectinfuse.EstablishedAfter(c.proof))
				f.protocol = protocol
				from, err := f.serverStream() // has waited for the headers
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

func TestTrialEndsAtTheFirstMessage(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens, end := make(chan struct{}, 1), make(chan error, 1)
		f := start(t, &service{server: waits(tokens, end)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		_, err = f.serverStream()
		requireRejected(t, err)
		tokens <- struct{}{}
		require.True(t, from.Receive())
		f.requireState(infuse.StateClosed)
		f.requireCounts(1, 0, 0)

		end <- says(connect.CodeUnavailable)
		require.False(t, from.Receive())
		f.requireCounts(1, 1, 0)
	})
}

func TestTrialEndsAtHeadersThatStand(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		end := make(chan error, 1)
		f := start(t, &service{server: waits(nil, end)}, connectinfuse.EstablishedAfter(soon))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		require.Eventually(t, func() bool { return f.breaker.State() == infuse.StateClosed }, patience, time.Millisecond)
		end <- nil
		require.False(t, from.Receive())
		require.NoError(t, from.Err())
		f.requireCounts(1, 0, 0)
	})
}

// TestTrialWithoutHeaders: what came was no sign of health, and closed the circuit
// before the caller had asked what it was.
func TestTrialWithoutHeaders(t *testing.T) {
	refuses := &service{bidi: func(context.Context, *connect.BidiStream[bytes, bytes]) error {
		return says(connect.CodeUnavailable)
	}}
	for name, c := range map[string]struct {
		handler  http.Handler
		protocol string
	}{
		"a 503 to Connect": {status(http.StatusServiceUnavailable), "connect"},
		"a 503 to gRPC":    {status(http.StatusServiceUnavailable), "grpc"},
		"a status alone":   {refuses.handler(), "grpcweb"},
		"a hint":           {status(http.StatusEarlyHints), "connect"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startOn(t, refuses, c.handler, infuse.Config{}, connectinfuse.EstablishedAfter(soon))
			f.protocol = protocols[c.protocol]
			f.halfOpen()
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			both := client[bytes, bytes](f, "Bidi").CallBidiStream(ctx)
			require.NoError(t, both.Send(nil))
			time.Sleep(5 * soon)
			f.requireState(infuse.StateHalfOpen)
		})
	}
}

// status is a proxy that says this, and no more.
func status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		if code < http.StatusOK {
			<-r.Context().Done()
		}
	})
}

// TestStallAfterATrialIsAFailure: the deadline had passed when that failure was
// counted, so it was ignored.
func TestStallAfterATrialIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		tokens := make(chan struct{}, 1)
		f := start(t, &service{server: waits(tokens, nil)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		tokens <- struct{}{}
		f.halfOpen()
		ctx, cancel := context.WithTimeout(f.ctx, time.Second)
		defer cancel()
		from, err := f.serverStreamWith(ctx)
		require.NoError(t, err)
		require.True(t, from.Receive())
		require.False(t, from.Receive())
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(from.Err()))
		f.requireCounts(1, 1, 0)
	})
}

func TestErrorBehindTheHeadersFailsTheTrial(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		end := make(chan error, 1)
		f := start(t, &service{server: waits(nil, end)}, connectinfuse.EstablishedAfter(never))
		f.protocol = protocol
		f.halfOpen()
		from, err := f.serverStream()
		require.NoError(t, err)
		end <- says(connect.CodeUnavailable)
		require.False(t, from.Receive())
		f.requireState(infuse.StateOpen)
	})
}

// sick is an interceptor below, with a stream that has headers, takes no message
// and has yet to say why.
type sick struct {
	connect.StreamingClientConn
	headers func()
}

func (s *sick) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }
func (s *sick) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (s *sick) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		s.StreamingClientConn = next(ctx, spec)
		s.headers = httptrace.ContextClientTrace(ctx).GotFirstResponseByte
		return s
	}
}

func (s *sick) Send(any) error {
	s.headers()
	return io.EOF
}

func (s *sick) Receive(any) error {
	return connect.NewWireError(connect.CodeUnavailable, errors.New("unhealthy"))
}

func TestTrialWhoseSendFailsWaitsForTheReason(t *testing.T) {
	f := start(t, healthyStreams(), connectinfuse.EstablishedAfter(soon))
	f.protocol = []connect.ClientOption{connect.WithInterceptors(new(sick))}
	f.halfOpen()
	both := f.bidiStream()
	require.ErrorIs(t, both.Send(new(bytes)), io.EOF)
	time.Sleep(2 * soon) // the headers would have stood
	f.requireState(infuse.StateHalfOpen)
	_, err := both.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	f.requireState(infuse.StateOpen)
}

// TestTrialThatTheCallerLeaves kept its place, which is not needed any more.
func TestTrialThatTheCallerLeaves(t *testing.T) {
	for name, sends := range map[string]bool{"after a message": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			f := start(t, &service{unary: healthy, bidi: func(ctx context.Context, _ *connect.BidiStream[bytes, bytes]) error {
				<-ctx.Done()
				return nil
			}}, connectinfuse.EstablishedAfter(never))
			f.halfOpen()
			ctx, cancel := context.WithCancel(f.ctx)
			defer cancel()
			both := client[bytes, bytes](f, "Bidi").CallBidiStream(ctx)
			if sends {
				require.NoError(t, both.Send(new(bytes)))
			}
			requireRejected(t, f.call())
			cancel()
			require.Eventually(t, func() bool { return f.call() == nil }, patience, time.Millisecond)
			f.requireState(infuse.StateClosed)
			f.requireCounts(1, 0, 1)
		})
	}
}

func TestTrialThatTheCallerCloses(t *testing.T) {
	f := start(t, &service{unary: healthy, server: waits(nil, nil)}, connectinfuse.EstablishedAfter(never))
	f.halfOpen()
	from, err := f.serverStream()
	require.NoError(t, err)
	requireRejected(t, f.call())
	require.NoError(t, from.Close())
	require.NoError(t, f.call())
	f.requireState(infuse.StateClosed)
	f.requireCounts(1, 0, 1)
}

func TestStreamThatTheCallerCloses(t *testing.T) {
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
		"is ignored":                           {never, [3]int{0, 0, 1}},
		"is a success where it is established": {0, [3]int{1, 0, 0}},
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

func TestMessageOfAStreamThatIsTooLarge(t *testing.T) {
	f := start(t, healthyStreams())
	f.protocol = []connect.ClientOption{connect.WithSendMaxBytes(1)}
	err := f.bidiStream().Send(&bytes{Value: make([]byte, 100)})
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	f.requireCounts(0, 0, 1)
}

func TestRejectedStreamSaysSoEverywhere(t *testing.T) {
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
