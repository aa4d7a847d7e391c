package grpcinfuse_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
	"github.com/infuse-go/infuse/internal/breakertest"
)

// This file tests that no user code leaves a breaker stuck. Every hook panics, ends its
// goroutine, or calls the breaker, in every kind of call. Afterwards the next call, Stats
// and Stop return, and no trial slot is in use.

// codedError is a HookError with a status.
type codedError struct{ *breakertest.HookError }

func (e codedError) GRPCStatus() *status.Status {
	e.In("GRPCStatus")
	return status.New(codes.Unavailable, "unavailable")
}

// hookPlace puts a hook into the settings, and returns the error of a failing call.
type hookPlace func(h *breakertest.Hook, cfg *infuse.Config, options *[]grpcinfuse.Option) error

func hookPlaces() map[string]hookPlace {
	places := map[string]hookPlace{
		"a typed nil": func(*breakertest.Hook, *infuse.Config, *[]grpcinfuse.Option) error {
			return (*breakertest.TextError)(nil)
		},
		"a typed nil with a status": func(*breakertest.Hook, *infuse.Config, *[]grpcinfuse.Option) error {
			return (*statusOver)(nil)
		},
		"the call": func(*breakertest.Hook, *infuse.Config, *[]grpcinfuse.Option) error {
			return codeError(codes.Unavailable)
		}, // the call itself runs the hook: see hookWays
		"WithClassify": func(h *breakertest.Hook, _ *infuse.Config, options *[]grpcinfuse.Option) error {
			*options = append(*options, grpcinfuse.WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
				h.Run()
				return grpcinfuse.Classify(err)
			}))
			return codeError(codes.Unavailable)
		},
		"WithCircuit": func(h *breakertest.Hook, _ *infuse.Config, options *[]grpcinfuse.Option) error {
			*options = append(*options, grpcinfuse.WithCircuit(func(_ context.Context, target, _ string) string {
				h.Run()
				return target
			}))
			return codeError(codes.Unavailable)
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As", "GRPCStatus"} {
		places[method] = func(h *breakertest.Hook, _ *infuse.Config, _ *[]grpcinfuse.Option) error {
			return codedError{&breakertest.HookError{Hook: h, Method: method}}
		}
		places[method+" of a wrapped error"] = func(h *breakertest.Hook, _ *infuse.Config, _ *[]grpcinfuse.Option) error {
			return fmt.Errorf("call: %w", codedError{&breakertest.HookError{Hook: h, Method: method}})
		}
	}
	for name := range new(breakertest.Hook).Settings() {
		places[name] = func(h *breakertest.Hook, cfg *infuse.Config, _ *[]grpcinfuse.Option) error {
			h.Settings()[name](cfg)
			return codeError(codes.Unavailable)
		}
	}
	return places
}

// hookStream is a stream whose methods run a hook and return an error.
type hookStream struct {
	call func() error
	at   string // the method that fails first
}

func (s hookStream) result(method string) error {
	if s.at == method {
		return s.call()
	}
	return nil
}

func (s hookStream) Trailer() metadata.MD     { return nil }
func (s hookStream) Context() context.Context { return context.Background() }
func (s hookStream) CloseSend() error         { return s.result("CloseSend") }
func (s hookStream) SendMsg(any) error        { return s.result("SendMsg") }
func (s hookStream) Header() (metadata.MD, error) {
	return metadata.MD{}, s.result("Header")
}

func (s hookStream) RecvMsg(any) error {
	if s.at != "Message" {
		if err := s.call(); err != nil {
			return err
		}
	}
	return io.EOF
}

// hookClient makes calls with the interceptors, which call runs in place of gRPC.
type hookClient struct {
	calls *grpcinfuse.Interceptor
	conn  *grpc.ClientConn
}

func (c hookClient) unary(call func() error) error {
	return c.calls.Unary(context.Background(), "/test/Unary", nil, nil, c.conn,
		func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return call() })
}

// stream makes a streaming call that fails at a method, or when it is opened.
func (c hookClient) stream(at string, call func() error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := c.calls.Stream(ctx, &grpc.StreamDesc{ServerStreams: true}, c.conn, "/test/Stream",
		func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
			if at == "open" {
				if err := call(); err != nil {
					return nil, err
				}
			}
			return hookStream{call, at}, nil
		})
	if err != nil {
		return err
	}
	switch at {
	case "SendMsg":
		_ = s.SendMsg(nil)
	case "Header":
		_, _ = s.Header()
	case "CloseSend":
		_ = s.CloseSend()
	}
	return s.RecvMsg(nil)
}

