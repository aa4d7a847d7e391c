package grpcinfuse

// This file contains Backends: its interceptors, and the attempts of their calls.

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// Backends gives each backend of a target its own circuit, so that one unhealthy backend
// does not block the others. It consists of a load-balancing policy, round robin over the
// backends that accept calls, and of interceptors that count the outcomes. A connection
// needs both:
//
//	backends := grpcinfuse.NewBackends("infuse", breakers)
//	balancer.Register(backends) // at the start of main: gRPC's registry has no lock
//	conn, err := grpc.NewClient(target, credentials,
//		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"infuse": {}}]}`),
//		grpc.WithChainUnaryInterceptor(backends.Unary),
//		grpc.WithChainStreamInterceptor(backends.Stream))
//
// The name of a circuit is the name of the target, a slash, and the address of the
// backend: "inventory.internal:8443/10.0.0.7:8443". The processes of a fleet share the
// circuit if they use the same address. Set Config.MaxCircuits above the number of
// backends.
//
// A call goes to the next backend whose circuit accepts it. If none does, the call is
// rejected as by an Interceptor, even if it has the option WaitForReady. A backend that
// is ready for a trial gets one call at its turn. That call waits until the storage
// grants or refuses the trial; if it is refused, the call goes to another backend. Other
// calls do not wait for the storage, unless Config.Strict is set.
//
// Each attempt counts for its backend, including gRPC's retries. An attempt that was not
// sent because its connection had just closed is ignored. Otherwise, calls and streams
// count as with an Interceptor.
//
// With WithCircuit, name receives "target/address" and an empty method, once for each
// backend. If it returns an empty name, the backend has no circuit.
//
// Load-balancing policies, and the package endpointsharding that this one uses, are
// experimental in gRPC for Go.
type Backends struct {
	settings
	policy  string
	warning sync.Once
}

// NewBackends returns Backends whose load-balancing policy has the name policy. The
// circuits are in breakers. If breakers is nil, NewBackends creates a Group with the zero
// Config.
func NewBackends(policy string, breakers *infuse.Group, options ...Option) *Backends {
	return &Backends{settings: newSettings(breakers, options), policy: policy}
}

var _ balancer.Builder = (*Backends)(nil)

// Name implements balancer.Builder.
func (b *Backends) Name() string { return b.policy }

// Unary is a grpc.UnaryClientInterceptor.
func (b *Backends) Unary(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	c := b.call(ctx, method)
	returned := false
	defer func() {
		if !returned {
			rpc.Unwound(c.attempt().Permit, recover())
		}
	}()
	err := invoke(c.context(), method, request, reply, cc, options...)
	b.finish(c, err)
	returned = true
	return err
}

// Stream is a grpc.StreamClientInterceptor.
func (b *Backends) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	c := b.call(ctx, method)
	returned := false
	defer func() {
		if !returned {
			rpc.Unwound(c.attempt().Permit, recover())
		}
	}()
	from, err := open(c.context(), desc, cc, method, options...)
	if err != nil {
		b.finish(c, err)
		returned = true
		return nil, err
	}
	returned = true
	b.check(c)
	s := b.track(ctx, desc, method, from, c.attempt)
	s.errorOf = c.errorOf
	return s, nil
}

// finish settles the last attempt of a call.
func (b *Backends) finish(c *call, err error) {
	if err == nil {
		b.check(c)
	}
	c.countRejection(err)
	if a := c.last(); a != nil && a.release() {
		a.settle()
	}
	c.wait()
}

// check logs a warning if the connection does not use the policy: its calls then have no
// circuit.
func (b *Backends) check(c *call) {
	if c.last() == nil {
		b.warning.Do(func() {
			slog.Warn("grpcinfuse: calls bypass their circuits: the connection uses another load-balancing policy", "want", b.policy, "method", c.method)
		})
	}
}

// call is a call, with its attempts at backends.
type call struct {
	settings *settings
	ctx      context.Context
	method   string

	mu         sync.Mutex
	current    *attempt
	settled    chan struct{}   // closed when all attempts before the last are settled; nil: there are none
	rejectedBy *infuse.Breaker // set if the last pick was rejected
}

type callKey struct{}

func (s *settings) call(ctx context.Context, method string) *call {
	return &call{settings: s, ctx: ctx, method: method}
}

// context returns a context that contains the call, for the policy.
func (c *call) context() context.Context { return context.WithValue(c.ctx, callKey{}, c) }

