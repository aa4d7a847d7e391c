package infuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"
)

// Storage keeps the records of circuits, for one process or for many.
//
// A storage for any database is: begin; load the record; Record.Apply; save
// it unless the verdict is VerdictRefused; commit; and tell the watchers
// where the verdict is VerdictMoved. Package storagetest has the tests that
// every storage must pass.
//
// All methods are safe for concurrent use. A circuit's name is any text that
// CheckName accepts: it is a stranger's, a storage encodes it as it needs. Any
// other name is an error. The slices of a record are whose it was handed to: a
// storage shares them with nobody.
// A storage need not bound how long it takes, and need not heed ctx: a
// Breaker stops waiting by itself.
type Storage interface {
	// Load returns the record of the circuit: the zero Record where there is none.
	Load(ctx context.Context, circuit string) (Record, error)

	// Apply makes the change, atomically among all that use the storage, also
	// in other processes, and returns what Record.Apply returned.
	Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error)

	// Watch has fn told of every transition of the circuit and of every trial
	// that came free, by whomever, soon after it happened and in order: never
	// of an older record after a newer one, but where the storage itself has
	// lost the newer one and falls back (to the zero Record, where it lost
	// all). What happened before Watch was called need not be told. fn must
	// not be called after stop has returned, but for a call under way. Watch
	// does no I/O of its own: it returns at once.
	Watch(circuit string, fn func(Record)) (stop func())
}

// MaxNameLength is the most bytes a circuit's name may have.
const MaxNameLength = 256

// CheckName returns an error for a name that no circuit may have: empty, or
// longer than MaxNameLength.
func CheckName(circuit string) error {
	if circuit == "" {
		return errors.New("infuse: the circuit's name is empty")
	}
	if len(circuit) > MaxNameLength {
		return fmt.Errorf("infuse: the circuit's name %.40q… has %d bytes: at most %d are allowed", circuit, len(circuit), MaxNameLength)
	}
	return nil
}

// How long a storage of this package keeps a record that nobody changes.
const (
	idleLife   = time.Hour       // beyond its last deadline
	lingerLife = 5 * time.Second // once healthy: so long, late callers still meet its generation
)

// outlived returns when a record that was saved now may be forgotten.
func (r Record) outlived(now time.Time) time.Time {
	if r.Healthy() {
		if r.Generation == 0 {
			return now
		}
		return now.Add(lingerLife)
	}
	last := now
	if r.DueAt.After(last) {
		last = r.DueAt
	}
	for _, t := range r.Trials {
		if t.Deadline.After(last) {
			last = t.Deadline
		}
	}
	return last.Add(idleLife)
}

// RecordError tells that a storage answers, but that what it holds for one
// circuit is not a record: garbage, or written by a newer version.
type RecordError struct {
	Circuit string
	Reason  string
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("infuse: the record of circuit %q %s", e.Circuit, e.Reason)
}

// Announce sets the circuit of a service that starts to the given state, in
// the manner of Infuse's initial state: a service that has just come up moves
// its own circuit to half-open (or closed), so that its callers try it at
// once instead of waiting out the reset timeout. StateOpen keeps callers away
// for the default ResetTimeout. It does one round trip to the storage.
func Announce(ctx context.Context, s Storage, circuit string, to State) error {
	if s == nil {
		return errors.New("infuse: Announce needs a storage that the callers share, not nil")
	}
	if err := CheckName(circuit); err != nil {
		return err
	}
	if to > StateHalfOpen {
		return fmt.Errorf("infuse: Announce: %v is not a state", to)
	}
	defaults, err := newSettings(Config{})
	if err != nil {
		return err
	}
	tokens := newTokenSource()
	_, _, err = s.Apply(ctx, circuit, Change{Kind: ChangeMove, To: to, Token: tokens.next(), Limits: defaults.limits()})
	return err
}

// tokenSource makes tokens that no other source makes: letters, digits and a dot.
type tokenSource struct {
	prefix string
	count  atomic.Uint64
}

func newTokenSource() *tokenSource {
	return &tokenSource{prefix: strconv.FormatUint(rand.Uint64(), 36) + "."}
}

func (s *tokenSource) next() string {
	var buffer [32]byte // so that the token is the only allocation
	return string(strconv.AppendUint(append(buffer[:0], s.prefix...), s.count.Add(1), 36))
}
