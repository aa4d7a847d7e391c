package connectinfuse_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
	"github.com/infuse-go/infuse/internal/breakertest"
)

// This file tests that no user code leaves a breaker stuck. Every hook panics, ends its
// goroutine, or calls the breaker, in every kind of call. Afterwards the next call, Stats
// and Stop return, and no trial slot is in use.

// hookPlace puts a hook into the settings, and returns the error of a failing call.
type hookPlace func(h *breakertest.Hook, cfg *infuse.Config, options *[]connectinfuse.Option) error

func hookPlaces() map[string]hookPlace {
	places := map[string]hookPlace{
		"a typed nil": func(*breakertest.Hook, *infuse.Config, *[]connectinfuse.Option) error {
			return (*breakertest.TextError)(nil)
		},
		"a typed nil of Connect": func(*breakertest.Hook, *infuse.Config, *[]connectinfuse.Option) error {
			return (*connect.Error)(nil)
		},
		"a typed nil in an error of Connect": func(*breakertest.Hook, *infuse.Config, *[]connectinfuse.Option) error {
			return connect.NewError(connect.CodeUnavailable, (*breakertest.TextError)(nil))
		},
		"the call": func(*breakertest.Hook, *infuse.Config, *[]connectinfuse.Option) error {
			return codeError(connect.CodeUnavailable)
		}, // the call itself runs the hook: see hookBelow
		"WithClassify": func(h *breakertest.Hook, _ *infuse.Config, options *[]connectinfuse.Option) error {
			*options = append(*options, connectinfuse.WithClassify(func(_ context.Context, _ string, err error) infuse.Outcome {
				h.Run()
				return connectinfuse.Classify(err)
			}))
			return codeError(connect.CodeUnavailable)
		},
		"WithCircuit": func(h *breakertest.Hook, _ *infuse.Config, options *[]connectinfuse.Option) error {
			*options = append(*options, connectinfuse.WithCircuit(func(_ context.Context, target, _ string) string {
				h.Run()
				return target
			}))
			return codeError(connect.CodeUnavailable)
		},
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As"} {
		places[method] = func(h *breakertest.Hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return &breakertest.HookError{Hook: h, Method: method}
		}
		places[method+" of a wrapped error"] = func(h *breakertest.Hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return fmt.Errorf("call: %w", &breakertest.HookError{Hook: h, Method: method})
		}
		places[method+" in an error of Connect"] = func(h *breakertest.Hook, _ *infuse.Config, _ *[]connectinfuse.Option) error {
			return connect.NewError(connect.CodeUnavailable, &breakertest.HookError{Hook: h, Method: method})
		}
	}
	for name := range new(breakertest.Hook).Settings() {
		places[name] = func(h *breakertest.Hook, cfg *infuse.Config, _ *[]connectinfuse.Option) error {
			h.Settings()[name](cfg)
			return codeError(connect.CodeUnavailable)
		}
	}
	return places
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

func TestNoHookLeavesABreakerStuck(t *testing.T) {
	for name, place := range hookPlaces() {
		for what, action := range breakertest.HookActions {
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
	h := new(breakertest.Hook)
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
	for _, want := range []error{(*breakertest.TextError)(nil), connect.NewError(connect.CodeUnavailable, (*breakertest.TextError)(nil))} {
		require.True(t, want == c.unary(func() error { return want }))
		require.True(t, want == c.stream("Receive", func() error { return want }))
	}
	b, err := g.Breaker("service")
	require.NoError(t, err)
	require.EqualValues(t, 4, b.Stats().Calls.Failure)
}