// hookWays are the kinds of calls.
var hookWays = map[string]func(c hookClient, call func() error){
	"unary": func(c hookClient, call func() error) { _ = c.unary(call) },
	"a unary server": func(c hookClient, call func() error) {
		_, err := grpcinfuse.UnaryServer(context.Background(), nil, nil,
			func(context.Context, any) (any, error) { return nil, c.unary(call) })
		grpcinfuse.Status(err)
	},
	"a stream's server": func(c hookClient, call func() error) {
		grpcinfuse.Status(grpcinfuse.StreamServer(nil, nil, nil,
			func(any, grpc.ServerStream) error { return c.stream("RecvMsg", call) }))
	},
}

func init() {
	for _, at := range []string{"open", "SendMsg", "RecvMsg", "Header", "CloseSend"} {
		hookWays["a stream, "+at] = func(c hookClient, call func() error) { _ = c.stream(at, call) }
	}
}

// lazyConn is a connection that is never used.
func lazyConn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("service:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestNoHookLeavesABreakerStuck(t *testing.T) {
	conn := lazyConn(t)
	for name, place := range hookPlaces() {
		for what, action := range breakertest.HookActions {
			for way, call := range hookWays {
				for _, shared := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s %s, %s, shared=%t", name, what, way, shared), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { testHook(t, conn, name, place, action, call, shared) })
					})
				}
			}
		}
	}
}

func testHook(t *testing.T, conn *grpc.ClientConn, name string, place hookPlace, action func(*infuse.Breaker), call func(hookClient, func() error), shared bool) {
	h := new(breakertest.Hook)
	cfg := infuse.Config{FailMax: 2, ResetTimeout: time.Second, TrialTimeout: time.Hour}
	if shared {
		cfg.Storage = infuse.NewMemoryStorage()
	}
	options := []grpcinfuse.Option{grpcinfuse.WithFailures(codes.Unavailable, codes.Unknown)}
	fault := place(h, &cfg, &options)
	g, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	b, err := g.Breaker("service:1")
	require.NoError(t, err)
	c := hookClient{grpcinfuse.New(g, options...), conn}
	result := func(err error) func() error {
		return func() error {
			if name == "the call" {
				h.Run()
			}
			return err
		}
	}
	fails, succeeds := result(fault), result(nil)
	h.Set(b, action)
	for range 4 { // open the circuit, then are rejected
		breakertest.Apart(func() { call(c, fails) })
	}
	for _, result := range []func() error{fails, succeeds} { // trials
		breakertest.Apart(func() { _ = b.SetState(context.Background(), infuse.StateHalfOpen) })
		breakertest.Apart(func() { call(c, result) })
	}
	breakertest.Apart(func() { b.Stats() })
	h.Set(b, nil)
	time.Sleep(3 * time.Second) // longer than ResetTimeout, and than a stream takes to be established
	synctest.Wait()
	for range 5 {
		breakertest.Apart(func() { _ = c.unary(func() error { return nil }) })
		time.Sleep(2 * time.Second)
	}
	require.Equal(t, infuse.StateClosed, b.State(), "a trial slot is taken")

	breakertest.Apart(func() { _ = b.SetState(context.Background(), infuse.StateClosed) })
	require.Equal(t, infuse.StateClosed, b.State())
	for range 2 {
		require.Error(t, c.unary(func() error { return codeError(codes.Unavailable) }))
	}
	requireRejected(t, c.unary(func() error { return nil }))
	time.Sleep(time.Second)
	require.NoError(t, c.unary(func() error { return nil }))
	require.NoError(t, c.unary(func() error { return nil }))
	require.Equal(t, infuse.StateClosed, b.State())
	g.Stop()
}

