package infuse

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// replica is this process's copy of one circuit: its local and its shared
// record, and what is yet to be reported to the storage. It makes every decision
// of a circuit. It is pure: it does no I/O, takes no lock, reads no clock and
// calls no user code, and the same inputs in the same order always have the same
// result.
//
// The local record counts the outcomes of this process, as any local breaker
// does. The shared record is the storage's. A call must pass both. Without a
// storage, and while it is unavailable, the local one decides alone.
type replica struct {
	settings *settings
	source   string // of this replica's changes, and the start of its trials' IDs
	local    Record
	shared   *Record // as the storage last answered or notified. It never changes
	*episode         // calm between two inputs, unless it is needed

	linked    bool // there is a storage
	linkUp    bool // and its link has not failed
	stopped   bool // it requests nothing more by itself
	failing   bool // the last call of this process failed: what an open shared circuit rejects by
	inherited bool // it started with failures on record, and no call has succeeded since
	supplied  int  // how much of the evidence on record this process may have supplied

	credit       float64 // of a call that a ramp lets run: it runs at 1
	random       uint64  // the state of a generator of random numbers
	ids          uint64  // so many were made
	received     uint64  // so many records were received
	changes      uint64  // so many were made for the storage
	enqueued     uint64  // the sequence number of the last outcome, manual change or request for a trial that is to be reported
	sentUpTo     uint64  // and of the last one that is in a change
	acknowledged uint64  // and of the last one that the storage has acknowledged
}

// episode is the part of a replica that only a circuit needs with which something is
// wrong, or whose process has something to report: most circuits have none.
type episode struct {
	out          outbox
	leases       []lease   // of the shared circuit, that this process has asked for
	formerSource string    // the witness on record when it started: that may have been this process, before it crashed
	cause        keptCause // of the last failure of this process that opened a circuit, or may yet

	storageErr      error     // why the shared record does not apply; nil if it does
	detachedAt      time.Time // of the trouble
	retryAt         time.Time // when this circuit tries again by itself; zero: with the link
	attempts        int       // attempts since the trouble began
	removedOverride int64     // the generation of an override that was removed for this process alone
	adopted         *Record   // applies in place of the shared record while that cannot be read; nil if nothing does
}

// calm is the episode of a circuit that needs none. It never changes.
var noEpisode = new(episode)

var episodes = sync.Pool{New: func() any { return new(episode) }}

// begin is called before an input: it may need an episode.
func (r *replica) acquireEpisode() {
	if r.episode == noEpisode {
		r.episode = episodes.Get().(*episode)
	}
}

// rest is called after the outputs: it lets go of an episode that is over.
func (r *replica) releaseEpisode() {
	quiet := r.storageErr == nil && r.adopted == nil && r.removedOverride == 0 && r.formerSource == "" && len(r.leases) == 0 && r.out.empty()
	if quiet && (!r.cause.known() || r.local.State == StateClosed && (!r.linked || !r.failing && r.shared.State == StateClosed && !r.shared.hasEvidence())) {
		*r.episode = episode{}
		episodes.Put(r.episode)
		r.episode = noEpisode
	}
}

// lease is a trial of the shared circuit that this process has asked for, and
// whose end the storage may not know.
type lease struct {
	id      string
	phase   phase
	outcome result // once it has ended
	endedAt time.Time
}

func (l *lease) end(res result, now time.Time) { l.phase, l.outcome, l.endedAt = phaseEnded, res, now }

type phase uint8

const (
	phaseRequested phase = iota // no answer yet
	phaseGranted                // the storage has granted it: the call runs
	phaseEnded                  // the call has ended, or will not run
)

// result is how an admitted call ended.
type result struct {
	outcome Outcome
	err     error         // of a failure
	cause   keptCause     // of err: made before any lock is taken
	openFor time.Duration // if it opens the circuit: at least so long, as the service has asked (Retry-After)
}

// admission is what a call was let in by.
type admission struct {
	view   *view
	local  int64         // the generations that the call belongs to
	shared int64         //
	trial  string        // its ID; empty for a call in a closed circuit
	waited time.Duration // for the storage, so far
	began  time.Duration // by clock.Now, where Config.SlowCall asks for it
	late   bool          // the deadline of the call had passed before it began
	dry    bool          // it runs only because of Config.DryRun, and is not counted
}

