package infuse

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Config are the settings of a Breaker, or of all breakers of a Group. The
// zero value is ready to use: pybreaker's defaults, in memory.
type Config struct {
	// FailMax is how many failures in a row, over all processes, open the
	// circuit: 5 if 0.
	FailMax int

	// ResetTimeout is how long the circuit stays open before a trial may run:
	// 60 s if 0. At least a millisecond; a fraction of one is rounded up.
	ResetTimeout time.Duration

	// SuccessThreshold is how many trials in a row must succeed to close the
	// circuit: 1 if 0.
	SuccessThreshold int

	// MaxTrials is how many calls may run at a time while the circuit is
	// half-open, over all processes: 1 if 0.
	MaxTrials int

	// TrialTimeout is the lease of a trial: a trial that has not ended by then
	// counts for nothing, and another may run: 30 s if 0. It should be longer
	// than the longest call, and is what a process costs that dies in a trial.
	TrialTimeout time.Duration

	// Exclude has errors that count as a success, as in pybreaker: those with
	// which a healthy service answers. A call with such an error still
	// returns it.
	Exclude []func(error) bool

	// Classify decides what a call's error says of the service, in place of
	// the default and of Exclude. It is called for a nil error, too.
	//
	// By default nil is a success; an error of a call whose own context was
	// cancelled by its caller (ctx.Err() is context.Canceled) is ignored, and
	// so is a rejection by this same circuit; any other error is a failure,
	// also that of a deadline of the caller's own.
	Classify func(ctx context.Context, err error) Outcome

	// Storage keeps the circuit. nil: a MemoryStorage of the breaker's (or the
	// group's) own.
	Storage Storage

	// Strict has every call read the circuit from the storage first, one round
	// trip, and wait until its outcome is known there. Without it a call
	// decides from what this process knows, which may be behind by as long as
	// the storage takes to tell. A success that met no failures on record when
	// it began is not sent, here as there.
	Strict bool

	// StorageTimeout is the most that one call ever waits for the storage:
	// 100 ms if 0.
	StorageTimeout time.Duration

	// Fallback is what happens while the storage is away: FallbackLocal if 0.
	Fallback Fallback

	// Listeners are told what happens, in this order.
	Listeners []*Listener

	// MaxCircuits is how many breakers a Group keeps: 1024 if 0. New ignores it.
	MaxCircuits int
}

// Fallback is what a breaker does while its storage is away.
type Fallback uint8

const (
	FallbackLocal  Fallback = iota // a full circuit of this process's own
	FallbackClosed                 // every call runs, nothing is counted
	FallbackOpen                   // every call is rejected
)

// String returns "local", "closed" or "open".
func (f Fallback) String() string {
	switch f {
	case FallbackLocal:
		return "local"
	case FallbackClosed:
		return "closed"
	case FallbackOpen:
		return "open"
	}
	return fmt.Sprintf("Fallback(%d)", uint8(f))
}

// The largest settings that are not taken for a mistake. maxMaxTrials also
// bounds a record, maxTimeout also what a stranger's record can ask for.
const (
	maxFailMax   = math.MaxInt32
	maxMaxTrials = 1024
	maxTimeout   = 366 * 24 * time.Hour
)

// settings is a valid Config with its defaults filled in. It never changes.
type settings struct{ Config }

func newSettings(cfg Config) (*settings, error) {
	s := &settings{cfg}
	s.Exclude, s.Listeners = slices.Clone(cfg.Exclude), slices.Clone(cfg.Listeners)
	var invalid []error
	reject := func(format string, args ...any) {
		invalid = append(invalid, fmt.Errorf("infuse: Config."+format, args...))
	}
	for _, n := range []struct {
		field        string
		value        *int
		preset, most int
	}{
		{"FailMax", &s.FailMax, 5, maxFailMax},
		{"SuccessThreshold", &s.SuccessThreshold, 1, maxFailMax},
		{"MaxTrials", &s.MaxTrials, 1, maxMaxTrials},
		{"MaxCircuits", &s.MaxCircuits, 1024, math.MaxInt32},
	} {
		if *n.value < 0 || *n.value > n.most {
			reject("%s is %d: must be from 1 to %d, or 0 for %d", n.field, *n.value, n.most, n.preset)
		}
		if *n.value == 0 {
			*n.value = n.preset
		}
	}
	for _, d := range []struct {
		field  string
		value  *time.Duration
		preset time.Duration
	}{
		{"ResetTimeout", &s.ResetTimeout, time.Minute},
		{"TrialTimeout", &s.TrialTimeout, 30 * time.Second},
		{"StorageTimeout", &s.StorageTimeout, 100 * time.Millisecond},
	} {
		if *d.value == 0 {
			*d.value = d.preset
		}
		if *d.value < time.Millisecond || *d.value > maxTimeout {
			reject("%s is %v: must be from 1ms to %v, or 0 for %v", d.field, *d.value, maxTimeout, d.preset)
		}
		*d.value = time.Duration(milliseconds(*d.value)) * time.Millisecond
	}
	for i, exclude := range s.Exclude {
		if exclude == nil {
			reject("Exclude[%d] is nil", i)
		}
	}
	for i, listener := range s.Listeners {
		if listener == nil {
			reject("Listeners[%d] is nil", i)
		}
	}
	if s.Fallback > FallbackOpen {
		reject("Fallback is %v: must be FallbackLocal, FallbackClosed or FallbackOpen", s.Fallback)
	}
	if checked, ok := s.Storage.(interface{ invalidSettings() error }); ok && checked.invalidSettings() != nil {
		reject("Storage: %w", checked.invalidSettings())
	}
	if invalid != nil {
		return nil, errors.Join(invalid...)
	}
	return s, nil
}

func (s *settings) limits() Limits {
	return Limits{s.FailMax, s.ResetTimeout, s.SuccessThreshold, s.MaxTrials, s.TrialTimeout}
}

// classify is what the error of a call on the named circuit says.
func (s *settings) classify(ctx context.Context, circuit string, err error) Outcome {
	if s.Classify != nil {
		return s.Classify(ctx, err)
	}
	if err == nil {
		return OutcomeSuccess
	}
	if ctx.Err() == context.Canceled || isRejectionBy(circuit, err) {
		return OutcomeIgnored
	}
	for _, exclude := range s.Exclude {
		if exclude(err) {
			return OutcomeSuccess
		}
	}
	return OutcomeFailure
}
