package grpcinfuse_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
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
)

// This file tests that no user code leaves a breaker stuck. Every hook panics, ends its
// goroutine, or calls the breaker, in every kind of call. Afterwards the next call, Stats
// and Stop return, and no trial slot is in use.

// hook is user code that the interceptors run.
type hook struct {
	breaker atomic.Pointer[infuse.Breaker]
	action  atomic.Pointer[func(*infuse.Breaker)]
	runs    atomic.Bool // true while the hook runs: it is not re-entrant
}

func (h *hook) set(b *infuse.Breaker, action func(*infuse.Breaker)) {
	h.breaker.Store(b)
	h.action.Store(&action)
}

func (h *hook) run() {
	if action := h.action.Load(); action != nil && *action != nil && h.runs.CompareAndSwap(false, true) {
		defer h.runs.Store(false)
		(*action)(h.breaker.Load())
	}
}

// hookError is an Unavailable that runs its hook in one of its methods.
type hookError struct {
	*hook
	method string
}

func (e *hookError) in(method string) {
	if e.method == method {
		e.run()
	}
}

func (e *hookError) Error() string { e.in("Error"); return "unavailable" }
func (e *hookError) Unwrap() error { e.in("Unwrap"); return nil }
func (e *hookError) Is(error) bool { e.in("Is"); return false }
func (e *hookError) As(any) bool   { e.in("As"); return false }

// codedError is a hookError with a status.
type codedError struct{ *hookError }

func (e codedError) GRPCStatus() *status.Status {
	e.in("GRPCStatus")
	return status.New(codes.Unavailable, "unavailable")
}

// textError is an error whose only method panics on a typed nil.
type textError struct{ text string }

func (e *textError) Error() string { return e.text }

// hookPlace puts a hook into the settings, and returns the error of a failing call.
type hookPlace func(h *hook, cfg *infuse.Config, options *[]grpcinfuse.Option) error

func hookPlaces() map[string]hookPlace {
	places := map[string]hookPlace{
		"a typed nil": func(*hook, *infuse.Config, *[]grpcinfuse.Option) error { return (*textError)(nil) },
		"a typed nil with a status": func(*hook, *infuse.Config, *[]grpcinfuse.Option) error {
			return (*statusOver)(nil)
		},
		"the call": func(*hook, *infuse.Config, *[]grpcinfuse.Option) error { return codeError(codes.Unavailable) }, // the call itself runs the hook: see hookWays
		"Config.Classify": func(h *hook, cfg *infuse.Config, _ *[]grpcinfuse.Option) error {
			cfg.Classify = func(_ context.Context, err error) infuse.Outcome {
				h.run()
				if err != nil {
					return infuse.OutcomeFailure
				}
				return infuse.OutcomeSuccess
			}
			return codeError(codes.Unavailable)
		},
		"Config.Exclude": func(h *hook, cfg *infuse.Config, _ *[]grpcinfuse.Option) error {
			cfg.Exclude = []func(error) bool{func(error) bool { h.run(); return false }}
			return codeError(codes.Unavailable)
		},
		"WithClassify": func(h *hook, _ *infuse.Config, options *[]grpcinfuse.Option) error {
			*options = append(*options, grpcinfuse.WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
				h.run()
				return grpcinfuse.Classify(err)
			}))
			return codeError(codes.Unavailable)
		},
		"WithCircuit": func(h *hook, _ *infuse.Config, options *[]grpcinfuse.Option) error {
			*options = append(*options, grpcinfuse.WithCircuit(func(_ context.Context, target, _ string) string {
				h.run()
				return target
			}))
			return codeError(codes.Unavailable)
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As", "GRPCStatus"} {
		places[method] = func(h *hook, _ *infuse.Config, _ *[]grpcinfuse.Option) error {
			return codedError{&hookError{h, method}}
		}
		places[method+" of a wrapped error"] = func(h *hook, _ *infuse.Config, _ *[]grpcinfuse.Option) error {
			return fmt.Errorf("call: %w", codedError{&hookError{h, method}})
		}
	}
	for name := range listeners(new(hook)) {
		places["Listener."+name] = func(h *hook, cfg *infuse.Config, _ *[]grpcinfuse.Option) error {
			cfg.Listeners = append(cfg.Listeners, listeners(h)[name])
			return codeError(codes.Unavailable)
		}
	}
	return places
}

