package infuse

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// This file is the whole state machine of a circuit and nothing else: no I/O,
// no clock, no lock, no goroutine. Every record changes in Record.Apply: the
// shared one in a storage, and the local one of each process.

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

// Outcome is the result of a call, as evidence of the service's health.
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

// Record is what a storage keeps of one circuit. Users meet it in
// Breaker.Record; its methods are for authors of a Storage. The zero Record is
// a closed circuit that never failed.
//
// The times in a record are on the clock of the process that holds it. Records
// are values: Apply never changes the slices of the record it is called on.
//
// A record collects evidence while it is suspect, and goes on while it is open
// or half-open because of that evidence: Threshold is set, or Rated. A closed
// record with evidence is suspect, and rejects no call. An open or half-open
// record with evidence applies to the processes whose own last call failed; one
// without evidence was set manually (or is local), and applies to all.
type Record struct {
	State      State
	Asked      bool      // the service asked for DueAt, or RetryAt (Retry-After)
	Rated      bool      // the evidence is the failure rate, not consecutive failures
	Generation int64     // raised by every write but counts, at least to the storage's time in milliseconds
	Since      int64     // calls that were admitted in an older generation are not counted
	Opened     int64     // the generation of the last opening
	Moved      int64     // the generation of the last manual change or override
	Failures   int       // consecutive failures; after an opening, as many as it took
	Successes  int       // consecutive successful trials, while half-open
	DueAt      time.Time // while open or suspect: when a trial may run
	Trials     []Trial   // the trials that run now, in the order in which they started

	SuspectAt   time.Time // while suspect, open or half-open: when it became suspect, or was opened without evidence
	Threshold   int       // the FailMax of the process that made it suspect; 0: not because of consecutive failures
	Score       int       // with a Threshold: a failure adds 1, a success takes 4; at 0 the suspicion is dismissed
	Witness     string    // the source of the first failed trial of this period, or that made it suspect because of its rate: another source has to confirm
	RetryAt     time.Time // half-open: when the Witness may run another trial
	DismissedAt time.Time // when the last suspicion was dismissed: none begins for Limits.Suspicion

	Window   Window        // of the calls that FailureRate counts
	OpenTime time.Duration // the last open duration, without a Retry-After; 0: no exponential backoff
	ClosedAt time.Time     // when a trial or a manual change last closed it

	Override *Override // nil: none

	By    string // the instance that reported the last failure of the streak, or changed the circuit
	Cause string // of the last opening

	heard []heard // to recognize what a sender repeats; see Change.Number
}

// Trial is a part of a Record, for authors of a Storage: the lease of one trial
// call in a half-open circuit. It expires at its deadline, even if the call has
// not ended.
type Trial struct {
	ID       string
	Started  time.Time
	Deadline time.Time
	Stale    bool // the state has changed since it was granted: it occupies a slot, and its outcome is not counted
}

// heard is the highest number that a source has sent.
type heard struct {
	source string
	number uint64
}

// Limits are a part of a Change, for authors of a Storage: the settings of the
// sender, by which the record is evaluated. Durations are whole milliseconds.
// A field for which 0 has no meaning beside it is at least 1.
type Limits struct {
	FailMax          int
	ResetTimeout     time.Duration
	SuccessThreshold int
	MaxTrials        int
	TrialTimeout     time.Duration
	Suspicion        time.Duration // 0: a local record, which opens at its threshold at once
	FailureRate      float64       // 0: the rate does not count
	Window           time.Duration // in which the rate counts
	MinCalls         int           // in the window
	MaxResetTimeout  time.Duration // 0: no exponential backoff
	MaxRetryAfter    time.Duration // the longest open duration that a service may ask for
}

// longestOpen bounds how long a record that calls opened may make the sender wait.
// asked says that the service asked for it.
func (l *Limits) longestOpen(asked bool) time.Duration {
	if asked {
		return max(l.ResetTimeout, l.MaxResetTimeout, l.MaxRetryAfter)
	}
	return max(l.ResetTimeout, l.MaxResetTimeout)
}

// Calls are a part of a Change, for authors of a Storage: outcomes of calls
// that were not trials.
type Calls struct {
	Failures  int // all that count as evidence of this sender
	Successes int // all while the record has failures or evidence
	Lead      int // the failures before the first success
	Streak    int // the failures after the last success
}

