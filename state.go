package infuse

import (
	"fmt"
	"slices"
	"time"
)

// This file is the whole state machine of a circuit and nothing else: no I/O,
// no clock, no lock, no goroutine. Whatever moves a circuit goes through
// Record.Apply, or through circuit.lua, which mirrors it line for line.

// State is what a circuit does with a call.
type State uint8

const (
	StateClosed   State = iota // calls run
	StateOpen                  // calls are rejected until the reset timeout has passed
	StateHalfOpen              // a few trial calls run, all others are rejected
)

// String returns "closed", "open" or "half-open".
func (s State) String() string {
	switch s {
	case StateClosed:
		return "closed"
	case StateOpen:
		return "open"
	case StateHalfOpen:
		return "half-open"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Outcome is what a call says about the health of the service.
type Outcome uint8

const (
	OutcomeSuccess Outcome = iota // the service answered
	OutcomeFailure                // the service is at fault
	OutcomeIgnored                // the call says nothing: it counts for nothing
)

// String returns "success", "failure" or "ignored".
func (o Outcome) String() string {
	switch o {
	case OutcomeSuccess:
		return "success"
	case OutcomeFailure:
		return "failure"
	case OutcomeIgnored:
		return "ignored"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Record is what a storage keeps of one circuit. The zero Record is a closed
// circuit that never failed.
//
// The times in a record are on the clock of the process that holds it: a
// storage with a clock of its own hands out and takes durations, never
// timestamps. Records are values; Apply never changes the slices of the
// record it is called on.
type Record struct {
	State      State
	Generation int64     // raised by every transition, also across a record that was forgotten: at least the storage's time in milliseconds
	Failures   int       // in a row; after a trip, as many as it took
	Successes  int       // of trials in a row, while half-open
	DueAt      time.Time // while open: when a trial may run
	Trials     []Trial   // while half-open: the trials that run now, in the order they started
	Tokens     []string  // of the changes that a client may send again: see Change.Token
}

// Trial is the lease of one call in a half-open circuit. It frees itself at
// its deadline, whatever became of the call.
type Trial struct {
	ID       string
	Deadline time.Time
}

// Healthy reports that the record says nothing that the zero Record does not:
// closed, without failures. A storage may forget such a record, preferably
// not within a few seconds of the transition that closed it, so that late
// callers still meet its generation.
func (r Record) Healthy() bool { return r.State == StateClosed && r.Failures == 0 }

// Limits are the settings of the sender that a change is judged by.
// All are at least 1 (durations: a whole number of milliseconds).
type Limits struct {
	FailMax          int
	ResetTimeout     time.Duration
	SuccessThreshold int
	MaxTrials        int
	TrialTimeout     time.Duration
}

// ChangeKind tells what a Change asks for.
type ChangeKind uint8

const (
	ChangeSync    ChangeKind = iota // nothing but to catch up with Seen
	ChangeReport                    // count outcomes of calls that were admitted while closed
	ChangeAcquire                   // ask for a trial
	ChangeSettle                    // end a trial
	ChangeMove                      // move by hand
)

// Change is one step of a circuit's record. Make one with the fields of its
// kind set; Seen and Limits belong to every kind.
type Change struct {
	Kind   ChangeKind
	Token  string // of a report or a move: unique, so that a change sent twice counts once; of an acquire or a settle: the trial's ID; at most 64 letters, digits and the like, no space, comma or equals sign
	Seen   Record // the circuit as the sender knows it; for a report and a settle, of the generation in which the call was admitted
	Limits Limits

	// ChangeReport: failures in a row, oldest first; then, if Cleared, a
	// success; then again failures in a row.
	Failures      int
	Cleared       bool
	FailuresAfter int

	Outcome Outcome // ChangeSettle
	To      State   // ChangeMove
}

// Verdict is what became of a change.
type Verdict uint8

const (
	VerdictRefused Verdict = iota // the record is as it was: no trial to be had, or the change is of an older generation
	VerdictApplied                // the record is to be saved
	VerdictMoved                  // the record is to be saved, and watchers are to hear of it: a transition, or a trial came free
)

// maxTokens bounds what a record remembers of the changes it has counted.
const maxTokens = 256

// Apply returns the record after the change, and what became of the change.
// It is pure: now is the storage's present time, on the clock that the
// record's times are on.
//
// States, counting and manual moves are pybreaker's. Generations, leases and
// tokens are this package's.
func (r Record) Apply(c Change, now time.Time) (Record, Verdict) {
	next := r.caughtUp(c.Seen)
	next.Trials = liveTrials(next.Trials, now)
	verdict := VerdictApplied
	switch c.Kind {
	case ChangeSync:
	case ChangeReport:
		next, verdict = next.report(c, now)
	case ChangeAcquire:
		next, verdict = next.acquire(c, now)
	case ChangeSettle:
		next, verdict = next.settle(c, now)
	case ChangeMove:
		next, verdict = next.move(c, now)
	default:
		verdict = VerdictRefused
	}
	if verdict == VerdictRefused {
		return r, VerdictRefused
	}
	if next.Generation != r.Generation {
		verdict = VerdictMoved
	}
	return next, verdict
}

// caughtUp returns the circuit as the sender knows it where that is newer than
// the record: then the storage has lost something. Between two closed states
// there is nothing to lose.
func (r Record) caughtUp(seen Record) Record {
	if seen.Generation <= r.Generation || seen.State == StateClosed && r.State == StateClosed {
		return r
	}
	seen.Tokens = nil
	return seen
}

func (r Record) report(c Change, now time.Time) (Record, Verdict) {
	if r.State != StateClosed || c.Seen.Generation < r.Generation {
		return r, VerdictRefused
	}
	if slices.Contains(r.Tokens, c.Token) {
		return r, VerdictApplied
	}
	r.Failures += c.Failures
	if r.Failures < c.Limits.FailMax && c.Cleared {
		r.Failures, r.Tokens = 0, nil // a healthy record may be forgotten, and its tokens with it
	}
	if r.Failures < c.Limits.FailMax {
		r.Failures += c.FailuresAfter
	}
	if r.Failures >= c.Limits.FailMax {
		return r.transition(StateOpen, c, now), VerdictMoved
	}
	if r.Failures > 0 {
		r.Tokens = remember(r.Tokens, c.Token)
	}
	return r, VerdictApplied
}

func (r Record) acquire(c Change, now time.Time) (Record, Verdict) {
	if slices.ContainsFunc(r.Trials, c.isTrial) {
		return r, VerdictApplied
	}
	if r.State == StateOpen && !now.Before(r.DueAt) {
		r = r.transition(StateHalfOpen, c, now)
	}
	if r.State != StateHalfOpen || len(r.Trials) >= c.Limits.MaxTrials {
		return r, VerdictRefused
	}
	r.Trials = append(slices.Clip(r.Trials), Trial{c.Token, now.Add(c.Limits.TrialTimeout)})
	return r, VerdictApplied
}

func (r Record) settle(c Change, now time.Time) (Record, Verdict) {
	if c.Seen.Generation != r.Generation || !slices.ContainsFunc(r.Trials, c.isTrial) {
		return r, VerdictRefused
	}
	r.Trials = slices.DeleteFunc(slices.Clone(r.Trials), c.isTrial)
	switch c.Outcome {
	case OutcomeSuccess:
		r.Successes++
		if r.Successes >= c.Limits.SuccessThreshold {
			r = r.transition(StateClosed, c, now)
		}
	case OutcomeFailure:
		r = r.transition(StateOpen, c, now)
	}
	return r, VerdictMoved
}

func (r Record) move(c Change, now time.Time) (Record, Verdict) {
	if slices.Contains(r.Tokens, c.Token) {
		return r, VerdictApplied
	}
	if r.State == StateClosed && c.To == StateClosed {
		return Record{Generation: r.Generation}, VerdictApplied
	}
	r = r.transition(c.To, c, now)
	if c.To != StateClosed {
		r.Tokens = []string{c.Token}
	}
	return r, VerdictMoved
}

// transition starts a new generation. The generation follows the storage's
// time, because a storage forgets healthy circuits: the first transition
// after that must still be newer than all before.
func (r Record) transition(to State, c Change, now time.Time) Record {
	next := Record{
		State:      to,
		Generation: max(r.Generation+1, c.Seen.Generation+1, now.UnixMilli()),
	}
	if to != StateClosed {
		next.Failures = r.Failures
	}
	if to == StateOpen {
		next.DueAt = now.Add(c.Limits.ResetTimeout)
	}
	return next
}

func (c Change) isTrial(t Trial) bool { return t.ID == c.Token }

func liveTrials(trials []Trial, now time.Time) []Trial {
	expired := func(t Trial) bool { return !now.Before(t.Deadline) }
	if !slices.ContainsFunc(trials, expired) {
		return trials
	}
	return slices.DeleteFunc(slices.Clone(trials), expired)
}

func remember(tokens []string, token string) []string {
	tokens = append(slices.Clip(tokens), token)
	return tokens[max(0, len(tokens)-maxTokens):]
}
