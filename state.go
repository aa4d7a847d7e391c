package infuse

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// This file is the whole state machine of a circuit, in one place: that is why it is
// long. It has no I/O, clock, lock or goroutine. Record.Apply makes every change of a
// record: of the shared one in a storage, and of the local one in each process.

// State is the state of a circuit. The zero value is StateClosed.
type State uint8

const (
	StateClosed   State = iota // calls run
	StateOpen                  // calls are rejected until a trial may run
	StateHalfOpen              // trial calls run, the others are rejected
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

// Outcome is the result of a call for its circuit. The zero value is OutcomeSuccess.
type Outcome uint8

const (
	OutcomeSuccess Outcome = iota // the service answered
	OutcomeFailure                // the service is at fault
	OutcomeIgnored                // the call is not counted
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

// Record is the state of one circuit in a storage. Users receive it from
// Breaker.Record; its methods are for authors of a Storage. The zero Record is a closed
// circuit without failures.
//
// The times of a record are on the clock of the process that holds it. Apply does not
// change the slices of the record it is called on.
//
// A record has evidence if Threshold is set, or Rated. A closed record with evidence is
// suspect, and rejects no call. An open or half-open record with evidence rejects the
// calls of the processes whose own last call failed, and continues to collect evidence.
// One without evidence was set manually (or is local), and rejects the calls of all.
type Record struct {
	State      State
	RetryAfter bool      // DueAt, or RetryAt, follows from a Retry-After
	Rated      bool      // the evidence is the failure rate, not consecutive failures
	Generation int64     // raised by every write but counts, at least to the storage's time in milliseconds
	Since      int64     // calls admitted in an older generation are not counted
	Opened     int64     // the generation of the last opening
	Manual     int64     // the generation of the last manual change or override
	Failures   int       // consecutive failures; while open, those that opened the circuit
	Successes  int       // consecutive successful trials, while half-open
	DueAt      time.Time // while open or suspect: when a trial may run
	Trials     []Trial   // running trials, in the order in which they started

	SuspectAt   time.Time // while suspect, open or half-open: when it became suspect, or opened without evidence
	Threshold   int       // the FailMax of the process that made it suspect by consecutive failures; otherwise 0
	Score       int       // with a Threshold: a failure adds 1, a success subtracts 4; at 0 the evidence is dismissed
	Witness     string    // the source of the first failed trial of this period, or that made it suspect by its rate: another source must confirm
	RetryAt     time.Time // while half-open: when the Witness may run another trial
	DismissedAt time.Time // when evidence was last dismissed: no suspicion begins for Limits.Suspicion

	Window       Window        // the calls for FailureRate
	OpenDuration time.Duration // the last open duration, without a Retry-After; 0: no exponential backoff
	ClosedAt     time.Time     // when a trial or a manual change last closed it

	Override *Override // nil: none

	By    string // the instance that reported the last failure of the streak, or changed the circuit
	Cause string // of the last opening

	lastNumbers []lastNumber // of each sender, to recognize duplicates; see Change.Number
}

// Trial is a part of a Record, for authors of a Storage: the lease of a trial slot. It
// expires at its deadline, even if the call has not ended.
type Trial struct {
	ID       string
	Started  time.Time
	Deadline time.Time
	Stale    bool // the state has changed since it was granted: it still occupies a slot, but is not counted
}

// lastNumber is the highest sequence number of a source.
type lastNumber struct {
	source string
	number uint64
}

// Limits are a part of a Change, for authors of a Storage: the settings of the sender,
// by which the record is evaluated. Durations are whole milliseconds. Fields whose
// comment does not mention 0 are at least 1, or 1 ms.
type Limits struct {
	FailMax          int
	ResetTimeout     time.Duration
	SuccessThreshold int
	MaxTrials        int
	TrialTimeout     time.Duration
	Suspicion        time.Duration // 0 in a local record, which opens at its threshold
	FailureRate      float64       // 0: off
	Window           time.Duration // of the rate
	MinCalls         int           // below which the rate is not evaluated
	MaxResetTimeout  time.Duration // 0: no exponential backoff
	MaxRetryAfter    time.Duration // the longest open duration by a Retry-After
}

// longestOpen is the longest that a record opened by calls may make the sender wait.
// asked: the record's time follows from a Retry-After.
// R41.
func (l *Limits) longestOpen(asked bool) time.Duration {
	if asked {
		return max(l.ResetTimeout, l.MaxResetTimeout, l.MaxRetryAfter)
	}
	return max(l.ResetTimeout, l.MaxResetTimeout)
}

// Calls are a part of a Change, for authors of a Storage: the outcomes of calls other
// than trials.
type Calls struct {
	Failures  int // those that count as evidence (R11)
	Successes int // those reported because the record has failures or evidence
	Lead      int // the failures before the first success
	Streak    int // the failures after the last success
}

// Settlement is a part of a Change, for authors of a Storage: the result of a trial.
type Settlement struct {
	ID      string
	Outcome Outcome
	OpenFor time.Duration // the shortest open duration if it opens the circuit
}

// Change is for authors of a Storage, who pass it to Record.Apply. It has everything
// that a process reports of a circuit, in the order in which it is applied. A Change
// that reports nothing evaluates the record, and restores it from Seen if the storage
// lost it.
type Change struct {
	Source string // the sender, valid by CheckSource
	Number uint64 // the sequence number, which rises for each source: a duplicate is not applied again. 0: always applied
	Seen   Record // the last record that the sender received; its Calls were admitted in that generation
	Limits Limits
	By     string // the sender's instance
	Cause  string // of the failures in Calls and Settled

	Settled      []Settlement
	Calls        Calls         // for the consecutive failures and the score
	Counted      []Bucket      // for the failure rate: all calls since the sender's last report
	OpenFor      time.Duration // the open duration if Calls or Counted open the circuit; 0: Limits.ResetTimeout
	Manual       *ManualState
	Override     *Override // replaces the one on record; an expired one removes it
	RequestTrial string    // the ID of a requested trial. It is granted if the new record has a trial of this ID
}

// ManualState is a part of a Change, for authors of a Storage: a manual change of the
// state, by Breaker.SetState or Announce.
type ManualState struct{ To State }

// Override forces a circuit open or closed for all processes, whatever the outcomes of
// its calls are. While it is forced open, no call runs; while it is forced closed, every
// call runs and is counted. The zero Override is invalid, because it has no Reason.
type Override struct {
	State  State     // open or closed
	By     string    // who forces it, at most 200 bytes; default Config.Instance
	Reason string    // shown in rejections and in the history; not empty, at most 200 bytes
	Until  time.Time // when it expires; zero: never
}

// isActive reports whether there is an override that has not expired.
// R33.
func (o *Override) isActive(now time.Time) bool {
	return o != nil && (o.Until.IsZero() || now.Before(o.Until))
}

// Verdict is the result of a change, for authors of a Storage.
type Verdict uint8

const (
	VerdictRefused Verdict = iota // the record is unchanged, for example because no trial was granted
	VerdictApplied                // the record is to be saved
	VerdictChanged                // the record is to be saved, and watchers are to be notified
)

// maxSenders bounds the sources in a record.
const maxSenders = 512

// evidence holds the constants of the rule. A variable, so that simulated fleets
// can try other values.
var evidence = struct {
	success int // a success subtracts this from the score; a failure adds 1
	opens   int // the score that opens the circuit, in thresholds: one process supplies at most one
	rated   int // the shortest time until a rate is confirmed, in Limits.Suspicion
}{4, 2, 4}

// Apply returns the record after the change, and the verdict. It is pure: now is the
// present time of the storage, on the clock of the record's times. docs/concepts.md has
// the rules.
func (r Record) Apply(c Change, now time.Time) (Record, Verdict) {
	return r.applied(&c, r.isDuplicate(&c), now)
}

// applied is Apply. before: the change is a duplicate, whose reports are on record.
func (r Record) applied(c *Change, before bool, now time.Time) (Record, Verdict) {
	next := r
	verdict := next.apply(c, before, now)
	if verdict == VerdictRefused {
		return r.At(now), verdict
	}
	return next, verdict
}

// apply is applied in place.
func (r *Record) apply(c *Change, before bool, now time.Time) Verdict {
	t := termsOf(c)
	generation := r.Generation
	r.expire(now)
	r.restore(&c.Seen, now)
	// A manual change does not evaluate, because its sender may have other settings.
	evaluates := c.counts() || c.Manual == nil && c.Override == nil
	if evaluates { // the process that reached a threshold may have crashed before it evaluated the record
		past := t
		past.failed, past.succeeded = false, false
		r.evaluate(&past, rate{}, now)
	}
	applied, reported := false, false
	step := func(ok bool) {
		if evaluates {
			r.evaluate(&t, r.Window.rate(t.limits.Window, t.limits.MinCalls, t.limits.FailureRate, now), now)
		}
		applied, reported = applied || ok, true
	}
	if !before {
		for _, s := range c.Settled {
			step(r.settle(s, &t, now))
		}
		if c.counts() {
			r.Window.Buckets = slices.Clone(r.Window.Buckets)
			step(r.addCalls(&c.Calls, c.Counted, &t, now))
		}
		if c.Manual != nil {
			r.setState(c.Manual.To, &t, now)
			step(true)
		}
		if c.Override != nil {
			r.override(*c.Override, &t, now)
			step(true)
		}
		if c.RequestTrial != "" {
			step(r.requestTrial(c.RequestTrial, &t, now))
		}
	}
	if !reported {
		step(true)
	}
	verdict := VerdictApplied
	switch {
	case r.Generation != generation:
		verdict = VerdictChanged
	case !applied:
		return VerdictRefused
	}
	if !before {
		r.remember(c)
	}
	return verdict
}

// tally is apply for calls of one sender, and a record whose window it may change in
// place.
func (r *Record) tally(c *Calls, counted []Bucket, t *terms, now time.Time) {
	r.expire(now)
	r.addCalls(c, counted, t, now)
	if c.Failures > 0 {
		r.evaluate(t, r.Window.rate(t.limits.Window, t.limits.MinCalls, t.limits.FailureRate, now), now)
	}
}

// counts reports whether the change has outcomes of calls.
func (c *Change) counts() bool { return c.Calls != (Calls{}) || len(c.Counted) > 0 }

// acts reports whether the change has more than outcomes of calls.
func (c *Change) acts() bool { return acts(c.Settled, c.Manual, c.Override, c.RequestTrial) }

func acts(settled []Settlement, manual *ManualState, override *Override, requestTrial string) bool {
	return len(settled) > 0 || manual != nil || override != nil || requestTrial != ""
}

// terms are the parts of a change that its steps need for evaluation.
type terms struct {
	limits     *Limits
	source     string
	by, cause  string
	openFor    time.Duration
	generation int64 // of Seen
	failed     bool  // a reported call failed
	succeeded  bool  // a reported call succeeded
}

func termsOf(c *Change) terms {
	t := terms{&c.Limits, c.Source, c.By, c.Cause, min(c.OpenFor, maxTimeout), c.Seen.Generation, c.Calls.Failures > 0, c.Calls.Successes > 0}
	for _, b := range c.Counted {
		t.failed, t.succeeded = t.failed || b.Failures > 0, t.succeeded || b.Calls > b.Failures
	}
	return t
}

// openDuration is the open duration if calls open the circuit, and whether it follows
// from a Retry-After.
// R29.
func (t *terms) openDuration(grown time.Duration) (d time.Duration, asked bool) {
	return max(cmp.Or(t.openFor, t.limits.ResetTimeout), grown), t.openFor > max(t.limits.ResetTimeout, grown)
}

// At returns the record at the given time, without expired leases and without an expired
// override. Storage.Load returns it in this form.
func (r Record) At(now time.Time) Record {
	r.expire(now)
	return r
}

// at is At without a copy if nothing can expire.
func (r *Record) at(now time.Time) *Record {
	if len(r.Trials) == 0 && r.Override == nil {
		return r
	}
	then := r.At(now)
	return &then
}

// expire is At in place.
func (r *Record) expire(now time.Time) {
	if len(r.Trials) > 0 {
		r.Trials = liveTrials(r.Trials, now)
	}
	if !r.Override.isActive(now) {
		r.Override = nil
	}
}

// scored reports whether the record collects evidence by its score.
func (r *Record) scored() bool { return r.Threshold > 0 }

// hasEvidence reports whether the record collects evidence.
func (r *Record) hasEvidence() bool { return r.scored() || r.Rated }

// Suspect reports whether the circuit is suspect: a threshold was reached, all processes
// report their results, and calls run.
func (r Record) Suspect() bool { return r.suspect() }

func (r *Record) suspect() bool { return r.State == StateClosed && r.hasEvidence() }

// Healthy reports whether the circuit is closed, not suspect, and without failures.
func (r Record) Healthy() bool {
	return r.State == StateClosed && r.Failures == 0 && !r.suspect()
}

// affectsCalls reports whether the circuit is not closed, is suspect, or overridden.
func (r *Record) affectsCalls() bool {
	return r.State != StateClosed || r.suspect() || r.Override != nil
}

// stillBlocks reports whether the record is worth restoring. One that is ready for a
// trial is not: it differs from a lost one by that trial only.
// R39.
func (r *Record) stillBlocks(now time.Time) bool {
	return r.Override != nil || r.affectsCalls() && (now.Before(r.DueAt) || now.Before(r.RetryAt) || len(r.Trials) > 0)
}

// restore replaces the record by that of the sender if its generation is higher: the
// storage has lost data.
// R39.
func (r *Record) restore(seen *Record, now time.Time) {
	switch {
	case seen.Generation == r.Generation:
		r.clampTo(seen)
		r.expire(now)
	case seen.Generation > r.Generation && (seen.at(now).stillBlocks(now) || r.affectsCalls()):
		numbers := r.lastNumbers
		*r = seen.At(now)
		r.lastNumbers = numbers
	}
}

// clampTo bounds the times of the record by those that the sender received for the same
// generation: a clock that is set back prolongs no wait.
func (r *Record) clampTo(seen *Record) {
	if r.Generation == 0 {
		return
	}
	earlier := func(t *time.Time, limit time.Time) {
		if !limit.IsZero() && limit.Before(*t) {
			*t = limit
		}
	}
	earlier(&r.DueAt, seen.DueAt)
	earlier(&r.RetryAt, seen.RetryAt)
	earlier(&r.SuspectAt, seen.SuspectAt)
	earlier(&r.DismissedAt, seen.DismissedAt)
	earlier(&r.ClosedAt, seen.ClosedAt)
	for i := range r.Trials {
		if known := seen.trial(r.Trials[i].ID); known >= 0 && seen.Trials[known].Deadline.Before(r.Trials[i].Deadline) {
			r.Trials = slices.Clone(r.Trials)
			r.Trials[i].Deadline = seen.Trials[known].Deadline
		}
	}
}

// addCalls adds the outcomes of calls. It does not evaluate them. Successes without
// failures on record change nothing, so they need not be saved.
// R4.
func (r *Record) addCalls(c *Calls, counted []Bucket, t *terms, now time.Time) bool {
	if r.State != StateClosed && !r.hasEvidence() || t.generation < r.Since {
		return false
	}
	if c.Failures == 0 && len(counted) == 0 && r.count() == 0 {
		return false
	}
	if len(counted) > 0 {
		r.Window.add(counted, t.limits.width(), now)
	}
	r.setCount(r.step(c, t.limits, now).to(r.count()))
	if due := now.Add(t.openFor); t.openFor > 0 && r.suspect() && due.Sub(r.DueAt) > t.limits.Suspicion {
		r.DueAt, r.RetryAfter, r.Generation = due, t.openFor > t.limits.ResetTimeout, r.nextGeneration(t, now)
	}
	return true
}

// step is the change of a record's count: of the consecutive failures or, with evidence,
// of the score. count.lua carries out a step and Window.add too: no other part of the
// state machine exists twice.
type step struct {
	add      int  // is added first
	restarts bool // then the count becomes after, if nothing was added or it is below upper
	after    int
	lower    int // at or below lower, and at or above upper, the record must be evaluated before it counts again
	upper    int
	until    time.Time // when upper changes; zero: never
}

func (r *Record) step(c *Calls, l *Limits, now time.Time) step {
	if r.scored() {
		s := step{add: c.Failures - evidence.success*c.Successes, upper: unlimited}
		if r.State == StateClosed {
			s.atLimit(r.opensAt(l), r.SuspectAt.Add(l.Suspicion), now)
		}
		return s
	}
	s := step{add: c.Lead, restarts: c.Successes > 0, after: c.Streak, lower: -1, upper: unlimited}
	if !r.Rated {
		s.atLimit(l.FailMax, r.noSuspicionUntil(l), now)
	}
	return s
}

// atLimit sets an upper limit that applies from a time on.
func (s *step) atLimit(upper int, from, now time.Time) {
	if now.Before(from) {
		s.until = from
	} else {
		s.upper = upper
	}
}

// opensAt is the score at which a report with these limits opens the circuit. A process
// with a low FailMax that made the circuit suspect does not decide for one with a higher
// FailMax (R17).
func (r *Record) opensAt(l *Limits) int {
	threshold := r.Threshold
	if l.FailMax < unlimited {
		threshold = max(threshold, l.FailMax)
	}
	return int(min(int64(evidence.opens)*int64(threshold), unlimited))
}

// to returns the count after the step.
func (s step) to(level int) int {
	next := int(max(min(int64(level)+int64(s.add), unlimited), 0))
	if s.restarts && (s.add == 0 || next < s.upper) {
		return min(s.after, unlimited)
	}
	return next
}

func (s step) reached(level int) bool { return level <= s.lower || level >= s.upper }

func (r *Record) count() int {
	if r.scored() {
		return r.Score
	}
	return r.Failures
}

func (r *Record) setCount(n int) {
	if r.scored() {
		r.Score = n
	} else {
		r.Failures = n
	}
}

// noSuspicionUntil is the time before which no suspicion begins, by the settings of the
// sender.
func (r *Record) noSuspicionUntil(l *Limits) time.Time { return r.DismissedAt.Add(l.Suspicion) }

// evaluate changes the state by the evidence: a closed record becomes suspect, a suspect
// one opens or is dismissed, and an open one may be dismissed.
func (r *Record) evaluate(t *terms, rate rate, now time.Time) {
	switch {
	case r.scored() && r.Score <= 0, r.Rated && (rate.under || rate.empty && t.succeeded):
		r.dismiss(t, now)
	case r.suspect():
		if r.confirmed(&rate, t, now) {
			grown := r.nextOpenDuration(t.limits, r.SuspectAt)
			r.State, r.Generation = StateOpen, r.nextGeneration(t, now)
			if !now.Before(r.DueAt) { // without calls for that long
				open, asked := t.openDuration(grown)
				r.SuspectAt, r.DueAt, r.RetryAfter = now, now.Add(open), asked
			}
			r.Opened, r.OpenDuration = r.Generation, cmp.Or(grown, r.OpenDuration)
		}
	case r.State != StateClosed || now.Before(r.noSuspicionUntil(t.limits)):
	case r.Failures >= t.limits.FailMax:
		r.becomeSuspect(false, t, now)
	case rate.over:
		r.becomeSuspect(true, t, now)
	}
}

// confirmed reports whether a report opens a suspect record. Only a report of failures
// does, with evidence of more than one process (R17, R22). Time alone does not.
func (r *Record) confirmed(rate *rate, t *terms, now time.Time) bool {
	switch {
	case !t.failed:
		return false
	case r.Rated:
		return rate.sure && t.source != r.Witness && !now.Before(r.SuspectAt.Add(time.Duration(evidence.rated)*t.limits.Suspicion))
	}
	return r.Score >= r.opensAt(t.limits) && !now.Before(r.SuspectAt.Add(t.limits.Suspicion))
}

// becomeSuspect begins to collect evidence (R15, R20). Calls that run now will be counted,
// because Since does not change. A local record opens at once (R5).
func (r *Record) becomeSuspect(rated bool, t *terms, now time.Time) {
	grown := r.nextOpenDuration(t.limits, now)
	open, asked := t.openDuration(grown)
	due := now.Add(open)
	r.By, r.Cause = t.by, t.cause
	if t.limits.Suspicion == 0 {
		r.open(t, due, asked, grown, now)
		return
	}
	r.Generation = r.nextGeneration(t, now)
	r.SuspectAt, r.DueAt, r.RetryAfter = now, due, asked
	if r.Rated = rated; rated {
		r.Witness = t.source
	} else {
		r.addEvidence(t.limits)
	}
}

// addEvidence makes the record reject only the calls of processes whose last call
// failed.
// R16.
func (r *Record) addEvidence(l *Limits) {
	switch {
	case r.hasEvidence():
	case l.FailMax == unlimited:
		r.Rated = true
	default:
		r.Threshold, r.Score = l.FailMax, l.FailMax
	}
}

// dismiss closes the record and drops its evidence (R16). Calls that run now will be
// counted.
func (r *Record) dismiss(t *terms, now time.Time) {
	if r.scored() { // with a rate, the streak continues
		r.Failures = 0
	}
	r.State, r.Generation, r.DismissedAt = StateClosed, r.nextGeneration(t, now), now
	r.dropEvidence()
	r.Trials, r.Successes, r.DueAt, r.By, r.Cause = staleTrials(r.Trials), 0, time.Time{}, "", ""
}

// notice is what watchers of a shared record are notified of.
type notice struct {
	kind       noticeKind
	generation int64 // of the record
	suspicion  int64 // of the suspect record that was dismissed
}

type noticeKind uint8

const (
	noticeChanged   noticeKind = iota // they read it
	noticeSuspect                     // FailMax consecutive failures are on record: the next success is evidence
	noticeDismissed                   // a suspicion was dismissed
)

// notice returns what watchers are notified of when the record takes the place of
// before.
func (r *Record) notice(before *Record) notice {
	switch {
	case r.State != StateClosed || before.State != StateClosed || r.Since != before.Since || r.Manual != before.Manual || r.Rated || before.Rated:
	case r.scored() && !before.scored():
		return notice{noticeSuspect, r.Generation, 0}
	case before.scored() && !r.scored():
		return notice{noticeDismissed, r.Generation, before.Generation}
	}
	return notice{noticeChanged, r.Generation, 0}
}

func (r *Record) dropEvidence() {
	r.SuspectAt, r.Threshold, r.Score, r.Rated, r.Witness, r.RetryAt, r.RetryAfter = time.Time{}, 0, 0, false, "", time.Time{}, false
}

// settle ends a trial. A stale trial only frees its slot (R26).
func (r *Record) settle(s Settlement, t *terms, now time.Time) bool {
	i := r.trial(s.ID)
	if i < 0 {
		return false
	}
	stale := r.Trials[i].Stale
	r.Trials = slices.Concat(r.Trials[:i], r.Trials[i+1:])
	r.Generation = r.nextGeneration(t, now)
	switch {
	case stale || r.State != StateHalfOpen:
	case s.Outcome == OutcomeSuccess:
		r.Successes++
		if r.Successes >= t.limits.SuccessThreshold {
			r.By, r.Cause = t.by, ""
			r.transition(StateClosed, t, now)
		}
	case s.Outcome == OutcomeFailure:
		r.trialFailed(min(s.OpenFor, maxTimeout), t, now)
	}
	return true
}

// trialFailed lets another process confirm a failed trial (R25): the process that ran it
// waits for another open duration, and the next trial goes to any other. If that fails
// too, the circuit is open for all. A local circuit opens at once (R6).
func (r *Record) trialFailed(openFor time.Duration, t *terms, now time.Time) {
	r.By, r.Cause = t.by, t.cause
	if t.limits.Suspicion == 0 {
		grown := r.nextOpenDuration(t.limits, now)
		usual := max(t.limits.ResetTimeout, grown)
		r.open(t, now.Add(max(usual, openFor)), openFor > usual, grown, now)
		return
	}
	second := r.State == StateHalfOpen && r.Witness != "" && r.Witness != t.source && now.Before(r.RetryAt)
	if !second {
		r.OpenDuration = cmp.Or(r.nextOpenDuration(t.limits, now), r.OpenDuration)
	}
	usual := max(t.limits.ResetTimeout, min(r.OpenDuration, t.limits.MaxResetTimeout))
	due := now.Add(max(usual, openFor))
	r.Successes, r.RetryAfter = 0, openFor > usual
	r.addEvidence(t.limits)
	if !second {
		r.Witness, r.RetryAt = t.source, due
		return
	}
	r.State, r.Opened, r.SuspectAt, r.DueAt = StateOpen, r.Generation, now, due
	r.Trials, r.Witness, r.RetryAt = staleTrials(r.Trials), "", time.Time{}
}

// R32.
func (r *Record) setState(to State, t *terms, now time.Time) {
	r.By, r.Cause = t.by, ""
	again := r.State == StateHalfOpen && to == StateHalfOpen
	switch {
	case again: // its trials continue; as in pybreaker, successes are counted from 0
		r.dropEvidence()
		r.Generation, r.Successes = r.nextGeneration(t, now), 0
	case to == StateOpen:
		if t.limits.MaxResetTimeout > 0 {
			r.OpenDuration = r.lastOpenDuration(t.limits, now)
		}
		r.open(t, now.Add(t.limits.ResetTimeout), false, 0, now)
	default:
		r.transition(to, t, now)
	}
	r.Manual = r.Generation
}

func (r *Record) override(o Override, t *terms, now time.Time) {
	if r.Override == nil && !o.isActive(now) {
		return // nothing to remove
	}
	r.Generation = r.nextGeneration(t, now)
	r.Manual, r.Override = r.Generation, nil
	if o.isActive(now) {
		r.Override = &o
	}
}

// R26.
func (r *Record) requestTrial(id string, t *terms, now time.Time) (granted bool) {
	due := r.State == StateOpen || r.suspect() && r.scored() && r.Score >= r.opensAt(t.limits)
	switch {
	case r.trial(id) >= 0:
		return true
	case r.Override != nil, !due && r.State != StateHalfOpen, !r.blockedUntil(t.limits, t.source, now).IsZero():
		return false
	case due:
		r.By = t.by
		r.State, r.Successes, r.Witness, r.RetryAt = StateHalfOpen, 0, "", time.Time{}
	}
	r.Generation = r.nextGeneration(t, now)
	r.Trials = append(slices.Clip(r.Trials), Trial{ID: id, Started: now, Deadline: now.Add(t.limits.TrialTimeout)})
	return true
}

// dueAt is when a trial may run by these limits: a record opened by calls makes no
// process wait longer than its own settings would (R41).
func (r *Record) dueAt(l *Limits) time.Time {
	if latest := r.SuspectAt.Add(l.longestOpen(r.RetryAfter)); !r.SuspectAt.IsZero() && latest.Before(r.DueAt) && !r.openedManually() {
		return latest
	}
	return r.DueAt
}

// openedManually reports whether the record is open by a manual change, whose duration
// its sender set.
func (r *Record) openedManually() bool {
	return r.State == StateOpen && !r.hasEvidence() && r.Manual > 0 && r.Manual >= r.Since
}

// blockedUntil is when a process with these limits may run a trial; zero if it may
// now.
// R24.
func (r *Record) blockedUntil(l *Limits, source string, now time.Time) time.Time {
	var until time.Time
	if r.State != StateHalfOpen {
		until = r.dueAt(l)
	} else if r.excludes(source, now) {
		until = r.RetryAt
	}
	var taken []time.Time
	for i := range r.Trials {
		if end := r.Trials[i].deadline(l); now.Before(end) {
			taken = append(taken, end)
		}
	}
	if over := len(taken) - l.MaxTrials; over >= 0 {
		slices.SortFunc(taken, time.Time.Compare)
		if slot := taken[over]; slot.After(until) {
			until = slot
		}
	}
	if !until.After(now) {
		return time.Time{}
	}
	return until
}

// deadline is when the slot is free for a process with these limits: no lease is longer
// than its own would be (R41).
func (t *Trial) deadline(l *Limits) time.Time {
	if latest := t.Started.Add(l.TrialTimeout); !t.Started.IsZero() && latest.Before(t.Deadline) {
		return latest
	}
	return t.Deadline
}

// excludes reports whether the next trial goes to another source (R25).
func (r *Record) excludes(source string, now time.Time) bool {
	return r.State == StateHalfOpen && source != "" && r.Witness == source && now.Before(r.RetryAt)
}

// transition begins a state. It is the only place that lists the fields preserved across
// states. Running trials keep their slots (R26).
func (r *Record) transition(to State, t *terms, now time.Time) {
	before, generation := *r, r.nextGeneration(t, now)
	*r = Record{
		State: to, Generation: generation, Since: generation, Opened: r.Opened, Manual: r.Manual,
		Trials: staleTrials(r.Trials), OpenDuration: r.OpenDuration, Override: r.Override, By: r.By, Cause: r.Cause, lastNumbers: r.lastNumbers,
	}
	if to != StateClosed {
		r.Failures, r.SuspectAt = before.Failures, now
	} else if before.State != StateClosed {
		r.ClosedAt = now
	}
}

// open opens the record for all processes, without evidence. grown is its new
// OpenDuration; 0 keeps the current one.
func (r *Record) open(t *terms, due time.Time, asked bool, grown time.Duration, now time.Time) {
	r.transition(StateOpen, t, now)
	r.Opened, r.DueAt, r.RetryAfter, r.OpenDuration = r.Generation, due, asked, cmp.Or(grown, r.OpenDuration)
}

// nextGeneration returns the generation of the next write. It follows the storage's
// clock, because storages lose circuits: the first generation after that must be higher
// than all before.
func (r *Record) nextGeneration(t *terms, now time.Time) int64 {
	return max(r.Generation+1, t.generation+1, now.UnixMilli())
}

// trial returns the index of the trial of that ID, or -1.
func (r *Record) trial(id string) int {
	return slices.IndexFunc(r.Trials, func(t Trial) bool { return t.ID == id })
}

func liveTrials(trials []Trial, now time.Time) []Trial {
	expired := func(t Trial) bool { return !now.Before(t.Deadline) }
	if !slices.ContainsFunc(trials, expired) {
		return trials
	}
	return slices.DeleteFunc(slices.Clone(trials), expired)
}

func staleTrials(trials []Trial) []Trial {
	if len(trials) == 0 {
		return nil
	}
	trials = slices.Clone(trials)
	for i := range trials {
		trials[i].Stale = true
	}
	return trials
}

// isDuplicate reports whether the change was applied before (R13).
func (r *Record) isDuplicate(c *Change) bool {
	return c.Number > 0 && slices.ContainsFunc(r.lastNumbers, func(h lastNumber) bool { return h.source == c.Source && h.number >= c.Number })
}

// remember records the sequence number of the change. Above maxSenders it drops the
// source that has been silent for longest.
func (r *Record) remember(c *Change) {
	if c.Number == 0 {
		return
	}
	all := make([]lastNumber, 0, len(r.lastNumbers)+1)
	for _, h := range r.lastNumbers {
		if h.source != c.Source {
			all = append(all, h)
		}
	}
	all = append(all, lastNumber{c.Source, c.Number})
	r.lastNumbers = all[max(0, len(all)-maxSenders):]
}

// nextOpenDuration is the open duration with exponential backoff, if the circuit opens
// now (R30); 0 without backoff.
func (r *Record) nextOpenDuration(l *Limits, now time.Time) time.Duration {
	if l.MaxResetTimeout == 0 {
		return 0
	}
	last := r.lastOpenDuration(l, now)
	if last == 0 {
		return l.ResetTimeout
	}
	return min(2*last, l.MaxResetTimeout)
}

// lastOpenDuration is the last open duration, halved for each such duration that the
// circuit has been closed since, as in Envoy's outlier detection; 0 below
// ResetTimeout.
func (r *Record) lastOpenDuration(l *Limits, now time.Time) time.Duration {
	last, healthy := r.OpenDuration, time.Duration(0)
	if r.State == StateClosed {
		healthy = now.Sub(r.ClosedAt)
	}
	for ; last > 0 && last >= l.ResetTimeout && healthy >= last; last /= 2 {
		healthy -= last
	}
	if last < l.ResetTimeout {
		return 0
	}
	return last
}

// backoffUntil is when the last open duration ceases to matter.
func (r *Record) backoffUntil() time.Time { return r.ClosedAt.Add(2 * r.OpenDuration) }

// isValid reports whether this package could have made the override.
func (o *Override) isValid() bool {
	return o.State <= StateOpen && max(len(o.By), len(o.Reason)) <= maxTextLength
}

// milliseconds rounds up, so that no wait becomes shorter.
func milliseconds(d time.Duration) int64 {
	if d <= 0 {
		return int64(d / time.Millisecond)
	}
	return int64((min(d, math.MaxInt64-time.Millisecond) + time.Millisecond - 1) / time.Millisecond)
}

// width is the width of a bucket of the window.
func (l *Limits) width() time.Duration {
	return (l.Window / windowBuckets).Truncate(time.Millisecond)
}

// Bounds of the fields of a record, which may be forged.
const (
	maxTextLength   = 200 // of By, Cause and Reason, in bytes
	maxSourceLength = 64  // of a source, and of the ID of a trial
	maxTimeout      = 366 * 24 * time.Hour
)
