package connectinfuse_test

// This file contains the helpers of the tests: a service, and clients of it.

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 30 * time.Second      // for fast events, on a busy machine
	never    = time.Hour             // longer than any test
	soon     = 20 * time.Millisecond // short enough to wait for
)

type (
	empty = emptypb.Empty
	bytes = wrapperspb.BytesValue
)

// service is a real service whose methods are set by the test.
type service struct {
	unary  func(context.Context) error
	server func(context.Context, *connect.ServerStream[bytes]) error
	client func(context.Context, *connect.ClientStream[bytes]) error
	bidi   func(context.Context, *connect.BidiStream[bytes, bytes]) error
}

func (s *service) handler(options ...connect.HandlerOption) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/test.Test/Unary", connect.NewUnaryHandler("/test.Test/Unary", func(ctx context.Context, _ *connect.Request[bytes]) (*connect.Response[bytes], error) {
		return connect.NewResponse(&bytes{Value: make([]byte, 100)}), s.unary(ctx)
	}, options...))
	mux.Handle("/test.Test/Server", connect.NewServerStreamHandler("/test.Test/Server", func(ctx context.Context, _ *connect.Request[bytes], to *connect.ServerStream[bytes]) error {
		return s.server(ctx, to)
	}, options...))
	mux.Handle("/test.Test/Client", connect.NewClientStreamHandler("/test.Test/Client", func(ctx context.Context, from *connect.ClientStream[bytes]) (*connect.Response[empty], error) {
		return connect.NewResponse(new(empty)), s.client(ctx, from)
	}, options...))
	mux.Handle("/test.Test/Bidi", connect.NewBidiStreamHandler("/test.Test/Bidi", func(ctx context.Context, both *connect.BidiStream[bytes, bytes]) error {
		return s.bidi(ctx, both)
	}, options...))
	return mux
}

