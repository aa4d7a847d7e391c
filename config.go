package infuse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Config are the settings of a Breaker, or of all breakers of a Group. The
// zero value is ready to use, without a storage. It is copied where it is used:
// what is changed in it later changes nothing. Fields may be added.
type Config struct {
	// FailMax is how many failures in a row open the circuit. If it is 0: 5, or
	// with a FailureRate, that no row opens it. In this
	// process, every success that is counted breaks the row. Over the
	// fleet, FailMax reported failures make the circuit suspect (see
	// Suspicion). A process that knows of no failure reports no success, so
	// its successes do not break the fleet's row.
	FailMax int

	// Suspicion is the least time for which the fleet is asked before its
	// circuit opens: 50 ms if 0. It lasts up to three times as long as the row
	// of failures took to come about, and half of ResetTimeout at most. All
	// processes report what they see meanwhile. The circuit opens if more than
	// four calls in five fail.
	Suspicion time.Duration

	// FailureRate opens the circuit when this share of the calls in Window has
	// failed: 0.5 is one call in two, and 0 is off. It is judged at failures. In
	// this process it opens the circuit at once. Over the fleet it makes it
	// suspect: all processes report what they have counted, and it opens if the
	// rate is still as high at the end.
	//
	// A window begins with a failure: the successes before are not in it, and
	// while there is no failure in it nothing is counted.
	FailureRate float64

	// Window is how far back the FailureRate looks: 10 s if 0, and from 100 ms to
	// an hour. It moves on by a tenth of its length at a time.
	Window time.Duration

	// MinCalls is how many calls must be in the Window before the FailureRate
	// decides anything: 20 if 0. The fewer they are, the more often it is chance
	// that decides: see docs/policies.md.
	MinCalls int

	// SlowCall is the duration above which a successful call, and a call that its
	// caller cancels, counts as a failure. It applies to Call, Do and permits; for a
	// request the time until its headers counts, from the end of its body if that
	// has no GetBody. Default 0, off: a cancelled call is then ignored, however long
	// it took. With SlowCall every call reads the clock twice.
	SlowCall time.Duration

	// ResetTimeout is how long the circuit stays open before a trial may run:
	// 60 s if 0. At least a millisecond; a fraction of one is rounded up.
	ResetTimeout time.Duration

	// MaxResetTimeout lets the open time grow: it doubles each time the circuit
	// opens again, from ResetTimeout up to this, for the whole fleet alike. For
	// every such time that the circuit stays closed, one doubling is forgotten. 0:
	// it does not grow. A Retry-After may keep the circuit open for longer (see
	// MaxRetryAfter), and a move by hand is for ResetTimeout.
	MaxResetTimeout time.Duration

	// MaxRetryAfter is the longest that a Retry-After header keeps the circuit
	// open. Default 5 minutes. Negative: the header is ignored. A circuit that
	// opens stays open for ResetTimeout in any case.
	MaxRetryAfter time.Duration

	// Ramp has traffic return gently: for so long after the circuit has closed,
	// only a share of the calls runs, which grows from a tenth to all, in the whole
	// fleet alike. The others are rejected, with the time that is left. 0 is off;
	// at most an hour. One that Configure sets may begin in its middle.
	Ramp time.Duration

	// SuccessThreshold is how many trials in a row must succeed to close the
	// circuit: 1 if 0.
	SuccessThreshold int

	// MaxTrials is how many calls may run at a time while the circuit is
	// half-open, over all processes: 1 if 0.
	MaxTrials int

	// TrialTimeout is the lease of a trial: a trial that has not ended by then
	// counts for nothing, and another may run: 30 s if 0. It should be longer
	// than the longest call: if a process dies during a trial, recovery waits
	// this long.
	TrialTimeout time.Duration

	// Exclude reports errors that count as successes, those
	// with which a healthy service answers. A call with such an error still
	// returns it.
	Exclude []func(error) bool

	// Classify decides what a call's error says of the service, in place of
	// the default and of Exclude. It is called for a nil error, too.
	//
	// By default nil is a success; an error of a call whose own context was
	// cancelled by its caller (ctx.Err() is context.Canceled) is ignored, and
	// so is that of a call whose deadline had passed before it began, and a
	// rejection by this same circuit; any other error is a failure, also that
	// of a deadline of the caller's own which passes during the call.
	Classify func(ctx context.Context, err error) Outcome

	// Storage keeps the circuit of the fleet. nil: there is no fleet, and the
	// circuit is this process's alone.
	Storage Storage

	// Strict has every call read the fleet's circuit from the storage first,
	// one round trip, and wait until its outcome is known there. Without it a
	// call decides from what this process knows, which may be behind by as long
	// as the storage takes to tell.
	//
	// A success changes a record only where failures are on it. So, with Strict
	// as without, it is reported only if there were some when its call began.
	Strict bool

	// StorageTimeout is the most that one call ever waits for the storage:
	// 100 ms if 0.
	StorageTimeout time.Duration

	// Fallback is what happens while the storage is away: FallbackLocal if 0.
	Fallback Fallback

	// Listeners are told what happens, in this order.
	Listeners []*Listener

	// Instance names this process in records, errors and events: its host and
	// process ID if empty. At most 200 bytes.
	Instance string

	// CountCalls keeps the counters of Stats.Calls, for some nanoseconds a call.
	CountCalls bool

	// MaxCircuits is how many breakers a Group keeps: 1024 if 0. New ignores it.
	MaxCircuits int
}

