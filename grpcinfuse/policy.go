package grpcinfuse

// This file contains the load-balancing policy of Backends.

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/rpc"
)

// policy is the load-balancing policy of one connection. It wraps round_robin, which
// connects to the backends, and replaces its picker with one that skips backends whose
// circuit is open.
type policy struct {
	balancer.Balancer
	cc       balancer.ClientConn
	settings *settings
	target   string
	turn     atomic.Uint32

	mu       sync.Mutex // also orders updates; acquired after locks of round_robin, and before locks of gRPC
	state    balancer.State
	backends map[string]*backend
	closed   bool
}

// Build implements balancer.Builder.
func (b *Backends) Build(cc balancer.ClientConn, options balancer.BuildOptions) balancer.Balancer {
	p := &policy{cc: cc, settings: &b.settings, target: nameOf(options.Target.String())}
	p.Balancer = balancer.Get(roundrobin.Name).Build(&policyConn{cc, p}, options)
	return p
}

// policyConn is the connection that round_robin uses.
type policyConn struct {
	balancer.ClientConn
	policy *policy
}

func (c *policyConn) UpdateState(s balancer.State) { c.policy.update(s) }

func (p *policy) update(s balancer.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
	p.publish()
}

// refresh makes gRPC pick again for waiting calls.
func (p *policy) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.publish()
	}
}

// Close implements balancer.Balancer.
func (p *policy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Balancer.Close()
}

// publish sends the state of round_robin to gRPC, with a picker of p if there are ready
// backends. The caller holds p.mu.
func (p *policy) publish() {
	children := endpointsharding.ChildStatesFromPicker(p.state.Picker)
	if len(children) == 0 {
		p.cc.UpdateState(p.state)
		return
	}
	kept := make(map[string]*backend, len(children))
	var ready []candidate
	for _, child := range children {
		address := addressOf(child.Endpoint)
		b := kept[address]
		if b == nil {
			if b = p.backends[address]; b == nil {
				b = p.newBackend(address)
			}
			kept[address] = b
		}
		if child.State.ConnectivityState == connectivity.Ready {
			ready = append(ready, candidate{b, child.State.Picker})
		}
	}
	p.backends = kept
	state := p.state
	if state.ConnectivityState == connectivity.Ready && len(ready) > 0 {
		state.Picker = &picker{ready: ready, turn: &p.turn}
	}
	p.cc.UpdateState(state)
}

// addressOf returns the address that identifies an endpoint.
func addressOf(e resolver.Endpoint) string {
	if len(e.Addresses) == 0 {
		return ""
	}
	return e.Addresses[0].Addr
}

// backend is a backend with its circuit.
type backend struct {
	policy  *policy
	created atomic.Bool
	breaker atomic.Pointer[infuse.Breaker] // nil: no circuit
	granted atomic.Pointer[attempt]        // a granted trial that no call uses yet

	mu         sync.Mutex
	requesting bool              // a trial
	rejected   *infuse.OpenError // the last reply; nil: granted
	state      infuse.State      // at the last request
	requestAt  time.Time         // the earliest next request while the state is the same
}

// newBackend returns a backend. It creates the breaker in the background, because that
// may take a round trip to the storage.
func (p *policy) newBackend(address string) *backend {
	b := &backend{policy: p}
	go func() {
		defer p.refresh()
		defer b.created.Store(true)
		defer func() {
			if panicked := recover(); panicked != nil { // of the func of WithCircuit
				slog.Error("grpcinfuse: backend has no circuit: the func of WithCircuit panicked", "backend", address, "panic", panicked)
			}
		}()
		name := p.settings.circuit(context.Background(), p.target+"/"+address, "")
		if breaker, err := p.settings.breakers.Breaker(name); err == nil {
			b.breaker.Store(breaker)
		}
	}()
	return b
}

const (
	// grantTime is how long a granted trial waits for a call. It expires only if the call
	// that requested it was cancelled and there is no other call.
	grantTime = time.Second

	// maxRequestPause is the longest pause before the next request for a trial: new
	// settings or a removed override may make an open circuit ready earlier.
	maxRequestPause = time.Second

	// pauseDuringTrial is the pause while another call has the trial, whose end is unknown.
	pauseDuringTrial = 50 * time.Millisecond
)

