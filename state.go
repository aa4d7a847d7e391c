package infuse

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// This file is the whole state machine of a circuit and nothing else: no I/O,
// no clock, no lock, no goroutine. Every record moves in Record.Apply: the
// fleet's in a storage, a process's own, and the health of a link.

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

// Record is what a storage keeps of one circuit. Users meet it where they ask
// Breaker.Record; its methods are for authors of a Storage. The zero Record is
// a closed circuit that never failed.
//
// The times in a record are on the clock of the process that holds it. Records
// are values: Apply never changes the slices of the record it is called on.
//
// A closed record whose OpensAt is set is suspect: it opens at that time by
// itself, unless the successes of the fleet outweigh its failures before.
type Record struct {
	State      State
	Generation int64     // raised by everything but counts, at least to the storage's time in milliseconds
	Since      int64     // the generation with which the state began: calls that were admitted before it count for nothing
	Opened     int64     // the generation of the last opening
	Moved      int64     // the generation of the last move or override by hand
	Failures   int       // in a row; after an opening, as many as it took
	RowSince   time.Time // when the row of failures began
	Successes  int       // of trials in a row, while half-open
	DueAt      time.Time // while open, or for when it opens: when a trial may run
	Trials     []Trial   // the trials that run now, in the order in which they started

	SuspectAt time.Time     // while suspect: since when
	OpensAt   time.Time     // while suspect: when it opens
	Rated     bool          // while suspect: of its failure rate, and not of its row
	Balance   int           // while suspect of its row: at zero the suspicion is refuted
	OpenFor   time.Duration // while suspect: what OpenTime will be
	CalmUntil time.Time     // until then it does not become suspect: a suspicion was refuted

	Window   Window        // of a closed circuit whose failure rate counts
	OpenTime time.Duration // of the last opening, without what the service asked for; 0 where it does not grow
	ClosedAt time.Time     // when it was closed last, after it was open

	Override *Override // nil: none

	By    string // the instance that reported the last failure of the row, or moved the circuit
	Cause string // of the last opening

	heard []heard // what a sender may send again; see Change.Number
}

// Trial is a part of a Record, for authors of a Storage: the lease of one call
// in a half-open circuit. It frees itself at its deadline, whatever became of
// the call.
type Trial struct {
	ID       string
	Deadline time.Time
	Stale    bool // the circuit has moved since it was granted: it takes a place, and its outcome counts for nothing
}

// heard is the highest number that a source has sent.
type heard struct {
	source string
	number uint64
}

// Limits are a part of a Change, for authors of a Storage: the settings of the
// sender that it is judged by. Durations are whole milliseconds. What has no
// meaning for 0 beside it is at least 1.
type Limits struct {
	FailMax          int
	ResetTimeout     time.Duration
	SuccessThreshold int
	MaxTrials        int
	TrialTimeout     time.Duration
	Suspicion        time.Duration // the shortest suspicion; with 0, the limit opens the circuit at once
	FailureRate      float64       // 0: the rate does not count
	Window           time.Duration // in which the rate counts
	MinCalls         int           // in the window
	MaxResetTimeout  time.Duration // 0: the open time does not grow
}

// Calls are a part of a Change, for authors of a Storage: outcomes of calls
// that were admitted while the circuit was closed.
type Calls struct {
	Failures  int // all
	Successes int // all that need telling: those that met failures on record, or a suspicion
	Lead      int // the failures before the first success
	Streak    int // the failures after the last success
}

// Settlement is a part of a Change, for authors of a Storage: the end of a trial.
type Settlement struct {
	ID      string
	Outcome Outcome
	OpenFor time.Duration // if it opens the circuit: for at least so long
}

// Change is for authors of a Storage, which pass it on to Record.Apply. It is
// everything that a process has to say of a circuit, in the order in which it
// is applied. A Change that says nothing brings the storage up to date with
// Seen where it has lost something.
type Change struct {
	Source string // names the sender; CheckSource tells what is allowed
	Number uint64 // ascending for each source. What was applied once is not applied again. 0: whatever it says counts each time
	Seen   Record // the circuit as the sender knows it: Calls are of calls that were admitted in its generation
	Limits Limits
	By     string // the sender's instance
	Cause  string // of the failures in Calls and Settled

	Settled  []Settlement
	Calls    Calls         // for the row of failures
	Counted  []Bucket      // for the failure rate: all calls since the sender's last, these among them or not
	OpenFor  time.Duration // if Calls or Counted open the circuit: for so long, in place of Limits.ResetTimeout
	Move     *Move
	Override *Override // replaces the one on record; one that is over clears it
	Ask      string    // the ID of a trial that is asked for. It is granted if the record then has it among its trials

	byHand bool   // it was, and is made already
	news   uint64 // the sender's: how much it had heard when it sent this
}

