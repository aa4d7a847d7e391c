package infuse

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// This file is every decision of a process, in one place: that is why it is long. Its
// inputs change the replica; outbox.go has its reports, and view.go its view.

// replica is one process's copy of one circuit: its local record, its shared record,
// and the reports that the storage has not acknowledged. It is pure: it has no I/O,
// clock, lock or user code, and the same inputs in the same order have the same
// results.
//
// The local record counts the results of this process. The shared record is the one
// in the storage. A call runs if both allow it. Without a storage, and while the
// storage is unavailable, the local record decides alone.
type replica struct {
	settings *settings
	source   string // of its changes; its trials' IDs begin with it
	local    Record
	shared   *Record // the last record received. It never changes
	*episode         // noEpisode between two inputs, if it is not needed

	linked    bool // there is a storage
	linkUp    bool // and it is available
	stopped   bool // it sends no requests but reports (R46)
	failing   bool // the last counted call of this process failed (R7)
	inherited bool // it started with failures on record, and no call has succeeded since (R12)
	supplied  int  // the failures on record that this process may have supplied (R11)

	credit       float64 // of a ramp: the next call runs at 1
	random       uint64  // the state of the random number generator
	ids          uint64  // the number of trial IDs made
	received     uint64  // the number of records received
	changes      uint64  // the sequence number of the last change
	enqueued     uint64  // the number of the last outcome, manual change or trial request to report
	sentUpTo     uint64  // the last of these in a change that was sent
	acknowledged uint64  // the last of these that the storage has acknowledged
}

// episode is the part of a replica that a healthy circuit with nothing to report does
// not need: most circuits have none.
type episode struct {
	out          outbox
	leases       []lease   // trials of the shared circuit
	formerSource string    // the witness on record when it started, possibly this process before a restart
	cause        keptCause // of the last failure

	storageErr      error // why the circuit is detached; nil if it is attached
	detachedAt      time.Time
	retryAt         time.Time // the next attempt of this circuit; zero: at once when the storage is available
	attempts        int       // failed ones since detachedAt
	removedOverride int64     // Record.Manual of the override that a local change replaced
	adopted         *Record   // the shared record that continues in this process while it is detached; nil: none
}

// noEpisode is the episode of a circuit that needs none. It never changes.
var noEpisode = new(episode)

var episodes = sync.Pool{New: func() any { return new(episode) }}

// acquireEpisode is called before an input, which may need an episode.
func (r *replica) acquireEpisode() {
	if r.episode == noEpisode {
		r.episode = episodes.Get().(*episode)
	}
}

// releaseEpisode is called after the outputs. It returns an episode that the circuit
// no longer needs.
func (r *replica) releaseEpisode() {
	quiet := r.storageErr == nil && r.adopted == nil && r.removedOverride == 0 && r.formerSource == "" && len(r.leases) == 0 && r.out.empty()
	if quiet && (!r.cause.known() || r.local.State == StateClosed && (!r.linked || !r.failing && r.shared.State == StateClosed && !r.shared.hasEvidence())) {
		*r.episode = episode{}
		episodes.Put(r.episode)
		r.episode = noEpisode
	}
}

// lease is a trial of the shared circuit that this process requested, and whose end
// the storage may not have received.
type lease struct {
	id      string
	phase   phase
	outcome result // if it has ended
	endedAt time.Time
}

func (l *lease) end(res result, now time.Time) { l.phase, l.outcome, l.endedAt = phaseEnded, res, now }

type phase uint8

const (
	phaseRequested phase = iota // no answer yet
	phaseGranted                // the call runs
	phaseEnded                  // the call has ended, or does not run
)

// result is the result of an admitted call.
type result struct {
	outcome Outcome
	err     error         // of a failure
	cause   keptCause     // of err, whose methods are user code
	openFor time.Duration // the shortest open duration if it opens the circuit, from a Retry-After
}

// admission identifies an admitted call.
type admission struct {
	view   *view
	local  int64         // the generation of the local circuit that it belongs to
	shared int64         // and of the shared one
	trial  string        // its ID if the call is a trial
	waited time.Duration // how long it has waited for the storage
	began  time.Duration // by clock.Now, with Config.SlowCall
	late   bool          // its deadline passed before it began
	dry    bool          // it runs only because of Config.DryRun
}

