// Package connectinfuse has interceptors for connectrpc.com/connect. That of a
// client fails a call to an unhealthy service before it is sent. The circuits are
// those of an [infuse.Group], and a fleet of processes can share them.
//
//	client := pingv1connect.NewPingServiceClient(http.DefaultClient, url,
//		connect.WithInterceptors(connectinfuse.New(breakers)))
//
// That of a handler, HandlerInterceptor, answers a call whose own upstream was
// rejected with Unavailable.
package connectinfuse

import (
	"context"
	"net/http/httptrace"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Interceptor is a connect.Interceptor for clients of the Connect, gRPC and
// gRPC-Web protocols. It does nothing in a handler. It is safe for concurrent
// use, and may serve several clients. Make one with New.
//
// A rejected call is not sent. Its error is a *connect.Error with the code
// Unavailable and a google.rpc.RetryInfo that says how long the circuit stays
// open, or a second if that is unknown. errors.Is(err, infuse.ErrOpen) tells it
// from an Unavailable of the service, and errors.As finds the *infuse.OpenError. A
// rejected stream returns the error from its first Send and Receive.
//
// A call is classified by its code: see Classify. A failure is then classified by
// the Config of the circuit, as by Breaker.Call: a call is ignored if its caller
// has cancelled it or if its deadline had passed before it began, and the Config
// may exclude more. A panic of an interceptor below, or of a classify of yours,
// counts as a failure and goes on to the caller; runtime.Goexit is ignored.
//
// A stream is settled once: when it ends for its caller, or when it is
// established. It is established two seconds after its first message. From then
// on it is a success, however it ends, because a restart of a proxy truncates
// healthy streams, too. A stream that ends earlier is classified as any call. If
// a stream had headers, was silent for two seconds, and is then truncated without
// a code, it is ignored. A stream that its caller closes is a success if a message
// has come, and ignored if not. An abandoned stream blocks nothing; if it was a
// trial, its slot is freed on cancellation or after Config.TrialTimeout.
//
// The trial of a half-open circuit ends earlier, because the fleet waits for it:
// at its first message, or when its headers have come and nothing has gone wrong
// for two seconds. The headers are seen if the client's HTTP client supports
// net/http/httptrace, as one of net/http does. If such a stream is truncated before
// it is established, that counts as a failure of one more call.
//
// Config.SlowCall measures a stream until it is settled. Give streams a Group of
// their own, without SlowCall.
//
// A call bypasses the breakers if its circuit has no valid name (see
// infuse.CheckName), if the Group is stopped, or if the Group's settings for that
// name are invalid.
type Interceptor struct {
	breakers         *infuse.Group
	circuit          func(ctx context.Context, target, procedure string) string
	classify         func(ctx context.Context, procedure string, err error) infuse.Outcome
	establishedAfter time.Duration
	names            rpc.Names
}

var _ connect.Interceptor = (*Interceptor)(nil)

// New returns the interceptor for clients whose circuits are in breakers. If that
// is nil, it gets a Group of its own with the zero Config.
func New(breakers *infuse.Group, options ...Option) *Interceptor {
	if breakers == nil {
		breakers, _ = infuse.NewGroup(infuse.Config{}) // the zero Config is valid
	}
	i := &Interceptor{breakers: breakers, circuit: byTarget, classify: byCode, establishedAfter: rpc.EstablishedAfter}
	for _, option := range options {
		option(i)
	}
	return i
}

// WrapUnary implements connect.Interceptor.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if !request.Spec().IsClient {
			return next(ctx, request)
		}
		procedure := request.Spec().Procedure
		b := i.breaker(ctx, request.Peer(), procedure)
		if b == nil {
			return next(ctx, request)
		}
		permit, err := b.Acquire(ctx)
		if err != nil {
			return nil, rejected(err)
		}
		returned := false
		defer func() {
			if !returned {
				rpc.Unwound(permit, recover())
			}
		}()
		response, err := next(ctx, request)
		rpc.Settle(permit, i.classify(ctx, procedure, err), err)
		returned = true
		return response, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (i *Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		s := new(stream)
		conn := next(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: s.gotHeaders}), spec)
		b := i.breaker(ctx, conn.Peer(), spec.Procedure)
		if b == nil {
			return conn
		}
		attempt, err := rpc.Acquire(ctx, b) // nothing is sent before the first Send
		if err != nil {
			return &rejectedStream{conn, rejected(err)}
		}
		s.StreamingClientConn = conn
		s.classify = func(err error) infuse.Outcome { return i.classify(ctx, spec.Procedure, err) }
		s.establishedAfter, s.trial = i.establishedAfter, attempt.Trial
		s.tracker.Start(ctx, i.establishedAfter, func() rpc.Attempt { return attempt })
		if s.trial {
			s.unwatch = context.AfterFunc(ctx, func() {
				if ctx.Err() == context.Canceled { // the caller may not receive the end
					s.tracker.Cancelled()
				}
			})
		}
		return s
	}
}

// WrapStreamingHandler implements connect.Interceptor: it returns next.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// breaker returns the breaker of a call, or nil if the call bypasses it.
func (i *Interceptor) breaker(ctx context.Context, peer connect.Peer, procedure string) *infuse.Breaker {
	b, err := i.breakers.Breaker(i.circuit(ctx, i.target(peer.Addr), procedure))
	if err != nil {
		return nil
	}
	return b
}

// target returns the name of the host that a client calls. The scheme is unknown,
// so that it has the default ports of neither.
func (i *Interceptor) target(addr string) string {
	return i.names.Of(addr, func() string { return hostName(addr) })
}

func hostName(addr string) string { return rpc.HostName(addr, "80", "443") }
