package infuse

import (
	"cmp"
	"strings"
	"time"
)

// replica is this process's copy of one circuit: its own record and the
// fleet's, and what the storage is yet to hear. It makes every decision of a
// circuit. It is pure: it does no I/O, takes no lock and reads no clock, and
// the same inputs in the same order always come to the same.
//
// The own record counts the outcomes of this process, as a local breaker does.
// The shared record is the storage's. A call must pass both, but while the
// storage is away, or where there is none, the own one is all there is.
type replica struct {
	settings *settings
	source   string // of this replica's changes, and the start of its trials' IDs
	own      Record
	shared   Record // as the storage last answered or told
	out      outbox
	leases   []lease // of the fleet, that this process has asked for

	linked   bool // there is a storage
	linkUp   bool // and its link has not failed
	trouble  error
	since    time.Time // of the trouble
	retryAt  time.Time // when this circuit tries again by itself; zero: with the link
	failed   int       // attempts since the trouble began
	stopped  bool      // it asks the storage for nothing more by itself
	released int64     // the generation of an override that this process alone was told to leave
	borrowed int64     // the generation of the own record where it stands in for the shared one

	countsUntil time.Time // until then successes are tallied: the fleet was asked for its failure rate
	credit      float64   // of a call that a ramp lets run: it does at 1

	cause   error  // of the last failure of this process that opened a circuit, or may yet
	ids     uint64 // so many were made
	noted   uint64 // so many outcomes were noted for the storage
	landed  uint64 // and so many of them it has heard
	unheard uint64 // up to this one, a caller has stopped waiting for that
	news    uint64 // so many records were adopted
	random  uint64 // the state of a generator of random numbers
}

// lease is a trial of the fleet's circuit that this process has asked for, and
// whose end the storage may not know.
type lease struct {
	id      string
	phase   phase
	outcome result // once it has ended
}

type phase uint8

const (
	phaseAsked   phase = iota // no answer yet
	phaseGranted              // the storage has granted it; the call is about to run
	phaseRunning              // the call runs
	phaseEnded                // the call has ended, or will not run
)

// result is how an admitted call ended.
type result struct {
	outcome Outcome
	err     error         // of a failure
	openFor time.Duration // if it opens the circuit: at least so long, as the service has asked (Retry-After)
}

// admission is what a call was let in by.
type admission struct {
	view   *view
	own    int64         // the generations that the call belongs to
	shared int64         //
	trial  string        // its ID; empty for a call in a closed circuit
	waited time.Duration // for the storage, so far
	began  time.Duration // by the clock of monotonic, where Config.SlowCall asks for it
	late   bool          // the deadline of the call had passed before it began
}

func newReplica(s *settings, source string, linked bool, seed uint64) replica {
	r := replica{settings: s, source: source, linked: linked, linkUp: true, random: seed}
	r.credit = r.roll()
	return r
}

// attached reports whether the shared record counts.
func (r *replica) attached() bool { return r.linked && r.trouble == nil }

// fleet returns the shared record as it counts now: a closed one where it does
// not.
func (r *replica) fleet(now time.Time) *Record {
	if !r.attached() {
		return &closed
	}
	return r.shared.at(now)
}

// closed is the record of a circuit of which nothing is known. It never changes.
var closed Record

// Inputs: calls.

// ended is an input: an admitted call has ended. It returns the number of the
// outcome among those that the storage is to hear; 0 if it need not.
func (r *replica) ended(a *admission, res result, now time.Time) (number uint64) {
	if res.outcome == OutcomeFailure && (r.linked || a.trial != "" || r.settings.FailureRate > 0 || r.own.Failures+1 >= r.settings.FailMax) {
		r.cause = causeOf(res.err) // may be told
	}
	late := a.shared < r.sharedSince(now)
	l := r.lease(a.trial)
	if l != nil {
		l.phase, l.outcome = phaseEnded, res
		if r.attached() {
			fleet := r.shared.at(now)
			i := fleet.trial(a.trial)
			late = i < 0 || fleet.Trials[i].Stale
		}
	}
	if late {
		res.outcome = OutcomeIgnored
	}
	if l == nil {
		number = r.note(&res, now)
	} else {
		r.settleLeases()
		number = r.noted
	}
	r.countOwn(a, &res, now)
	return number
}

