package main

import (
	"cmp"
	"errors"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/infuse-go/infuse"
)

// rule is what the breakers of a fleet are set to. What is 0 is the default.
type rule struct {
	FailMax      int
	ResetTimeout time.Duration
	FailureRate  float64
	Window       time.Duration
	MinCalls     int
	Ramp         time.Duration
}

func (r rule) config() infuse.Config {
	return infuse.Config{
		FailMax: r.FailMax, ResetTimeout: r.ResetTimeout,
		FailureRate: r.FailureRate, Window: r.Window, MinCalls: r.MinCalls, Ramp: r.Ramp,
	}
}

// The default settings of a rate.
const (
	window   = 10 * time.Second
	minCalls = 20
)

func (r rule) minCalls() int { return cmp.Or(r.MinCalls, minCalls) }

// ownLimit is how many failures from the first call on open the circuit of a
// process.
func (r rule) ownLimit() int {
	if r.FailureRate > 0 {
		return r.minCalls()
	}
	return cmp.Or(r.FailMax, failMax)
}

// peer is a local breaker beside a member's, by the same rule: it is offered the
// same calls, with the same outcomes.
type peer struct {
	breaker          *gobreaker.CircuitBreaker[any]
	opened, rejected atomic.Int64
}

// peerTally is what a local breaker came to.
type peerTally struct{ Opened, Rejected int64 }

func newPeer(r rule) *peer {
	p := &peer{}
	length := cmp.Or(r.Window, window)
	p.breaker = gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Interval: length, BucketPeriod: length / 10, Timeout: cmp.Or(r.ResetTimeout, resetTime),
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.Requests >= uint32(r.minCalls()) && float64(c.TotalFailures)/float64(c.Requests) >= r.FailureRate
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				p.opened.Add(1)
			}
		},
	})
	return p
}

func (p *peer) call(fails bool) {
	_, err := p.breaker.Execute(func() (any, error) {
		if fails {
			return nil, errService
		}
		return nil, nil
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		p.rejected.Add(1)
	}
}

func (p *peer) tally() peerTally { return peerTally{p.opened.Load(), p.rejected.Load()} }