// Move is a part of a Change, for authors of a Storage: a move by hand. A user
// calls Breaker.Move.
type Move struct{ To State }

// Override holds a circuit open or closed, whatever its calls come to. While it
// is held closed, every call runs and outcomes are still counted; while it is
// held open, none runs. Breaker.Override rejects an override without a Reason, and
// so the zero Override.
type Override struct {
	State  State     // open or closed
	By     string    // who holds it: a person, usually. At most 200 bytes; Config.Instance if empty
	Reason string    // shown with each rejection; not empty, at most 200 bytes
	Until  time.Time // zero: until it is cleared
}

// holds reports whether the override is there, and not over.
func (o *Override) holds(now time.Time) bool {
	return o != nil && (o.Until.IsZero() || now.Before(o.Until))
}

// Verdict is what became of a change: for authors of a Storage.
type Verdict uint8

const (
	VerdictRefused Verdict = iota // the record is as it was: no trial to be had, or the change is of an older generation
	VerdictApplied                // the record is to be saved
	VerdictMoved                  // the record is to be saved, and watchers are to hear of it
)

// maxHeard bounds the sources that a record remembers.
const maxHeard = 512

// suspicion weighs the outcomes of a suspect circuit. A variable, so that the
// simulated fleet can try other values.
var suspicion = struct {
	success int // what a success takes from the balance; a failure adds 1
	length  int // how many times as long as the row a suspicion lasts
	early   int // the circuit opens early at so many times FailMax, or with so many times MinCalls
	rated   int // one of the rate lasts at least so many times Limits.Suspicion, unless it is refuted
}{4, 3, 4, 4}

// Apply returns the record after the change, and what became of the change.
// It is pure: now is the storage's present time, on the clock that the
// record's times are on.
//
// In docs/semantics.md is what becomes of a circuit by it. The suspicion is an
// idea of SWIM's (Das, Gupta, Motivala: SWIM, 2002).
func (r Record) Apply(c Change, now time.Time) (Record, Verdict) {
	next := r
	verdict := next.apply(&c, now)
	if verdict == VerdictRefused {
		return r.At(now), verdict
	}
	return next, verdict
}

// apply is Apply in place.
func (r *Record) apply(c *Change, now time.Time) Verdict {
	t := terms{&c.Limits, c.By, c.Cause, min(c.OpenFor, maxTimeout), c.Seen.Generation, now}
	before := r.Generation
	now = r.meet(c, now)
	// What is done by hand does not judge: an operator has other settings.
	judges := !c.isByHand()
	if judges && (r.suspect() || c.Calls.Lead > 0) { // whoever brought the count to a limit may have died since
		r.judgeCount(&t, now)
	}
	verdict, said := VerdictRefused, false
	step := func(v Verdict) {
		if judges {
			r.judge(&t, now)
		}
		verdict, said = max(verdict, v), true
	}
	if !r.hasHeard(c) {
		for _, s := range c.Settled {
			step(r.settle(s, &t, now))
		}
		switch {
		case t.late(now) && c.Seen.Generation < r.Generation && c.counts():
			step(VerdictRefused) // the sender does not know of the suspicion: what it saw may be of after it
		case c.counts():
			r.Window.Buckets = slices.Clone(r.Window.Buckets)
			step(r.count(&c.Calls, c.Counted, &t, now))
		}
		if c.Move != nil {
			step(r.move(c.Move.To, &t, now))
		}
		if c.Override != nil {
			step(r.override(*c.Override, &t, now))
		}
		if c.Ask != "" {
			step(r.ask(c.Ask, &t, now))
		}
	}
	if !said {
		step(VerdictApplied)
	}
	switch {
	case r.Generation != before:
		verdict = VerdictMoved
	case verdict == VerdictRefused:
		return verdict
	}
	r.remember(c)
	return verdict
}

// meet makes the record what the change meets, and returns the time as of which
// that is judged. Where what comes late is heard, the opening is not made yet.
func (r *Record) meet(c *Change, now time.Time) (asOf time.Time) {
	if r.hearsLate(c, now) {
		r.expire(now)
		return r.OpensAt.Add(-1)
	}
	r.pass(now)
	r.catchUp(&c.Seen, now)
	return now
}