// timeless reports whether time plays no part in an outcome: where no fleet is
// asked, nothing is or becomes open, and no window counts.
func (r *replica) timeless(o Outcome) bool {
	return !r.linked && r.own.State == StateClosed && r.settings.FailureRate == 0 && r.own.Override == nil &&
		(r.settings.Ramp == 0 || r.own.ClosedAt.IsZero()) &&
		(o == OutcomeSuccess || r.own.Failures+1 < r.settings.FailMax)
}

// tallied is an input: so many calls have succeeded since the last input, and
// were only counted.
func (r *replica) tallied(n int, now time.Time) {
	if !r.decides() {
		return
	}
	if r.tells(now) {
		r.keep(one(OutcomeSuccess, n, now))
	}
	t := terms{limits: &r.settings.own, generation: r.own.Generation}
	r.own.tally(&Calls{Successes: n}, []Bucket{one(OutcomeSuccess, n, now)}, &t, now)
}

// counting reports whether successes are tallied: while there are failures in
// the own window, or the fleet is asked.
func (r *replica) counting(now time.Time) bool {
	l := &r.settings.limits
	return l.FailureRate > 0 && r.decides() &&
		(r.own.Window.failing(l.Window, now) || r.attached() && now.Before(r.countsUntil))
}

// sharedSince is the generation below which calls count for nothing.
func (r *replica) sharedSince(now time.Time) int64 {
	return r.shared.at(now).Since
}

// decides reports whether the own record counts outcomes: not under a Fallback
// that counts nothing.
func (r *replica) decides() bool { return r.trouble == nil || r.settings.Fallback == FallbackLocal }

// countOwn counts an outcome in the own circuit: as the end of its trial or,
// where it is closed, as any other call's.
func (r *replica) countOwn(a *admission, res *result, now time.Time) {
	switch {
	case a.trial != "" && r.own.trial(a.trial) >= 0:
		r.settleOwn(a, res, now)
	case res.outcome == OutcomeIgnored || !r.decides():
	case res.outcome == OutcomeSuccess && r.own.Failures == 0 && r.own.Window.Buckets == nil:
	default:
		c := Calls{Successes: 1}
		if res.outcome == OutcomeFailure {
			c = Calls{Failures: 1, Lead: 1, Streak: 1}
		}
		var counted []Bucket
		if r.settings.FailureRate > 0 {
			counted = []Bucket{one(res.outcome, 1, now)}
		}
		t := terms{limits: &r.settings.own, by: r.settings.Instance, cause: textOf(r.cause), generation: a.own}
		t.openFor = max(t.limits.ResetTimeout, res.openFor)
		before := r.own.State
		r.own.tally(&c, counted, &t, now)
		r.ownMoved(before, now)
	}
}

func (r *replica) settleOwn(a *admission, res *result, now time.Time) {
	c := Change{By: r.settings.Instance, Cause: textOf(r.cause), Settled: []Settlement{{a.trial, res.outcome, res.openFor}}}
	r.applyOwn(&c, now)
}

// applyOwn makes a change on the own record.
func (r *replica) applyOwn(c *Change, now time.Time) Verdict {
	before := r.own.State
	c.Limits = r.settings.own
	verdict := r.own.apply(c, now)
	r.ownMoved(before, now)
	return verdict
}

// ownMoved has what the own circuit came to while the storage is away stand for
// all that led to it.
func (r *replica) ownMoved(before State, now time.Time) {
	if r.trouble == nil || r.own.State == before {
		return
	}
	switch r.own.State {
	case StateOpen:
		if n := r.settings.FailMax; r.settings.rowCounts() {
			r.out.next.Calls = Calls{Failures: n, Lead: n, Streak: n}
			return
		}
		r.out.counted = Window{}
		r.keep(one(OutcomeFailure, r.settings.MinCalls, now))
	case StateClosed:
		r.out.next.Calls, r.out.counted = Calls{Successes: 1}, Window{}
	}
}

