package connectinfuse_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
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

// hookError runs its hook in one of its methods.
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

// textError is an error whose only method panics on a typed nil.
type textError struct{ text string }

func (e *textError) Error() string { return e.text }

// hookPlace puts a hook into the settings, and returns the error of a failing call.
type hookPlace func(h *hook, cfg *infuse.Config, options *[]connectinfuse.Option) error

func hookPlaces() map[string]hookPlace {
	places := map[string]hookPlace{
		"a typed nil": func(*hook, *infuse.Config, *[]connectinfuse.Option) error { return (*textError)(nil) },
		"a typed nil of Connect": func(*hook, *infuse.Config, *[]connectinfuse.Option) error {
			return (*connect.Error)(nil)
		},
		"a typed nil in an error of Connect": func(*hook, *infuse.Config, *[]connectinfuse.Option) error {
			return connect.NewError(connect.CodeUnavailable, (*textError)(nil))
		},
		"the call": func(*hook, *infuse.Config, *[]connectinfuse.Option) error { return codeError(connect.CodeUnavailable) }, // the call itself runs the hook: see hookBelow
		"Config.Classify": func(h *hook, cfg *infuse.Config, _ *[]connectinfuse.Option) error {
			cfg.Classify = func(_ context.Context, err error) infuse.Outcome {
				h.run()
				if err != nil {
					return infuse.OutcomeFailure
				}
				return infuse.OutcomeSuccess
			}
			return codeError(connect.CodeUnavailable)
		},
		"Config.Exclude": func(h *hook, cfg *infuse.Config, _ *[]connectinfuse.Option) error {
			cfg.Exclude = []func(error) bool{func(error) bool { h.run(); return false }}
			return codeError(connect.CodeUnavailable)
		},
		"WithClassify": func(h *hook, _ *infuse.Config, options *[]connectinfuse.Option) error {
			*options = append(*options, connectinfuse.WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
				h.run()
				return connectinfuse.Classify(err)
			}))
			return codeError(connect.CodeUnavailable)
		},
		"WithCircuit": func(h *hook, _ *infuse.Config, options *[]connectinfuse.Option) error {
			*options = append(*options, connectinfuse.WithCircuit(func(_ context.Context, target, _ string) string {
				h.run()
				return target
			}))
			return codeError(connect.CodeUnavailable)
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As"} {
		places[method] = func(h *hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return &hookError{h, method}
		}
		places[method+" of a wrapped error"] = func(h *hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return fmt.Errorf("call: %w", &hookError{h, method})
		}
		places[method+" in an error of Connect"] = func(h *hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return connect.NewError(connect.CodeUnavailable, &hookError{h, method})
		}
	}
	for name := range listeners(new(hook)) {
		places["Listener."+name] = func(h *hook, cfg *infuse.Config, _ *[]connectinfuse.Option) error {
			cfg.Listeners = append(cfg.Listeners, listeners(h)[name])
			return codeError(connect.CodeUnavailable)
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
		_, _ = b.State(), b.Stats()
		if p, err := b.Acquire(context.Background()); err == nil {
			p.Settle(infuse.OutcomeIgnored)
		}
	},
}

// hookBelow is an inner interceptor that replaces each call. A stream fails at one of its
// methods.
type hookBelow struct {
	call func() error
	at   string
}

func (b hookBelow) WrapUnary(connect.UnaryFunc) connect.UnaryFunc {
	return func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) {
		if err := b.call(); err != nil {
			return nil, err
		}
		return connect.NewResponse(new(bytes)), nil
	}
}

func (b hookBelow) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return hookStream{next(ctx, spec), b, httptrace.ContextClientTrace(ctx)}
	}
}

func (b hookBelow) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type hookStream struct {
	connect.StreamingClientConn
	below hookBelow
	trace *httptrace.ClientTrace
}

func (s hookStream) result(method string) error {
	if s.below.at == method {
		return s.below.call()
	}
	return nil
}

func (s hookStream) CloseRequest() error  { return s.result("CloseRequest") }
func (s hookStream) CloseResponse() error { return s.result("CloseResponse") }

func (s hookStream) Send(any) error {
	s.trace.GotFirstResponseByte()
	return s.result("Send")
}

func (s hookStream) Receive(any) error {
	if err := s.below.call(); err != nil {
		return err
	}
	return io.EOF
}