// Settlement is a part of a Change, for authors of a Storage: the end of a trial.
type Settlement struct {
	ID      string
	Outcome Outcome
	OpenFor time.Duration // if it opens the circuit: for at least so long
}

// Change is for authors of a Storage, which pass it on to Record.Apply. It
// carries everything that a process reports of a circuit, in the order in which
// it is applied. A Change that reports nothing restores what the storage has
// lost of Seen, and evaluates the record.
type Change struct {
	Source string // names the sender; CheckSource defines what is allowed
	Number uint64 // the sequence number, ascending for each source: a duplicate is not applied again. 0: counts each time
	Seen   Record // the circuit as the sender knows it: Calls are of calls that were admitted in its generation
	Limits Limits
	By     string // the sender's instance
	Cause  string // of the failures in Calls and Settled

	Settled  []Settlement
	Calls    Calls         // for the consecutive failures and the score
	Counted  []Bucket      // for the failure rate: all calls since the sender's last
	OpenFor  time.Duration // if Calls or Counted open the circuit: for so long, in place of Limits.ResetTimeout
	Move     *Move
	Override *Override // replaces the one on record; one that is over removes it
	Ask      string    // the ID of a trial that is asked for. It is granted if the record then has it among its trials
}

// Move is a part of a Change, for authors of a Storage: a manual change of the
// state. A user calls Breaker.SetState.
type Move struct{ To State }

// Override forces the circuit open or closed for all processes, whatever the
// outcomes of its calls are. While it is forced closed, every call runs and
// outcomes are still counted; while it is forced open, none runs. Breaker.Override
// rejects an override without a Reason, and so the zero Override.
type Override struct {
	State  State     // open or closed
	By     string    // who forces it: usually a person. At most 200 bytes; Config.Instance if empty
	Reason string    // shown with each rejection; not empty, at most 200 bytes
	Until  time.Time // zero: until it is removed
}

// holds reports whether the override is there, and not over.
func (o *Override) holds(now time.Time) bool {
	return o != nil && (o.Until.IsZero() || now.Before(o.Until))
}

// Verdict is the result of a change, for authors of a Storage.
type Verdict uint8

const (
	VerdictRefused Verdict = iota // the record is unchanged: no trial was granted, or the change is of an older generation
	VerdictApplied                // the record is to be saved
	VerdictMoved                  // the record is to be saved, and watchers are to be notified
)

// maxHeard bounds the sources that a record remembers.
const maxHeard = 512

// evidence holds the constants of the rule. A variable, so that simulated fleets
// can try other values.
var evidence = struct {
	success int // what a success takes from the score; a failure adds 1
	opens   int // it opens at so many times Threshold, of which one process supplies one
	rated   int // a suspicion of the rate is confirmed after so many times Limits.Suspicion at the earliest
}{4, 2, 4}

// Apply returns the record after the change, and the result of the change.
// It is pure: now is the storage's present time, on the clock that the
// record's times are on. docs/concepts.md has the rules.
func (r Record) Apply(c Change, now time.Time) (Record, Verdict) {
	return r.applied(&c, r.hasHeard(&c), now)
}

// applied is Apply. What a change reports that was made before is on record.
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
	// A manual change does not evaluate: an operator's program has other settings.
	evaluates := c.counts() || c.Move == nil && c.Override == nil
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
			step(r.count(&c.Calls, c.Counted, &t, now))
		}
		if c.Move != nil {
			r.move(c.Move.To, &t, now)
			step(true)
		}
		if c.Override != nil {
			r.override(*c.Override, &t, now)
			step(true)
		}
		if c.Ask != "" {
			step(r.ask(c.Ask, &t, now))
		}
	}
	if !reported {
		step(true)
	}
	verdict := VerdictApplied
	switch {
	case r.Generation != generation:
		verdict = VerdictMoved
	case !applied:
		return VerdictRefused
	}
	if !before {
		r.remember(c)
	}
	return verdict
}

// tally is apply for a change that has nothing but one sender's calls. The
// record's window is its own, and is written to in place.
func (r *Record) tally(c *Calls, counted []Bucket, t *terms, now time.Time) {
	r.expire(now)
	r.count(c, counted, t, now)
	if c.Failures > 0 {
		r.evaluate(t, r.Window.rate(t.limits.Window, t.limits.MinCalls, t.limits.FailureRate, now), now)
	}
}