func http2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// serve runs a handler over HTTP/2 on the address, or on a free one.
func serve(t *testing.T, handler http.Handler, address string) (*http.Server, string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	server := &http.Server{Handler: handler, Protocols: http2()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return server, listener.Addr().String()
}

// fixture is a client with one circuit, and its service.
type fixture struct {
	t           *testing.T
	service     *service
	server      *http.Server
	address     string
	breaker     *infuse.Breaker
	group       *infuse.Group
	interceptor *connectinfuse.Interceptor
	http        *http.Client
	protocol    []connect.ClientOption // and other client options
	ctx         context.Context
}

// start returns a fixture whose circuit opens after two consecutive failures, and stays
// open.
func start(t *testing.T, s *service, options ...connectinfuse.Option) *fixture {
	t.Helper()
	return startWith(t, s, infuse.Config{}, options...)
}

func startWith(t *testing.T, s *service, cfg infuse.Config, options ...connectinfuse.Option) *fixture {
	t.Helper()
	return startOn(t, s, s.handler(), cfg, options...)
}

func startOn(t *testing.T, s *service, handler http.Handler, cfg infuse.Config, options ...connectinfuse.Option) *fixture {
	t.Helper()
	f := &fixture{t: t, service: s}
	f.server, f.address = serve(t, handler, "127.0.0.1:0")
	cfg.FailMax, cfg.ResetTimeout, cfg.CountCalls = 2, time.Hour, true
	var err error
	f.group, err = infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(f.group.Stop)
	f.interceptor = connectinfuse.New(f.group, options...)
	f.breaker, err = f.group.Breaker(f.address)
	require.NoError(t, err)
	transport := &http.Transport{Protocols: http2()}
	t.Cleanup(transport.CloseIdleConnections)
	f.http = &http.Client{Transport: transport}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	f.ctx = ctx
	return f
}

func client[Q, A any](f *fixture, method string, more ...connect.ClientOption) *connect.Client[Q, A] {
	options := append([]connect.ClientOption{connect.WithInterceptors(f.interceptor)}, f.protocol...)
	return connect.NewClient[Q, A](f.http, "http://"+f.address+"/test.Test/"+method, append(options, more...)...)
}

func (f *fixture) call() error { return f.callWith(f.ctx) }

func (f *fixture) callWith(ctx context.Context, more ...connect.ClientOption) error {
	_, err := client[bytes, bytes](f, "Unary", more...).CallUnary(ctx, connect.NewRequest(&bytes{Value: make([]byte, 100)}))
	return err
}

func (f *fixture) serverStream() (*connect.ServerStreamForClient[bytes], error) {
	return f.serverStreamWith(f.ctx)
}

func (f *fixture) serverStreamWith(ctx context.Context) (*connect.ServerStreamForClient[bytes], error) {
	from, err := client[bytes, bytes](f, "Server").CallServerStream(ctx, connect.NewRequest(new(bytes)))
	if err == nil {
		f.t.Cleanup(func() { _ = from.Close() })
	}
	return from, err
}

func (f *fixture) bidiStream() *connect.BidiStreamForClient[bytes, bytes] {
	both := client[bytes, bytes](f, "Bidi").CallBidiStream(f.ctx)
	f.t.Cleanup(func() {
		_ = both.CloseRequest()
		_ = both.CloseResponse()
	})
	return both
}

// drain reads a stream to its end.
func drain(receive func() error) (n int, err error) {
	for err == nil {
		if err = receive(); err == nil {
			n++
		}
	}
	if connect.CodeOf(err) == connect.CodeUnknown && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// kinds are complete calls, one for each kind of stream.
var kinds = map[string]func(*fixture) error{
	"server": func(f *fixture) error {
		from, err := f.serverStream()
		if err != nil {
			return err
		}
		for from.Receive() {
		}
		return from.Err()
	},
	"client": func(f *fixture) error {
		to := client[bytes, empty](f, "Client").CallClientStream(f.ctx)
		for range 3 {
			if to.Send(new(bytes)) != nil {
				break // CloseAndReceive returns the reason
			}
		}
		_, err := to.CloseAndReceive()
		return err
	},
	"bidi": func(f *fixture) error {
		both := f.bidiStream()
		for range 3 {
			if both.Send(new(bytes)) != nil {
				break
			}
		}
		if err := both.CloseRequest(); err != nil {
			return err
		}
		_, err := drain(func() error { _, err := both.Receive(); return err })
		return err
	},
}

// protocols are the protocols of clients.
var protocols = map[string][]connect.ClientOption{
	"connect": nil,
	"grpc":    {connect.WithGRPC()},
	"grpcweb": {connect.WithGRPCWeb()},
}

// eachKind tests every kind of stream over every protocol.
func eachKind(t *testing.T, test func(t *testing.T, protocol []connect.ClientOption, call func(*fixture) error)) {
	for protocol, options := range protocols {
		for kind, call := range kinds {
			t.Run(protocol+" "+kind, func(t *testing.T) { test(t, options, call) })
		}
	}
}

func eachProtocol(t *testing.T, test func(t *testing.T, protocol []connect.ClientOption)) {
	for protocol, options := range protocols {
		t.Run(protocol, func(t *testing.T) { test(t, options) })
	}
}

// counts returns the numbers of successes, failures and ignored calls.
func (f *fixture) counts() [3]int {
	c := f.breaker.Stats().Calls
	return [3]int{int(c.Success), int(c.Failure), int(c.Ignored)}
}

func (f *fixture) requireCounts(success, failure, ignored int) {
	f.t.Helper()
	require.Equal(f.t, [3]int{success, failure, ignored}, f.counts(), "successes, failures and ignored calls")
}

// setState sets the state of the circuit.
func (f *fixture) setState(to infuse.State) {
	f.t.Helper()
	require.NoError(f.t, f.breaker.SetState(f.ctx, to))
}

// halfOpen makes the next call a trial.
func (f *fixture) halfOpen() {
	f.t.Helper()
	f.setState(infuse.StateHalfOpen)
}

func (f *fixture) requireState(state infuse.State) {
	f.t.Helper()
	require.Equal(f.t, state, f.breaker.State())
}

// requireRejected fails if err is not a rejection, and returns it.
func requireRejected(t *testing.T, err error) *infuse.OpenError {
	t.Helper()
	require.ErrorIs(t, err, infuse.ErrOpen)
	var open *infuse.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	return open
}

// codeError returns an error of a handler.
func codeError(c connect.Code) error { return connect.NewError(c, errors.New("unhealthy")) }
