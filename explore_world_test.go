package infuse

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A world is one state of a small fleet: processes with the real replica, one
// storage with the real Record.Apply, and the messages between them. It is a value:
// an action copies what it changes. The explorer tries every order of actions.
type world struct {
	kind *kind
	now  time.Time
	skew time.Duration // of the storage's clock

	record   Record    // as the storage keeps it, on its clock
	written  time.Time // on its clock
	replaced Record    // the record before the last write that watchers were notified of
	applied  []heard   // the changes that the storage has applied
	supplied [3]int8   // the failures on record that each process has supplied

	procs    []*process
	messages []message
	left     faults
	calm     bool // nothing goes wrong any more: the fleet heals

	lost     bool // the storage has lost data, or its clock was set
	cut      bool // a process was detached
	manually bool // somebody changed the state, or has set an override
	unpushed bool // a notification was lost

	answers uint64 // the number of the change to which an answer is being delivered
}

// faults says how much may yet happen. Those after calls are also limited by all
// together.
type faults struct {
	calls, hands, slow, tick, leave, all                                    int8
	crash, loseRequest, loseAnswer, losePush, swapPush, delay, repeat, away int8
	forget, failover, clock                                                 int8
}

// process is a shell and its link.
type process struct {
	*shell
	index       int
	incarnation int
	dead        bool // it has crashed, and has not started again
	failed      bool // its last call failed
	forgiven    bool // what it took over when it started was dismissed
	calledAt    time.Time
	down        bool // its link
	probeAt     time.Time
	lost        bool     // the replica does not know yet that the link is down
	unanswered  []uint64 // numbers of requests of which the replica does not know yet that they failed
	pushes      []*Record
	reference   reference
}

type message struct {
	kind        messageKind
	process     int
	incarnation int
	change      *request
	record      *Record
	late        time.Time // when it counts as unanswered
	timedOut    bool      // it does
}

type messageKind uint8

const (
	onItsWay messageKind = iota
	answered
	vanished // the timeout is still to come
)

// violation is what is wrong with a state.
type violation struct{ rule, text string }

func (v *violation) Error() string { return v.rule + ": " + v.text }

func violates(rule, format string, args ...any) *violation {
	return &violation{rule, fmt.Sprintf(format, args...)}
}

// explored is when a world begins: a whole second, so that paths read well.
var explored = time.Unix(1_700_000_000, 0)

func newWorld(k *kind) *world {
	w := &world{kind: k, now: explored, procs: make([]*process, k.processes)}
	for p := range w.procs {
		w.procs[p] = &process{index: p}
		w.start(p)
	}
	return w
}

func (w *world) source(p int) string {
	return fmt.Sprintf("%c%d", 'a'+p, w.procs[p].incarnation)
}

// start has a process begin. The storage answers at once, or late to a successor.
func (w *world) start(p int) *violation {
	old := w.procs[p]
	pr := &process{index: p, incarnation: old.incarnation, reference: reference{limits: &w.kind.settings.local}}
	w.procs[p] = pr
	pr.shell = newShell(w.kind.settings, w.source(p), !w.kind.alone, w.kind.seed, w.now)
	if w.kind.alone {
		return nil
	}
	if w.kind.readsLate && pr.incarnation > 0 {
		return w.step(p, func(r *replica) { r.unread(shellTrouble, w.now) })
	}
	rec := w.load()
	return w.step(p, func(r *replica) { r.hasRead(rec, 0, w.now) })
}

func (w *world) clone() *world {
	c := *w
	c.procs, c.messages = slices.Clone(w.procs), slices.Clone(w.messages)
	return &c
}

// change returns the process for changing.
func (w *world) change(p int) *process {
	c := *w.procs[p]
	c.shell = c.shell.clone()
	c.pushes, c.unanswered = slices.Clone(c.pushes), slices.Clone(c.unanswered)
	c.reference.trials = slices.Clone(c.reference.trials)
	w.procs[p] = &c
	return &c
}

// step gives a process an input, sends what follows, and checks what every step
// must keep.
func (w *world) step(p int, input func(r *replica)) *violation {
	pr := w.change(p)
	first := pr.replica.news == 0
	problem := w.follow(p, *pr.replica.shared, func() *request {
		return pr.step(w.now, func(r *replica) {
			pending := r.out.next.Calls.Failures
			since := r.shared.Since
			input(r)
			if !first && r.out.next.Calls.Failures < pending && r.shared.Since == since && !w.manually {
				panic(violates("I4", "%c drops a failure that it has not reported", 'a'+p))
			}
		})
	})
	if r := &pr.replica; first && r.news > 0 && r.local.State == StateClosed {
		// It goes on from what it may have reported before it crashed.
		pr.reference.failures = min(r.local.Failures, w.kind.settings.FailMax-1)
	}
	return problem
}

