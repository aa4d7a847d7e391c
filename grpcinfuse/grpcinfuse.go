// Package grpcinfuse has client interceptors for google.golang.org/grpc that
// fail a call to an unhealthy service before it is sent. The circuits are those
// of an [infuse.Group], and so a fleet of processes can share them.
//
//	calls := grpcinfuse.New(breakers)
//	conn, err := grpc.NewClient(target, credentials,
//		grpc.WithChainUnaryInterceptor(calls.Unary),
//		grpc.WithChainStreamInterceptor(calls.Stream))
package grpcinfuse

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/infuse-go/infuse"
)

// Interceptor has the interceptors of a client. It is safe for concurrent use,
// and may serve several connections. Make one with New.
//
// A rejected call is not sent. Its error has the code Unavailable, with a
// google.rpc.RetryInfo that says how long the circuit stays open, or a second
// where that is not known. errors.Is(err, infuse.ErrOpen) tells it from an
// Unavailable of the service, and errors.As finds the *infuse.OpenError.
//
// A call is classified by its code: see Classify. What that takes for a failure
// is then classified as by Breaker.Call, by the Config of the circuit: that
// ignores a call which its caller has cancelled or whose deadline had passed
// before it began, and may exclude more.
//
// A stream is settled once, when it ends for its caller, or when it has proved
// itself: when it has brought a message, and two seconds have passed since the
// first. From then on it is a success, and how it ends counts for nothing: a
// proxy that restarts cuts streams, too. Before that its end is classified as that
// of any call. A stream whose headers came and that has been silent is no
// failure if it breaks off after two seconds: that counts for nothing. One that
// its caller leaves alone holds nothing back, a trial no longer than until its
// context is cancelled or Config.TrialTimeout has passed.
//
// Only the trial of a half-open circuit ends before, so that a stream does not
// keep the fleet waiting: at the first message, or when the headers have come
// and nothing has gone wrong for two seconds. If the stream breaks off later
// without having proved itself, that counts as a failure of one more call.
//
// An interceptor sees calls and not attempts: gRPC's own retries and hedging,
// as a service config asks for them, happen below it. So a call that succeeds
// at its third attempt is a success.
//
// Config.SlowCall measures a stream until it is settled, so that streams want a
// Group of their own without it.
//
// A call goes past the breakers when its circuit has no valid name (see
// infuse.CheckName), when the Group is stopped, or when the Group's settings for
// that name are invalid.
type Interceptor struct {
	breakers *infuse.Group
	circuit  func(ctx context.Context, target, method string) string
	classify func(ctx context.Context, method string, err error) infuse.Outcome
	proof    time.Duration
	last     atomic.Pointer[targetName]
}

// targetName is the name of a target, which need not be made for each call.
type targetName struct{ target, name string }

// provedAfter is how long a stream must have lived to have proved itself, as a
// response has in the Transport of the root package.
const provedAfter = 2 * time.Second

// New returns the interceptors for a client whose circuits are in breakers.
// nil stands for a Group of their own with the zero Config.
func New(breakers *infuse.Group, options ...Option) *Interceptor {
	if breakers == nil {
		breakers, _ = infuse.NewGroup(infuse.Config{}) // the zero Config is valid
	}
	i := &Interceptor{breakers: breakers, circuit: byTarget, classify: byCode, proof: provedAfter}
	for _, option := range options {
		option(i)
	}
	return i
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
	defer permit.Settle(infuse.OutcomeIgnored) // if an interceptor below panics
	err = invoke(ctx, method, request, reply, cc, options...)
	settle(permit, i.classify(ctx, method, err), err)
	return err
}

// Stream is a grpc.StreamClientInterceptor.
func (i *Interceptor) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	b := i.breaker(ctx, cc, method)
	if b == nil {
		return open(ctx, desc, cc, method, options...)
	}
	permit, err := b.Acquire(ctx)
	if err != nil {
		return nil, rejected(err)
	}
	returned := false
	defer func() {
		if !returned { // an interceptor below panics
			permit.Settle(infuse.OutcomeIgnored)
		}
	}()
	trial := b.State() != infuse.StateClosed // nothing else is let in
	from, err := open(ctx, desc, cc, method, options...)
	returned = true
	if err != nil {
		settle(permit, i.classify(ctx, method, err), err)
		return nil, err
	}
	s := &stream{ClientStream: from, trial: trial, oneAnswer: !desc.ServerStreams}
	s.classify = func(err error) infuse.Outcome { return i.classify(ctx, method, err) }
	s.life = life{ctx: ctx, breaker: b, permit: permit, proof: i.proof, opened: time.Now()}
	if trial {
		go s.try()
	}
	return s, nil
}

// breaker returns the breaker of a call; nil if the call goes past it.
func (i *Interceptor) breaker(ctx context.Context, cc *grpc.ClientConn, method string) *infuse.Breaker {
	b, err := i.breakers.Breaker(i.circuit(ctx, i.target(cc), method))
	if err != nil {
		return nil
	}
	return b
}

// settle settles a permit by a verdict. A failure keeps its error: it is what an
// OpenError names as its Cause.
func settle(permit infuse.Permit, outcome infuse.Outcome, err error) {
	if outcome == infuse.OutcomeFailure && err != nil {
		permit.Done(err)
	} else {
		permit.Settle(outcome)
	}
}
