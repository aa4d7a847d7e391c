// Package grpcinfuse provides interceptors for google.golang.org/grpc. Client
// interceptors reject calls to an unhealthy service before they are sent. The circuits
// are in an [infuse.Group], and the processes of a fleet can share them.
//
//	calls := grpcinfuse.New(breakers)
//	conn, err := grpc.NewClient(target, credentials,
//		grpc.WithChainUnaryInterceptor(calls.Unary),
//		grpc.WithChainStreamInterceptor(calls.Stream))
//
// The server interceptors UnaryServer and StreamServer return Unavailable if a call of
// the handler to an upstream was rejected.
package grpcinfuse

// This file contains the client interceptors.

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Interceptor provides the interceptors of a client. Create it with New. It is safe for
// concurrent use, and may serve several connections.
//
// A rejected call is not sent. Its error has the code Unavailable, and a
// google.rpc.RetryInfo with the time until the circuit is ready for a trial, or 1 s if
// that is unknown. errors.Is(err, infuse.ErrOpen) distinguishes it from an Unavailable of
// the service, and errors.As finds the *infuse.OpenError.
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
// no message for two seconds, and is then truncated is ignored. An abandoned stream
// blocks nothing; if it was a trial, its slot is freed on cancellation or after
// Config.TrialTimeout.
//
// A trial of a half-open circuit ends earlier, because the fleet waits for it: at its
// first message, or two seconds after its headers if there was no error. If the stream
// is truncated before it is established, that counts as a failure of one more call.
//
// The interceptors count calls, not attempts: retries and hedging of gRPC happen inside
// of the interceptors. A call that succeeds at its third attempt is a success.
//
// Config.SlowCall measures a stream until it counts. Use a separate Group without
// SlowCall for streams.
//
// A call bypasses the breakers if its circuit has no valid name (see infuse.CheckName),
// if the Group is stopped, or if the Group's settings for that name are invalid.
type Interceptor struct {
	settings
	names rpc.Names
}

// settings are the settings that options change.
type settings struct {
	breakers         *infuse.Group
	circuit          func(ctx context.Context, target, method string) string
	classify         func(ctx context.Context, method string, err error) infuse.Outcome
	establishedAfter time.Duration
}

func newSettings(breakers *infuse.Group, options []Option) settings {
	if breakers == nil {
		breakers, _ = infuse.NewGroup(infuse.Config{}) // the zero Config is valid
	}
	s := settings{breakers: breakers, circuit: byTarget, classify: byCode, establishedAfter: rpc.EstablishedAfter}
	for _, option := range options {
		option(&s)
	}
	return s
}

// New returns the interceptors of a client whose circuits are in breakers. If breakers is
// nil, New creates a Group with the zero Config.
func New(breakers *infuse.Group, options ...Option) *Interceptor {
	return &Interceptor{settings: newSettings(breakers, options)}
}

// Unary is a grpc.UnaryClientInterceptor.
func (i *Interceptor) Unary(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	b := i.breaker(ctx, cc, method)
	if b == nil {
		return invoke(ctx, method, request, reply, cc, options...)
	}
	permit, err := b.Acquire(ctx)
	if err != nil {
		return rejected(err)
	}
	returned := false
	defer rpc.Guard(permit, &returned)
	err = invoke(ctx, method, request, reply, cc, options...)
	rpc.Settle(permit, i.classify(ctx, method, err), err)
	returned = true
	return err
}

// Stream is a grpc.StreamClientInterceptor.
func (i *Interceptor) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	b := i.breaker(ctx, cc, method)
	if b == nil {
		return open(ctx, desc, cc, method, options...)
	}
	attempt, err := rpc.Acquire(ctx, b)
	if err != nil {
		return nil, rejected(err)
	}
	returned := false
	defer rpc.Guard(attempt.Permit, &returned)
	from, err := open(ctx, desc, cc, method, options...)
	if err != nil {
		rpc.Settle(attempt.Permit, i.classify(ctx, method, err), err)
		returned = true
		return nil, err
	}
	returned = true
	return i.track(ctx, desc, method, from, func() rpc.Attempt { return attempt }), nil
}

// breaker returns the breaker of a call, or nil if the call bypasses it.
func (i *Interceptor) breaker(ctx context.Context, cc *grpc.ClientConn, method string) *infuse.Breaker {
	b, err := i.breakers.Breaker(i.circuit(ctx, i.target(cc), method))
	if err != nil {
		return nil
	}
	return b
}