func (s hookStream) ResponseHeader() http.Header {
	if s.result("ResponseHeader") != nil {
		return nil
	}
	return http.Header{"A": {"b"}}
}

// hookClient makes calls with the interceptor, without a network.
type hookClient struct{ calls *connectinfuse.Interceptor }

func (c hookClient) client(at string, call func() error) *connect.Client[bytes, bytes] {
	return connect.NewClient[bytes, bytes](http.DefaultClient, "http://service/test.Test/Call",
		connect.WithInterceptors(c.calls, hookBelow{call, at}))
}

func (c hookClient) unary(call func() error) error {
	_, err := c.client("", call).CallUnary(context.Background(), connect.NewRequest(new(bytes)))
	return err
}

func (c hookClient) stream(at string, call func() error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	both := c.client(at, call).CallBidiStream(ctx)
	_ = both.Send(new(bytes))
	if at == "CloseRequest" {
		_ = both.CloseRequest()
	}
	if at == "ResponseHeader" {
		time.Sleep(3 * time.Second) // until the trial succeeds after its headers
	}
	var err error
	if at != "CloseResponse" {
		_, err = both.Receive()
	}
	_ = both.CloseResponse()
	return err
}

// hookWays are the kinds of calls.
var hookWays = map[string]func(c hookClient, call func() error){
	"unary": func(c hookClient, call func() error) { _ = c.unary(call) },
	"a unary handler": func(c hookClient, call func() error) {
		handle := connectinfuse.HandlerInterceptor().WrapUnary(func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) {
			return nil, c.unary(call)
		})
		_, _ = handle(context.Background(), connect.NewRequest(new(bytes)))
	},
	"a stream's handler": func(c hookClient, call func() error) {
		handle := connectinfuse.HandlerInterceptor().WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error {
			return c.stream("Receive", call)
		})
		_ = handle(context.Background(), nil)
	},
}

func init() {
	for _, at := range []string{"Send", "Receive", "CloseRequest", "CloseResponse", "ResponseHeader"} {
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

func TestNoHookLeavesABreakerStuck(t *testing.T) {
	for name, place := range hookPlaces() {
		for what, action := range hookActions {
			for way, call := range hookWays {
				for _, shared := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s %s, %s, shared=%t", name, what, way, shared), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { testHook(t, name, place, action, call, shared) })
					})
				}
			}
		}
	}
}

func testHook(t *testing.T, name string, place hookPlace, action func(*infuse.Breaker), call func(hookClient, func() error), shared bool) {
	h := new(hook)
	cfg := infuse.Config{FailMax: 2, ResetTimeout: time.Second, TrialTimeout: time.Hour}
	if shared {
		cfg.Storage = infuse.NewMemoryStorage()
	}
	options := []connectinfuse.Option{connectinfuse.WithFailures(connect.CodeUnavailable, connect.CodeUnknown)}
	fault := place(h, &cfg, &options)
	g, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	b, err := g.Breaker("service")
	require.NoError(t, err)
	c := hookClient{connectinfuse.New(g, options...)}
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
		require.Error(t, c.unary(func() error { return codeError(connect.CodeUnavailable) }))
	}
	requireRejected(t, c.unary(func() error { return nil }))
	time.Sleep(time.Second)
	require.NoError(t, c.unary(func() error { return nil }))
	require.NoError(t, c.unary(func() error { return nil }))
	require.Equal(t, infuse.StateClosed, b.State())
	g.Stop()
}

// Classifying an error of Connect panicked if the wrapped error was a typed nil.
func TestTypedNilErrorReachesTheCaller(t *testing.T) {
	g, err := infuse.NewGroup(infuse.Config{CountCalls: true, FailMax: 10})
	require.NoError(t, err)
	defer g.Stop()
	c := hookClient{connectinfuse.New(g, connectinfuse.WithFailures(connect.CodeUnknown, connect.CodeUnavailable))}
	for _, want := range []error{(*textError)(nil), connect.NewError(connect.CodeUnavailable, (*textError)(nil))} {
		require.True(t, want == c.unary(func() error { return want }))
		require.True(t, want == c.stream("Receive", func() error { return want }))
	}
	b, err := g.Breaker("service")
	require.NoError(t, err)
	require.EqualValues(t, 4, b.Stats().Calls.Failure)
}
