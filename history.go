package infuse

import (
	"context"
	"iter"
	"time"
)

// This file is what a storage may do beside keeping records: remember what
// became of a circuit, and tell which circuits it has. It is for pages and
// commands of operators; no breaker asks for it.

// Historian is a Storage that remembers, for pages and commands of operators.
// MemoryStorage and RedisStorage do. It is safe for concurrent use.
type Historian interface {
	// History returns what became of the circuit, the newest first: at most
	// MaxHistory events, and none for a circuit that it does not know. It may do
	// I/O, until ctx is done.
	History(ctx context.Context, circuit string) ([]Event, error)
}

// Lister is a Storage that tells its circuits, for pages and commands of
// operators. MemoryStorage and RedisStorage do. It is safe for concurrent use.
type Lister interface {
	// Circuits yields the names of the circuits that have a record, in no
	// order: those that are or were sick within the life of a record. A name is
	// untrusted, and may come twice. It stops at the first error.
	// It may do I/O while it is ranged over, until ctx is done.
	Circuits(ctx context.Context) iter.Seq2[string, error]
}

// MaxHistory is how many events of a circuit a storage of this package keeps,
// and the most that a Historian returns.
const MaxHistory = 50

// Event is a transition of the fleet's circuit, or an override, as a Historian
// tells it. At is on the clock of this process. Fields may be added.
type Event struct {
	At       time.Time
	From, To State     // equal where a move or an override left the state as it was
	ByHand   bool      // by Move or Override
	By       string    // the instance that caused it, or who overrode it
	Cause    string    // of an opening
	Override *Override // what holds the circuit from then on; nil: nothing does
}

// events returns the event of a change that left the record as next, if it is one.
func (r *Record) events(next *Record, c *Change, now time.Time) []Event {
	before := r.At(now)
	overridden := !sameOverride(before.Override, next.Override)
	if before.State == next.State && before.Moved == next.Moved && before.Opened == next.Opened && !overridden {
		return nil
	}
	e := Event{At: now, From: before.State, To: next.State, By: next.By, Override: next.Override, ByHand: next.Moved > before.Moved}
	if next.State == StateOpen {
		e.Cause = next.Cause
	}
	if c.Override != nil && overridden {
		e.By = c.Override.By
	}
	return []Event{e}
}

func sameOverride(a, b *Override) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.State == b.State && a.By == b.By && a.Reason == b.Reason && a.Until.Equal(b.Until)
}
