// Package connectinfuse provides interceptors for connectrpc.com/connect. The client
// interceptor rejects calls to an unhealthy service before they are sent. The circuits
// are in an [infuse.Group], and the processes of a fleet can share them.
//
//	client := pingv1connect.NewPingServiceClient(http.DefaultClient, url,
//		connect.WithInterceptors(connectinfuse.New(breakers)))
//
// HandlerInterceptor, for handlers, returns Unavailable if a call of the handler to an
// upstream was rejected.
package connectinfuse

// This file contains the client interceptor.

import (
	"context"
	"net/http/httptrace"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Interceptor is a connect.Interceptor for clients of the Connect, gRPC and gRPC-Web
// protocols. Create it with New. It does nothing in a handler. It is safe for concurrent
// use, and may serve several clients.
//
// A rejected call is not sent. Its error is a *connect.Error with the code Unavailable.
// The error has a google.rpc.RetryInfo with the time until the circuit is ready for a
// trial, or 1 s if that is unknown. errors.Is(err, infuse.ErrOpen) distinguishes it from an Unavailable
// of the service, and errors.As finds the *infuse.OpenError. Send and Receive of a
// rejected stream return the error.
//
// Classify determines the outcome of a call from its code. If the outcome is a failure,
// the Config of the circuit classifies the error like Breaker.Call: a call is ignored if
// its caller cancelled it, or if its deadline had passed before it began; the Config may
// exclude more. A panic of an inner interceptor, or of a classify func, counts as a
// failure and is propagated; runtime.Goexit is ignored.
//
// A stream counts once: when its end is received, or when it is established. It is
// established two seconds after its first message. An established stream is a success,
// however it ends, because restarts of proxies also truncate healthy streams. A stream
// that ends earlier is classified like other calls. A stream that had headers, received
// no message for two seconds, and is then truncated without a code is ignored. A stream
// that its caller closes is a success after its first message, and ignored before. An
// abandoned stream blocks nothing; if it was a trial, its slot is freed on cancellation
// or after Config.TrialTimeout.
//
// A trial of a half-open circuit ends earlier, because the fleet waits for it: at its
// first message, or two seconds after its headers if there was no error. The headers are
// detected if the HTTP client supports net/http/httptrace, as *http.Client does. If the
// stream is truncated before it is established, that counts as a failure of one more
// call.
//
// Config.SlowCall measures a stream until it counts. Use a separate Group without
// SlowCall for streams.
//
// A call bypasses the breakers if its circuit has no valid name (see infuse.CheckName),
// if the Group is stopped, or if the Group's settings for that name are invalid.
type Interceptor struct {
	breakers         *infuse.Group
	circuit          func(ctx context.Context, target, procedure string) string
	classify         func(ctx context.Context, procedure string, err error) infuse.Outcome
	establishedAfter time.Duration
	names            rpc.Names
}

var _ connect.Interceptor = (*Interceptor)(nil)

// New returns an interceptor for clients whose circuits are in breakers. If breakers is
// nil, New creates a Group with the zero Config.
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
		defer rpc.Guard(permit, &returned)
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
				if ctx.Err() == context.Canceled { // the caller may not call Receive again
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

// target returns the name of the host that a client calls. The scheme is unknown, so the
// name omits the default ports of both http and https.
func (i *Interceptor) target(addr string) string {
	return i.names.Of(addr, func() string { return hostName(addr) })
}

func hostName(addr string) string { return rpc.HostName(addr, "80", "443") }