func newReplica(s *settings, source string, linked bool, seed uint64) replica {
	r := replica{settings: s, source: source, shared: &closed, episode: new(episode), linked: linked, linkUp: true, random: seed}
	r.credit = r.roll()
	return r
}

// attached reports whether the shared record applies.
func (r *replica) attached() bool { return r.linked && r.storageErr == nil }

// effective returns the shared record that applies now. In a detached circuit this is
// the adopted one.
func (r *replica) effective(now time.Time) *Record {
	switch {
	case r.attached():
		return r.predicted(now)
	case r.adopted != nil:
		return r.adopted.at(now)
	}
	return &closed
}

// lastShared returns the shared record that last applied.
func (r *replica) lastShared() *Record {
	if r.adopted != nil {
		return r.adopted
	}
	return r.shared
}

// terms returns the terms of this process for the shared record (R14).
func (r *replica) terms() *terms {
	return &terms{limits: &r.settings.limits, source: r.source, by: r.settings.Instance, cause: r.cause.short}
}

// localTerms returns the terms for the local record.
func (r *replica) localTerms() *terms {
	return &terms{limits: &r.settings.local, by: r.settings.Instance, cause: r.cause.short}
}

// predicted returns the shared record as it will be when the storage has received the
// ends of this process's trials: after its trial, a caller sees the result at once.
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

// rejectsBy reports whether a shared record rejects the calls of this process. With
// evidence, it does so only if the last call of this process failed (R7).
func (r *replica) rejectsBy(rec *Record) bool {
	return rec.State != StateClosed && (r.failing || !rec.hasEvidence())
}

// hasSuppliedAll reports whether this process reports no more failures. One process
// supplies at most FailMax (R11), and another one must confirm a failure rate (R22).
func (r *replica) hasSuppliedAll(rec *Record) bool {
	switch {
	case rec.Rated:
		return rec.Witness == r.sourceIn(rec)
	case rec.scored() && !r.settings.streakCounts():
		return r.supplied >= rec.Threshold
	}
	return r.supplied >= r.settings.FailMax
}

// sourceIn returns the source under which the record has this process as a witness.
func (r *replica) sourceIn(rec *Record) string {
	if rec.Witness != "" && rec.Witness == r.formerSource {
		return r.formerSource
	}
	return r.source
}

// Inputs: calls.

// onlyCounts is ended for an outcome that only changes a count, in a circuit without
// a storage. It reports whether it counted the outcome; if not, it changed nothing.
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
			shared := r.shared.at(now)
			i := shared.trial(a.trial)
			late = i < 0 || shared.Trials[i].Stale
			manual = !shared.hasEvidence()
		}
	}
	if late {
		res.outcome = OutcomeIgnored
	}
	if res.outcome != OutcomeIgnored {
		r.failing = res.outcome == OutcomeFailure
		r.inherited = r.inherited && r.failing
	}
	r.countAdopted(a, &res, now) // an ignored trial frees its slot, too
	if l == nil {
		number = r.enqueue(a, &res, now)
	} else {
		r.settleLeases(now)
		number = r.enqueued
	}
	if r.countLocal(a, &res, now); manual && res.outcome == OutcomeFailure && r.local.State == StateClosed {
		// Set manually, the shared circuit rejected all calls. From now on it rejects
		// only processes whose last call failed, whose local circuits are open.
		r.local.trialFailed(res.openFor, r.localTerms(), now)
	}
	return number
}

// tallied is an input: n calls succeeded since the last input, and were only tallied.
func (r *replica) tallied(n int, now time.Time) {
	if !r.countsOutcomes() {
		return
	}
	if r.reportsOutcomes() {
		r.countForRate(one(false, n, now))
	}
	r.tallyLocal(OutcomeSuccess, n, r.local.Generation, 0, now)
}

// tallyLocal counts calls of a generation in the closed local circuit (R5).
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

// counting reports whether successes are tallied: only while the local window has
// failures.
func (r *replica) counting(now time.Time) bool {
	l := &r.settings.limits
	return l.FailureRate > 0 && r.countsOutcomes() && failed(r.local.Window.last(l.Window, now)) > 0
}