// follow carries out what do returns.
func (w *world) follow(p int, before Record, do func() *request) (problem *violation) {
	defer func() {
		if v := recover(); v != nil {
			problem = v.(*violation)
		}
	}()
	pr := w.procs[p]
	sent := pr.replica.out.sentNumber()
	joined, since := pr.replica.joined, pr.replica.local.Since
	if change := do(); change != nil {
		w.send(p, change)
	}
	r := &pr.replica
	switch known := r.shared; {
	case sent > 0 && r.out.sentNumber() != sent && w.answers != sent:
		return violates("I4", "%c gives up a change that the storage has not answered", 'a'+p)
	case known.Generation < before.Generation && !w.lost:
		return violates("I5", "%c goes back from generation %d to %d", 'a'+p, before.Generation, known.Generation)
	case known.Generation == before.Generation && !sameRecord(known, &before) && !w.lost:
		return violates("I5", "%c takes another record of generation %d: %s, not %s", 'a'+p, known.Generation, w.show(known), w.show(&before))
	case len(r.leases) > w.kind.config.MaxTrials+2:
		return violates("I7", "%c keeps %d leases", 'a'+p, len(r.leases))
	}
	if cleared := r.shared.Since > before.Since && r.shared.State == StateClosed || r.shared.Moved > before.Moved; cleared {
		pr.failed = false
		pr.reference.reset(false)
	}
	if joined && !r.joined && r.local.Since != since && r.local.State == StateClosed && r.local.Failures == 0 {
		pr.reference.reset(false)
		pr.forgiven = true
	}
	if r.local.Override != nil || r.local.Moved > 0 {
		pr.reference.reset(true)
	}
	return w.onTime(p)
}

// sameRecord reports whether two records of one generation may be told apart by
// their counts, the ends of leases and shorter waits only.
func sameRecord(a, b *Record) bool {
	return a.State == b.State && a.Since == b.Since && a.Opened == b.Opened && a.Moved == b.Moved && a.hasEvidence() == b.hasEvidence() &&
		a.Witness == b.Witness && (a.Override == nil || b.Override == nil || a.Override.State == b.Override.State)
}

// onTime checks that nothing is due before the timer fires: at any earlier time the
// view is the same, and nothing is to be sent.
func (w *world) onTime(p int) *violation {
	pr := w.procs[p]
	if due(pr.armed, w.now) { // it is about to wake
		return nil
	}
	r := &pr.replica
	try := func(at time.Time) *violation {
		copied := r.clone()
		copied.begin()
		if change := copied.outgoing(at); change != nil {
			return violates("I7", "%c would send %s at %s, and wakes at %s", 'a'+p, w.showChange(change.Change), w.at(at), w.at(pr.armed))
		}
		var v view
		v.derive(&copied, "x", at)
		if pr.view.tallies { // for somewhat longer than needed, which does no harm
			v.tallies, v.plain, v.fast = true, pr.view.plain, pr.view.fast
		}
		if !v.same(pr.view) || v.quiet != pr.view.quiet {
			return violates("I7", "the view of %c is %v (%d) at %s, not %v (%d), and it wakes at %s", 'a'+p, v.state, v.admits, w.at(at), pr.view.state, pr.view.admits, w.at(pr.armed))
		}
		return nil
	}
	if problem := try(w.now); problem != nil {
		return problem
	}
	times := [...]time.Time{r.out.hold, r.out.checkAt, r.retryAt}
	turns := append(make([]time.Time, 0, 16), r.local.DueAt, r.shared.DueAt, r.shared.RetryAt, r.local.RetryAt, r.since.Add(aloneAfter),
		r.shared.SuspectAt.Add(w.kind.settings.limits.longestOpen(true)), w.now.Add(time.Hour))
	for _, trials := range [...][]Trial{r.local.Trials, r.shared.Trials} {
		for _, t := range trials {
			turns = append(turns, t.Deadline)
		}
	}
	for _, all := range [...][]time.Time{times[:], turns} {
		for _, t := range all {
			for _, early := range [...]time.Duration{0, armedEarly} {
				at := t.Add(-early)
				if !at.After(w.now) || !pr.armed.IsZero() && !at.Before(pr.armed) || r.out.inFlight && at.After(w.now.Add(shellLinkTimeout)) {
					continue
				}
				if problem := try(at); problem != nil {
					return problem
				}
			}
		}
	}
	return nil
}

// The network and the storage.

func (w *world) send(p int, c *request) {
	pr := w.procs[p]
	if pr.down {
		pr.unanswered = append(pr.unanswered, c.Number)
		return
	}
	w.messages = append(w.messages, message{process: p, incarnation: pr.incarnation, change: c, late: w.now.Add(shellLinkTimeout)})
}

func (w *world) storageNow() time.Time { return w.now.Add(w.skew) }

// kept is the record as a storage reads it: a clock that was set back makes no wait
// longer.
func (w *world) kept() Record {
	if now := w.storageNow(); now.Before(w.written) {
		return w.record.translated(w.written, now)
	}
	return w.record
}

