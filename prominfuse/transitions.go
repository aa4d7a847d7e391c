package prominfuse

// This file contains Transitions, the counter of transitions.

import (
	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// Transitions counts the transitions of circuits, including transitions between two
// scrapes. Add its Listener to infuse.Config.Listeners, and pass it to NewCollector with
// WithTransitions. It adds no cost to calls, and keeps no breaker alive. The zero value
// is ready to use; do not copy it.
type Transitions struct{ counted tally.Transitions }

// Listener returns a Listener that counts transitions.
func (t *Transitions) Listener() *infuse.Listener { return t.counted.Listener() }
