// Package tally counts transitions, and reads statistics, for prominfuse and otelinfuse.
//
// Both modules have their own versions, and a program may combine a newer root with an
// older module. So do not change or remove an identifier that a released module uses.
package tally

// This file contains the counters of transitions.

import (
	"runtime"
	"sync"
	"weak"

	"github.com/infuse-go/infuse"
)

// states is the number of states.
const states = int(infuse.StateHalfOpen) + 1

// Counts contains the transitions of the local and of the shared circuit, by new state.
type Counts struct{ Local, Shared [states]uint64 }

// Transitions counts the transitions of each breaker. It keeps no breaker alive. The
// zero value is ready to use; do not copy it.
type Transitions struct {
	mu     sync.Mutex
	counts map[weak.Pointer[infuse.Breaker]]Counts
}

// Listener returns a Listener that counts.
func (c *Transitions) Listener() *infuse.Listener {
	return &infuse.Listener{StateChange: func(b *infuse.Breaker, t infuse.Transition) { c.count(b, t) }}
}

func (c *Transitions) count(b *infuse.Breaker, t infuse.Transition) {
	if int(t.To) >= states {
		return
	}
	p := weak.Make(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	n, known := c.counts[p]
	if !known {
		if c.counts == nil {
			c.counts = make(map[weak.Pointer[infuse.Breaker]]Counts)
		}
		runtime.AddCleanup(b, c.forget, p)
	}
	if t.Local {
		n.Local[t.To]++
	} else {
		n.Shared[t.To]++
	}
	c.counts[p] = n
}

// forget drops the counts of a breaker that has become unreachable.
func (c *Transitions) forget(p weak.Pointer[infuse.Breaker]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.counts, p)
}

// Of returns the counts of a breaker.
func (c *Transitions) Of(b *infuse.Breaker) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[weak.Make(b)]
}