func (w *world) here(r Record) Record {
	r = r.withoutHeard()
	if w.skew != 0 {
		r = r.translated(w.storageNow(), w.now)
	}
	return r
}

func (w *world) load() Record { return w.here(w.kept().At(w.storageNow())) }

// arrive has a request reach the storage, and returns its answer.
func (w *world) arrive(m *message) (*Record, *violation) {
	if m.change.Number == 0 {
		rec := w.load()
		return &rec, nil
	}
	now, base, c := w.storageNow(), w.kept(), *m.change.Change
	if w.skew != 0 {
		c.Seen = c.Seen.translated(w.now, now)
		c.Counted = translated(c.Counted, w.now, now)
		c.Override = c.Override.translated(w.now, now)
	}
	again := slices.ContainsFunc(w.applied, func(h heard) bool { return h.source == c.Source && h.number >= c.Number })
	next, verdict := base.Apply(c, now)
	if !again && verdict != VerdictRefused {
		w.supplies(m.process, &base, &next, &c)
	}
	if problem := w.checkChange(&base, &next, &c, verdict, again, now); problem != nil {
		return nil, problem
	}
	if verdict != VerdictRefused {
		if verdict == VerdictMoved {
			w.replaced = w.record
		}
		w.record, w.written = next, now
		if !again {
			w.applied = append(slices.DeleteFunc(slices.Clone(w.applied), func(h heard) bool { return h.source == c.Source }), heard{c.Source, c.Number})
		}
	}
	rec := w.here(next)
	if verdict == VerdictMoved {
		for p, pr := range w.procs {
			if !pr.dead && !pr.replica.stopped {
				w.change(p).pushes = append(slices.Clone(pr.pushes), &rec)
			}
		}
	}
	return &rec, nil
}

// supplies counts the failures on record by who has reported them.
func (w *world) supplies(p int, base, next *Record, c *Change) {
	switch failures := int8(c.Calls.Failures + failed(c.Counted)); {
	case !next.hasEvidence() && next.Failures == 0 && len(next.Window.Buckets) == 0:
		w.supplied = [3]int8{}
	case c.Calls.Successes > 0 && !base.hasEvidence():
		w.supplied = [3]int8{}
		w.supplied[p] = int8(c.Calls.Streak)
	default:
		w.supplied[p] = max(0, w.supplied[p]+failures-int8(evidence.success*c.Calls.Successes))
	}
}

// opensRightly checks an opening by evidence. A process whose last report arrives
// after its successor has read the record counts as two: no rule can prevent that.
func (w *world) opensRightly(base, next *Record, c *Change, now time.Time) *violation {
	limits := &w.kind.settings.limits
	suspected := func(d time.Duration) bool { return !now.Before(base.SuspectAt.Add(d)) }
	suppliers := 0
	for _, n := range w.supplied {
		if n > 0 {
			suppliers++
		}
	}
	switch {
	case next.State != StateOpen || base.State == StateOpen || c.Move != nil || w.lost || w.kind.lateCrash:
	case base.State == StateHalfOpen && (base.Witness == "" || base.Witness[0] == c.Source[0]):
		return violates("I2", "%s confirms its own failed trial: %s", c.Source, w.show(base))
	case base.State == StateHalfOpen:
	case base.State != StateClosed || !base.suspect():
		return violates("I2", "%s opens what was not suspect: %s", c.Source, w.show(base))
	case suppliers < 2:
		return violates("I2", "the reports of one process open the shared circuit: %s", w.show(next))
	case next.scored() && (next.Score < 2*next.Threshold || !suspected(limits.Suspicion)), next.Rated && !suspected(4*limits.Suspicion):
		return violates("I2", "it opens with too little evidence: %s", w.show(next))
	}
	return nil
}