// counts reports whether the change has outcomes of calls.
func (c *Change) counts() bool { return c.Calls != (Calls{}) || len(c.Counted) > 0 }

// acts reports whether the change has more than outcomes of calls.
func (c *Change) acts() bool {
	return len(c.Settled) > 0 || c.Move != nil || c.Override != nil || c.Ask != ""
}

// terms are what the steps of a change are evaluated by.
type terms struct {
	limits     *Limits
	source     string
	by, cause  string
	openFor    time.Duration
	generation int64 // that the sender has seen
	failed     bool  // at least one of the reported calls
	succeeded  bool  // at least one
}

func termsOf(c *Change) terms {
	t := terms{&c.Limits, c.Source, c.By, c.Cause, min(c.OpenFor, maxTimeout), c.Seen.Generation, c.Calls.Failures > 0, c.Calls.Successes > 0}
	for _, b := range c.Counted {
		t.failed, t.succeeded = t.failed || b.Failures > 0, t.succeeded || b.Calls > b.Failures
	}
	return t
}

// openTime is how long the circuit stays open if calls open it, and whether the
// service asked for that.
func (t *terms) openTime(grown time.Duration) (d time.Duration, asked bool) {
	return max(cmp.Or(t.openFor, t.limits.ResetTimeout), grown), t.openFor > max(t.limits.ResetTimeout, grown)
}

// At returns the record as it is at the given time: without the leases and the
// override that have ended. A storage that loads a record returns it so.
func (r Record) At(now time.Time) Record {
	r.expire(now)
	return r
}

// at is At without a copy where time has changed nothing.
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
	if !r.Override.holds(now) {
		r.Override = nil
	}
}

// scored reports whether the record collects evidence by its score.
func (r *Record) scored() bool { return r.Threshold > 0 }

// hasEvidence reports whether the record collects evidence.
func (r *Record) hasEvidence() bool { return r.scored() || r.Rated }

// Suspect reports whether the circuit has reached a threshold, and the evidence
// of the fleet is being collected. Calls run.
func (r Record) Suspect() bool { return r.suspect() }

func (r *Record) suspect() bool { return r.State == StateClosed && r.hasEvidence() }

// Healthy reports that the record has nothing that the zero Record does not have:
// it is closed, without failures.
func (r Record) Healthy() bool {
	return r.State == StateClosed && r.Failures == 0 && !r.suspect()
}

// matters reports whether calls may meet something else than a closed circuit.
func (r *Record) matters() bool { return r.State != StateClosed || r.suspect() || r.Override != nil }

// stillBlocks reports whether something of the record is yet to pass. A record that
// is due is not worth restoring: from a lost one it differs by one trial.
func (r *Record) stillBlocks(now time.Time) bool {
	return r.Override != nil || r.matters() && (now.Before(r.DueAt) || now.Before(r.RetryAt) || len(r.Trials) > 0)
}

// restore makes the record what the sender knows, if that is of a higher
// generation: then the storage has lost something.
func (r *Record) restore(seen *Record, now time.Time) {
	switch {
	case seen.Generation == r.Generation:
		r.clampTo(seen)
		r.expire(now)
	case seen.Generation > r.Generation && (seen.at(now).stillBlocks(now) || r.matters()):
		heard := r.heard
		*r = seen.At(now)
		r.heard = heard
	}
}

// clampTo bounds the waits of the record by those that were known of the same
// generation: a clock that steps back prolongs nothing.
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

// count adds the outcomes of calls; evaluate draws the conclusions.
func (r *Record) count(c *Calls, counted []Bucket, t *terms, now time.Time) bool {
	if r.State != StateClosed && !r.hasEvidence() || t.generation < r.Since {
		return false
	}
	if len(counted) > 0 {
		r.Window.add(counted, t.limits.width(), now)
	}
	r.setLevel(r.step(c, t.limits, now).to(r.level()))
	if due := now.Add(t.openFor); t.openFor > 0 && r.suspect() && due.Sub(r.DueAt) > t.limits.Suspicion {
		r.DueAt, r.Asked, r.Generation = due, t.openFor > t.limits.ResetTimeout, r.nextGeneration(t, now)
	}
	return true
}