// hearsLate reports whether the change is judged as of just before the suspicion
// of a row was over: a storage that pauses keeps back what refutes. Once something
// is done, or a sender has seen it, the opening is final.
func (r *Record) hearsLate(c *Change, now time.Time) bool {
	return r.overdue(now) && r.weighed() && now.Before(r.OpensAt.Add(lateness)) &&
		(!c.acts() || r.hasHeard(c)) && c.Seen.Generation <= r.Generation
}

// lateness is for how long outcomes are heard after a suspicion.
const lateness = 5 * time.Second

// tally is apply for a change that has nothing but one sender's calls. The
// record's window is its own, and is written to in place.
func (r *Record) tally(c *Calls, counted []Bucket, t *terms, now time.Time) {
	t.came = now
	r.pass(now)
	r.count(c, counted, t, now)
	if c.Failures > 0 {
		r.judge(t, now)
	}
}

// isByHand reports whether the change is an operator's alone.
func (c *Change) isByHand() bool {
	return c.byHand || !c.counts() && (c.Move != nil || c.Override != nil)
}

// counts reports whether the change has outcomes of calls.
func (c *Change) counts() bool { return c.Calls != (Calls{}) || len(c.Counted) > 0 }

// acts reports whether the change has more than outcomes of calls.
func (c *Change) acts() bool {
	return len(c.Settled) > 0 || c.Move != nil || c.Override != nil || c.Ask != ""
}

// terms are what the steps of a change are judged by.
type terms struct {
	limits     *Limits
	by, cause  string
	openFor    time.Duration
	generation int64     // that the sender has seen
	came       time.Time // when the change did
}

// late reports whether the change is judged as of earlier than it came.
func (t *terms) late(asOf time.Time) bool { return asOf.Before(t.came) }

// openTime is how long the circuit stays open if calls open it.
func (t *terms) openTime(grown time.Duration) time.Duration {
	if t.openFor > 0 {
		return max(t.openFor, grown)
	}
	return max(t.limits.ResetTimeout, grown)
}

// At returns the record as it is at the given time: open where a suspicion is
// over, and without the leases that have ended. A storage that loads a record
// returns it so.
func (r Record) At(now time.Time) Record {
	r.pass(now)
	return r
}

// at is At without a copy where time has changed nothing.
func (r *Record) at(now time.Time) *Record {
	if !r.suspect() && len(r.Trials) == 0 && r.Override == nil {
		return r
	}
	passed := r.At(now)
	return &passed
}

// pass is At in place.
func (r *Record) pass(now time.Time) {
	if r.overdue(now) {
		r.open(r.Generation+1, r.DueAt, r.OpenFor)
	}
	r.expire(now)
}

// expire frees the leases that have ended, and ends an override that is over.
func (r *Record) expire(now time.Time) {
	if len(r.Trials) > 0 {
		r.Trials = liveTrials(r.Trials, now)
	}
	if !r.Override.holds(now) {
		r.Override = nil
	}
}

// overdue reports whether a suspicion is over: the record is open, but that is
// not written.
func (r *Record) overdue(now time.Time) bool { return r.suspect() && !now.Before(r.OpensAt) }

func (r *Record) suspect() bool { return r.State == StateClosed && !r.OpensAt.IsZero() }

// weighed reports whether the record is suspect of its row: then the balance
// decides. rated reports whether it is suspect of its rate.
func (r *Record) weighed() bool { return r.suspect() && !r.Rated }
func (r *Record) rated() bool   { return r.suspect() && r.Rated }

// Healthy reports that the record says nothing that the zero Record does not:
// closed, without failures.
func (r Record) Healthy() bool {
	return r.State == StateClosed && r.Failures == 0 && r.OpensAt.IsZero()
}

// catchUp makes the record what the sender knows, where that is newer: then the
// storage has lost something. What is due by now is not worth it: from a lost
// record it differs by one trial. Nor is an opening that no storage has written or
// told of.
func (r *Record) catchUp(seen *Record, now time.Time) {
	known := seen
	switch seen = seen.at(now); {
	case seen.Generation == r.Generation:
		r.noLater(known)
		r.pass(now)
	case seen.Generation > r.Generation && (!known.suspect() && seen.outlasts(now) || seen.closedAfter(r) || seen.overrides(r)):
		heard := r.heard
		*r = *seen
		r.heard = heard
	}
}