func listeners(h *hook) map[string]*infuse.Listener {
	return map[string]*infuse.Listener{
		"BeforeCall":  {BeforeCall: func(context.Context, *infuse.Breaker) { h.run() }},
		"Success":     {Success: func(context.Context, *infuse.Breaker) { h.run() }},
		"Failure":     {Failure: func(context.Context, *infuse.Breaker, error) { h.run() }},
		"Ignored":     {Ignored: func(context.Context, *infuse.Breaker, error) { h.run() }},
		"Rejected":    {Rejected: func(context.Context, *infuse.Breaker, *infuse.OpenError) { h.run() }},
		"StateChange": {StateChange: func(*infuse.Breaker, infuse.Transition) { h.run() }},
	}
}

// hookActions are the misbehaviours of user code.
var hookActions = map[string]func(*infuse.Breaker){
	"panics":             func(*infuse.Breaker) { panic("a hook") },
	"ends the goroutine": func(*infuse.Breaker) { runtime.Goexit() },
	"calls back": func(b *infuse.Breaker) {
		if b == nil { // the breaker is created in the background
			return
		}
		_, _ = b.State(), b.Stats()
		if p, err := b.Acquire(context.Background()); err == nil {
			p.Settle(infuse.OutcomeIgnored)
		}
	},
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

// apart runs do in a goroutine, recovers its panic, and waits for it.
func apart(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		do()
	}()
	<-done
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
		for what, action := range hookActions {
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
	h := new(hook)
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
				h.run()
			}
			return err
		}
	}
	fails, succeeds := result(fault), result(nil)
	h.set(b, action)
	for range 4 { // open the circuit, then are rejected
		apart(func() { call(c, fails) })
	}
	for _, result := range []func() error{fails, succeeds} { // trials
		apart(func() { _ = b.SetState(context.Background(), infuse.StateHalfOpen) })
		apart(func() { call(c, result) })
	}
	apart(func() { b.Stats() })
	h.set(b, nil)
	time.Sleep(3 * time.Second) // longer than ResetTimeout, and than a stream takes to be established
	synctest.Wait()
	for range 5 {
		apart(func() { _ = c.unary(func() error { return nil }) })
		time.Sleep(2 * time.Second)
	}
	require.Equal(t, infuse.StateClosed, b.State(), "a trial slot is taken")

	apart(func() { _ = b.SetState(context.Background(), infuse.StateClosed) })
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
	fault := error((*textError)(nil))
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
		for what, action := range hookActions {
			for way, call := range ways {
				t.Run(name+" "+what+", "+way, func(t *testing.T) { testBackendHook(t, places[name], action, call) })
			}
		}
	}
}

func testBackendHook(t *testing.T, place hookPlace, action func(*infuse.Breaker), call func(*several)) {
	h := new(hook)
	cfg := infuse.Config{ResetTimeout: 20 * time.Millisecond, TrialTimeout: time.Hour}
	var options []grpcinfuse.Option
	place(h, &cfg, &options)
	s := startSeveral(t, cfg, "", options...)
	unhealthy := func(is bool) {
		for _, m := range s.backends {
			m.unhealthy.Store(is)
		}
	}
	h.set(s.breaker(s.backends[0]), action)
	unhealthy(true)
	for range 12 { // open the circuits, then are rejected
		apart(func() { call(s) })
	}
	for _, is := range []bool{true, false} {
		unhealthy(is)
		for _, m := range s.backends {
			apart(func() { s.setState(m, infuse.StateHalfOpen) })
		}
		for range s.backends { // trials
			apart(func() { call(s) })
		}
	}
	h.set(nil, nil)

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
