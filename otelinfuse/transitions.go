package otelinfuse

import (
	"runtime"
	"sync"
	"weak"

	"github.com/infuse-go/infuse"
)

// Transitions counts the transitions of circuits, also those that are over
// before the next collection. Add its Listener to infuse.Config.Listeners, and give
// it to Register with WithTransitions. Calls pay nothing for it. The zero
// value is ready to use; do not copy it. It keeps no breaker alive.
type Transitions struct {
	mu     sync.Mutex
	counts map[weak.Pointer[infuse.Breaker]]tally
}

// tally has a counter for each state that began.
type tally [len(states)]uint64

// Listener returns a Listener that counts.
func (t *Transitions) Listener() *infuse.Listener {
	return &infuse.Listener{StateChange: func(b *infuse.Breaker, moved infuse.Transition) { t.count(b, moved.To) }}
}

func (t *Transitions) count(b *infuse.Breaker, to infuse.State) {
	p := weak.Make(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	n, known := t.counts[p]
	if !known {
		if t.counts == nil {
			t.counts = make(map[weak.Pointer[infuse.Breaker]]tally)
		}
		runtime.AddCleanup(b, t.forget, p)
	}
	n[to]++
	t.counts[p] = n
}

// forget is called when nothing refers to the breaker any more.
func (t *Transitions) forget(p weak.Pointer[infuse.Breaker]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.counts, p)
}

func (t *Transitions) of(b *infuse.Breaker) tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[weak.Make(b)]
}