// A step is what a change does to the one count of a record: the consecutive
// failures or, with evidence, the score. It and Window.add are the only parts of
// the state machine that also run in a storage that can count by itself.
type step struct {
	add      int  // first
	restarts bool // then, if nothing was added or the count is below the upper limit, it becomes after
	after    int
	lower    int // at or below it, or at or above the upper limit, the record is to be evaluated before it counts on
	upper    int
	until    time.Time // from then on the upper limit is another; zero: never
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
		s.atLimit(l.FailMax, r.calmUntil(l), now)
	}
	return s
}

// atLimit sets an upper limit that holds from a time on.
func (s *step) atLimit(upper int, from, now time.Time) {
	if now.Before(from) {
		s.until = from
	} else {
		s.upper = upper
	}
}

// opensAt is the score that opens the circuit for a process with these limits. A
// process with a lower FailMax that made the circuit suspect does not decide for one
// with a higher.
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

func (r *Record) level() int {
	if r.scored() {
		return r.Score
	}
	return r.Failures
}

func (r *Record) setLevel(n int) {
	if r.scored() {
		r.Score = n
	} else {
		r.Failures = n
	}
}

// calmUntil is until when no suspicion begins, by the settings of the process
// that evaluates.
func (r *Record) calmUntil(l *Limits) time.Time { return r.DismissedAt.Add(l.Suspicion) }

// evaluate draws the conclusions from the evidence: a closed record becomes
// suspect, a suspect one opens, and what is refuted is dismissed.
func (r *Record) evaluate(t *terms, rate rate, now time.Time) {
	switch {
	case r.scored() && r.Score <= 0, r.Rated && (rate.under || rate.empty && t.succeeded):
		r.dismiss(t, now)
	case r.suspect():
		if r.confirmed(&rate, t, now) {
			grown := r.grown(t.limits, r.SuspectAt)
			r.State, r.Generation = StateOpen, r.nextGeneration(t, now)
			if !now.Before(r.DueAt) { // nobody called for so long
				open, asked := t.openTime(grown)
				r.SuspectAt, r.DueAt, r.Asked = now, now.Add(open), asked
			}
			r.Opened, r.OpenTime = r.Generation, cmp.Or(grown, r.OpenTime)
		}
	case r.State != StateClosed || now.Before(r.calmUntil(t.limits)):
	case r.Failures >= t.limits.FailMax:
		r.suspected(false, t, now)
	case rate.over:
		r.suspected(true, t, now)
	}
}

// confirmed reports whether the evidence of more than one process opens a suspect
// record: only a report of failures finds that, and never the passing of time.
func (r *Record) confirmed(rate *rate, t *terms, now time.Time) bool {
	switch {
	case !t.failed:
		return false
	case r.Rated:
		return rate.sure && t.source != r.Witness && !now.Before(r.SuspectAt.Add(time.Duration(evidence.rated)*t.limits.Suspicion))
	}
	return r.Score >= r.opensAt(t.limits) && !now.Before(r.SuspectAt.Add(t.limits.Suspicion))
}

// suspected begins to collect evidence. The state does not begin anew: calls that
// run now are counted. A local record opens at once.
func (r *Record) suspected(rated bool, t *terms, now time.Time) {
	grown := r.grown(t.limits, now)
	open, asked := t.openTime(grown)
	due := now.Add(open)
	r.By, r.Cause = t.by, t.cause
	if t.limits.Suspicion == 0 {
		r.open(t, due, asked, grown, now)
		return
	}
	r.Generation = r.nextGeneration(t, now)
	r.SuspectAt, r.DueAt, r.Asked = now, due, asked
	if r.Rated = rated; rated {
		r.Witness = t.source
	} else {
		r.addEvidence(t.limits)
	}
}

// addEvidence makes a record one that applies only to the processes whose last
// call failed.
func (r *Record) addEvidence(l *Limits) {
	switch {
	case r.hasEvidence():
	case l.FailMax == unlimited:
		r.Rated = true
	default:
		r.Threshold, r.Score = l.FailMax, l.FailMax
	}
}

// dismiss closes the record because its evidence was refuted. No state begins
// anew: all calls that run go on counting.
func (r *Record) dismiss(t *terms, now time.Time) {
	if r.scored() { // otherwise the streak goes on
		r.Failures = 0
	}
	r.State, r.Generation, r.DismissedAt = StateClosed, r.nextGeneration(t, now), now
	r.dropEvidence()
	r.Trials, r.Successes, r.DueAt, r.By, r.Cause = staleTrials(r.Trials), 0, time.Time{}, "", ""
}