// evaluatesRate reports whether the shared failure rate is evaluated. Then every
// success is an input, because no timer fires for tallied ones.
func (r *replica) evaluatesRate() bool { return r.attached() && r.isRated() }

// isRated reports whether the evidence on record is a failure rate, and this process
// has a FailureRate.
func (r *replica) isRated() bool { return r.settings.FailureRate > 0 && r.shared.Rated }

// countsOutcomes reports whether the local record counts outcomes. Two values of
// StorageDown count nothing while the circuit is detached (R37).
func (r *replica) countsOutcomes() bool {
	return r.storageErr == nil || r.settings.StorageDown == StorageDownLocal
}

// countsLocally reports whether the outcome of a call can open the local circuit
// (R4). Other failures are no evidence for the shared circuit either (R11).
func (r *replica) countsLocally(a *admission) bool {
	return r.local.State == StateClosed && a.local >= r.local.Since
}

// countLocal counts an outcome in the local circuit: as the end of a local trial
// (R6), or as a call in a closed circuit.
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

// applyLocal applies a change to the local record.
func (r *replica) applyLocal(c *Change, now time.Time) Verdict {
	c.Limits = r.settings.local
	return r.local.apply(c, false, now)
}

// clearLocal drops all that the local circuit counted.
func (r *replica) clearLocal() {
	generation := r.local.Generation + 1
	r.local = Record{Generation: generation, Since: generation, Override: r.local.Override}
}

// countAdopted counts an outcome in the adopted record: as the end of its trial, or
// as a success, which drops the record if it has evidence (R37).
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

// decision is the replica's answer to a call that the view alone does not admit.
type decision uint8

const (
	rejects decision = iota
	admits
	waits // for the answer to a trial request
)

// arrived is an input: a call wants to run, and may become a trial (R23). A call that
// waits may resume when the storage has acknowledged everything enqueued so far.
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
	case b.until.After(now.Add(readyEarly)) || r.trialRequested():
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

// sharesTrial reports whether a trial of the local circuit is a shared one, too.
//
// It is if the shared circuit is half-open: otherwise a success of this process in the
// shared circuit could outlast its failure in the local one. It is also if the shared
// circuit is suspect and ready for a trial: if all local circuits opened early, no
// process reports (R18).
func (r *replica) sharesTrial(shared *Record, now time.Time) bool {
	return shared.State == StateHalfOpen || shared.suspect() && !now.Before(shared.dueAt(&r.settings.limits))
}

// blocking is the reason why calls of this process do not run.
type blocking struct {
	local  bool // the local circuit rejects them
	shared bool // the shared circuit rejects them
	record *Record
	until  time.Time // the next trial; zero: it may run now
}

// blocking returns which circuits reject calls now, and the record that rejects them
// longest.
func (r *replica) blocking(now time.Time) blocking {
	local, shared := r.local.at(now), r.effective(now)
	b := blocking{local: local.State != StateClosed, shared: r.rejectsBy(shared), record: &closed}
	if b.shared {
		b.record, b.until = shared, shared.blockedUntil(&r.settings.limits, r.sourceIn(shared), now)
	}
	if b.local {
		until := local.blockedUntil(&r.settings.local, r.source, now)
		if !b.shared || until.After(b.until) {
			b.record, b.until = local, until
		}
	}
	if pauseEnds := r.detachedAt.Add(detachedPause); b.shared && !r.attached() && pauseEnds.After(now) && pauseEnds.After(b.until) {
		b.until = pauseEnds
	}
	return b
}

// nextTrialAt returns when the next trial of an open circuit may run, also if that is
// in the past; zero if unknown.
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

// detachedPause is how long a detached process runs no trial (R27). If only one
// answer was late, the process is attached again by then, and does not run a trial
// beside the shared one.
const detachedPause = 250 * time.Millisecond

// rampAdmits decides on a call in a closed circuit: a ramp admits as many calls as
// their shares add up to.
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