func newReplica(s *settings, source string, linked bool, seed uint64) replica {
	r := replica{settings: s, source: source, shared: &closed, episode: new(episode), linked: linked, linkUp: true, random: seed}
	r.credit = r.roll()
	return r
}

// attached reports whether the shared record applies.
func (r *replica) attached() bool { return r.linked && r.storageErr == nil }

// fleet returns the shared record that applies now. While the circuit is detached,
// that is the one by which it rejected calls before.
func (r *replica) effective(now time.Time) *Record {
	switch {
	case r.attached():
		return r.predicted(now)
	case r.adopted != nil:
		return r.adopted.at(now)
	}
	return &closed
}

// lastShared is the shared record as this process last knew it to apply.
func (r *replica) lastShared() *Record {
	if r.adopted != nil {
		return r.adopted
	}
	return r.shared
}

// terms are those of this process for the shared record.
// R14.
func (r *replica) terms() *terms {
	return &terms{limits: &r.settings.limits, source: r.source, by: r.settings.Instance, cause: r.cause.short}
}

// localTerms are those for the local record.
func (r *replica) localTerms() *terms {
	return &terms{limits: &r.settings.local, by: r.settings.Instance, cause: r.cause.short}
}

// effective returns the shared record as it will be when the storage has received
// the ends of this process's trials: the caller of a trial meets its result.
func (r *replica) predicted(now time.Time) *Record {
	ended := func(l lease) bool { return l.phase == phaseEnded }
	if !slices.ContainsFunc(r.leases, ended) {
		return r.shared.at(now)
	}
	rec := *r.shared
	for _, l := range r.leases {
		if ended(l) {
			t := r.terms()
			t.cause = l.outcome.cause.short
			rec.settle(Settlement{l.id, l.outcome.outcome, l.outcome.openFor}, t, l.endedAt)
		}
	}
	rec.expire(now)
	return &rec
}

// closed is the record of a circuit that never failed. It never changes.
var closed Record

// isNew reports whether the record has nothing that closed does not have.
func (r *Record) isNew() bool {
	return r.Generation == 0 && !r.affectsCalls() && r.count() == 0 && len(r.Window.Buckets) == 0 && len(r.Trials) == 0
}

// rejectsBy reports whether a shared record rejects the calls of this process.
// With evidence, it does so only if the last call of this process failed.
// R7.
func (r *replica) rejectsBy(rec *Record) bool {
	return rec.State != StateClosed && (r.failing || !rec.hasEvidence())
}

// hasSuppliedAll reports whether this process reports no more failures to the
// record: one process supplies FailMax at most, and a failure rate is confirmed by
// another than the one that made the circuit suspect.
// R11.
func (r *replica) hasSuppliedAll(rec *Record) bool {
	switch {
	case rec.Rated:
		return rec.Witness == r.sourceIn(rec)
	case rec.scored() && !r.settings.streakCounts():
		return r.supplied >= rec.Threshold
	}
	return r.supplied >= r.settings.FailMax
}

// sourceIn is the source by which the record knows this process.
func (r *replica) sourceIn(rec *Record) string {
	if rec.Witness != "" && rec.Witness == r.formerSource {
		return r.formerSource
	}
	return r.source
}

// Inputs: calls.

// countsAlone is ended for an outcome from which nothing follows but the count,
// in a circuit without a storage. Otherwise it does nothing, and reports so.
func (r *replica) onlyCounts(a *admission, o Outcome) bool {
	l, s := &r.local, r.settings
	if !r.countsLocally(a) || l.Override != nil || s.FailureRate > 0 || s.Ramp > 0 {
		return false
	}
	switch {
	case o == OutcomeSuccess:
		l.Failures = 0
	case o == OutcomeFailure && l.Failures+1 < s.FailMax:
		l.Failures++
	default:
		return false
	}
	return true
}