// notice is what watchers of a shared record are notified of.
type notice uint8

const (
	noticeChanged   notice = iota // they read it
	noticeSuspect                 // FailMax consecutive failures are on record: the next success is evidence
	noticeDismissed               // that suspicion was dismissed
)

// notice returns what watchers are notified of when the record takes the place of
// before.
func (r *Record) notice(before *Record) notice {
	switch {
	case r.State != StateClosed || before.State != StateClosed || r.Since != before.Since || r.Moved != before.Moved || r.Rated || before.Rated:
	case r.scored() && !before.scored():
		return noticeSuspect
	case before.scored() && !r.scored():
		return noticeDismissed
	}
	return noticeChanged
}

func (r *Record) dropEvidence() {
	r.SuspectAt, r.Threshold, r.Score, r.Rated, r.Witness, r.RetryAt, r.Asked = time.Time{}, 0, 0, false, "", time.Time{}, false
}

// settle ends a trial. A stale one frees its slot, and no more.
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

// trialFailed has another process confirm a failed trial: the one that ran it
// waits for another open duration, and the next trial goes to any other. If that
// fails, too, the circuit is open for all. A local circuit opens at once.
func (r *Record) trialFailed(openFor time.Duration, t *terms, now time.Time) {
	r.By, r.Cause = t.by, t.cause
	if t.limits.Suspicion == 0 {
		grown := r.grown(t.limits, now)
		usual := max(t.limits.ResetTimeout, grown)
		r.open(t, now.Add(max(usual, openFor)), openFor > usual, grown, now)
		return
	}
	second := r.State == StateHalfOpen && r.Witness != "" && r.Witness != t.source && now.Before(r.RetryAt)
	if !second {
		r.OpenTime = cmp.Or(r.grown(t.limits, now), r.OpenTime)
	}
	usual := max(t.limits.ResetTimeout, min(r.OpenTime, t.limits.MaxResetTimeout))
	due := now.Add(max(usual, openFor))
	r.Successes, r.Asked = 0, openFor > usual
	r.addEvidence(t.limits)
	if !second {
		r.Witness, r.RetryAt = t.source, due
		return
	}
	r.State, r.Opened, r.SuspectAt, r.DueAt = StateOpen, r.Generation, now, due
	r.Trials, r.Witness, r.RetryAt = staleTrials(r.Trials), "", time.Time{}
}

func (r *Record) move(to State, t *terms, now time.Time) {
	r.By, r.Cause = t.by, ""
	again := r.State == StateHalfOpen && to == StateHalfOpen
	switch {
	case again: // its trials go on, and as in pybreaker the successes count anew
		r.dropEvidence()
		r.Generation, r.Successes = r.nextGeneration(t, now), 0
	case to == StateOpen:
		if t.limits.MaxResetTimeout > 0 {
			r.OpenTime = r.remembered(t.limits, now)
		}
		r.open(t, now.Add(t.limits.ResetTimeout), false, 0, now)
	default:
		r.transition(to, t, now)
	}
	r.Moved = r.Generation
}

func (r *Record) override(o Override, t *terms, now time.Time) {
	if r.Override == nil && !o.holds(now) {
		return // there is none to remove
	}
	r.Generation = r.nextGeneration(t, now)
	r.Moved, r.Override = r.Generation, nil
	if o.holds(now) {
		r.Override = &o
	}
}