// Inputs: trials.

// decision is what becomes of a call that the view alone does not admit.
type decision uint8

const (
	rejects decision = iota
	admits
	waits // for the storage's answer on a trial
)

// asked is an input: a call wants to run. Where it must wait, decided tells
// when it may go on.
func (r *replica) asked(now time.Time) (admission, decision) {
	own, fleet := r.own.at(now), r.met(now)
	a := r.admission("", now)
	if o := r.override(now); o != nil {
		if o.State == StateClosed {
			return a, admits
		}
		return a, rejects
	}
	if own.State == StateClosed && fleet.State == StateClosed {
		return a, r.rampLets(own, r.ramping(now), now)
	}
	most, soon := r.settings.MaxTrials, now.Add(armedEarly)
	if own.blockedUntil(most, now).After(soon) || fleet.blockedUntil(most, now).After(soon) || r.aloneFrom(now).After(soon) || r.asking() {
		return a, rejects
	}
	a.trial = r.newID()
	if own.State != StateClosed {
		if r.askOwn(a.trial, now) == VerdictRefused {
			return a, rejects
		}
		a.own = r.own.Since
	}
	if fleet.State == StateClosed {
		return a, admits
	}
	r.leases = append(r.leases, lease{id: a.trial})
	r.out.next.Ask = a.trial
	return a, waits
}

// ramping is the fleet's record as it ramps: while the storage is away, too.
func (r *replica) ramping(now time.Time) *Record {
	if r.attached() {
		return r.met(now)
	}
	return r.shared.at(now)
}

// rampLets decides on a call in a closed circuit: of those that come during a
// ramp, it admits as many as their shares add up to.
func (r *replica) rampLets(own, fleet *Record, now time.Time) decision {
	ramp := r.settings.Ramp
	share := min(own.share(ramp, now), fleet.share(ramp, now))
	if share < 1 {
		if r.credit += share; r.credit < 1 {
			return rejects
		}
		r.credit--
	}
	return admits
}

// aloneAfter is for how long a process that is cut off leaves the trial to the
// fleet. If one answer was late, and no more, it is attached again by then, and
// two trials do not run at once.
const aloneAfter = 250 * time.Millisecond

// aloneFrom is when this process may try for itself a service from which the
// fleet kept it away: zero where it may at any time.
func (r *replica) aloneFrom(now time.Time) time.Time {
	if r.trouble == nil || r.shared.at(now).State == StateClosed {
		return time.Time{}
	}
	return r.since.Add(aloneAfter)
}

func (r *replica) askOwn(id string, now time.Time) Verdict {
	c := Change{By: r.settings.Instance, Ask: id}
	return r.applyOwn(&c, now)
}

// asking reports whether the storage has been asked for a trial and has not
// answered yet.
func (r *replica) asking() bool {
	for _, l := range r.leases {
		if l.phase == phaseAsked {
			return true
		}
	}
	return false
}

// decided reports whether a call that waits for a trial may go on.
func (r *replica) decided(id string) bool {
	l := r.lease(id)
	return l == nil || l.phase != phaseAsked || r.trouble != nil
}

// goesOn is an input: a call that waited for a trial goes on, because it is
// decided or because it has waited for long enough.
func (r *replica) goesOn(a admission, now time.Time) (admission, decision) {
	if l := r.lease(a.trial); l != nil {
		if l.phase == phaseGranted {
			l.phase = phaseRunning
			return r.admission(a.trial, now), admits
		}
		l.phase, l.outcome = phaseEnded, result{outcome: OutcomeIgnored}
		if r.out.next.Ask == a.trial {
			r.out.next.Ask = ""
		}
		r.settleLeases()
	}
	// Not a trial of the fleet. That may have closed meanwhile, and then the
	// own circuit alone has a say.
	if r.attached() && r.fleet(now).State == StateClosed {
		switch {
		case r.own.trial(a.trial) >= 0:
			return r.admission(a.trial, now), admits
		case r.own.State == StateClosed:
			return r.admission("", now), admits
		}
	}
	r.countOwn(&a, &result{outcome: OutcomeIgnored}, now)
	if r.trouble != nil && r.settings.Fallback == FallbackClosed {
		return r.admission("", now), admits
	}
	return admission{}, rejects
}

