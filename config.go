package infuse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"
)

// Config has the settings of a Breaker, or of all breakers of a Group. The zero
// value is ready to use, without a storage. New and Configure copy it: later
// changes have no effect. Fields may be added.
type Config struct {
	// FailMax is the number of consecutive failures that open the local circuit,
	// and that make the shared circuit suspect (see Suspicion). Default 5; with a
	// FailureRate and FailMax 0, consecutive failures do not open it.
	//
	// In one process, any counted success resets the count. Over all processes, a
	// success resets it if its process knows of failures. One process supplies at
	// most FailMax failures to the shared circuit until it succeeds.
	FailMax int

	// Suspicion is the shortest time between suspect and open, for the shared
	// circuit. Default 50 ms. While the circuit is suspect, calls run and all
	// processes report their results. The score starts at FailMax; a failure adds
	// 1, a success subtracts 4. A report of failures opens the circuit if the score
	// then is 2 × FailMax or more; at 0 the circuit stays closed. Nothing opens by
	// time. If the FailMax of the sender and that of the process that made the circuit
	// suspect differ, the higher one counts. An open shared circuit rejects the calls
	// of each process whose own last call failed.
	Suspicion time.Duration

	// FailureRate is the fraction of failed calls in Window that opens the local
	// circuit, and that makes the shared circuit suspect: 0.5 is one call in two.
	// Default 0, off. It is evaluated at failures. The shared circuit opens at a failure
	// that another process reports, 4 × Suspicion later or more, if the failures exceed
	// FailureRate × calls by (1 − FailureRate) × MinCalls or more.
	//
	// A window begins with a failure: earlier successes are not in it.
	FailureRate float64

	// Window is the duration over which the FailureRate is measured. Default 10 s,
	// from 100 ms to an hour. It moves by a tenth of its length at a time.
	Window time.Duration

	// MinCalls is the number of calls in the Window below which the FailureRate is not
	// evaluated. Default 20. With few calls the rate is often reached by chance: see
	// docs/tuning.md.
	MinCalls int

	// SlowCall is the duration above which a call counts as a failure although it
	// succeeded or its caller cancelled it. Default 0, off: a cancelled call is then
	// ignored, however long it took. The duration of an HTTP request ends with the
	// headers of the response. It begins with the end of the request's body if that has
	// no GetBody. With SlowCall every call reads the clock twice.
	SlowCall time.Duration

	// ResetTimeout is how long the circuit stays open before a trial may run.
	// Default 60 s, at least 1 ms; a fraction of a millisecond is rounded up. The
	// shared circuit counts it from the moment it became suspect.
	ResetTimeout time.Duration

	// MaxResetTimeout is the maximum of the open duration with exponential backoff: it
	// doubles each time the circuit opens again, from ResetTimeout up to this. Default
	// 0, no backoff. Each open duration that the circuit stays closed undoes one
	// doubling. A Retry-After may keep the circuit open for longer (MaxRetryAfter), and
	// a manual opening lasts for ResetTimeout.
	MaxResetTimeout time.Duration

	// MaxRetryAfter is the longest that a Retry-After header keeps the circuit open.
	// Default 5 minutes; if negative, the header is ignored. A shorter Retry-After than
	// ResetTimeout has no effect.
	MaxRetryAfter time.Duration

	// Ramp is the duration after a circuit closes during which the share of calls that
	// run rises evenly from 10 % to 100 % (slow start). The other calls are rejected;
	// OpenError.DueAt is the end of the ramp. Default 0, off; at most an hour. If
	// Configure sets it soon after the circuit closed, the ramp starts partway.
	Ramp time.Duration

	// SuccessThreshold is the number of consecutive successful trials that close
	// the circuit. Default 1.
	SuccessThreshold int

	// MaxTrials is the number of trials that may run at a time while the circuit is
	// half-open, over all processes. Default 1.
	MaxTrials int

	// TrialTimeout is the lease of a trial. Default 30 s. A trial that has not
	// ended by then is not counted, and another may run. Set it above the longest
	// call: if a process crashes during a trial, recovery waits this long.
	TrialTimeout time.Duration

	// Exclude reports errors that count as successes, as pybreaker's exclude does: the
	// errors that a healthy service returns. The call still returns the error.
	Exclude []func(error) bool

	// Classify decides the outcome of a call from its error, in place of the
	// default and of Exclude. It is called for a nil error, too.
	//
	// By default nil is a success. These are ignored: the error of a call whose caller
	// cancelled its context (ctx.Err() is context.Canceled), the error of a call whose
	// deadline had passed before it began, and a rejection by this same circuit. Any
	// other error is a failure, also that of a deadline that passes during the call.
	Classify func(ctx context.Context, err error) Outcome

	// Storage keeps the shared circuit. Default nil: there is only the local
	// circuit of this process.
	//
	// All breakers of a process whose Storages compare equal (==) share the limit of 64
	// concurrent requests to it, and detect together that it is unavailable. Use a
	// pointer type: breakers cannot share a Storage whose type is not comparable.
	Storage Storage

	// Strict makes every call read the shared circuit from the storage before it runs,
	// and wait until its outcome is stored. Default false: calls use the last known
	// state, which may be behind by one message.
	//
	// A success is still reported only if failures were on record when its call began.
	// Calls that wait for the storage share one read, which starts after they arrived.
	// If there is no answer within StorageTimeout, the breaker detaches: the local
	// circuit decides, and Stats.StorageErr has the reason. If the context of a call
	// ends first, the call uses the last known state, and its fn receives the ended
	// context.
	Strict bool

	// StorageTimeout is the longest that a call waits for the storage. Default 100 ms.
	StorageTimeout time.Duration

	// StorageDown is the behaviour while the storage is unavailable. Default
	// StorageDownLocal.
	StorageDown StorageDownPolicy

	// DryRun runs calls that would be rejected. They are not counted for the circuit,
	// but in Stats.Calls.WouldReject and by Listener.WouldReject. Everything else works
	// as without DryRun: states, the shared circuit, trials, transitions. Default
	// false. Processes with and without it may share a circuit.
	DryRun bool

	// Listeners are notified of calls, transitions and storage outages, in the order of
	// the slice. Default none.
	Listeners []*Listener

	// Instance names this process in records, errors and events. Default is its
	// host and process ID; at most 200 bytes.
	Instance string

	// CountCalls counts calls for Stats.Calls. Default false. It costs some
	// nanoseconds per call.
	CountCalls bool

	// MaxCircuits is the number of breakers that a Group keeps. Default 1024. New
	// ignores it.
	MaxCircuits int
}

