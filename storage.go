package infuse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"time"
)

// Storage keeps the records of circuits. Users make one, for example with
// NewRedisStorage, and set it in a Config. The rest of this comment is for authors of
// a storage.
//
// A storage for a database works as follows: begin a transaction; load the record;
// call Record.Apply; save the bytes of AppendRecord, unless the verdict is
// VerdictRefused; commit; and notify the watchers if the verdict is VerdictChanged.
// Package storagetest has the tests that every storage must pass.
//
// All methods are safe for concurrent use. The type is comparable, usually a pointer:
// breakers with equal storages detect outages together (Config.Storage). The name of a
// circuit is untrusted: escape it. A name that CheckName refuses is an error. The caller
// owns the slices of a returned Record. A storage may ignore ctx, because Breaker
// enforces its own timeout.
//
// A storage may keep records for ever. It may also delete one an hour after its last
// change and its last deadline (DueAt, RetryAt, those of Trials, Override.Until), unless
// it has an override without an end. The circuit is then closed.
//
// Methods will never be added; optional methods are interfaces of their own.
type Storage interface {
	// Load returns the record of the circuit as it is now (Record.At): the
	// zero Record if there is none.
	Load(ctx context.Context, circuit string) (Record, error)

	// Apply makes the change, atomically among all that use the storage, also
	// in other processes, and returns what Record.Apply returned.
	Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error)

	// Watch calls fn with each record that any process saved with VerdictChanged, soon
	// after that, in the order of generations unless the storage lost data. A record
	// that was replaced soon may be left out, and so may changes before Watch. fn
	// receives only records read from the storage, because a Breaker restores what it
	// received. After stop has returned, only a call in progress may still run. Watch
	// returns at once and does no I/O.
	Watch(circuit string, fn func(Record)) (stop func())
}

// MaxNameLength is the maximum number of bytes in the name of a circuit.
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

// check returns an error for an invalid change.
func (c *Change) check() error {
	if c.Number > 0 {
		if err := CheckSource(c.Source); err != nil {
			return err
		}
	}
	for _, b := range c.Counted {
		if b.Start.IsZero() || b.Calls < 1 || b.Failures < 0 || b.Failures > b.Calls || len(c.Counted) > windowBuckets {
			return fmt.Errorf("infuse: the change has invalid counts %.200v", c.Counted)
		}
	}
	if o := c.Override; o != nil && !o.isValid() {
		return fmt.Errorf("infuse: the change has an invalid override: state %v, by %.40q, reason %.40q", o.State, o.By, o.Reason)
	}
	if c.RequestTrial != "" {
		return CheckSource(c.RequestTrial)
	}
	return nil
}

// keptFor is how long the storages of this package keep a record after its last
// deadline if nobody changes it. It lets a sender that was partitioned find out that
// its change was applied.
const keptFor = time.Hour

// keepUntil returns when a record that is saved now may be forgotten.
func (r Record) keepUntil(now time.Time) time.Time {
	last := now
	if o := r.Override; o != nil {
		if last = o.Until; last.IsZero() { // until it is removed
			last = now.Add(maxTimeout)
		}
	}
	for _, t := range append([]time.Time{r.DueAt, r.RetryAt, r.backoffUntil()}, deadlines(r.Trials)...) {
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

// RecordError is returned if the storage answers, but the record of one circuit cannot
// be read: it is invalid, or was written by a newer version. Authors of a Storage
// return it. Users receive it in Listener.Warning and Stats.StorageErr.
type RecordError struct {
	Circuit string
	Reason  string
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("infuse: the record of circuit %q %s", e.Circuit, e.Reason)
}

// Historian is a Storage that keeps the history of its circuits, for ops pages and
// commands; breakers do not use it. MemoryStorage and RedisStorage implement it. It is
// safe for concurrent use.
type Historian interface {
	// History returns the last events of the circuit, the newest first: at most
	// MaxHistory, and none for an unknown circuit. It may do I/O, until ctx is done.
	History(ctx context.Context, circuit string) ([]Event, error)
}

// Lister is a Storage that lists its circuits, for ops pages and commands; breakers do
// not use it. MemoryStorage and RedisStorage implement it. It is safe for concurrent
// use.
type Lister interface {
	// Circuits yields the names of the circuits that have a record, in no particular
	// order: those with failures or changes within the life of a record. Names are
	// untrusted, and may repeat. The sequence ends at the first error. It may do I/O
	// while it is ranged over, until ctx is done.
	Circuits(ctx context.Context) iter.Seq2[string, error]
}

// MaxHistory is the maximum number of events of a circuit that a Historian returns.
const MaxHistory = 50

// Event is a transition of a shared circuit, or an override, in the history of a
// Historian. At is on the clock of this process. Fields may be added.
type Event struct {
	At       time.Time
	From, To State     // equal if a manual change or an override did not change the state
	Manual   bool      // by SetState, Announce or Override
	By       string    // the instance that caused it, or the author of the override
	Cause    string    // the error that opened the circuit; empty otherwise
	Override *Override // in force from then on; nil if there is none
}

// events returns the event of a change from r to next, if it is one for the history.
func (r *Record) events(next *Record, c *Change, now time.Time) []Event {
	before := r.At(now)
	overridden := !sameOverride(before.Override, next.Override)
	if before.State == next.State && before.Manual == next.Manual && before.Opened == next.Opened && !overridden {
		return nil
	}
	e := Event{At: now, From: before.State, To: next.State, By: next.By, Override: next.Override, Manual: next.Manual > before.Manual}
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

// isNil reports whether s is nil or holds a nil pointer.
func isNil(s Storage) bool {
	switch v := reflect.ValueOf(s); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Chan, reflect.Func, reflect.Map, reflect.Pointer, reflect.Slice:
		return v.IsNil()
	}
	return false
}

// storageError is an error of a storage, with all that circuits need to know of it.
// The methods of the original error are user code.
//
// It has no Unwrap: no code can reach the original error under a lock.
type storageError struct {
	text     string
	err      error // nil if its methods panic
	ofRecord bool  // a *RecordError: the record of one circuit cannot be read
	ofTime   bool  // only requestTime is over
}

func (e *storageError) Error() string        { return e.text }
func (e *storageError) Is(target error) bool { return errors.Is(e.err, target) }
func (e *storageError) As(target any) bool   { return errors.As(e.err, target) }

// isStorageError reports whether the storage failed, and not only the record of one circuit.
// It calls no method of the error.
func isStorageError(err error) bool {
	switch e := err.(type) {
	case nil, *RecordError:
		return false
	case *storageError:
		return !e.ofRecord
	}
	return true
}

// isComparable reports whether s can be the key of a map. A struct with a NaN does not
// equal itself, and cannot be.
func isComparable(s Storage) bool {
	v := reflect.ValueOf(s)
	return v.Comparable() && v.Equal(v)
}