// admission is what a call is let in by now.
func (r *replica) admission(trial string, now time.Time) admission {
	return admission{own: r.own.Since, shared: r.sharedSince(now), trial: trial}
}

// settleLeases tells the storage the end of every trial of this process that
// is on record. What is not on record was not granted, or is over.
func (r *replica) settleLeases() {
	for _, t := range r.shared.Trials {
		// It was granted after its caller had given up, or the storage lost its
		// record and got back one that was older.
		if strings.HasPrefix(t.ID, r.source+".") && r.lease(t.ID) == nil {
			r.leases = append(r.leases, lease{id: t.ID, phase: phaseEnded, outcome: result{outcome: OutcomeIgnored}})
		}
	}
	kept := r.leases[:0]
	for _, l := range r.leases {
		switch {
		case l.phase != phaseEnded:
		case r.shared.trial(l.id) < 0:
			continue
		case !r.out.sent.settles(l.id) && !r.out.next.settles(l.id):
			r.out.next.Settled = append(r.out.next.Settled, Settlement{l.id, l.outcome.outcome, l.outcome.openFor})
			r.noted++
		}
		kept = append(kept, l)
	}
	r.leases = kept
}

func (c *Change) settles(id string) bool {
	for _, s := range c.Settled {
		if s.ID == id {
			return true
		}
	}
	return false
}

func (r *replica) lease(id string) *lease {
	for i := range r.leases {
		if r.leases[i].id == id {
			return &r.leases[i]
		}
	}
	return nil
}

// Inputs: by hand.

// byHand is an input: a move or an override. It returns the number under which
// the storage is to hear of it; 0 if it was the own circuit's alone.
func (r *replica) byHand(c Change, now time.Time) uint64 {
	switch {
	case r.attached():
	case r.linked && r.linkUp && !isTrouble(r.trouble):
		// The record cannot be read: this replaces it, and all that was yet to be
		// said of it.
		r.out.sent, r.out.under, r.out.next, r.retryAt = Change{}, false, Change{}, time.Time{}
	default:
		r.byHandAlone(c, now)
		return 0
	}
	r.out.next.Move = cmp.Or(c.Move, r.out.next.Move)
	r.out.next.Override = cmp.Or(c.Override, r.out.next.Override)
	r.noted++
	return r.noted
}

// confirmed reports whether the storage has heard of what was done by hand,
// or will not for now.
func (r *replica) confirmed(number uint64) bool {
	return number <= r.landed || isTrouble(r.trouble)
}

func (r *replica) byHandAlone(c Change, now time.Time) {
	if c.Override != nil {
		r.released = r.shared.Moved
	}
	own := Change{By: r.settings.Instance, Move: c.Move, Override: c.Override}
	r.applyOwn(&own, now)
}

// override returns what holds the circuit, whatever it came to; nil if nothing
// does. The fleet's holds while the storage is away, too.
func (r *replica) override(now time.Time) *Override {
	switch {
	case r.own.Override.holds(now):
		return r.own.Override
	case r.shared.Override.holds(now) && r.released != r.shared.Moved:
		return r.shared.Override
	}
	return nil
}

// configured is an input: other settings.
func (r *replica) configured(s *settings) { r.settings = s }

// Inputs: the storage's answers and news.

// observed is an input: the storage has told of a record. One of the generation
// that is known says nothing new: it differs in counts alone, and may be older
// than an answer. An older one is late, as answers overtake news, or the storage
// has lost something. If nothing newer comes soon, what it answers to a change
// that carries what is known tells which.
func (r *replica) observed(rec Record, now time.Time) {
	switch {
	case rec.Generation < r.shared.Generation:
		if at := now.Add(lateAfter); r.out.checkAt.IsZero() || at.Before(r.out.checkAt) {
			r.out.checkAt = at
		}
	case rec.Generation == r.shared.Generation && !r.shared.suspect():
		r.out.checkAt = time.Time{}
	case rec.Generation > r.shared.Generation:
		r.adopt(rec, now)
	}
}