// ended is an input: an admitted call has ended. It returns the sequence number to
// wait for, or 0 if nothing is reported.
func (r *replica) ended(a *admission, res result, now time.Time) (number uint64) {
	if res.cause.known() {
		r.cause = res.cause
	}
	late, manual := a.shared < r.shared.Since, false
	l := r.lease(a.trial)
	if l != nil {
		l.end(res, now)
		if r.attached() {
			fleet := r.shared.at(now)
			i := fleet.trial(a.trial)
			late = i < 0 || fleet.Trials[i].Stale
			manual = !fleet.hasEvidence()
		}
	}
	if late {
		res.outcome = OutcomeIgnored
	}
	if res.outcome != OutcomeIgnored {
		r.failing = res.outcome == OutcomeFailure
		r.inherited = r.inherited && r.failing
	}
	r.countAdopted(a, &res, now) // also an ignored trial frees its slot
	if l == nil {
		number = r.enqueue(a, &res, now)
	} else {
		r.settleLeases(now)
		number = r.enqueued
	}
	if r.countLocal(a, &res, now); manual && res.outcome == OutcomeFailure && r.local.State == StateClosed {
		// The half-open circuit was for all; now it applies to the processes whose
		// last call failed, each as far as its local circuit does.
		r.local.trialFailed(res.openFor, r.localTerms(), now)
	}
	return number
}

// tallied is an input: so many calls have succeeded since the last input, and
// were only counted.
func (r *replica) tallied(n int, now time.Time) {
	if !r.countsOutcomes() {
		return
	}
	if r.reports() {
		r.countForRate(one(false, n, now))
	}
	r.tallyLocal(OutcomeSuccess, n, r.local.Generation, 0, now)
}

// tallyLocal counts calls of a generation in the closed local circuit.
// R5.
func (r *replica) tallyLocal(o Outcome, n int, generation int64, openFor time.Duration, now time.Time) {
	c := Calls{Successes: n}
	if o == OutcomeFailure {
		c = Calls{Failures: n, Lead: n, Streak: n}
	}
	var counted []Bucket
	if r.settings.FailureRate > 0 {
		counted = []Bucket{one(o == OutcomeFailure, n, now)}
	}
	t := r.localTerms()
	t.generation, t.openFor = generation, max(t.limits.ResetTimeout, openFor)
	r.local.tally(&c, counted, t, now)
}

// counting reports whether successes are tallied: while there are failures in
// the local window.
func (r *replica) counting(now time.Time) bool {
	l := &r.settings.limits
	return l.FailureRate > 0 && r.countsOutcomes() && failed(r.local.Window.last(l.Window, now)) > 0
}

// evaluatesRate reports whether the failure rate of the fleet is evaluated. Then
// every success is reported, so that nothing has to wake for those that are tallied.
func (r *replica) evaluatesRate() bool { return r.attached() && r.isRated() }

// isRated reports whether the evidence on record is a failure rate that this process
// counts, too.
func (r *replica) isRated() bool { return r.settings.FailureRate > 0 && r.shared.Rated }

// decides reports whether the local record counts outcomes: not under a StorageDown
// that counts nothing.
// R37.
func (r *replica) countsOutcomes() bool {
	return r.storageErr == nil || r.settings.StorageDown == StorageDownLocal
}

// countsLocally reports whether the outcome of a call is one of those by which the
// local circuit may open. A failure that is not is no evidence for the fleet: a
// process whose circuit is open has said all that it has to say.
// R4.
func (r *replica) countsLocally(a *admission) bool {
	return r.local.State == StateClosed && a.local >= r.local.Since
}

// countLocal counts an outcome in the local circuit: as the end of its trial or,
// if it is closed, as any other call's.
// R6.
func (r *replica) countLocal(a *admission, res *result, now time.Time) {
	switch {
	case a.trial != "" && r.local.trial(a.trial) >= 0:
		c := Change{By: r.settings.Instance, Cause: r.cause.short, Settled: []Settlement{{a.trial, res.outcome, res.openFor}}}
		r.applyLocal(&c, now)
	case res.outcome == OutcomeIgnored || !r.countsOutcomes():
	case res.outcome == OutcomeSuccess && r.local.Failures == 0 && r.local.Window.Buckets == nil:
	default:
		r.tallyLocal(res.outcome, 1, a.local, res.openFor, now)
	}
}

// applyLocal makes a change of the local record.
func (r *replica) applyLocal(c *Change, now time.Time) Verdict {
	c.Limits = r.settings.local
	return r.local.apply(c, false, now)
}

// clearLocal forgets what the local circuit has counted.
func (r *replica) clearLocal() {
	generation := r.local.Generation + 1
	r.local = Record{Generation: generation, Since: generation, Override: r.local.Override}
}

// countStandIn counts an outcome in the record that stands in: as the end of its
// trial, or as a success after which nothing rejects calls.
func (r *replica) countAdopted(a *admission, res *result, now time.Time) {
	switch {
	case r.adopted == nil:
	case a.trial != "" && r.adopted.trial(a.trial) >= 0:
		r.adopted.settle(Settlement{a.trial, res.outcome, res.openFor}, r.terms(), now)
	case !r.failing && r.adopted.hasEvidence():
		r.adopted = nil
	}
}

