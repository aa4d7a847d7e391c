// Package tally counts the transitions of circuits for prominfuse and
// otelinfuse.
//
// Both modules have tags of their own, and a newer root may be built with an
// older one of them. So add to this package, but change or remove nothing that a
// released module uses.
package tally

import (
	"runtime"
	"sync"
	"weak"

	"github.com/infuse-go/infuse"
)

// states is the number of states.
const states = int(infuse.StateHalfOpen) + 1

// Counts has a counter for each state that began, in the local and in the shared
// circuit of a breaker.
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

// forget is called when a breaker has become unreachable.
func (c *Transitions) forget(p weak.Pointer[infuse.Breaker]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.counts, p)
}

// Of returns what was counted for a breaker.
func (c *Transitions) Of(b *infuse.Breaker) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[weak.Make(b)]
}
