package grpcinfuse

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

// Backends gives each backend of a target a circuit of its own, so that one
// unhealthy backend of three does not close off the other two. It is a
// load-balancing policy, round robin over the backends that accept calls, and the
// interceptors that count what becomes of them. Use all of it for a connection:
//
//	backends := grpcinfuse.NewBackends("infuse", breakers)
//	balancer.Register(backends) // at the beginning of main: gRPC's registry has no lock
//	conn, err := grpc.NewClient(target, credentials,
//		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"infuse": {}}]}`),
//		grpc.WithChainUnaryInterceptor(backends.Unary),
//		grpc.WithChainStreamInterceptor(backends.Stream))
//
// A circuit's name is that of the target, a slash, and the address of the backend:
// "inventory.internal:8443/10.0.0.7:8443". The processes of a fleet share it, if
// they reach the backend by the same address. Config.MaxCircuits should be above
// the number of backends.
//
// A call goes to the next backend whose circuit accepts it. If none does, the call
// is rejected as by an Interceptor, also if it asks to wait for a connection. A
// backend that is ready for a trial gets one call at its turn. The call waits for
// the storage to grant the trial, and then goes to that backend, or else to
// another. Nothing else waits for the storage, unless Config.Strict asks for it.
//
// Each attempt counts for its own backend, also the attempts of gRPC's retries.
// An attempt that was not sent because its connection had just closed is ignored.
// In all other respects, calls and streams are counted as by an Interceptor.
//
// In WithCircuit, name gets "target/address" and an empty method, once for each
// backend; with an empty name the backend has no circuit.
//
// The policies of gRPC, and the package endpointsharding that this one needs, are
// experimental in gRPC for Go.
type Backends struct {
	settings
	policy  string
	warning sync.Once
}

// NewBackends returns the policy of that name. The circuits are in breakers. If
// that is nil, they get a Group of their own with the zero Config.
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
	if a := c.last(); a != nil && a.hands() {
		a.settle()
	}
	c.wait()
}

// check warns of a connection that does not use the policy: its calls have no
// circuit.
func (b *Backends) check(c *call) {
	if c.last() == nil {
		b.warning.Do(func() {
			slog.Warn("grpcinfuse: calls bypass their circuits: the connection uses another load-balancing policy", "want", b.policy, "method", c.method)
		})
	}
}

// call is a call whose attempts the policy picks backends for.
type call struct {
	settings *settings
	ctx      context.Context
	method   string

	mu         sync.Mutex
	current    *attempt
	settled    chan struct{}   // closed when all attempts before the last are settled; nil without any
	rejectedBy *infuse.Breaker // the last pick was rejected, in place of an attempt
}

type callKey struct{}

func (s *settings) call(ctx context.Context, method string) *call {
	return &call{settings: s, ctx: ctx, method: method}
}

// context returns the context of the call, in which the policy finds it.
func (c *call) context() context.Context { return context.WithValue(c.ctx, callKey{}, c) }

func (c *call) last() *attempt {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// rejected records that no backend accepts the call. b is the one that may be the
// first to do so.
func (c *call) rejected(b *infuse.Breaker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rejectedBy = b
}

// countRejection counts a rejected call, and so notifies listeners: a picker only
// looks at the circuits. While a trial runs, the circuit would ask the storage for
// another one, and nothing is counted.
func (c *call) countRejection(err error) {
	c.mu.Lock()
	b := c.rejectedBy
	c.mu.Unlock()
	var r *rejection
	if b == nil || !errors.As(err, &r) || r.open.RetryAfter() == 0 {
		return
	}
	if permit, rejected := b.Acquire(c.ctx); rejected == nil { // it has closed since
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

// errorOf returns the error of the last attempt if it has ended: that of the call
// may be the rejection of its retry.
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

// begin records that an attempt begins, and so no other one is the last.
func (c *call) begin(a *attempt) {
	a.call = c
	if a.granted != nil {
		a.granted.call.Store(c)
	}
	c.mu.Lock()
	previous := c.current
	c.current, c.rejectedBy = a, nil
	c.mu.Unlock()
	if previous != nil && previous.hands() {
		c.settleInBackground(previous)
	}
}

// settleInBackground settles an attempt that a retry follows. The retry does not
// wait for it, but the call does.
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

// wait waits until the attempts before the last one are settled: a failure counts
// before the call returns.
func (c *call) wait() {
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	if settled != nil {
		<-settled
	}
}

// attempt is one attempt of a call at a backend. gRPC reports its end while it
// holds a lock, under which no code of a user may run. So the attempt is settled by who
// comes last: the end, or the interceptor that has nothing more to do with it.
type attempt struct {
	rpc.Attempt
	call    *call
	granted *grantContext // of a permit that was acquired before its call was known

	mu     sync.Mutex
	ended  bool
	sent   bool
	err    error
	handed bool // the interceptor leaves the attempt to its end
}

// hands reports whether the attempt has ended. If not, its end settles it.
func (a *attempt) hands() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handed = true
	return a.ended
}

// done is called when the attempt has ended.
func (a *attempt) done(info balancer.DoneInfo) {
	a.mu.Lock()
	a.ended, a.sent, a.err = true, info.BytesSent, info.Err
	handed := a.handed
	a.mu.Unlock()
	if handed {
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

// settleAlone is settle in a goroutine of ours, where nobody could recover a panic
// of classify.
func (a *attempt) settleAlone() {
	defer func() {
		if panicked := recover(); panicked != nil {
			a.Permit.Settle(infuse.OutcomeFailure)
			slog.Error("grpcinfuse: classifying an attempt panicked", "method", a.call.method, "panic", panicked)
		} else {
			a.Permit.Settle(infuse.OutcomeIgnored) // of a Goexit; otherwise it is settled
		}
	}()
	a.settle()
}

// grantContext is the context of a permit that is acquired in the background. It
// has the values of the call that asked for it, and is done when the call that uses
// it is.
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