// Inputs: trials.

// decision is what happens to a call that the view alone does not admit.
type decision uint8

const (
	rejects decision = iota
	admits
	waits // for the storage's answer about a trial
)

// asked is an input: a call wants to run. If it must wait, it may go on when the
// sequence number that is now the last one is acknowledged.
// R23.
func (r *replica) arrived(now time.Time) (admission, decision) {
	a := r.admission("")
	if o := r.override(now); o != nil {
		if o.State == StateClosed {
			return a, admits
		}
		return a, rejects
	}
	b := r.blocking(now)
	switch {
	case !b.local && !b.shared:
		return a, r.rampAdmits(now)
	case b.until.After(now.Add(readyEarly)) || r.requestsTrial():
		return a, rejects
	}
	a.trial = r.newID()
	if b.local {
		c := Change{By: r.settings.Instance, RequestTrial: a.trial}
		if r.applyLocal(&c, now) == VerdictRefused {
			return a, rejects
		}
		a.local = r.local.Since
	}
	switch {
	case !r.attached():
		if b.shared && !r.adopted.requestTrial(a.trial, r.terms(), now) {
			return a, rejects
		}
		return a, admits
	case !b.shared && !r.sharesTrial(r.effective(now), now):
		return a, admits
	}
	r.leases = append(r.leases, lease{id: a.trial})
	r.out.next.RequestTrial = a.trial
	r.enqueued++
	return a, waits
}

// sharesTrial reports whether the trial of the local circuit is one of the shared
// circuit, too. It is while that is half-open: otherwise a success of this process
// there would outlive its failure here. And it is while that is suspect and due, if
// the storage finds enough evidence: the local circuits of all may have opened before
// Suspicion was over, and then nobody reports any more.
// R18.
func (r *replica) sharesTrial(fleet *Record, now time.Time) bool {
	return fleet.State == StateHalfOpen || fleet.suspect() && !now.Before(fleet.dueAt(&r.settings.limits))
}

// blocking is what keeps the calls of this process from running.
type blocking struct {
	local  bool // the local circuit does
	shared bool // the shared circuit does
	record *Record
	until  time.Time // then a trial may run; zero: it may run now
}

// blocking returns which circuits reject calls now, and the record that does so
// for longest.
func (r *replica) blocking(now time.Time) blocking {
	local, fleet := r.local.at(now), r.effective(now)
	b := blocking{local: local.State != StateClosed, shared: r.rejectsBy(fleet), record: &closed}
	if b.shared {
		b.record, b.until = fleet, fleet.blockedUntil(&r.settings.limits, r.sourceIn(fleet), now)
	}
	if b.local {
		until := local.blockedUntil(&r.settings.local, r.source, now)
		if !b.shared || until.After(b.until) {
			b.record, b.until = local, until
		}
	}
	if alone := r.detachedAt.Add(detachedPause); b.shared && !r.attached() && alone.After(now) && alone.After(b.until) {
		b.until = alone
	}
	return b
}

// opensUntil is until when no trial may run in an open circuit, which may be in the
// past; zero if that is unknown.
func (r *replica) nextTrialAt(now time.Time) time.Time {
	if o := r.override(now); o != nil {
		return o.Until
	}
	b := r.blocking(now)
	switch {
	case !b.until.IsZero():
		return b.until
	case b.record.State == StateHalfOpen:
		return b.record.RetryAt
	}
	return b.record.dueAt(&r.settings.limits)
}

// aloneAfter is for how long a detached process leaves the trial to the fleet. If
// one answer was late, and no more, it is attached again by then, and two trials
// do not run at once.
const detachedPause = 250 * time.Millisecond

// rampLets decides on a call in a closed circuit: of those that come during a
// ramp, it admits as many as their shares add up to.
func (r *replica) rampAdmits(now time.Time) decision {
	ramp := r.settings.Ramp
	share := min(r.local.rampShare(ramp, now), r.shared.rampShare(ramp, now))
	if share < 1 {
		if r.credit += share; r.credit < 1 {
			return rejects
		}
		r.credit--
	}
	return admits
}