// outlasts reports whether the record still keeps calls away.
func (r *Record) outlasts(now time.Time) bool {
	return r.State == StateOpen && now.Before(r.DueAt) || r.State == StateHalfOpen && len(r.Trials) > 0
}

// closedAfter reports whether r has closed what old still says is open.
func (r *Record) closedAfter(old *Record) bool {
	return r.State == StateClosed && old.State != StateClosed && old.Opened <= r.Opened
}

// overrides reports whether r has an override that old does not have, or none
// that it still has.
func (r *Record) overrides(old *Record) bool {
	return r.Moved > old.Moved && (r.Override != nil || old.Override != nil)
}

// noLater bounds the waits of the record by those that were known of the same
// generation: a clock that steps back prolongs nothing.
func (r *Record) noLater(seen *Record) {
	if r.Generation == 0 {
		return
	}
	earlier := func(t *time.Time, limit time.Time) {
		if !limit.IsZero() && limit.Before(*t) {
			*t = limit
		}
	}
	earlier(&r.DueAt, seen.DueAt)
	earlier(&r.OpensAt, seen.OpensAt)
	earlier(&r.CalmUntil, seen.CalmUntil)
	earlier(&r.SuspectAt, seen.SuspectAt) // nor does what has begun become younger
	earlier(&r.ClosedAt, seen.ClosedAt)
	for i := range r.Trials {
		if known := seen.trial(r.Trials[i].ID); known >= 0 && seen.Trials[known].Deadline.Before(r.Trials[i].Deadline) {
			r.Trials = slices.Clone(r.Trials)
			r.Trials[i].Deadline = seen.Trials[known].Deadline
		}
	}
}

// count adds the outcomes of calls; what they come to is for judge.
func (r *Record) count(c *Calls, counted []Bucket, t *terms, now time.Time) Verdict {
	if r.State != StateClosed || t.generation < r.Since {
		return VerdictRefused
	}
	if len(counted) > 0 {
		r.Window.add(counted, t.limits.width(), t.came)
	}
	before := r.level()
	level, restarted := r.step(c, t.limits, now).to(before)
	r.setLevel(level)
	if r.suspect() && !t.late(now) {
		// All are to hear of it: else a process that has not would take the later
		// time for a clock that was set back. So what differs by little is left.
		if due := now.Add(t.openFor); due.Sub(r.DueAt) > t.limits.Suspicion {
			r.DueAt, r.Generation = due, r.nextGeneration(t, now)
		}
	}
	if !r.weighed() && level > 0 && (before == 0 || restarted) {
		r.RowSince = t.came
	}
	return VerdictApplied
}

// A step is what a change does to the one count of a closed record: the row of
// failures or, while it is suspect of that, the balance. It and Window.add are
// the only parts of the state machine that also run in a storage that can count
// by itself.
type step struct {
	add      int  // first
	restarts bool // then, if nothing was added or the count is below the upper limit, it becomes after
	after    int
	lower    int // at or below it, or at or above the upper limit, the record is to be judged before it counts on
	upper    int
}

const unlimited = math.MaxInt32

func (r *Record) step(c *Calls, l *Limits, now time.Time) step {
	upper := l.FailMax
	if r.weighed() {
		upper = unlimited
		if _, early := r.opensEarly(l, now); early {
			upper = l.many()
		}
		lower := 0
		if r.timed() {
			lower = r.outweighed(l)
		}
		return step{add: c.Failures - suspicion.success*c.Successes, lower: lower, upper: upper}
	}
	if !r.CalmUntil.IsZero() && now.Before(r.CalmUntil) {
		upper = unlimited
	}
	return step{add: c.Lead, restarts: c.Successes > 0, after: c.Streak, lower: -1, upper: upper}
}

// to returns the count after the step.
func (s step) to(level int) (next int, restarted bool) {
	next = int(max(min(int64(level)+int64(s.add), unlimited), 0))
	if s.restarts && (s.add == 0 || next < s.upper) {
		return min(s.after, unlimited), true
	}
	return next, false
}

func (s step) reached(level int) bool { return level <= s.lower || level >= s.upper }

func (r *Record) level() int {
	if r.weighed() {
		return r.Balance
	}
	return r.Failures
}

func (r *Record) setLevel(n int) {
	if r.weighed() {
		r.Balance = n
	} else {
		r.Failures = n
	}
}