// Classifying a typed nil panicked, because that called its Error.
func TestTypedNilErrorReachesTheCaller(t *testing.T) {
	g, err := infuse.NewGroup(infuse.Config{CountCalls: true, FailMax: 10})
	require.NoError(t, err)
	defer g.Stop()
	c := hookClient{grpcinfuse.New(g, grpcinfuse.WithFailures(codes.Unknown)), lazyConn(t)}
	fault := error((*breakertest.TextError)(nil))
	for _, wraps := range []bool{false, true} {
		want := fault
		if wraps {
			want = &statusless{fault}
		}
		require.True(t, want == c.unary(func() error { return want }))
		require.True(t, want == c.stream("open", func() error { return want }))
		require.True(t, want == c.stream("RecvMsg", func() error { return want }))
	}
	b, err := g.Breaker("service:1")
	require.NoError(t, err)
	require.EqualValues(t, 6, b.Stats().Calls.Failure)
}

// statusless wraps an error, and has its text.
type statusless struct{ error }

func (s *statusless) Unwrap() error { return s.error }

// Config.Classify also panicked, in a goroutine without recover, and the process ended.
func TestPanicAfterATrialIsNotClassified(t *testing.T) {
	conn := lazyConn(t)
	synctest.Test(t, func(t *testing.T) {
		g, err := infuse.NewGroup(infuse.Config{CountCalls: true, Classify: func(context.Context, error) infuse.Outcome { panic("a hook") }})
		require.NoError(t, err)
		defer g.Stop()
		b, err := g.Breaker("service:1")
		require.NoError(t, err)
		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		calls := grpcinfuse.New(g)
		headers := make(chan struct{})
		s, err := calls.Stream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, conn, "/test/Stream",
			func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
				return lateHeaders{hookStream{at: "Message"}, headers}, nil
			})
		require.NoError(t, err)
		require.NoError(t, s.RecvMsg(nil)) // the trial has succeeded
		close(headers)
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Calls.Success)
		require.EqualValues(t, 1, b.Stats().Calls.Failure)
	})
}

// lateHeaders is a stream with a message, and with a panic in place of headers.
type lateHeaders struct {
	hookStream
	headers chan struct{}
}

func (s lateHeaders) RecvMsg(any) error { return nil }

func (s lateHeaders) Header() (metadata.MD, error) {
	<-s.headers
	panic("below")
}

// Backends runs hooks in a picker of gRPC and in its own goroutines.
func TestNoHookLeavesABackendStuck(t *testing.T) {
	places := hookPlaces()
	ways := map[string]func(*several){
		"unary": func(s *several) { _ = s.call() },
		"a stream": func(s *several) {
			ctx, cancel := context.WithCancel(s.ctx)
			defer cancel()
			if from, err := s.StreamingOutputCall(ctx, new(question)); err == nil {
				_, _ = from.Recv()
			}
		},
	}
	for _, name := range []string{"Config.Classify", "Config.Exclude", "WithClassify", "WithCircuit",
		"Listener.BeforeCall", "Listener.Success", "Listener.Failure", "Listener.Ignored", "Listener.Rejected", "Listener.StateChange"} {
		for what, action := range breakertest.HookActions {
			for way, call := range ways {
				t.Run(name+" "+what+", "+way, func(t *testing.T) { testBackendHook(t, places[name], action, call) })
			}
		}
	}
}

func testBackendHook(t *testing.T, place hookPlace, action func(*infuse.Breaker), call func(*several)) {
	h := new(breakertest.Hook)
	cfg := infuse.Config{ResetTimeout: 20 * time.Millisecond, TrialTimeout: time.Hour}
	var options []grpcinfuse.Option
	place(h, &cfg, &options)
	s := startSeveral(t, cfg, "", options...)
	unhealthy := func(is bool) {
		for _, m := range s.backends {
			m.unhealthy.Store(is)
		}
	}
	h.Set(s.breaker(s.backends[0]), action)
	unhealthy(true)
	for range 12 { // open the circuits, then are rejected
		breakertest.Apart(func() { call(s) })
	}
	for _, is := range []bool{true, false} {
		unhealthy(is)
		for _, m := range s.backends {
			breakertest.Apart(func() { s.setState(m, infuse.StateHalfOpen) })
		}
		for range s.backends { // trials
			breakertest.Apart(func() { call(s) })
		}
	}
	h.Set(nil, nil)

	for _, m := range s.backends {
		b := s.breaker(m)
		b.Stats()
		require.Eventually(t, func() bool { // no trial slot is in use
			_ = s.call()
			return b.State() == infuse.StateClosed
		}, patience, time.Millisecond)
	}
	require.NoError(t, s.call())
	s.group.Stop()
}