// asking reports whether the storage has been asked for a trial and has not
// answered yet.
func (r *replica) requestsTrial() bool {
	return slices.ContainsFunc(r.leases, func(l lease) bool { return l.phase == phaseRequested })
}

// goesOn is an input: a call that waited for a trial goes on, because it is
// decided or because it has waited for long enough.
// R27.
func (r *replica) resumed(a admission, now time.Time) (admission, decision) {
	if l := r.lease(a.trial); l != nil {
		if l.phase == phaseGranted {
			return r.admission(a.trial), admits
		}
		l.end(result{outcome: OutcomeIgnored}, now)
		if r.out.next.RequestTrial == a.trial {
			r.out.next.RequestTrial = ""
		}
		r.settleLeases(now)
	}
	// Not a trial of the shared circuit. That may have closed meanwhile, and then
	// the local circuit decides alone.
	if r.attached() && !r.rejectsBy(r.effective(now)) {
		switch {
		case r.local.trial(a.trial) >= 0:
			return r.admission(a.trial), admits
		case r.local.State == StateClosed:
			return r.admission(""), admits
		}
	}
	r.countAdopted(&a, &result{outcome: OutcomeIgnored}, now)
	r.countLocal(&a, &result{outcome: OutcomeIgnored}, now)
	if r.storageErr != nil && r.settings.StorageDown == StorageDownAllow {
		return r.admission(""), admits
	}
	return admission{}, rejects
}

// admission is what a call is let in by now.
func (r *replica) admission(trial string) admission {
	return admission{local: r.local.Since, shared: r.shared.Since, trial: trial}
}

// settleLeases reports the end of every trial of this process that is on record.
// What is not on record was not granted, or is over.
func (r *replica) settleLeases(now time.Time) {
	fleet := r.shared.at(now)
	for _, t := range fleet.Trials {
		// It was granted after its caller had given up, or the storage lost its
		// record and got back one that was older.
		if strings.HasPrefix(t.ID, r.source+".") && r.lease(t.ID) == nil {
			r.leases = append(r.leases, lease{id: t.ID, phase: phaseEnded, outcome: result{outcome: OutcomeIgnored}, endedAt: now})
		}
	}
	kept := r.leases[:0]
	for _, l := range r.leases {
		switch {
		case l.phase != phaseEnded:
		case fleet.trial(l.id) < 0:
			continue
		case !r.out.sent.settles(l.id) && !settles(r.out.next.Settled, l.id):
			r.out.next.Settled = append(r.out.next.Settled, Settlement{l.id, l.outcome.outcome, l.outcome.openFor})
			r.enqueued++
		}
		kept = append(kept, l)
	}
	r.leases = kept
}

func (c *Change) settles(id string) bool { return c != nil && settles(c.Settled, id) }

func settles(all []Settlement, id string) bool {
	return slices.ContainsFunc(all, func(s Settlement) bool { return s.ID == id })
}

func (r *replica) lease(id string) *lease {
	for i := range r.leases {
		if r.leases[i].id == id {
			return &r.leases[i]
		}
	}
	return nil
}

// Inputs: manual changes.

// manual is an input: a new state or an override. It returns the sequence number
// to wait for; 0 if it changed the local circuit alone.
func (r *replica) manual(c Change, now time.Time) uint64 {
	switch {
	case r.attached():
	case r.linked && r.linkUp && !isStorageError(r.storageErr):
		// The record cannot be read: this replaces it, and all that was yet to be
		// reported of it.
		r.out.sent, r.out.inFlight, r.out.next, r.retryAt = nil, false, draft{}, time.Time{}
	default:
		r.changeLocally(c, now)
		return 0
	}
	r.out.next.Manual = cmp.Or(c.Manual, r.out.next.Manual)
	r.out.next.Override = cmp.Or(c.Override, r.out.next.Override)
	r.enqueued++
	return r.enqueued
}

// R34.
func (r *replica) changeLocally(c Change, now time.Time) {
	if c.Override != nil {
		r.removedOverride = r.shared.Manual
	}
	if c.Manual != nil {
		r.adopted = nil
	}
	local := Change{By: r.settings.Instance, Manual: c.Manual, Override: c.Override}
	r.applyLocal(&local, now)
}

// override returns the override that applies; nil if none does. The shared one
// applies while the storage is unavailable, too.
// R33.
func (r *replica) override(now time.Time) *Override {
	switch {
	case r.local.Override.isActive(now):
		return r.local.Override
	case r.shared.Override.isActive(now) && r.removedOverride != r.shared.Manual:
		return r.shared.Override
	}
	return nil
}