// judge moves a closed record whose row or rate of failures has reached a limit,
// and a suspect one that has fallen below it, or has gone far beyond.
func (r *Record) judge(t *terms, now time.Time) {
	r.judgeCount(t, now)
	r.judgeRate(t, now)
}

func (r *Record) judgeCount(t *terms, now time.Time) {
	switch {
	case r.State != StateClosed:
	case r.weighed():
		r.judgeBalance(t, now)
	case r.Failures >= t.limits.FailMax && !now.Before(r.CalmUntil):
		r.suspected(false, max(0, now.Sub(r.RowSince)), t, now)
	}
}

func (r *Record) judgeBalance(t *terms, now time.Time) {
	at, early := r.opensEarly(t.limits, now)
	switch {
	case r.Balance <= 0:
		r.refute(r.CalmUntil)
	case early && r.Balance >= t.limits.many():
		r.opensAt(at, r.nextGeneration(t, now))
	case r.Balance <= r.outweighed(t.limits) && r.timed(): // above the generation with which it would have opened
		r.opensAt(r.DueAt, r.nextGeneration(t, now)+1)
	}
	r.pass(now)
}

func (r *Record) judgeRate(t *terms, now time.Time) {
	if r.State != StateClosed || t.limits.FailureRate == 0 {
		return
	}
	rate := r.Window.rate(t.limits, now)
	at, early := r.opensEarly(t.limits, now)
	switch {
	case r.suspect() && rate.far && early:
		r.opensAt(at, r.nextGeneration(t, now))
	case r.rated() && !rate.over:
		r.refute(now.Add(t.limits.Suspicion))
	case !r.suspect() && rate.over && !now.Before(r.CalmUntil):
		r.suspected(true, rate.lasting, t, now)
	}
	r.pass(now)
}

// opensAt gives the suspicion another end.
func (r *Record) opensAt(at time.Time, generation int64) {
	r.OpensAt, r.Generation = at, generation
}

// suspected has the fleet be asked: the record opens after a while, unless
// refuted. The state does not begin anew, so that calls which run now are heard.
// Where no fleet is to be asked, it opens at once.
func (r *Record) suspected(rated bool, lasting time.Duration, t *terms, now time.Time) {
	l, grown, generation := t.limits, r.grown(t.limits, now), r.nextGeneration(t, now)
	due := now.Add(t.openTime(grown))
	r.By, r.Cause = t.by, t.cause
	if l.Suspicion == 0 {
		r.open(generation, due, grown)
		return
	}
	shortest := l.Suspicion
	if rated { // it can end early, either way
		shortest = max(shortest, l.Window/2)
	}
	length := min(max(time.Duration(suspicion.length)*lasting, shortest), l.ResetTimeout/2)
	r.Generation, r.DueAt, r.OpenFor = generation, due, grown
	r.SuspectAt, r.OpensAt, r.Rated = now, now.Add(length), rated
	r.Balance, r.CalmUntil = 0, time.Time{}
	if !rated {
		r.Balance, r.CalmUntil = l.FailMax, r.OpensAt
	}
}

// timed reports whether a suspect record opens when the time of its suspicion
// is over. Once successes outweigh the failures, time alone does not open it
// before a trial would be due: it waits for more failures, or for successes.
func (r *Record) timed() bool {
	return !r.OpensAt.After(r.CalmUntil.Add(coarse)) && r.OpensAt.Before(r.DueAt)
}

// outweighed is the balance at which the successes have outweighed the failures
// since the suspicion began. That was at somebody's FailMax, and the sender's may
// be another, or none.
func (r *Record) outweighed(l *Limits) int {
	if l.FailMax == unlimited {
		return 0
	}
	return min(l.FailMax, r.Failures) - 1
}

// opensEarly tells when a suspicion ends if the failures are many, and whether
// that is earlier than it would end anyway.
func (r *Record) opensEarly(l *Limits, now time.Time) (at time.Time, early bool) {
	at = r.SuspectAt.Add(l.Suspicion)
	if r.Rated { // until all have heard of it, more failures are reported than successes
		at = r.SuspectAt.Add(time.Duration(suspicion.rated) * l.Suspicion)
	}
	if now.After(at) {
		at = now
	}
	return at, r.OpensAt.Sub(at) > coarse
}

// many is the balance at which a suspicion may end early.
func (l *Limits) many() int { return int(min(int64(suspicion.early)*int64(l.FailMax), unlimited)) }

// coarse is what two times may differ by that stand for the same one: storages
// keep whole milliseconds, rounded up, each time that they save a record.
const coarse = 10 * time.Millisecond