// requestsTrial reports whether a trial was requested and the storage has not
// answered.
func (r *replica) trialRequested() bool {
	return slices.ContainsFunc(r.leases, func(l lease) bool { return l.phase == phaseRequested })
}

// resumed is an input: a call that waited for a trial resumes, because the storage
// answered or the wait is over (R27).
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
	// The shared trial was not granted. If the shared circuit closed meanwhile, the
	// local circuit decides.
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

// admission returns the admission of a call that runs now.
func (r *replica) admission(trial string) admission {
	return admission{local: r.local.Since, shared: r.shared.Since, trial: trial}
}

// settleLeases reports the end of each trial of this process that is on record. A
// trial that is not on record was not granted, or has ended.
func (r *replica) settleLeases(now time.Time) {
	shared := r.shared.at(now)
	for _, t := range shared.Trials {
		// It was granted after its caller stopped waiting, or an older record was
		// restored.
		if strings.HasPrefix(t.ID, r.source+".") && r.lease(t.ID) == nil {
			r.leases = append(r.leases, lease{id: t.ID, phase: phaseEnded, outcome: result{outcome: OutcomeIgnored}, endedAt: now})
		}
	}
	kept := r.leases[:0]
	for _, l := range r.leases {
		switch {
		case l.phase != phaseEnded:
		case shared.trial(l.id) < 0:
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

// manual is an input: a manual change. It returns the sequence number to wait for, or
// 0 if it changed the local circuit only.
func (r *replica) manual(c Change, now time.Time) uint64 {
	switch {
	case r.attached():
	case r.linked && r.linkUp && !isStorageError(r.storageErr):
		// The record is unreadable: the change replaces the record and all pending
		// reports (R36).
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

// changeLocally applies a manual change to this process only (R34).
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

// override returns the override that applies, or nil. The shared one applies while
// the storage is unavailable, too (R33).
func (r *replica) override(now time.Time) *Override {
	switch {
	case r.local.Override.isActive(now):
		return r.local.Override
	case r.shared.Override.isActive(now) && r.removedOverride != r.shared.Manual:
		return r.shared.Override
	}
	return nil
}

// configured is an input: the settings changed.
func (r *replica) configured(s *settings) { r.settings = s }

// Inputs: the storage's answers and notifications.

// notified is an input: the storage sent a record.
//
// A record of the current generation contains nothing new: only its counts differ,
// and it may be older than the last answer. A record of an older generation is late,
// because answers overtake notifications, or the storage lost data. If nothing newer
// arrives soon, the process sends a change with its own record, which decides the
// case (R39).
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

// noticed is an input: a message reports that a suspicion began in a generation, or
// was dismissed. It returns whether the record must be read.
//
// The message may be forged: it changes no record (R42). A process whose last call
// succeeded need not read a new suspicion. It reports its next success, and the answer
// contains the record. If the suspicion is dismissed before that, it reports nothing.
func (r *replica) noticed(n notice) (reads bool) {
	rec := r.shared
	switch {
	case n.kind == noticeChanged:
		return true
	case n.generation == rec.Generation:
		return false
	case n.generation < rec.Generation || r.received == 0 || !r.attached() || r.stopped || r.failing || r.inherited || r.local.State != StateClosed ||
		rec.State != StateClosed || rec.hasEvidence() || !r.settings.streakCounts():
		return true
	case n.kind == noticeSuspect:
		r.out.suspicion = n.generation
		return false
	case n.suspicion != r.out.suspicion || r.out.inFlight: // its answer may contain the suspicion
		return true
	}
	r.out.suspicion = 0
	return false
}

// lateAfter is the time after which an older record means that the storage lost data.
const lateAfter = 100 * time.Millisecond

// checkDue reports whether a change must be sent now to find lost data.
func (r *replica) checkDue(now time.Time) bool {
	return !r.stopped && !r.out.checkAt.IsZero() && !now.Before(r.out.checkAt)
}

// hasRead is an input: the record was read. received is the number of records
// received before the request. If more arrived since, the counts of this record may
// be old.
func (r *replica) hasRead(rec Record, received uint64, now time.Time) {
	switch {
	case received != r.received || rec.Generation > r.shared.Generation:
		r.notified(rec, now)
	case rec.Generation == r.shared.Generation:
		r.receive(rec, now)
	default:
		r.out.checkAt = now // a read is never late: the storage lost data
	}
	if r.out.sent == nil && !r.out.inFlight && r.linkUp {
		r.attach(now)
	}
}

// answered is an input: the storage answered a request, in time or late.
func (r *replica) answered(q *request, rec Record, now time.Time) {
	mine := q.Number == r.out.sentNumber()
	switch {
	case q.Number == 0:
		r.hasRead(rec, q.received, now)
	case rec.Generation > r.shared.Generation, mine && rec.Generation == r.shared.Generation,
		// An older record: the storage lost data, and did not restore Seen.
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

// attach attaches the circuit: the shared record applies again. If the storage may
// have lost data, its record is restored first.
func (r *replica) attach(now time.Time) {
	if r.storageErr != nil && r.checkDue(now) {
		return
	}
	r.storageErr, r.attempts, r.retryAt, r.removedOverride = nil, 0, time.Time{}, 0
	r.adopted = nil
}

// receive makes rec the shared record. A manual change, or a trial that closed the
// circuit, clears the local circuit (R28).
func (r *replica) receive(rec Record, now time.Time) {
	before, first := r.shared, r.received == 0
	r.received++
	if rec = rec.bounded(before, &r.settings.limits, now); rec.isNew() {
		r.shared = &closed
	} else {
		r.shared = &rec
	}
	r.out.checkAt = time.Time{}
	if rec.Generation >= r.out.suspicion {
		r.out.suspicion = 0
	}
	// A manual change from before this process started matters only while it lasts.
	manual := rec.Manual > before.Manual && (!first || rec.Override != nil || rec.State != StateClosed && !rec.hasEvidence())
	if manual || !first && rec.Since > before.Since && rec.State == StateClosed {
		if r.failing = false; manual {
			r.local.Override = nil
		}
		r.clearLocal()
		if r.adopted = nil; r.storageErr != nil {
			r.adopt(now)
		}
	}
	next := &r.out.next
	if rec.Since > before.Since || !rec.hasEvidence() && before.hasEvidence() && next.Calls.Failures == 0 {
		next.Calls, next.OpenFor = Calls{}, 0 // of an older state, or successes after a dismissal
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

// limitEvidence updates how much evidence this process has supplied. A process that
// starts takes the failures on record for its own, and drops the failures that it has
// not reported: it may have reported them before a restart. When others dismiss the
// failures on record, it drops them (R12).
func (r *replica) limitEvidence(first bool) {
	inherited := (first || r.inherited) && (r.shared.hasEvidence() || r.shared.Failures > 0)
	if first && inherited { // its own failures may be among them
		r.out.next.Calls, r.out.next.OpenFor = Calls{Successes: r.out.next.Calls.Successes}, 0
	}
	pending := r.out.sentCalls().Failures + r.out.next.Calls.Failures
	if most := r.shared.count() + pending; first || r.supplied > most {
		r.supplied = most
	}
	switch {
	case first:
		r.formerSource = r.shared.Witness
		if inherited && r.local.State == StateClosed && r.settings.streakCounts() {
			r.local.Failures = max(r.local.Failures, min(r.supplied, r.settings.FailMax-1))
		}
	case r.inherited && !inherited:
		r.clearLocal()
	}
	r.inherited = inherited
	if r.shared.Rated && r.hasSuppliedAll(r.shared) {
		r.out.counted.dropFailures()
	}
}

// unanswered is an input: a request failed, or had no answer in time. The storage may
// have applied it, so it is sent again under its number (R13).
func (r *replica) unanswered(number uint64, why error, now time.Time) {
	if !r.awaits(number) {
		return
	}
	r.out.inFlight = false
	if sent := r.out.sent; sent != nil && sent.RequestTrial != "" { // its caller waits no longer
		again := *sent
		again.RequestTrial = ""
		r.out.sent = &again
	}
	r.readFailed(why, now)
}

// awaits reports whether the request of that number is in flight and not timed out.
func (r *replica) awaits(number uint64) bool { return r.out.inFlight && r.out.sentNumber() == number }

// readFailed is an input: a read failed. The circuit tries again after a pause (R38).
func (r *replica) readFailed(why error, now time.Time) {
	r.detach(why, now)
	r.attempts++
	r.retryAt = now.Add(backoff(r.attempts, r.roll()))
}

// unavailable is an input: the storage became unavailable.
func (r *replica) unavailable(why error, now time.Time) {
	r.linkUp = false
	r.detach(why, now)
}

// availableAgain is an input: the storage is available again. The next answer
// attaches the circuit.
func (r *replica) availableAgain() {
	r.linkUp, r.retryAt = true, time.Time{}
}

// detach detaches the circuit: the local circuit decides (R36).
func (r *replica) detach(why error, now time.Time) {
	if r.storageErr != nil {
		if !isStorageError(why) { // the record is unreadable: a manual change may replace it
			r.storageErr = why
		}
		return
	}
	r.storageErr, r.detachedAt = why, now
	if manual, some := r.out.manual(); some { // it applies to this process (R34)
		r.out.next.Manual, r.out.next.Override = nil, nil
		r.changeLocally(manual, now)
		return
	}
	r.adopt(now)
}

// adopt continues the predicted shared record in this process alone if the record
// rejects calls (R37).
func (r *replica) adopt(now time.Time) {
	if rec := *r.predicted(now); r.rejectsBy(&rec) {
		rec.Override = nil
		r.adopted = &rec
	}
}

// Outputs.

// wakeAt returns the next time at which something changes without an input; zero if
// there is none.
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
	if shared := r.effective(now); shared.excludes(r.sourceIn(shared), now.Add(readyEarly)) { // the state in the view changes
		earliest(shared.RetryAt.Add(-readyEarly))
	}
	if o := r.override(now); o != nil {
		earliest(o.Until)
	}
	if r.settings.Ramp > 0 {
		earliest(r.local.rampEnds(r.settings.Ramp))
		earliest(r.shared.rampEnds(r.settings.Ramp))
	}
	if r.counting(now) { // tallied calls become an input
		earliest(r.local.Window.nextBucket(r.settings.local.width(), now.Add(readyEarly)).Add(-readyEarly)) // before they belong to the next bucket
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

// bounded limits the waits of a record from outside to those that this process's
// settings and clock allow (R41).
func (r Record) bounded(before *Record, l *Limits, now time.Time) Record {
	past := func(t *time.Time) {
		if t.After(now) {
			*t = now
		}
	}
	if early := r.SuspectAt.Sub(now); early > 0 && r.openedManually() {
		r.DueAt = r.DueAt.Add(-early) // it lasts as long as its sender set
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

// roll returns a random number in [0, 1): the next of a splitmix64 (Steele, Lea,
// Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func (r *replica) roll() float64 {
	r.random += 0x9e3779b97f4a7c15
	z := r.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// firstShare is the share of calls that run when a ramp begins.
const firstShare = 0.1

// rampShare returns the share of calls that run in a closed circuit: less than 1
// during a ramp (R31).
func (r *Record) rampShare(ramp time.Duration, now time.Time) float64 {
	if !now.Before(r.rampEnds(ramp)) {
		return 1
	}
	return firstShare + (1-firstShare)*float64(max(0, now.Sub(r.ClosedAt)))/float64(ramp)
}

// rampEnds returns when the ramp ends; zero without a ramp.
func (r *Record) rampEnds(ramp time.Duration) time.Time {
	if ramp == 0 || r.ClosedAt.IsZero() || r.State != StateClosed {
		return time.Time{}
	}
	return r.ClosedAt.Add(ramp)
}

const (
	firstPause   = 50 * time.Millisecond // before the first new attempt
	longestPause = time.Second
)

// backoff returns the pause before the n-th attempt, ± 50 %: processes that lost a
// storage together must not try again together (R38).
func backoff(n int, roll float64) time.Duration {
	pause := min(firstPause<<min(max(n-1, 0), 10), longestPause)
	return pause/2 + time.Duration(roll*float64(pause))
}

// readyEarly is how early a view counts a circuit as ready for a trial. The record
// decides, so a call at that very moment is not rejected only because a timer fires
// late.
const readyEarly = time.Millisecond