// configured is an input: other settings.
func (r *replica) configured(s *settings) { r.settings = s }

// Inputs: the storage's answers and notifications.

// observed is an input: the storage has notified of a record. One of the generation
// that is known contains nothing new: it differs in counts alone, and may be older
// than an answer. An older one is late, as answers overtake notifications, or the
// storage has lost something. If nothing newer comes soon, the answer to a change
// that carries what is known decides which.
func (r *replica) notified(rec Record, now time.Time) {
	switch {
	case rec.Generation < r.shared.Generation:
		if at := now.Add(lateAfter); r.out.checkAt.IsZero() || at.Before(r.out.checkAt) {
			r.out.checkAt = at
		}
	case rec.Generation == r.shared.Generation:
		r.out.checkAt = time.Time{}
	default:
		r.receive(rec, now)
	}
}

// announced is an input: a notice says that the circuit is suspect since a generation,
// or not any more. It need not be true. A process whose last call succeeded, and that
// does not know the suspicion, need not read it: it knows that failures are on record,
// so its next success is reported, and the answer has the record. announced returns
// whether the record is to be read.
func (r *replica) noticed(n notice, generation int64) (reads bool) {
	rec := *r.shared
	switch {
	case n == noticeChanged:
		return true
	case generation == rec.Generation:
		return false
	case generation < rec.Generation || r.received == 0 || !r.attached() || r.stopped || r.failing || r.local.State != StateClosed ||
		rec.State != StateClosed || rec.hasEvidence() || !r.settings.streakCounts():
		return true
	case n == noticeSuspect:
		rec.Failures = max(1, rec.Failures)
	case r.out.inFlight: // the answer may have the suspicion yet
		return true
	default:
		rec.Failures = 0
	}
	if r.shared = &rec; rec.isNew() {
		r.shared = &closed
	}
	return false
}

// lateAfter is how long an older record has to turn out as late.
const lateAfter = 100 * time.Millisecond

// checks reports whether the storage is to be asked now.
func (r *replica) checkDue(now time.Time) bool {
	return !r.stopped && !r.out.checkAt.IsZero() && !now.Before(r.out.checkAt)
}

// hasRead is an input: the record was read, by a request that began when so many
// records had been received. If more came meanwhile, its counts may be old.
func (r *replica) hasRead(rec Record, news uint64, now time.Time) {
	switch {
	case news != r.received || rec.Generation > r.shared.Generation:
		r.notified(rec, now)
	case rec.Generation == r.shared.Generation:
		r.receive(rec, now)
	default:
		r.out.checkAt = now // nothing is late: the storage has lost it
	}
	if r.out.sent == nil && !r.out.inFlight && r.linkUp {
		r.attach(now)
	}
}

// answered is an input: the storage has answered a request, in time or late.
func (r *replica) answered(q *request, rec Record, now time.Time) {
	mine := q.Number == r.out.sentNumber()
	switch {
	case q.Number == 0:
		r.hasRead(rec, q.received, now)
	case rec.Generation > r.shared.Generation, mine && rec.Generation == r.shared.Generation,
		// The storage has lost what the change carried, and for that it was too old.
		mine && q.received == r.received:
		r.receive(rec, now)
	}
	if !mine {
		return
	}
	r.out.sent, r.out.inFlight = nil, false
	r.acknowledged = r.sentUpTo
	for i := range r.leases {
		switch l := &r.leases[i]; {
		case l.phase != phaseRequested || r.out.next.RequestTrial == l.id:
		case r.shared.trial(l.id) >= 0:
			l.phase = phaseGranted
		default:
			l.end(result{outcome: OutcomeIgnored}, now)
		}
	}
	if r.linkUp {
		r.attach(now)
	}
	r.settleLeases(now)
}

// attach ends the trouble: the shared record applies again. What the storage has
// lost is restored first.
func (r *replica) attach(now time.Time) {
	if r.storageErr != nil && r.checkDue(now) {
		return
	}
	r.storageErr, r.attempts, r.retryAt, r.removedOverride = nil, 0, time.Time{}, 0
	r.adopted = nil
}