// Validate returns an error that names each invalid field and its value, or nil. It
// does no I/O. New, NewGroup and Configure return the same error.
func (c Config) Validate() error {
	_, err := newSettings(c)
	return err
}

// StorageDownPolicy is the behaviour of a breaker while its storage is unavailable.
type StorageDownPolicy uint8

const (
	StorageDownLocal  StorageDownPolicy = iota // the local circuit decides
	StorageDownAllow                           // every call runs and nothing is counted ("fail open")
	StorageDownReject                          // every call is rejected
)

// String returns "local", "allow" or "reject".
func (p StorageDownPolicy) String() string {
	switch p {
	case StorageDownLocal:
		return "local"
	case StorageDownAllow:
		return "allow"
	case StorageDownReject:
		return "reject"
	}
	return fmt.Sprintf("StorageDownPolicy(%d)", uint8(p))
}

// Bounds for settings. maxMaxTrials also bounds records that are read.
const (
	maxFailMax   = math.MaxInt32
	minWindow    = 100 * time.Millisecond
	maxMaxTrials = 1024
)

// settings is a valid Config with its defaults filled in. It never changes: circuits
// share it.
type settings struct {
	Config
	limits  Limits // of the shared circuit
	local   Limits // of the local circuit: it opens at once
	perCall bool   // a listener is notified of each call
	rejects bool   // a listener is notified of each rejection
	healthy *view  // of the circuits that share it; nil: each has its own
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
	if s.StorageDown > StorageDownReject {
		reject("StorageDown is %v: must be StorageDownLocal, StorageDownAllow or StorageDownReject", s.StorageDown)
	}
	if s.Storage != nil && isNil(s.Storage) {
		reject("Storage is a nil %T: must be a storage, or nil without a type for none", s.Storage)
	} else if checked, ok := s.Storage.(interface{ invalidSettings() error }); ok && checked.invalidSettings() != nil {
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

// derive sets the fields that follow from the Config.
func (s *settings) derive() {
	if s.Instance == "" {
		host, _ := os.Hostname()
		s.Instance = clip(host, maxTextLength-20) + ":" + strconv.Itoa(os.Getpid())
	}
	s.local = Limits{
		FailMax: s.FailMax, ResetTimeout: s.ResetTimeout, SuccessThreshold: s.SuccessThreshold, MaxTrials: s.MaxTrials, TrialTimeout: s.TrialTimeout,
		FailureRate: s.FailureRate, Window: s.Window, MinCalls: s.MinCalls, MaxResetTimeout: s.MaxResetTimeout,
		MaxRetryAfter: max(0, s.MaxRetryAfter),
	}
	s.limits = s.local
	s.limits.Suspicion = s.Suspicion
	for _, l := range s.Listeners {
		s.perCall = s.perCall || l.BeforeCall != nil || l.Success != nil || l.Failure != nil || l.Ignored != nil
		s.rejects = s.rejects || l.Rejected != nil
	}
}

// equal reports whether both have the same fields. A func equals only itself.
func (s *settings) equal(t *settings) bool {
	return (s.Storage == nil || isComparable(s.Storage)) && slices.Equal(s.Listeners, t.Listeners) &&
		slices.EqualFunc(s.Exclude, t.Exclude, sameFunc) && sameFunc(s.Classify, t.Classify) &&
		sameConfig(reflect.ValueOf(s.Config), reflect.ValueOf(t.Config))
}

// sameFunc reports whether both are one func, with one set of variables.
func sameFunc[F any](f, g F) bool {
	return *(*unsafe.Pointer)(unsafe.Pointer(&f)) == *(*unsafe.Pointer)(unsafe.Pointer(&g))
}

// hooked reports whether every call does more than run.
func (s *settings) hooked() bool {
	return s.Strict || s.perCall || s.Classify != nil || s.SlowCall > 0
}

// streakCounts reports whether consecutive failures can open the circuit.
func (s *settings) streakCounts() bool { return s.FailMax < unlimited }

// classify returns the outcome of a call of the named circuit.
// R1.
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
// whatever the cause. A deadline that passed is not a cancellation.
func isCancelled(ctx context.Context) bool { return ctx.Err() == context.Canceled }

// Settings are the fields of Config that are plain data. Any library that uses
// encoding.TextUnmarshaler can read them from JSON, YAML or the environment. A duration
// is a text such as "1m30s". Zero values mean the same as in Config. Config.Validate
// finds invalid values.
type Settings struct {
	FailMax          int               `json:"failMax,omitempty" yaml:"failMax,omitempty"`
	Suspicion        Duration          `json:"suspicion,omitempty" yaml:"suspicion,omitempty"`
	FailureRate      float64           `json:"failureRate,omitempty" yaml:"failureRate,omitempty"`
	Window           Duration          `json:"window,omitempty" yaml:"window,omitempty"`
	MinCalls         int               `json:"minCalls,omitempty" yaml:"minCalls,omitempty"`
	SlowCall         Duration          `json:"slowCall,omitempty" yaml:"slowCall,omitempty"`
	ResetTimeout     Duration          `json:"resetTimeout,omitempty" yaml:"resetTimeout,omitempty"`
	MaxResetTimeout  Duration          `json:"maxResetTimeout,omitempty" yaml:"maxResetTimeout,omitempty"`
	MaxRetryAfter    Duration          `json:"maxRetryAfter,omitempty" yaml:"maxRetryAfter,omitempty"`
	Ramp             Duration          `json:"ramp,omitempty" yaml:"ramp,omitempty"`
	SuccessThreshold int               `json:"successThreshold,omitempty" yaml:"successThreshold,omitempty"`
	MaxTrials        int               `json:"maxTrials,omitempty" yaml:"maxTrials,omitempty"`
	TrialTimeout     Duration          `json:"trialTimeout,omitempty" yaml:"trialTimeout,omitempty"`
	Strict           bool              `json:"strict,omitempty" yaml:"strict,omitempty"`
	StorageTimeout   Duration          `json:"storageTimeout,omitempty" yaml:"storageTimeout,omitempty"`
	StorageDown      StorageDownPolicy `json:"storageDown,omitempty" yaml:"storageDown,omitempty"`
	DryRun           bool              `json:"dryRun,omitempty" yaml:"dryRun,omitempty"`
	Instance         string            `json:"instance,omitempty" yaml:"instance,omitempty"`
	CountCalls       bool              `json:"countCalls,omitempty" yaml:"countCalls,omitempty"`
	MaxCircuits      int               `json:"maxCircuits,omitempty" yaml:"maxCircuits,omitempty"`
}

// Config returns a Config with these settings. Its Storage, Listeners, Classify and
// Exclude are unset. It validates nothing.
func (s Settings) Config() Config {
	return Config{
		FailMax: s.FailMax, Suspicion: time.Duration(s.Suspicion),
		FailureRate: s.FailureRate, Window: time.Duration(s.Window), MinCalls: s.MinCalls,
		SlowCall:     time.Duration(s.SlowCall),
		ResetTimeout: time.Duration(s.ResetTimeout), MaxResetTimeout: time.Duration(s.MaxResetTimeout), MaxRetryAfter: time.Duration(s.MaxRetryAfter),
		Ramp:             time.Duration(s.Ramp),
		SuccessThreshold: s.SuccessThreshold, MaxTrials: s.MaxTrials, TrialTimeout: time.Duration(s.TrialTimeout),
		Strict: s.Strict, StorageTimeout: time.Duration(s.StorageTimeout), StorageDown: s.StorageDown,
		DryRun: s.DryRun, Instance: s.Instance, CountCalls: s.CountCalls, MaxCircuits: s.MaxCircuits,
	}
}

// Duration is a time.Duration that is read and written as text, such as "1m30s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("infuse: %.80q is not a duration such as \"1m30s\"", text)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (p StorageDownPolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: "local", "allow" or "reject".
func (p *StorageDownPolicy) UnmarshalText(text []byte) error {
	for known := StorageDownLocal; known <= StorageDownReject; known++ {
		if known.String() == string(text) {
			*p = known
			return nil
		}
	}
	return fmt.Errorf("infuse: %.80q is not \"local\", \"allow\" or \"reject\"", text)
}

// sameConfig reports whether two Configs are the same, as far as funcs, listeners
// and storages can be compared.
func sameConfig(a, b reflect.Value) bool {
	for i := range a.NumField() {
		x, y := a.Field(i), b.Field(i)
		switch x.Kind() {
		case reflect.Func:
			if x.Pointer() != y.Pointer() {
				return false
			}
		case reflect.Slice:
			if x.Len() != y.Len() {
				return false
			}
		default:
			if x.Comparable() != y.Comparable() || x.Comparable() && !x.Equal(y) {
				return false
			}
		}
	}
	return true
}

// keep refuses another storage than the one that is in use.
func (s *settings) keep(storage Storage) error {
	if s.Storage != nil && !(reflect.ValueOf(s.Storage).Comparable() && s.Storage == storage) {
		return fmt.Errorf("infuse: Config.Storage is another %T: a breaker keeps the storage that it was made with", s.Storage)
	}
	s.Storage = storage
	return nil
}