// refute leaves the record closed, and above suspicion until then: after one of
// the row for as long as that would have lasted. Its generation is above the one
// with which the record would have opened: a process that missed the refutation
// takes it for news then, and not for a loss.
func (r *Record) refute(calm time.Time) {
	if !r.Rated { // then its row goes on
		r.Failures, r.RowSince = 0, time.Time{}
	}
	r.SuspectAt, r.OpensAt, r.Rated, r.Balance, r.OpenFor = time.Time{}, time.Time{}, false, 0, 0
	r.DueAt, r.By, r.Cause = time.Time{}, "", ""
	r.Generation, r.CalmUntil = r.Generation+2, calm
}

// settle ends a trial. A stale one frees its place, and no more.
func (r *Record) settle(s Settlement, t *terms, now time.Time) Verdict {
	i := r.trial(s.ID)
	if i < 0 {
		return VerdictRefused
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
		r.By, r.Cause = t.by, t.cause
		grown := r.grown(t.limits, now)
		r.open(r.nextGeneration(t, now), now.Add(max(t.limits.ResetTimeout, min(s.OpenFor, maxTimeout), grown)), grown)
	}
	return VerdictMoved
}

func (r *Record) move(to State, t *terms, now time.Time) Verdict {
	r.By, r.Cause = t.by, ""
	again := r.State == StateHalfOpen && to == StateHalfOpen
	switch {
	case again: // its trials go on, and as in pybreaker the successes count anew
		r.Generation, r.Successes = r.nextGeneration(t, now), 0
	case to == StateOpen:
		if t.limits.MaxResetTimeout > 0 {
			r.OpenTime = r.remembered(t.limits, now)
		}
		r.open(r.nextGeneration(t, now), now.Add(t.limits.ResetTimeout), 0)
	default:
		r.transition(to, t, now)
	}
	r.Moved = r.Generation
	return VerdictMoved
}

func (r *Record) override(o Override, t *terms, now time.Time) Verdict {
	if r.Override == nil && !o.holds(now) {
		return VerdictApplied // there is nothing to clear
	}
	r.Generation = r.nextGeneration(t, now)
	r.Moved, r.Override = r.Generation, nil
	if o.holds(now) {
		r.Override = &o
	}
	return VerdictMoved
}

func (r *Record) ask(id string, t *terms, now time.Time) Verdict {
	due := r.State == StateOpen && !now.Before(r.DueAt)
	switch {
	case r.trial(id) >= 0:
		return VerdictApplied
	case r.Override != nil, !due && r.State != StateHalfOpen || len(r.Trials) >= t.limits.MaxTrials:
		return VerdictRefused
	case due:
		r.By = t.by
		r.transition(StateHalfOpen, t, now)
	default:
		r.Generation = r.nextGeneration(t, now)
	}
	r.Trials = append(slices.Clip(r.Trials), Trial{ID: id, Deadline: now.Add(t.limits.TrialTimeout)})
	return VerdictMoved
}

// transition begins another state, or the same one anew.
func (r *Record) transition(to State, t *terms, now time.Time) {
	before, failures := r.State, r.Failures
	r.begin(to, r.nextGeneration(t, now))
	if to != StateClosed {
		r.Failures = failures
	} else if before != StateClosed {
		r.ClosedAt = now
	}
}

// open opens the record, with the given generation. grown is its new OpenTime; 0
// leaves that as it is.
func (r *Record) open(generation int64, due time.Time, grown time.Duration) {
	failures := r.Failures
	r.begin(StateOpen, generation)
	r.Opened, r.Failures, r.DueAt, r.OpenTime = generation, failures, due, cmp.Or(grown, r.OpenTime)
}

// begin is where a state begins. It has the one list of what outlives a state; the
// trials that run keep their places.
func (r *Record) begin(state State, generation int64) {
	*r = Record{
		State: state, Generation: generation, Since: generation, Opened: r.Opened, Moved: r.Moved,
		Trials: staleTrials(r.Trials), OpenTime: r.OpenTime, Override: r.Override, By: r.By, Cause: r.Cause, heard: r.heard,
	}
}

// nextGeneration follows the storage's time, because a storage forgets
// circuits: the first generation after that must still be newer than all before.
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

// remember notes that the change was applied. The sources that were not heard
// of for longest are forgotten.
func (r *Record) remember(c *Change) {
	if c.Number == 0 || r.hasHeard(c) {
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