// receive makes a record the shared one.
// R28.
func (r *replica) receive(rec Record, now time.Time) {
	before, first := r.shared, r.received == 0
	r.received++
	if rec = rec.bounded(before, &r.settings.limits, now); rec.isNew() {
		r.shared = &closed
	} else {
		r.shared = &rec
	}
	r.out.checkAt = time.Time{}
	// A manual change of before this process started is none for its own circuit, once it is over.
	moved := rec.Manual > before.Manual && (!first || rec.Override != nil || rec.State != StateClosed && !rec.hasEvidence())
	if moved || !first && rec.Since > before.Since && rec.State == StateClosed {
		// A manual change, or a trial has closed it: that is for all.
		if r.failing = false; moved {
			r.local.Override = nil
		}
		r.clearLocal()
		if r.adopted = nil; r.storageErr != nil {
			r.adopt(now)
		}
	}
	next := &r.out.next
	if rec.Since > before.Since || !rec.hasEvidence() && before.hasEvidence() && next.Calls.Failures == 0 {
		next.Calls, next.OpenFor = Calls{}, 0 // of an older state, or successes that are superfluous
	}
	if rec.Since > before.Since {
		r.out.counted = Window{}
	}
	r.limitEvidence(first)
	if !rec.hasEvidence() || rec.Rated && !before.Rated {
		r.out.delayUntil = r.nextDelay(now)
	}
	r.settleLeases(now)
}

// limitEvidence keeps account of the evidence that this process has supplied. A
// process that starts takes what is on record for its own, also in its local circuit,
// and reports no failures of before it received the record: it may have reported
// these failures before it restarted. Once the others have dismissed them, they are
// not held against it.
// R12.
func (r *replica) limitEvidence(first bool) {
	joined := (first || r.inherited) && (r.shared.hasEvidence() || r.shared.Failures > 0)
	if first && joined { // of which its own failures may be a repetition
		r.out.next.Calls, r.out.next.OpenFor = Calls{Successes: r.out.next.Calls.Successes}, 0
	}
	pending := r.out.sentCalls().Failures + r.out.next.Calls.Failures
	if level := r.shared.count() + pending; first || r.supplied > level {
		r.supplied = level
	}
	switch {
	case first:
		r.formerSource = r.shared.Witness
		if joined && r.local.State == StateClosed && r.settings.streakCounts() {
			r.local.Failures = max(r.local.Failures, min(r.supplied, r.settings.FailMax-1))
		}
	case r.inherited && !joined:
		r.clearLocal()
	}
	r.inherited = joined
	if r.shared.Rated && r.hasSuppliedAll(r.shared) {
		r.out.counted.dropFailures()
	}
}

// unanswered is an input: a request failed, or was not answered in time. Its
// fate is unknown: it is sent again under its number.
func (r *replica) unanswered(number uint64, why error, now time.Time) {
	if !r.awaits(number) {
		return
	}
	r.out.inFlight = false
	if sent := r.out.sent; sent != nil && sent.RequestTrial != "" { // its caller does not wait any longer
		again := *sent
		again.RequestTrial = ""
		r.out.sent = &again
	}
	r.readFailed(why, now)
}

// awaits reports whether the request of that number is in flight, as far as
// this process knows.
func (r *replica) awaits(number uint64) bool { return r.out.inFlight && r.out.sentNumber() == number }

// unread is an input: a read failed.
// R38.
func (r *replica) readFailed(why error, now time.Time) {
	r.detach(why, now)
	r.attempts++
	r.retryAt = now.Add(backoff(r.attempts, r.roll()))
}

// lost is an input: the link to the storage is down.
func (r *replica) unavailable(why error, now time.Time) {
	r.linkUp = false
	r.detach(why, now)
}

// back is an input: the link is up. The circuit is attached by its next answer.
func (r *replica) availableAgain() {
	r.linkUp, r.retryAt = true, time.Time{}
}

// detach has the local circuit decide alone.
// R36.
func (r *replica) detach(why error, now time.Time) {
	if r.storageErr != nil {
		if !isStorageError(why) { // the storage is available, and the record cannot be read: a manual change replaces it
			r.storageErr = why
		}
		return
	}
	r.storageErr, r.detachedAt, r.attempts = why, now, 0
	if manual, some := r.out.manual(); some { // it applies to this process at least
		r.out.next.Manual, r.out.next.Override = nil, nil
		r.changeLocally(manual, now)
		return
	}
	r.adopt(now)
}