// lateAfter is how long an older record has to turn out as late.
const lateAfter = 100 * time.Millisecond

// nextCheck is when the storage is asked whether shared still holds: soon after a
// suspicion of the row has opened the circuit by time alone. What refutes it may
// have come late, or not be known here.
func (r *Record) nextCheck(roll float64) time.Time {
	if !r.weighed() {
		return time.Time{}
	}
	return r.OpensAt.Add(time.Duration(roll * float64(checkWithin))) // not all at once
}

// checks reports whether the storage is to be asked now.
func (r *replica) checks(now time.Time) bool {
	return !r.stopped && !r.out.checkAt.IsZero() && !now.Before(r.out.checkAt)
}

const checkWithin = 500 * time.Millisecond

// hasRead is an input: the record was read, by a request that began when so
// much news had come. If more came meanwhile, its counts may be old.
func (r *replica) hasRead(rec Record, news uint64, now time.Time) {
	switch {
	case news != r.news || rec.Generation > r.shared.Generation:
		r.observed(rec, now)
	case rec.Generation == r.shared.Generation:
		r.adopt(rec, now)
	default:
		r.out.checkAt = now // nothing is late: the storage has lost it
	}
	if r.out.sent.Number == 0 && !r.out.under && r.linkUp {
		r.attach(now)
	}
}

// answered is an input: the storage has answered a request, in time or late.
func (r *replica) answered(c *Change, rec Record, now time.Time) {
	mine := c.Number == r.out.sent.Number
	if rec.Generation < r.shared.Generation { // it may have the suspicion whose opening is known here
		rec = rec.At(now)
	}
	switch {
	case c.Number == 0:
		r.hasRead(rec, c.news, now)
	case rec.Generation >= r.shared.Generation,
		// The storage has lost what the change said it had seen, and for that it
		// was too old.
		mine && c.news == r.news:
		r.adopt(rec, now)
	}
	if !mine {
		return
	}
	r.out.sent, r.out.under = Change{}, false
	r.landed = r.out.through
	if r.shared.overdue(now) && !r.out.next.counts() { // the storage has heard all, and holds to it
		r.shared, r.out.checkAt = r.shared.At(now), time.Time{}
	}
	for i := range r.leases {
		switch l := &r.leases[i]; {
		case l.phase != phaseAsked || r.out.next.Ask == l.id:
		case r.shared.trial(l.id) >= 0:
			l.phase = phaseGranted
		default:
			l.phase, l.outcome = phaseEnded, result{outcome: OutcomeIgnored}
		}
	}
	if r.linkUp {
		r.attach(now)
	}
	r.settleLeases()
}

// attach ends the trouble: the shared record counts again. What the storage has
// lost is put back first.
func (r *replica) attach(now time.Time) {
	if r.trouble != nil && r.checks(now) {
		return
	}
	r.trouble, r.failed, r.retryAt, r.released = nil, 0, time.Time{}, 0
	r.repay()
}

// adopt makes a record the shared one. Outcomes of an older state count for
// nothing; nor do successes that a refutation has made superfluous.
func (r *replica) adopt(rec Record, now time.Time) {
	r.news++
	before := r.shared
	if rec.Generation == before.Generation {
		rec.noLater(&before)
	}
	r.shared = rec.bounded(r.settings, now)
	r.out.checkAt = r.shared.nextCheck(r.roll())
	if rec.Moved > before.Moved {
		r.own = Record{Generation: r.own.Generation + 1, Since: r.own.Generation + 1}
		r.borrowed = 0
		if r.trouble != nil {
			r.borrow(now)
		}
	}
	next := &r.out.next.Calls
	if rec.Since > before.Since || !rec.suspect() && before.suspect() && next.Failures == 0 {
		*next, r.out.openFor = Calls{}, 0
	}
	if rec.Since > before.Since {
		r.out.counted = Window{}
	}
	switch {
	case rec.rated() && r.settings.FailureRate > 0:
		r.countsUntil = now.Add(r.settings.Window)
		if !before.rated() { // in a large fleet a few are enough, and the others hear of them first
			r.out.hold = now.Add(time.Duration(r.roll() * float64(r.settings.Suspicion) / 2))
		}
	case !rec.suspect():
		r.out.hold = time.Time{}
	}
	r.settleLeases()
}