func (c *call) last() *attempt {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// rejected records that no backend accepts the call. b is the backend that will be ready
// first.
func (c *call) rejected(b *infuse.Breaker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rejectedBy = b
}

// countRejection counts a rejected call, and notifies listeners: the picker does neither.
// It does nothing while a trial is in progress, because the circuit would then request
// another trial from the storage.
func (c *call) countRejection(err error) {
	c.mu.Lock()
	b := c.rejectedBy
	c.mu.Unlock()
	var r *rejection
	if b == nil || !errors.As(err, &r) || r.open.RetryAfter() == 0 {
		return
	}
	if permit, rejected := b.Acquire(c.ctx); rejected == nil { // the circuit has closed since
		permit.Settle(infuse.OutcomeIgnored)
	}
}

// attempt returns the permit of the last attempt.
func (c *call) attempt() rpc.Attempt {
	if a := c.last(); a != nil {
		return a.Attempt
	}
	return rpc.Attempt{}
}

// errorOf returns the error of the last attempt if it has ended. The error of the call
// may be the rejection of a retry.
func (c *call) errorOf(err error) error {
	if a := c.last(); a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.ended {
			return a.err
		}
	}
	return err
}

// begin makes a the last attempt, and settles the previous one.
func (c *call) begin(a *attempt) {
	a.call = c
	if a.granted != nil {
		a.granted.call.Store(c)
	}
	c.mu.Lock()
	previous := c.current
	c.current, c.rejectedBy = a, nil
	c.mu.Unlock()
	if previous != nil && previous.release() {
		c.settleInBackground(previous)
	}
}

// settleInBackground settles an attempt that was retried. The call waits for that, the
// retry does not.
func (c *call) settleInBackground(a *attempt) {
	settled := make(chan struct{})
	c.mu.Lock()
	before := c.settled
	c.settled = settled
	c.mu.Unlock()
	go func() {
		defer close(settled)
		if before != nil {
			defer func() { <-before }()
		}
		a.settleAlone()
	}()
}

// wait waits until the attempts before the last one are settled, so that failures count
// before the call returns.
func (c *call) wait() {
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	if settled != nil {
		<-settled
	}
}

// attempt is one attempt of a call at a backend. gRPC calls done while it holds a lock,
// under which no user code may run. So the later one of two settles the attempt: a
// goroutine that done starts, or the interceptor.
type attempt struct {
	rpc.Attempt
	call    *call
	granted *grantContext // of a permit that was acquired before the call

	mu       sync.Mutex
	ended    bool
	sent     bool
	err      error
	released bool // the interceptor has finished with the attempt
}

// release reports whether the attempt has ended, so that the caller must settle it. If
// not, done settles it.
func (a *attempt) release() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.released = true
	return a.ended
}

// done is called when the attempt has ended.
func (a *attempt) done(info balancer.DoneInfo) {
	a.mu.Lock()
	a.ended, a.sent, a.err = true, info.BytesSent, info.Err
	released := a.released
	a.mu.Unlock()
	if released {
		go a.settleAlone()
	}
}

// settle settles an attempt that has ended.
func (a *attempt) settle() {
	outcome := infuse.OutcomeIgnored
	if a.sent || a.err != nil && !isUnavailable(a.err) {
		outcome = a.call.settings.classify(a.call.ctx, a.call.method, a.err)
	}
	rpc.Settle(a.Permit, outcome, a.err)
}

// settleAlone is settle in a separate goroutine. It recovers panics of classify, which
// would end the process there.
func (a *attempt) settleAlone() {
	defer func() {
		if panicked := recover(); panicked != nil {
			a.Permit.Settle(infuse.OutcomeFailure)
			slog.Error("grpcinfuse: classifying an attempt panicked", "method", a.call.method, "panic", panicked)
		} else {
			a.Permit.Settle(infuse.OutcomeIgnored) // after runtime.Goexit; otherwise the permit is already settled
		}
	}()
	a.settle()
}

// grantContext is the context of a permit that is acquired in the background. It has the
// values of the call that requested it. It is done when the call that uses it is done.
type grantContext struct {
	context.Context
	call atomic.Pointer[call]
}

func (g *grantContext) Err() error {
	if c := g.call.Load(); c != nil {
		return c.ctx.Err()
	}
	return nil
}

func (g *grantContext) Done() <-chan struct{} {
	if c := g.call.Load(); c != nil {
		return c.ctx.Done()
	}
	return nil
}
