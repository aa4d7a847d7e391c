package infuse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Storage keeps the records of circuits, for one process or for many. A user of a
// breaker makes one, for example with NewRedisStorage, and calls none of its
// methods. The rest of this comment is for authors of a storage.
//
// A storage for any database does this: begin; load the record as it was saved;
// Record.Apply; save the bytes of AppendRecord unless the verdict is
// VerdictRefused; commit; and notify the watchers if the verdict is VerdictMoved.
// Package storagetest has the tests that every storage must pass.
//
// All methods are safe for concurrent use, and the type is comparable, best a
// pointer: breakers with equal storages share one path to it (Config.Storage). A
// circuit's name is any text that CheckName accepts, and untrusted: escape it. Any
// other name is an error. The caller owns the slices of a returned Record. A
// storage may ignore ctx; Breaker enforces its own timeout.
//
// Methods will never be added; optional ones are interfaces of their own.
type Storage interface {
	// Load returns the record of the circuit as it is now (Record.At): the
	// zero Record if there is none.
	Load(ctx context.Context, circuit string) (Record, error)

	// Apply makes the change, atomically among all that use the storage, also
	// in other processes, and returns what Record.Apply returned.
	Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error)

	// Watch calls fn with every record saved with VerdictMoved, soon after that,
	// whichever process saved it, and in the order of generations, unless the
	// storage lost data. A record that was replaced soon may be left out. Only
	// records read from the storage may be passed to fn, because a Breaker
	// restores what it received. Earlier changes need not be reported. fn must
	// not be called after stop has returned, except for a call in progress. Watch
	// does no I/O of its own: it returns at once.
	Watch(circuit string, fn func(Record)) (stop func())
}

// MaxNameLength is the most bytes a circuit's name may have.
const MaxNameLength = 256

// CheckName returns an error for a name that no circuit may have: empty, or
// longer than MaxNameLength. It is for authors of a Storage.
func CheckName(circuit string) error {
	if circuit == "" {
		return errors.New("infuse: the circuit's name is empty")
	}
	if len(circuit) > MaxNameLength {
		return fmt.Errorf("infuse: the circuit's name %.40q… has %d bytes: at most %d are allowed", circuit, len(circuit), MaxNameLength)
	}
	return nil
}

// CheckSource returns an error for an invalid Change.Source or trial ID: 1 to 64
// letters, digits, dots, dashes and underscores are allowed. It is for authors of
// a Storage.
func CheckSource(source string) error {
	if source == "" || len(source) > maxSourceLength {
		return fmt.Errorf("infuse: the source %.70q has %d bytes: 1 to %d are allowed", source, len(source), maxSourceLength)
	}
	for i := range len(source) {
		switch c := source[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("infuse: the source %.70q has a character other than letters, digits, dots, dashes and underscores", source)
		}
	}
	return nil
}

// check refuses a change that no storage could keep.
func (c *Change) check() error {
	if c.Number > 0 {
		if err := CheckSource(c.Source); err != nil {
			return err
		}
	}
	for _, b := range c.Counted {
		if b.Start.IsZero() || b.Calls < 1 || b.Failures < 0 || b.Failures > b.Calls || len(c.Counted) > windowBuckets {
			return fmt.Errorf("infuse: the change has counted %.200v, which cannot be", c.Counted)
		}
	}
	if o := c.Override; o != nil && !o.canBe() {
		return fmt.Errorf("infuse: the change has an override of the state %v, by %.40q for %.40q, which cannot be", o.State, o.By, o.Reason)
	}
	if c.Ask != "" {
		return CheckSource(c.Ask)
	}
	return nil
}

// keptFor is how long the storages of this package keep a record that nobody
// changes beyond its last deadline: long enough for a sender that was cut off
// to find that its change had been applied.
const keptFor = time.Hour

// keepUntil returns when a record that is saved now may be forgotten.
func (r Record) keepUntil(now time.Time) time.Time {
	last := now
	if o := r.Override; o != nil {
		if last = o.Until; last.IsZero() { // until it is cleared
			last = now.Add(maxTimeout)
		}
	}
	for _, t := range append([]time.Time{r.DueAt, r.RetryAt, r.remembersUntil()}, deadlines(r.Trials)...) {
		if t.After(last) {
			last = t
		}
	}
	return last.Add(keptFor)
}

func deadlines(trials []Trial) (all []time.Time) {
	for _, t := range trials {
		all = append(all, t.Deadline)
	}
	return all
}

// RecordError is returned if the storage answers, but the record of one circuit
// cannot be read: garbage, or written by a newer version. Authors of a Storage
// return it. Users receive it in Listener.StorageUnavailable.
type RecordError struct {
	Circuit string
	Reason  string
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("infuse: the record of circuit %q %s", e.Circuit, e.Reason)
}

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