// unanswered is an input: a request failed, or was not answered in time. Its
// fate is unknown: it goes again under its number.
func (r *replica) unanswered(number uint64, err error, now time.Time) {
	if !r.awaits(number) {
		return
	}
	r.out.under = false
	r.out.sent.Ask = "" // whoever asked does not wait any longer
	r.unread(err, now)
}

// awaits reports whether the request of that number is under way, as far as
// this process knows.
func (r *replica) awaits(number uint64) bool { return r.out.under && r.out.sent.Number == number }

// unread is an input: a read failed.
func (r *replica) unread(err error, now time.Time) {
	r.detach(err, now)
	r.failed++
	r.retryAt = now.Add(backoff(r.failed, r.roll()))
}

// gaveUp is an input: the caller of a trial has waited for the storage to hear
// of the outcome of that number, and may not wait any longer.
func (r *replica) gaveUp(number uint64) { r.unheard = max(r.unheard, number) }

// met is the fleet's record as calls meet it. Where the storage is late with what
// this process has told it, that is the record as it will be then: whoever ran a
// trial meets what it came to, and a suspicion that this process refutes opens
// nothing, however late the storage is.
func (r *replica) met(now time.Time) *Record {
	late := r.unheard > 0 && !r.heard(r.unheard) ||
		r.unconfirmed(now) && r.out.sent.counts()
	if late && r.attached() {
		foreseen := r.foreseen(now)
		return &foreseen
	}
	return r.fleet(now)
}

// lost is an input: the link to the storage is down.
func (r *replica) lost(err error, now time.Time) {
	r.linkUp = false
	r.detach(err, now)
}

// back is an input: the link is up. The circuit is attached by its next answer.
func (r *replica) back() {
	r.linkUp, r.retryAt = true, time.Time{}
}

// detach has the own circuit decide alone.
func (r *replica) detach(err error, now time.Time) {
	if r.trouble != nil {
		return
	}
	r.trouble, r.since, r.failed = err, now, 0
	hand := Change{Move: cmp.Or(r.out.next.Move, r.out.sent.Move), Override: cmp.Or(r.out.next.Override, r.out.sent.Override)}
	if hand.Move != nil || hand.Override != nil { // it goes for this process at least
		r.out.next.Move, r.out.next.Override = nil, nil
		r.byHandAlone(hand, now)
		return
	}
	r.borrow(now)
}

// borrow has the own circuit go on from what the fleet's will be.
func (r *replica) borrow(now time.Time) {
	if r.unconfirmed(now) && r.own.Failures == 0 {
		return
	}
	fleet, most := r.foreseen(now), r.settings.MaxTrials
	if fleet.State != StateClosed && (r.own.State == StateClosed || fleet.blockedUntil(most, now).After(r.own.blockedUntil(most, now))) {
		generation := max(r.own.Generation, fleet.Generation) + 1
		fleet.Generation, fleet.Since, fleet.Override, fleet.heard = generation, generation, nil, nil
		r.own, r.borrowed = fleet, generation
	}
}

// foreseen is the shared record as it will be when the storage has heard
// everything, as far as this process knows.
func (r *replica) foreseen(now time.Time) Record {
	fleet := r.shared
	for _, c := range []Change{r.out.sent, r.out.next} {
		c.Ask, c.Number, c.Seen, c.Limits = "", 0, r.shared, r.settings.limits
		fleet.apply(&c, now)
	}
	fleet.pass(now)
	return fleet
}