// request requests a trial in the background, because a picker must not wait for the
// storage. It reports whether the pick should wait for the reply. If not, the backend
// accepts no calls now.
func (b *backend) request(ctx context.Context, breaker *infuse.Breaker) bool {
	state := breaker.State()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.requesting || state == b.state && time.Now().Before(b.requestAt) {
		return false
	}
	b.requesting, b.state = true, state
	go b.acquire(&grantContext{Context: context.WithoutCancel(ctx)}, breaker)
	return true
}

func (b *backend) acquire(ctx *grantContext, breaker *infuse.Breaker) {
	var open *infuse.OpenError
	defer b.policy.refresh()
	defer func() { b.replied(open) }() // even if a listener ends the goroutine
	admitted, err := rpc.Acquire(ctx, breaker)
	if err != nil {
		errors.As(err, &open)
		return
	}
	a := &attempt{Attempt: admitted, granted: ctx}
	b.granted.Store(a)
	time.AfterFunc(grantTime, func() {
		if b.granted.CompareAndSwap(a, nil) {
			a.Permit.Settle(infuse.OutcomeIgnored)
		}
	})
}

// replied records the reply to a request: nil if a trial was granted.
func (b *backend) replied(open *infuse.OpenError) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requesting, b.rejected = false, open
	wait := pauseDuringTrial
	if open != nil {
		if left := open.RetryAfter(); left > 0 {
			wait = min(left, maxRequestPause)
		}
	}
	b.requestAt = time.Now().Add(wait)
}

// rejection returns why the backend accepts no calls, or nil before the first reply.
func (b *backend) rejection(breaker *infuse.Breaker) *infuse.OpenError {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rejected == nil && !b.requesting { // a trial was granted
		return &infuse.OpenError{Circuit: breaker.Name(), State: infuse.StateHalfOpen}
	}
	return b.rejected
}

// candidate is a connected backend.
type candidate struct {
	*backend
	picker balancer.Picker
}

// picker picks the next backend whose circuit accepts a call.
type picker struct {
	ready []candidate
	turn  *atomic.Uint32
}

var errInterceptors = status.Error(codes.Internal, "grpcinfuse: the load-balancing policy of Backends requires its interceptors Unary and Stream")

// Pick implements balancer.Picker.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	c, ok := info.Ctx.Value(callKey{}).(*call)
	if !ok {
		return balancer.PickResult{}, errInterceptors
	}
	first := int(p.turn.Add(1) % uint32(len(p.ready)))
	for i := range p.ready {
		b := p.ready[(first+i)%len(p.ready)]
		if granted := b.granted.Load(); granted != nil && b.granted.CompareAndSwap(granted, nil) {
			return b.pick(info, c, granted)
		}
	}
	var soonest *infuse.OpenError
	var by *infuse.Breaker
	unknown := false // a refresh will follow
	for i := range p.ready {
		b := p.ready[(first+i)%len(p.ready)]
		breaker := b.breaker.Load()
		var open *infuse.OpenError
		switch {
		case !b.created.Load():
			unknown = true
			continue
		case breaker == nil:
			return b.pick(info, c, new(attempt))
		case breaker.State() == infuse.StateClosed:
			admitted, err := rpc.Acquire(c.ctx, breaker) // not the context of the attempt, which gRPC cancels at its end
			if err == nil {
				return b.pick(info, c, &attempt{Attempt: admitted})
			}
			errors.As(err, &open)
		case b.request(c.ctx, breaker):
			return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
		default:
			open = b.rejection(breaker)
		}
		switch {
		case open == nil:
			unknown = true
		case soonest == nil || open.RetryAfter() < soonest.RetryAfter():
			soonest, by = open, breaker
		}
	}
	if soonest == nil || unknown {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	c.rejected(by)
	return balancer.PickResult{}, &rejection{soonest}
}

// pick picks the connection of the backend for an attempt.
func (c candidate) pick(info balancer.PickInfo, call *call, a *attempt) (balancer.PickResult, error) {
	result, err := c.picker.Pick(info)
	if err != nil { // the connection has just closed
		a.Permit.Settle(infuse.OutcomeIgnored)
		return result, err
	}
	call.begin(a)
	done := result.Done
	result.Done = func(info balancer.DoneInfo) {
		if done != nil {
			done(info)
		}
		a.done(info)
	}
	return result, nil
}

func isUnavailable(err error) bool { return status.Code(err) == codes.Unavailable }