// Fallback is what a breaker does while its storage is away.
type Fallback uint8

const (
	FallbackLocal  Fallback = iota // the circuit of this process decides alone
	FallbackClosed                 // every call runs, nothing is counted: operators call it "fail open"
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
// bounds a record, maxTimeout also what a record from outside can ask for.
const (
	maxFailMax   = math.MaxInt32
	minWindow    = 100 * time.Millisecond
	maxMaxTrials = 1024
	maxTimeout   = 366 * 24 * time.Hour
)

// settings is a valid Config with its defaults filled in. It never changes.
type settings struct {
	Config
	limits  Limits // of the fleet's circuit
	own     Limits // of the circuit of this process: it opens at once
	perCall bool   // a listener asks for each call
	rejects bool   // a listener asks for each rejection
}

func newSettings(cfg Config) (*settings, error) {
	s := &settings{Config: cfg}
	s.Exclude, s.Listeners = slices.Clone(cfg.Exclude), slices.Clone(cfg.Listeners)
	var invalid []error
	reject := func(format string, args ...any) {
		invalid = append(invalid, fmt.Errorf("infuse: Config."+format, args...))
	}
	presetFailMax := 5
	if s.FailureRate > 0 {
		presetFailMax = unlimited
	}
	for _, n := range []struct {
		field        string
		value        *int
		preset, most int
	}{
		{"FailMax", &s.FailMax, presetFailMax, maxFailMax},
		{"MinCalls", &s.MinCalls, 20, maxFailMax},
		{"SuccessThreshold", &s.SuccessThreshold, 1, maxFailMax},
		{"MaxTrials", &s.MaxTrials, 1, maxMaxTrials},
		{"MaxCircuits", &s.MaxCircuits, 1024, math.MaxInt32},
	} {
		if *n.value < 0 || *n.value > n.most {
			preset := strconv.Itoa(n.preset)
			if n.preset == unlimited {
				preset = "none, as there is a FailureRate"
			}
			reject("%s is %d: must be from 1 to %d, or 0 for %s", n.field, *n.value, n.most, preset)
		}
		if *n.value == 0 {
			*n.value = n.preset
		}
	}
	for _, d := range []struct {
		field               string
		value               *time.Duration
		preset, least, most time.Duration
	}{
		{"ResetTimeout", &s.ResetTimeout, time.Minute, time.Millisecond, maxTimeout},
		{"TrialTimeout", &s.TrialTimeout, 30 * time.Second, time.Millisecond, maxTimeout},
		{"StorageTimeout", &s.StorageTimeout, 100 * time.Millisecond, time.Millisecond, maxTimeout},
		{"Suspicion", &s.Suspicion, 50 * time.Millisecond, time.Millisecond, maxTimeout},
		{"Window", &s.Window, 10 * time.Second, minWindow, time.Hour},
		{"SlowCall", &s.SlowCall, 0, time.Microsecond, maxTimeout},
		{"MaxResetTimeout", &s.MaxResetTimeout, 0, max(cmp.Or(s.ResetTimeout, time.Minute), time.Millisecond), maxTimeout},
		{"Ramp", &s.Ramp, 0, time.Millisecond, time.Hour},
	} {
		switch {
		case *d.value == 0:
			*d.value = d.preset
		case *d.value < d.least || *d.value > d.most:
			preset := "off"
			if d.preset > 0 {
				preset = d.preset.String()
			}
			reject("%s is %v: must be from %v to %v, or 0 for %s", d.field, *d.value, d.least, d.most, preset)
		case d.field != "SlowCall": // which no storage keeps
			*d.value = time.Duration(milliseconds(*d.value)) * time.Millisecond
		}
		if d.field == "Window" { // in whole buckets
			*d.value = (*d.value + windowBuckets*time.Millisecond - 1).Truncate(windowBuckets * time.Millisecond)
		}
	}
	switch {
	case s.MaxRetryAfter == 0:
		s.MaxRetryAfter = 5 * time.Minute
	case s.MaxRetryAfter > maxTimeout:
		reject("MaxRetryAfter is %v: must be at most %v, negative to ignore the header, or 0 for 5m0s", s.MaxRetryAfter, maxTimeout)
	}
	if !(s.FailureRate >= 0 && s.FailureRate <= 1) { // NaN, too
		reject("FailureRate is %v: must be from 0 to 1, where 0.5 is one call in two and 0 is off", s.FailureRate)
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
	if len(s.Instance) > maxTextLength || !utf8.ValidString(s.Instance) {
		reject("Instance is %.80q: must be at most %d bytes of UTF-8", s.Instance, maxTextLength)
	}
	if invalid != nil {
		return nil, errors.Join(invalid...)
	}
	s.derive()
	return s, nil
}

// derive fills in what follows from the fields of the Config.
func (s *settings) derive() {
	if s.Instance == "" {
		host, _ := os.Hostname()
		s.Instance = clip(host, maxTextLength-20) + ":" + strconv.Itoa(os.Getpid())
	}
	s.own = Limits{
		FailMax: s.FailMax, ResetTimeout: s.ResetTimeout, SuccessThreshold: s.SuccessThreshold, MaxTrials: s.MaxTrials, TrialTimeout: s.TrialTimeout,
		FailureRate: s.FailureRate, Window: s.Window, MinCalls: s.MinCalls, MaxResetTimeout: s.MaxResetTimeout,
	}
	s.limits = s.own
	s.limits.Suspicion = s.Suspicion
	for _, l := range s.Listeners {
		s.perCall = s.perCall || l.BeforeCall != nil || l.Success != nil || l.Failure != nil || l.Ignored != nil
		s.rejects = s.rejects || l.Rejected != nil
	}
}

// hooked reports whether every call has something to do beside running.
func (s *settings) hooked() bool {
	return s.Strict || s.perCall || s.Classify != nil || s.SlowCall > 0
}

// rowCounts reports whether a row of failures can open the circuit.
func (s *settings) rowCounts() bool { return s.FailMax < unlimited }

// classify is what the error of a call on the named circuit says.
func (s *settings) classify(ctx context.Context, circuit string, err error) Outcome {
	if s.Classify != nil {
		return s.Classify(ctx, err)
	}
	if err == nil {
		return OutcomeSuccess
	}
	if isCancelled(ctx) || isRejectionBy(circuit, err) {
		return OutcomeIgnored
	}
	for _, exclude := range s.Exclude {
		if exclude(err) {
			return OutcomeSuccess
		}
	}
	return OutcomeFailure
}

// isCancelled reports whether a call's own context was cancelled by its caller,
// whatever the cause. A deadline that has passed is no such thing.
func isCancelled(ctx context.Context) bool { return ctx.Err() == context.Canceled }