// checkChange checks what the storage makes of a change.
func (w *world) checkChange(base, next *Record, c *Change, verdict Verdict, again bool, now time.Time) *violation {
	if problem := w.opensRightly(base, next, c, now); problem != nil {
		return problem
	}
	before := base.At(now)
	restored := base.Generation < c.Seen.Generation
	switch {
	case verdict == VerdictRefused && again, verdict == VerdictRefused && c.counts() && base.State == StateClosed && c.Seen.Generation >= base.Since && !c.acts():
		return violates("I4", "the storage refuses outcomes of %s: %s at %s", c.Source, w.showChange(c), w.show(base))
	case verdict == VerdictRefused:
		return nil
	case c.Ask != "" && next.trial(c.Ask) >= 0 && base.trial(c.Ask) < 0 && base.State == StateHalfOpen && base.Witness == c.Source && now.Before(base.RetryAt) && c.Move == nil && !w.lost:
		return violates("I9", "the process whose trial has failed gets the next one: %s", w.show(base))
	case next.Generation < base.Generation:
		return violates("I5", "the storage goes back from generation %d to %d", base.Generation, next.Generation)
	case next.Generation == base.Generation && (!sameRecord(next, base) || next.DueAt.After(base.DueAt) || next.SuspectAt.After(base.SuspectAt) || len(next.Trials) > len(before.Trials)):
		return violates("I5", "the storage has another record of generation %d: %s, not %s", base.Generation, w.show(next), w.show(base))
	case next.Generation != base.Generation && verdict != VerdictMoved:
		return violates("I5", "the storage has a new generation, and nobody is notified")
	case again && !restored && next.Generation == base.Generation && (next.Failures != base.Failures || next.Score != base.Score || next.Successes != base.Successes || sum(next.Window.Buckets) != sum(base.Window.Buckets)):
		return violates("I4", "%s counts twice: %s, not %s", w.showChange(c), w.show(next), w.show(base))
	case again && !w.lost && next.State == StateOpen && base.State == StateHalfOpen:
		return violates("I4", "%s ends a trial twice", w.showChange(c))
	case len(liveTrials(next.Trials, now)) > w.kind.config.MaxTrials:
		return violates("I3", "the record has %d trials", len(next.Trials))
	case !again && !restored && verdict == VerdictApplied && c.counts() && !c.acts() && base.State == StateClosed && !base.hasEvidence() && !next.hasEvidence() &&
		c.Seen.Generation >= base.Since && c.Calls.Successes == 0 && next.Failures != base.Failures+c.Calls.Failures:
		return violates("I4", "%s leaves %d failures of %d", w.showChange(c), next.Failures, base.Failures)
	case w.kind.unhealthy && next.State == StateOpen && !w.manually:
		return violates("I2", "the reports of one process open the shared circuit: %s", w.show(next))
	case before.State == StateClosed && base.Healthy() && !restored && c.counts() && !c.acts() && c.Calls.Failures == 0 && failed(c.Counted) == 0 && next.Generation != base.Generation:
		return violates("I5", "successes change a healthy record")
	}
	return nil
}

// Actions.

type action struct {
	kind    actionKind
	process uint8
	index   uint8
	outcome Outcome
}

type actionKind uint8

const (
	actCall actionKind = iota
	actEnd
	actGoOn
	actGiveUp
	actWake
	actPush
	actSwapPush
	actLosePush
	actTimeout
	actLost
	actUnanswered
	actProbe
	actProbeFails
	actCrash
	actStart
	actHand
	actDeliver
	actRepeat
	actLose
	actTime
	actTick
	actForget
	actFailover
	actClock
	actPoll
)

func due(t, now time.Time) bool { return !t.IsZero() && !t.After(now) }

// actions appends what can happen now.
func (w *world) actions(all []action) []action {
	add := func(kind actionKind, p, i int, out Outcome) { all = append(all, action{kind, uint8(p), uint8(i), out}) }
	l, k := &w.left, w.kind
	fault := func(n int8) bool { return n > 0 && l.all > 0 }
	urgent := false
	for p, pr := range w.procs {
		if pr.dead {
			add(actStart, p, 0, 0)
			urgent = urgent || w.calm
			continue
		}
		if l.calls > 0 && pr.view.admits != admitsNone && len(pr.calls)+len(pr.waits) < k.open {
			add(actCall, p, 0, 0)
		}
		for i := range pr.calls {
			if c := &pr.calls[i]; !c.waits {
				for _, o := range k.outcomes[p] {
					add(actEnd, p, i, o)
				}
			} else if done := c.decided || due(c.until, w.now); done || l.leave > 0 {
				add(actGoOn, p, i, 0)
				urgent = urgent || done
			}
		}
		for i := range pr.waits {
			if due(pr.waits[i].until, w.now) {
				add(actGiveUp, p, i, 0)
				urgent = true
			}
		}
		if due(pr.armed, w.now) {
			add(actWake, p, 0, 0)
			urgent = true
		}
		if len(pr.pushes) > 0 {
			add(actPush, p, 0, 0)
			if fault(l.losePush) {
				add(actLosePush, p, 0, 0)
			}
			if len(pr.pushes) > 1 && fault(l.swapPush) {
				add(actSwapPush, p, 0, 0)
			}
		}
		if pr.lost {
			add(actLost, p, 0, 0)
			urgent = true
		}
		if len(pr.unanswered) > 0 {
			add(actUnanswered, p, 0, 0)
			urgent = true
		}
		if pr.down && !pr.lost && due(pr.probeAt, w.now) {
			add(actProbe, p, 0, 0)
			urgent = true
			if l.away > 0 {
				add(actProbeFails, p, 0, 0)
			}
		}
		if fault(l.crash) {
			add(actCrash, p, 0, 0)
		}
		if l.hands > 0 {
			for i := range k.hands {
				add(actHand, p, i, 0)
			}
		}
	}
	for i := range w.messages {
		m := &w.messages[i]
		if !m.timedOut && m.incarnation == w.procs[m.process].incarnation && due(m.late, w.now) {
			add(actTimeout, 0, i, 0)
			urgent = true
		}
		switch m.kind {
		case onItsWay:
			add(actDeliver, 0, i, 0)
			if m.change.Number > 0 && fault(l.repeat) {
				add(actRepeat, 0, i, 0)
			}
			if fault(l.loseRequest) {
				add(actLose, 0, i, 0)
			}
		case answered:
			add(actDeliver, 0, i, 0)
			if fault(l.loseAnswer) && !m.timedOut {
				add(actLose, 0, i, 0)
			}
		}
	}
	if fault(l.forget) {
		add(actForget, 0, 0, 0)
	}
	if fault(l.failover) {
		add(actFailover, 0, 0, 0)
	}
	if fault(l.clock) {
		add(actClock, 0, 0, 0)
	}
	if next := w.next(); !next.IsZero() && !urgent {
		some, late := w.underWay(next)
		if !some || late && fault(l.delay) || !late && l.slow > 0 || w.calm {
			add(actTime, 0, 0, 0)
		}
		if l.tick > 0 && w.now.Add(10*time.Millisecond).Before(next) {
			add(actTick, 0, 0, 0)
		}
	}
	return all
}