func (r *Record) ask(id string, t *terms, now time.Time) (granted bool) {
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

// dueAt is when a trial may run, for a process with these limits: a record that
// calls opened never makes it wait longer than its own settings would.
func (r *Record) dueAt(l *Limits) time.Time {
	if latest := r.SuspectAt.Add(l.longestOpen(r.Asked)); !r.SuspectAt.IsZero() && latest.Before(r.DueAt) && !r.openedManually() {
		return latest
	}
	return r.DueAt
}

// openedManually reports whether the record is open by a manual change, which lasts
// as long as its sender set.
func (r *Record) openedManually() bool {
	return r.State == StateOpen && !r.hasEvidence() && r.Moved > 0 && r.Moved >= r.Since
}

// blockedUntil is when a process with these limits may run another trial; zero if
// it may now.
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

// deadline is when the trial's slot is free for a process with these limits: no
// lease is longer than its own would be.
func (t *Trial) deadline(l *Limits) time.Time {
	if latest := t.Started.Add(l.TrialTimeout); !t.Started.IsZero() && latest.Before(t.Deadline) {
		return latest
	}
	return t.Deadline
}

// excludes reports whether the next trial goes to another source.
func (r *Record) excludes(source string, now time.Time) bool {
	return r.State == StateHalfOpen && source != "" && r.Witness == source && now.Before(r.RetryAt)
}

// transition begins another state, or the same one anew. It has the one list of
// what outlives a state; the trials that run keep their slots.
func (r *Record) transition(to State, t *terms, now time.Time) {
	before, generation := *r, r.nextGeneration(t, now)
	*r = Record{
		State: to, Generation: generation, Since: generation, Opened: r.Opened, Moved: r.Moved,
		Trials: staleTrials(r.Trials), OpenTime: r.OpenTime, Override: r.Override, By: r.By, Cause: r.Cause, heard: r.heard,
	}
	if to != StateClosed {
		r.Failures, r.SuspectAt = before.Failures, now
	} else if before.State != StateClosed {
		r.ClosedAt = now
	}
}

// open opens the record for all, without evidence. grown is its new OpenTime; 0
// leaves that as it is.
func (r *Record) open(t *terms, due time.Time, asked bool, grown time.Duration, now time.Time) {
	r.transition(StateOpen, t, now)
	r.Opened, r.DueAt, r.Asked, r.OpenTime = r.Generation, due, asked, cmp.Or(grown, r.OpenTime)
}

// nextGeneration returns the generation of the next write. It follows the
// storage's time, because a storage forgets circuits: the first generation after
// that must still be newer than all before.
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

// hasHeard reports whether the change was applied before.
func (r *Record) hasHeard(c *Change) bool {
	return c.Number > 0 && slices.ContainsFunc(r.heard, func(h heard) bool { return h.source == c.Source && h.number >= c.Number })
}

// remember notes that the change was applied. The sources that have sent nothing
// for longest are forgotten.
func (r *Record) remember(c *Change) {
	if c.Number == 0 {
		return
	}
	all := make([]heard, 0, len(r.heard)+1)
	for _, h := range r.heard {
		if h.source != c.Source {
			all = append(all, h)
		}
	}
	all = append(all, heard{c.Source, c.Number})
	r.heard = all[max(0, len(all)-maxHeard):]
}

// grown is how long the circuit stays open if it opens now: twice as long as the
// last time that it remembers, up to MaxResetTimeout. 0 where the open time does
// not grow.
func (r *Record) grown(l *Limits, now time.Time) time.Duration {
	if l.MaxResetTimeout == 0 {
		return 0
	}
	last := r.remembered(l, now)
	if last == 0 {
		return l.ResetTimeout
	}
	return min(2*last, l.MaxResetTimeout)
}

// remembered is the last open time, halved for every such time that the circuit
// has been closed since, as Envoy's outlier detection does; 0 once it is below
// ResetTimeout.
func (r *Record) remembered(l *Limits, now time.Time) time.Duration {
	last, calm := r.OpenTime, time.Duration(0)
	if r.State == StateClosed {
		calm = now.Sub(r.ClosedAt)
	}
	for ; last > 0 && last >= l.ResetTimeout && calm >= last; last /= 2 {
		calm -= last
	}
	if last < l.ResetTimeout {
		return 0
	}
	return last
}

// remembersUntil is when the last open time plays no part any more.
func (r *Record) remembersUntil() time.Time { return r.ClosedAt.Add(2 * r.OpenTime) }

// canBe reports whether it is an override that this package would make.
func (o *Override) canBe() bool {
	return o.State <= StateOpen && max(len(o.By), len(o.Reason)) <= maxTextLength
}

// milliseconds rounds up, so that a storage never waits for less.
func milliseconds(d time.Duration) int64 {
	if d <= 0 {
		return int64(d / time.Millisecond)
	}
	return int64((min(d, math.MaxInt64-time.Millisecond) + time.Millisecond - 1) / time.Millisecond)
}

// width is that of a bucket of the sender's window.
func (l *Limits) width() time.Duration {
	return (l.Window / windowBuckets).Truncate(time.Millisecond)
}

// Bounds of what a record holds, whoever wrote it.
const (
	maxTextLength   = 200 // of By, Cause and Reason, in bytes
	maxSourceLength = 64  // of a source, and of the ID of a trial
	maxTimeout      = 366 * 24 * time.Hour
)
