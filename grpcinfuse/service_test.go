package grpcinfuse_test

// This file contains the helpers of the tests: a service, and clients of it.

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second // for fast events, on a busy machine

type (
	input    = testpb.StreamingInputCallRequest
	inputs   = testpb.StreamingInputCallResponse
	output   = testpb.StreamingOutputCallResponse
	question = testpb.StreamingOutputCallRequest
)

// service is a real service whose methods are set by the test. A method that is not set
// is unimplemented.
type service struct {
	testpb.UnimplementedTestServiceServer
	unary  func(context.Context) error
	server func(grpc.ServerStreamingServer[output]) error
	client func(grpc.ClientStreamingServer[input, inputs]) error
	bidi   func(grpc.BidiStreamingServer[question, output]) error
}

func (s *service) EmptyCall(ctx context.Context, _ *testpb.Empty) (*testpb.Empty, error) {
	return new(testpb.Empty), s.unary(ctx)
}

func (s *service) UnaryCall(_ context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Payload: &testpb.Payload{Body: make([]byte, r.GetResponseSize())}}, nil
}

func (s *service) StreamingOutputCall(_ *question, to grpc.ServerStreamingServer[output]) error {
	return s.server(to)
}

func (s *service) StreamingInputCall(from grpc.ClientStreamingServer[input, inputs]) error {
	return s.client(from)
}

func (s *service) FullDuplexCall(both grpc.BidiStreamingServer[question, output]) error {
	return s.bidi(both)
}

// serve runs a service on the address, or on a free one.
func serve(t *testing.T, s *service, address string, options ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	server := grpc.NewServer(options...)
	testpb.RegisterTestServiceServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return server, listener.Addr().String()
}

// fixture is a client with one circuit, and its service.
type fixture struct {
	testpb.TestServiceClient
	conn    *grpc.ClientConn
	t       *testing.T
	service *service
	server  *grpc.Server
	address string
	breaker *infuse.Breaker
	group   *infuse.Group
	calls   *grpcinfuse.Interceptor
	ctx     context.Context
}

// start returns a fixture whose circuit opens after two consecutive failures, and stays
// open.
func start(t *testing.T, s *service, options ...grpcinfuse.Option) *fixture {
	return startWith(t, s, infuse.Config{}, options...)
}

func startWith(t *testing.T, s *service, cfg infuse.Config, options ...grpcinfuse.Option) *fixture {
	t.Helper()
	f := &fixture{t: t, service: s}
	f.server, f.address = serve(t, s, "127.0.0.1:0")
	cfg.FailMax, cfg.ResetTimeout, cfg.CountCalls = 2, time.Hour, true
	var err error
	f.group, err = infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(f.group.Stop)
	f.calls = grpcinfuse.New(f.group, options...)
	f.connect()
	f.breaker, err = f.group.Breaker(f.address)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	f.ctx = ctx
	return f
}

// connect gives the fixture a new connection.
func (f *fixture) connect(options ...grpc.DialOption) {
	f.t.Helper()
	f.conn = dial(f.t, f.address, f.calls, options...)
	f.TestServiceClient = testpb.NewTestServiceClient(f.conn)
}

func dial(t *testing.T, target string, calls *grpcinfuse.Interceptor, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(calls.Unary),
		grpc.WithChainStreamInterceptor(calls.Stream))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (f *fixture) call() error {
	_, err := f.EmptyCall(f.ctx, new(testpb.Empty))
	return err
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

func (f *fixture) eventually(state infuse.State) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.breaker.State() == state }, patience, time.Millisecond)
}

// requireRejected fails if err is not a rejection, and returns it.
func requireRejected(t *testing.T, err error) *infuse.OpenError {
	t.Helper()
	require.ErrorIs(t, err, infuse.ErrOpen)
	var open *infuse.OpenError
	require.ErrorAs(t, err, &open)
	require.Equal(t, codes.Unavailable, status.Code(err))
	return open
}

// codeError returns an error of a handler.
func codeError(c codes.Code) error { return status.Error(c, "unhealthy") }