// next is the next time at which anything can change; zero if there is none.
func (w *world) next() (next time.Time) {
	earliest := func(t time.Time) {
		if t.After(w.now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, pr := range w.procs {
		if pr.dead {
			continue
		}
		earliest(pr.armed)
		for i := range pr.calls {
			earliest(pr.calls[i].until)
		}
		for i := range pr.waits {
			earliest(pr.waits[i].until)
		}
		if pr.down {
			earliest(pr.probeAt)
		}
	}
	for i := range w.messages {
		if m := &w.messages[i]; !m.timedOut && m.incarnation == w.procs[m.process].incarnation {
			earliest(m.late)
		}
	}
	r, l := &w.record, &w.kind.settings.limits
	stored := func(t time.Time) {
		if !t.IsZero() {
			earliest(t.Add(-w.skew))
		}
	}
	stored(r.DueAt)
	stored(r.RetryAt)
	if r.suspect() {
		stored(r.SuspectAt.Add(l.Suspicion))
		if r.Rated {
			stored(r.SuspectAt.Add(time.Duration(evidence.rated) * l.Suspicion))
		}
	}
	stored(r.calmUntil(l))
	for _, t := range r.Trials {
		stored(t.Deadline)
	}
	if r.Override != nil {
		stored(r.Override.Until)
	}
	if w.kind.config.FailureRate > 0 && len(r.Window.Buckets) > 0 {
		earliest(w.now.Add(w.kind.config.Window / 2))
	}
	return next
}

// underWay reports whether messages are, and whether one would be late at the time.
func (w *world) underWay(at time.Time) (any, late bool) {
	for i := range w.messages {
		if m := &w.messages[i]; m.kind != vanished && !m.timedOut && m.incarnation == w.procs[m.process].incarnation {
			any, late = true, late || due(m.late, at)
		}
	}
	for _, pr := range w.procs {
		any = any || len(pr.pushes) > 0 && !pr.dead
	}
	return any, late
}

// do returns the world after the action.
func (w *world) do(a action) (*world, *violation) {
	w = w.clone()
	p, i := int(a.process), int(a.index)
	problem := w.act(a, p, i)
	if problem == nil {
		problem = w.check()
	}
	return w, problem
}

func (w *world) act(a action, p, i int) *violation {
	spend := func(n *int8) { *n--; w.left.all-- }
	shelled := func(do func(pr *process) *request) *violation {
		pr := w.change(p)
		return w.follow(p, *pr.replica.shared, func() *request { return do(pr) })
	}
	switch a.kind {
	case actCall:
		if !w.calm {
			w.left.calls--
		}
		return shelled(func(pr *process) *request {
			pr.calledAt = w.now
			n := len(pr.calls)
			_, change := pr.call(w.now)
			if len(pr.calls) > n {
				c := &pr.calls[n]
				if pr.replica.local.trial(c.admission.trial) >= 0 {
					pr.reference.acquire(c.admission.trial, w.now)
				}
				c.spell = pr.reference.spell
			}
			return change
		})
	case actEnd:
		return shelled(func(pr *process) *request {
			c, r := pr.calls[i], &pr.replica
			outcome, late := a.outcome, c.admission.shared < r.shared.Since
			if r.lease(c.admission.trial) != nil && r.attached() {
				shared := r.shared.at(w.now)
				t := shared.trial(c.admission.trial)
				late = t < 0 || shared.Trials[t].Stale
			}
			if late {
				outcome = OutcomeIgnored
			}
			if outcome != OutcomeIgnored {
				pr.failed = outcome == OutcomeFailure
			}
			pr.reference.end(c.admission.trial, c.spell, outcome, w.now)
			closed := r.local.State == StateClosed
			change := pr.end(i, a.outcome, w.now)
			if w.manually && closed && c.admission.trial != "" && r.local.State == StateOpen {
				pr.reference.reset(true) // a failed trial of a circuit that was set half-open for all
			}
			return change
		})
	case actGoOn:
		return shelled(func(pr *process) *request {
			c := pr.calls[i]
			if !c.decided && !due(c.until, w.now) {
				w.left.leave--
			}
			n := len(pr.calls)
			_, change := pr.goesOn(i, w.now)
			if len(pr.calls) < n {
				pr.reference.end(c.admission.trial, c.spell, OutcomeIgnored, w.now)
			} else {
				if pr.calls[n-1].spell = c.spell; pr.replica.local.trial(c.admission.trial) < 0 {
					pr.calls[n-1].spell = pr.reference.spell
				}
			}
			return change
		})
	case actGiveUp:
		pr := w.change(p)
		pr.waits = slices.Delete(pr.waits, i, i+1)
	case actWake:
		return shelled(func(pr *process) *request { return pr.wake(w.now) })
	case actPush, actSwapPush, actLosePush:
		pr, at := w.change(p), 0
		if a.kind == actSwapPush {
			spend(&w.left.swapPush)
			at = 1
		}
		rec := *pr.pushes[at]
		pr.pushes = slices.Delete(pr.pushes, at, at+1)
		if a.kind == actLosePush {
			spend(&w.left.losePush)
			w.unpushed = true
			return nil
		}
		return w.step(p, func(r *replica) { r.observed(rec, w.now) })
	case actTimeout:
		m := w.messages[i]
		if m.kind == vanished {
			w.messages = slices.Delete(w.messages, i, i+1)
		} else {
			w.messages[i].timedOut = true
		}
		w.cut = true
		pr := w.change(m.process)
		if pr.replica.attached() && pr.replica.awaits(m.change.Number) && !pr.down {
			pr.down, pr.lost, pr.probeAt = true, true, w.now.Add(firstPause)
		}
		pr.unanswered = append(pr.unanswered, m.change.Number)
	case actLost:
		w.change(p).lost = false
		return w.step(p, func(r *replica) { r.lost(shellTrouble, w.now) })
	case actUnanswered:
		pr := w.change(p)
		number := pr.unanswered[0]
		pr.unanswered = pr.unanswered[1:]
		return w.step(p, func(r *replica) { r.unanswered(number, shellTrouble, w.now) })
	case actProbe:
		w.change(p).down = false
		return w.step(p, func(r *replica) { r.back() })
	case actProbeFails:
		w.left.away--
		w.change(p).probeAt = w.now.Add(300 * time.Millisecond)
	case actCrash:
		spend(&w.left.crash)
		w.change(p).dead = true
		w.procs[p].incarnation++
		w.messages = slices.DeleteFunc(w.messages, func(m message) bool { return m.process == p && m.kind != onItsWay })
	case actStart:
		if !w.kind.lateCrash { // what its predecessor has sent arrives before it has read the record, or never
			w.messages = slices.DeleteFunc(w.messages, func(m message) bool { return m.process == p })
		}
		return w.start(p)
	case actHand:
		w.left.hands--
		w.manually = true
		c := w.kind.hands[i]
		if o := c.Override; o != nil && o.Until.After(longAgo) {
			timed := *o
			timed.Until = w.now.Add(o.Until.Sub(explored))
			c.Override = &timed
		}
		return w.step(p, func(r *replica) { r.manual(c, w.now) })
	case actDeliver, actRepeat:
		m := w.messages[i]
		if m.kind == answered {
			w.messages = slices.Delete(w.messages, i, i+1)
			w.answers = m.change.Number
			defer func() { w.answers = 0 }()
			return w.step(m.process, func(r *replica) { r.answered(m.change, *m.record, w.now) })
		}
		rec, problem := w.arrive(&m)
		if problem != nil {
			return problem
		}
		if a.kind == actRepeat { // the answer to the other one finds nobody
			spend(&w.left.repeat)
			twin := m
			twin.timedOut = true
			w.messages = append(w.messages, twin)
		}
		if m.incarnation != w.procs[m.process].incarnation {
			w.messages = slices.Delete(w.messages, i, i+1)
		} else {
			w.messages[i].kind, w.messages[i].record = answered, rec
		}
	case actLose:
		m := &w.messages[i]
		if m.kind == onItsWay {
			spend(&w.left.loseRequest)
		} else {
			spend(&w.left.loseAnswer)
		}
		if m.kind, m.record = vanished, nil; m.timedOut || m.incarnation != w.procs[m.process].incarnation {
			w.messages = slices.Delete(w.messages, i, i+1)
		}
	case actTime:
		next := w.next()
		if some, late := w.underWay(next); !w.calm {
			if late {
				spend(&w.left.delay)
			} else if some {
				w.left.slow--
			}
		}
		w.now = next
	case actTick:
		w.left.tick--
		w.now = w.now.Add(10 * time.Millisecond)
	case actForget:
		spend(&w.left.forget)
		w.lost, w.record, w.written, w.applied, w.supplied = true, Record{}, time.Time{}, nil, [3]int8{}
	case actFailover:
		spend(&w.left.failover)
		w.lost, w.record, w.applied = true, w.replaced, w.replaced.heard
	case actClock:
		spend(&w.left.clock)
		w.lost = true
		w.skew += w.kind.clock
	case actPoll:
		rec := w.load()
		return w.step(p, func(r *replica) { r.observed(rec, w.now) })
	}
	return nil
}

// Invariants of every state.

func (w *world) check() *violation {
	trials := 0
	for p, pr := range w.procs {
		if pr.dead {
			continue
		}
		r := &pr.replica
		if problem := pr.reference.compare(&r.local, w.now); problem != nil {
			return problem
		}
		if problem := w.rejectsRightly(p); problem != nil {
			return problem
		}
		for i := range pr.calls {
			c := &pr.calls[i]
			if l := r.lease(c.admission.trial); l != nil && !c.waits {
				if t := r.shared.trial(l.id); t >= 0 && w.now.Before(r.shared.Trials[t].Deadline) {
					trials++
				}
			}
		}
	}
	for p, pr := range w.procs {
		if r := &pr.replica; r.attached() && r.standIn != nil {
			return violates("I7", "%c is attached, and a record stands in", 'a'+p)
		}
	}
	if trials > w.kind.config.MaxTrials && !w.lost {
		return violates("I3", "%d trials run at once", trials)
	}
	if w.quiet() && !w.lost && !w.unpushed {
		kept := w.load()
		for p, pr := range w.procs {
			if pr.dead || !pr.replica.attached() {
				continue
			}
			if known := pr.replica.shared.at(w.now); known.Generation != kept.Generation || !sameRecord(known, &kept) || !slices.EqualFunc(known.Trials, kept.Trials, func(a, b Trial) bool { return a.ID == b.ID && a.Stale == b.Stale }) {
				return violates("I7", "everything is delivered, and %c has %s, not %s", 'a'+p, w.show(known), w.show(&kept))
			}
		}
	}
	return nil
}

// rejectsRightly checks that a process rejects only if its own last call failed, or
// by hand.
func (w *world) rejectsRightly(p int) *violation {
	pr := w.procs[p]
	r := &pr.replica
	if pr.view.admits == admitsAll || due(pr.armed, w.now) || r.override(w.now) != nil || pr.failed {
		return nil
	}
	local, shared := r.local.at(w.now), r.fleet(w.now)
	switch {
	case w.manually && (local.State != StateClosed || shared.State != StateClosed && !shared.hasEvidence()):
	case local.State != StateClosed && pr.reference.state != StateClosed && !pr.reference.off: // exactly pybreaker
	case local.State != StateClosed && pr.reference.off:
	default:
		return violates("I1", "%c rejects, and its last call did not fail: local %s, shared %s", 'a'+p, w.show(local), w.show(shared))
	}
	return nil
}

// quiet reports whether nothing is under way but calls and time.
func (w *world) quiet() bool {
	if len(w.messages) > 0 {
		return false
	}
	for _, pr := range w.procs {
		if pr.dead || len(pr.pushes) > 0 || pr.lost || len(pr.unanswered) > 0 || pr.down || due(pr.armed, w.now) || pr.replica.out.inFlight {
			return false
		}
	}
	return true
}

// Texts.

func (w *world) at(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Sub(explored).String()
}

func (w *world) show(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[%v g%+d", r.State, r.Generation-explored.UnixMilli())
	add := func(show bool, format string, args ...any) {
		if show {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	rel := func(g int64) int64 { return g - explored.UnixMilli() }
	add(r.Since > 0, "since %+d", rel(r.Since))
	add(r.Moved > 0, "moved %+d", rel(r.Moved))
	add(r.Failures > 0, "failures %d", r.Failures)
	add(r.Successes > 0, "successes %d", r.Successes)
	add(r.Threshold > 0, "score %d/%d", r.Score, r.Threshold)
	add(r.Rated, "rated")
	add(r.Witness != "", "witness %s until %s", r.Witness, w.at(r.RetryAt))
	add(!r.SuspectAt.IsZero(), "suspect %s", w.at(r.SuspectAt))
	add(!r.DueAt.IsZero(), "due %s", w.at(r.DueAt))
	add(!r.DismissedAt.IsZero(), "dismissed %s", w.at(r.DismissedAt))
	add(len(r.Window.Buckets) > 0, "window %d/%d", sum(r.Window.Buckets).Failures, sum(r.Window.Buckets).Calls)
	for _, t := range r.Trials {
		add(true, "trial %s until %s", t.ID, w.at(t.Deadline))
		add(t.Stale, "stale")
	}
	add(r.Override != nil, "override %v", r.Override)
	b.WriteByte(']')
	return b.String()
}

func (w *world) showChange(c *Change) string {
	if c.Number == 0 {
		return "a read"
	}
	s := fmt.Sprintf("%s#%d", c.Source, c.Number)
	if n := c.Calls; n != (Calls{}) {
		s += fmt.Sprintf(" %d failures %d successes", n.Failures, n.Successes)
	}
	if len(c.Counted) > 0 {
		n := sum(c.Counted)
		s += fmt.Sprintf(" %d/%d failed", n.Failures, n.Calls)
	}
	for _, t := range c.Settled {
		s += fmt.Sprintf(" %s %v", t.ID, t.Outcome)
	}
	if c.Move != nil {
		s += " to " + c.Move.To.String()
	}
	if c.Override != nil {
		s += " override " + c.Override.State.String()
	}
	if c.Ask != "" {
		s += " asks for " + c.Ask
	}
	return s
}

// describe names an action so that a path of names can be replayed.
func (w *world) describe(a action) string {
	p := string(rune('a' + a.process))
	numbered := func(s string) string {
		if a.index > 0 {
			return fmt.Sprintf("%s %d", s, a.index)
		}
		return s
	}
	of := func() (string, *message) {
		m := &w.messages[a.index]
		n := 0
		for i := range w.messages[:a.index] {
			if o := &w.messages[i]; o.process == m.process && o.kind == m.kind {
				n++
			}
		}
		s := string(rune('a'+m.process)) + [...]string{" request", " answer", " lost"}[m.kind]
		if n > 0 {
			s += fmt.Sprintf(" %d", n)
		}
		return s, m
	}
	switch a.kind {
	case actCall:
		return p + " call"
	case actEnd:
		return numbered(p + " " + a.outcome.String())
	case actGoOn:
		return numbered(p + " goes on")
	case actGiveUp:
		return numbered(p + " gives up")
	case actWake:
		return p + " wakes"
	case actPush:
		return p + " push"
	case actSwapPush:
		return p + " push swapped"
	case actLosePush:
		return p + " push lost"
	case actLost:
		return p + " link down"
	case actUnanswered:
		return p + " unanswered"
	case actProbe:
		return p + " link up"
	case actProbeFails:
		return p + " probe fails"
	case actCrash:
		return p + " crash"
	case actStart:
		return p + " start"
	case actPoll:
		return p + " poll"
	case actHand:
		return numbered(p + " manual")
	case actDeliver:
		s, _ := of()
		return s
	case actRepeat:
		s, _ := of()
		return s + " repeated"
	case actLose:
		s, _ := of()
		return s + " lost"
	case actTimeout:
		s, _ := of()
		return s + " late"
	}
	return [...]string{"time", "tick", "forget", "failover", "clock"}[a.kind-actTime]
}

// run replays a path: names of actions with semicolons between them. "*" does
// everything that is under way or due, and "@1s" also lets time pass up to then.
func (w *world) run(path string) (*world, *violation) {
	for word := range strings.SplitSeq(path, ";") {
		word = strings.TrimSpace(word)
		var problem *violation
		until, timed := strings.CutPrefix(word, "@")
		switch {
		case word == "":
		case word == "*":
			w, problem = w.settle()
		case timed:
			end, err := time.ParseDuration(until)
			if err != nil {
				panic(err)
			}
			for problem == nil {
				if w, problem = w.settle(); problem != nil {
					break
				}
				next := w.next()
				if next.IsZero() || next.After(explored.Add(end)) {
					w = w.clone()
					w.now = explored.Add(end)
					break
				}
				w = w.clone()
				w.now = next
			}
			if problem == nil {
				w, problem = w.settle()
			}
		default:
			a, names := w.find(word)
			if names != nil {
				return w, violates("replay", "there is no %q among %q", word, names)
			}
			w, problem = w.do(a)
		}
		if problem != nil {
			return w, problem
		}
	}
	return w, nil
}

func (w *world) find(name string) (action, []string) {
	names := []string{}
	for _, a := range w.actions(nil) {
		n := w.describe(a)
		if n == name {
			return a, nil
		}
		names = append(names, n)
	}
	return action{}, names
}

// settle does everything that is under way or due, and begins nothing.
func (w *world) settle() (*world, *violation) {
	for {
		a, some := w.pending()
		if !some {
			return w, nil
		}
		var problem *violation
		if w, problem = w.do(a); problem != nil {
			return w, problem
		}
	}
}

// pending returns the first of what is under way or due.
func (w *world) pending() (action, bool) {
	var some [64]action
	all := w.actions(some[:0])
	for _, kinds := range [...][]actionKind{{actStart, actGoOn, actGiveUp, actTimeout, actLost, actUnanswered, actProbe}, {actPush}, {actDeliver}, {actWake}} {
		for _, a := range all {
			if slices.Contains(kinds, a.kind) {
				return a, true
			}
		}
	}
	return action{}, false
}