// unconfirmed reports whether the fleet's circuit is open by time alone, as far as
// is known here: the storage may have heard what refutes that.
func (r *replica) unconfirmed(now time.Time) bool {
	return r.shared.weighed() && r.shared.overdue(now)
}

// repay gives back what was borrowed, unless the own circuit has moved since.
func (r *replica) repay() {
	if r.borrowed > 0 && r.own.Generation == r.borrowed {
		r.own = Record{Generation: r.borrowed + 1, Since: r.borrowed + 1}
	}
	r.borrowed = 0
}

// Outputs.

// wakeAt is when time alone changes something: the earliest of all times
// after now, zero if there is none.
func (r *replica) wakeAt(now time.Time) time.Time {
	var at time.Time
	if r.stopped && r.trouble != nil {
		return at
	}
	if !r.linked && r.own.State == StateClosed && r.own.Window.Buckets == nil && r.own.ClosedAt.IsZero() && r.own.Override == nil {
		return at
	}
	earliest := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	due := func(rec *Record) {
		if until := rec.blockedUntil(r.settings.MaxTrials, now); !until.IsZero() {
			earliest(until.Add(-armedEarly))
		}
	}
	due(&r.own)
	if o := r.override(now); o != nil {
		earliest(o.Until)
	}
	if r.settings.Ramp > 0 {
		earliest(r.own.rampEnds(r.settings.Ramp))
		earliest(r.ramping(now).rampEnds(r.settings.Ramp))
	}
	if r.counting(now) { // for what was tallied meanwhile
		earliest(r.own.Window.nextBucket(r.settings.own.width(), now.Add(armedEarly)).Add(-armedEarly)) // while they still belong to this one
		earliest(r.countsUntil)
	}
	if r.shared.suspect() { // also while the storage is away: calls from then on belong to another generation
		earliest(r.shared.OpensAt)
	}
	if r.attached() {
		due(r.shared.at(now))
		if !r.out.under {
			earliest(r.out.hold)
			if !r.stopped {
				earliest(r.out.checkAt)
			}
		}
	} else if r.linked {
		earliest(r.aloneFrom(now).Add(-armedEarly))
		if r.linkUp && !r.out.under {
			earliest(r.retryAt)
		}
	}
	return at
}

// blockedUntil is when another trial may run, as far as is known: zero where
// calls or a trial may run now.
func (r *Record) blockedUntil(maxTrials int, now time.Time) time.Time {
	var until time.Time
	if r.State == StateClosed {
		return until
	}
	if r.State == StateOpen {
		until = r.DueAt
	}
	if live := liveTrials(r.Trials, now); len(live) >= maxTrials {
		first := live[0].Deadline
		for _, t := range live {
			if t.Deadline.Before(first) {
				first = t.Deadline
			}
		}
		if first.After(until) {
			until = first
		}
	}
	return until
}

// bounded bounds what a record from outside can make calls wait for: an hour,
// or what the own settings ask for.
func (r Record) bounded(s *settings, now time.Time) Record {
	if latest := now.Add(max(s.ResetTimeout, maxRetryAfter)); r.DueAt.After(latest) {
		r.DueAt = latest
	}
	if latest := now.Add(max(s.ResetTimeout, maxRetryAfter) / 2); r.CalmUntil.After(latest) {
		r.CalmUntil = latest
	}
	if r.ClosedAt.After(now) {
		r.ClosedAt = now
	}
	latest := now.Add(max(s.TrialTimeout, maxRetryAfter))
	for i, t := range r.Trials {
		if t.Deadline.After(latest) {
			r.Trials = r.clone().Trials
			r.Trials[i].Deadline = latest
		}
	}
	return r
}

// newID returns an ID for a trial.
func (r *replica) newID() string {
	r.ids++
	return r.source + "." + base36(r.ids)
}

// roll returns a random number from 0 up to 1: the next of a splitmix64
// (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func (r *replica) roll() float64 {
	r.random += 0x9e3779b97f4a7c15
	z := r.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}
