// Package grpcinfuse has interceptors for google.golang.org/grpc. Those of a
// client fail a call to an unhealthy service before it is sent. The circuits are
// those of an [infuse.Group], and a fleet of processes can share them.
//
//	calls := grpcinfuse.New(breakers)
//	conn, err := grpc.NewClient(target, credentials,
//		grpc.WithChainUnaryInterceptor(calls.Unary),
//		grpc.WithChainStreamInterceptor(calls.Stream))
//
// Those of a server, UnaryServer and StreamServer, answer a call whose own
// upstream was rejected with Unavailable.
package grpcinfuse

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Interceptor has the interceptors of a client. It is safe for concurrent use,
// and may serve several connections. Make one with New.
//
// A rejected call is not sent. Its error has the code Unavailable, with a
// google.rpc.RetryInfo that says how long the circuit stays open, or a second if
// that is unknown. errors.Is(err, infuse.ErrOpen) tells it from an Unavailable of
// the service, and errors.As finds the *infuse.OpenError.
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
// a stream had headers, was silent for two seconds, and is then truncated, it is
// ignored. An abandoned stream blocks nothing; if it was a trial, its slot is
// freed on cancellation or after Config.TrialTimeout.
//
// The trial of a half-open circuit ends earlier, because the fleet waits for it:
// at its first message, or when its headers have come and nothing has gone wrong
// for two seconds. If such a stream is truncated before it is established, that
// counts as a failure of one more call.
//
// An interceptor sees calls, not attempts: gRPC's own retries and hedging happen
// below it. A call that succeeds at its third attempt is a success.
//
// Config.SlowCall measures a stream until it is settled. Give streams a Group of
// their own, without SlowCall.
//
// A call bypasses the breakers if its circuit has no valid name (see
// infuse.CheckName), if the Group is stopped, or if the Group's settings for that
// name are invalid.
type Interceptor struct {
	settings
	names rpc.Names
}

// settings is what the options change.
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

// New returns the interceptors of a client whose circuits are in breakers. If that
// is nil, they get a Group of their own with the zero Config.
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
	defer func() {
		if !returned {
			rpc.Unwound(permit, recover())
		}
	}()
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
	defer func() {
		if !returned {
			rpc.Unwound(attempt.Permit, recover())
		}
	}()
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
