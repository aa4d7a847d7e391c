// Package connectinfuse has a client interceptor for connectrpc.com/connect
// that fails a call to an unhealthy service before it is sent. The circuits are
// those of an [infuse.Group], and so a fleet of processes can share them.
//
//	client := pingv1connect.NewPingServiceClient(http.DefaultClient, url,
//		connect.WithInterceptors(connectinfuse.New(breakers)))
package connectinfuse

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/infuse-go/infuse"
)

// Interceptor is a connect.Interceptor for clients of the Connect, gRPC and
// gRPC-Web protocols. Handlers pass through it. It is safe for concurrent use,
// and may serve several clients. Make one with New.
//
// A rejected call is not sent. Its error is a *connect.Error with the code
// Unavailable and a google.rpc.RetryInfo that says how long the circuit stays
// open, or a second where that is not known. errors.Is(err, infuse.ErrOpen)
// tells it from an Unavailable of the service, and errors.As finds the
// *infuse.OpenError. A rejected stream says so at its first Send and Receive.
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
// failure if it breaks off after two seconds without a code: that counts for
// nothing. Where its caller closes it, it is a success if a message has come, and
// ignored if not. One that its caller leaves alone holds nothing back, a trial no
// longer than until its context is cancelled or Config.TrialTimeout has passed.
//
// Only the trial of a half-open circuit ends before, so that a stream does not
// keep the fleet waiting: at the first message, or when headers have come and
// nothing has gone wrong for two seconds. The headers are known where the
// client's HTTP client heeds net/http/httptrace, as one of net/http does. If the
// stream breaks off later without having proved itself, that counts as a failure
// of one more call.
//
// Config.SlowCall measures a stream until it is settled, so that streams want a
// Group of their own without it.
//
// A call goes past the breakers when its circuit has no valid name (see
// infuse.CheckName), when the Group is stopped, or when the Group's settings for
// that name are invalid.
type Interceptor struct {
	breakers *infuse.Group
	circuit  func(ctx context.Context, target, procedure string) string
	classify func(ctx context.Context, procedure string, err error) infuse.Outcome
	proof    time.Duration
	last     atomic.Pointer[targetName]
}

var _ connect.Interceptor = (*Interceptor)(nil)

// targetName is the name of a target, which need not be made for each call.
type targetName struct{ target, name string }

// provedAfter is how long a stream must have lived to have proved itself, as a
// response has in the Transport of the root package.
const provedAfter = 2 * time.Second

// New returns the interceptor for clients whose circuits are in breakers. nil
// stands for a Group of its own with the zero Config.
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
		defer permit.Settle(infuse.OutcomeIgnored) // if an interceptor below panics
		response, err := next(ctx, request)
		settle(permit, i.classify(ctx, procedure, err), err)
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
		permit, err := b.Acquire(ctx) // nothing is sent before the first Send
		if err != nil {
			return &rejectedStream{conn, rejected(err)}
		}
		s.StreamingClientConn = conn
		s.classify = func(err error) infuse.Outcome { return i.classify(ctx, spec.Procedure, err) }
		s.trial = b.State() != infuse.StateClosed // nothing else is let in
		s.life = life{ctx: ctx, breaker: b, permit: permit, proof: i.proof, opened: time.Now()}
		if s.trial {
			s.watch()
		}
		return s
	}
}

// WrapStreamingHandler implements connect.Interceptor: it returns next.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// breaker returns the breaker of a call; nil if the call goes past it.
func (i *Interceptor) breaker(ctx context.Context, peer connect.Peer, procedure string) *infuse.Breaker {
	b, err := i.breakers.Breaker(i.circuit(ctx, i.target(peer.Addr), procedure))
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