// adopt has the shared record go on in this process alone, as it will be when the
// storage has received everything, if it rejects calls.
// R37.
func (r *replica) adopt(now time.Time) {
	if rec := *r.predicted(now); r.rejectsBy(&rec) {
		rec.Override, rec.lastNumbers = nil, nil
		r.adopted = &rec
	}
}

// Outputs.

// wakeAt is when time alone changes something: the earliest of all times
// after now, zero if there is none.
func (r *replica) wakeAt(now time.Time) time.Time {
	var at time.Time
	if !r.linked && r.local.State == StateClosed && r.local.Window.Buckets == nil && r.local.ClosedAt.IsZero() && r.local.Override == nil {
		return at
	}
	earliest := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if b := r.blocking(now); !b.until.IsZero() {
		earliest(b.until.Add(-readyEarly))
	}
	if fleet := r.effective(now); fleet.excludes(r.sourceIn(fleet), now.Add(readyEarly)) { // the state that calls meet
		earliest(fleet.RetryAt.Add(-readyEarly))
	}
	if o := r.override(now); o != nil {
		earliest(o.Until)
	}
	if r.settings.Ramp > 0 {
		earliest(r.local.rampEnds(r.settings.Ramp))
		earliest(r.shared.rampEnds(r.settings.Ramp))
	}
	if r.counting(now) { // for what was tallied meanwhile
		earliest(r.local.Window.nextBucket(r.settings.local.width(), now.Add(readyEarly)).Add(-readyEarly)) // while they still belong to this one
	}
	switch {
	case r.out.inFlight:
	case r.attached():
		earliest(r.out.delayUntil)
		if !r.stopped {
			earliest(r.out.checkAt)
		}
	case r.linked && r.linkUp && !r.stopped:
		earliest(r.retryAt)
	}
	return at
}

// bounded bounds what a record from outside can make calls wait for by this
// process's own settings and clock.
// R41.
func (r Record) bounded(before *Record, l *Limits, now time.Time) Record {
	past := func(t *time.Time) {
		if t.After(now) {
			*t = now
		}
	}
	if early := r.SuspectAt.Sub(now); early > 0 && r.openedManually() {
		r.DueAt = r.DueAt.Add(-early) // it lasts no longer than its sender set
	}
	past(&r.SuspectAt)
	past(&r.ClosedAt)
	past(&r.DismissedAt)
	if r.SuspectAt.IsZero() && (r.State != StateClosed || r.suspect()) {
		r.SuspectAt = now
	}
	r.Trials = slices.Clone(r.Trials)
	for i := range r.Trials {
		past(&r.Trials[i].Started)
	}
	if r.Generation == before.Generation {
		r.clampTo(before)
	}
	r.DueAt = r.dueAt(l)
	if latest := now.Add(l.longestOpen(r.RetryAfter)); r.RetryAt.After(latest) {
		r.RetryAt = latest
	}
	for i := range r.Trials {
		r.Trials[i].Deadline = r.Trials[i].deadline(l)
	}
	return r
}

// newID returns an ID for a trial.
func (r *replica) newID() string {
	r.ids++
	return r.source + "." + strconv.FormatUint(r.ids, 36)
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

// firstShare is the share of calls that runs when a ramp begins.
const firstShare = 0.1

// share is the share of calls that runs in a closed circuit: less than 1 while
// it is on its ramp.
// R31.
func (r *Record) rampShare(ramp time.Duration, now time.Time) float64 {
	if !now.Before(r.rampEnds(ramp)) {
		return 1
	}
	return firstShare + (1-firstShare)*float64(max(0, now.Sub(r.ClosedAt)))/float64(ramp)
}

// rampEnds is when all calls run again: zero where they do.
func (r *Record) rampEnds(ramp time.Duration) time.Time {
	if ramp == 0 || r.ClosedAt.IsZero() || r.State != StateClosed {
		return time.Time{}
	}
	return r.ClosedAt.Add(ramp)
}

const (
	firstPause   = 50 * time.Millisecond // before the first attempt
	longestPause = time.Second
)

// backoff is the pause before the n-th attempt, ± 50 %, so that processes that lost a
// storage together do not try again together.
// R38.
func backoff(n int, roll float64) time.Duration {
	pause := min(firstPause<<min(max(n-1, 0), 10), longestPause)
	return pause/2 + time.Duration(roll*float64(pause))
}

// armedEarly is how much before its time a circuit counts as due in a view:
// the record decides, so a call at the very instant is not rejected because a
// timer is about to fire.
const readyEarly = time.Millisecond
