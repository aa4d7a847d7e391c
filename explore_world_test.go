package infuse

import (
	"fmt"
	"slices"
	"time"
)

// A world is one state of a small fleet: processes with the real replica, a storage with
// the real Record.Apply, and the messages between them. It never changes: an action
// copies the parts that it changes. The explorer tries every order of actions.
type world struct {
	kind *kind
	now  time.Time
	skew time.Duration // of the storage's clock

	record   Record       // in the storage, on its clock
	written  time.Time    // on its clock
	replaced Record       // the record before the last write that watchers were notified of
	applied  []lastNumber // the numbers of applied changes
	supplied [3]int8      // the failures on record that each process has supplied

	procs     []*process
	messages  []message
	left      faults
	faultless bool // no more faults

	lost     bool // the storage has lost data, or its clock was set
	detached bool // a process was detached
	manually bool // there was a manual change
	unpushed bool // a notification was lost

	answers uint64 // the number of the change to which an answer is being delivered
}

// faults limits the events that may still happen. The sum of all but calls is limited by
// all.
type faults struct {
	calls, manual, slow, tick, leave, all                                      int8
	crash, loseRequest, loseAnswer, losePush, swapPush, delay, repeat, outages int8
	forget, failover, clock                                                    int8
}

// process is a shell and its link.
type process struct {
	*shell
	index       int
	incarnation int
	dead        bool // it crashed, and has not restarted
	failed      bool // its last call failed
	dismissed   bool // the failures that it took for its own at its start were dismissed
	calledAt    time.Time
	down        bool // the storage is unavailable to it
	probeAt     time.Time
	downPending bool     // the replica has not received this yet
	unanswered  []uint64 // numbers of requests whose failure the replica has not received
	pushes      []push
	reference   reference
}

type message struct {
	kind        messageKind
	process     int
	incarnation int
	change      *request
	record      *Record
	late        time.Time // when it times out
	timedOut    bool      // it has timed out
}

type messageKind uint8

const (
	inTransit messageKind = iota
	answered
	dropped // it will time out
)

// push is a notification: a notice, and the record for a process that reads it.
type push struct {
	notice notice
	record *Record
}

// explored is the start time of a world: a whole second, for readable paths.
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

// start starts a process, which reads the record. With kind.readsLate, the first read of a
// restarted process fails.
func (w *world) start(p int) *violation {
	old := w.procs[p]
	pr := &process{index: p, incarnation: old.incarnation, reference: reference{limits: &w.kind.settings.local}}
	w.procs[p] = pr
	pr.shell = newShell(w.kind.settings, w.source(p), !w.kind.noStorage, w.kind.seed, w.now)
	if w.kind.noStorage {
		return nil
	}
	if w.kind.readsLate && pr.incarnation > 0 {
		return w.step(p, func(r *replica) { r.readFailed(shellStorageErr, w.now) })
	}
	rec := w.load()
	return w.step(p, func(r *replica) { r.hasRead(rec, 0, w.now) })
}

func (w *world) clone() *world {
	c := *w
	c.procs, c.messages = slices.Clone(w.procs), slices.Clone(w.messages)
	return &c
}

// change returns a copy of the process for writing.
func (w *world) change(p int) *process {
	c := *w.procs[p]
	c.shell = c.shell.clone()
	c.pushes, c.unanswered = slices.Clone(c.pushes), slices.Clone(c.unanswered)
	c.reference.trials = slices.Clone(c.reference.trials)
	w.procs[p] = &c
	return &c
}

// step gives a process an input, sends its request, and checks the rules of a step.
func (w *world) step(p int, input func(r *replica)) *violation {
	pr := w.change(p)
	first := pr.replica.received == 0
	problem := w.follow(p, *pr.replica.shared, func() *request {
		return pr.step(w.now, func(r *replica) {
			pending := r.out.next.Calls.Failures
			since := r.shared.Since
			input(r)
			if !first && r.out.next.Calls.Failures < pending && r.shared.Since == since && !w.manually {
				panic(violates("I4", "%c drops a failure that it did not report", 'a'+p))
			}
		})
	})
	if r := &pr.replica; first && r.received > 0 && r.local.State == StateClosed {
		// It takes failures on record for its own (R12).
		pr.reference.failures = min(r.local.Failures, w.kind.settings.FailMax-1)
	}
	return problem
}

// follow sends the request of a step, and checks the replica.
func (w *world) follow(p int, before Record, do func() *request) (problem *violation) {
	defer func() {
		if v := recover(); v != nil {
			problem = v.(*violation)
		}
	}()
	pr := w.procs[p]
	sent := pr.replica.out.sentNumber()
	inherited, since := pr.replica.inherited, pr.replica.local.Since
	if change := do(); change != nil {
		w.send(p, change)
	}
	r := &pr.replica
	switch own := r.shared; {
	case sent > 0 && r.out.sentNumber() != sent && w.answers != sent:
		return violates("I4", "%c drops a change that the storage has not answered", 'a'+p)
	case own.Generation < before.Generation && !w.lost:
		return violates("I5", "%c goes back from generation %d to %d", 'a'+p, before.Generation, own.Generation)
	case own.Generation == before.Generation && !sameRecord(own, &before) && !w.lost:
		return violates("I5", "%c takes another record of generation %d: %s, not %s", 'a'+p, own.Generation, w.show(own), w.show(&before))
	case len(r.leases) > w.kind.config.MaxTrials+2:
		return violates("I7", "%c keeps %d leases", 'a'+p, len(r.leases))
	}
	if cleared := r.shared.Since > before.Since && r.shared.State == StateClosed || r.shared.Manual > before.Manual; cleared {
		pr.failed = false
		pr.reference.reset(false)
	}
	if inherited && !r.inherited && r.local.Since != since && r.local.State == StateClosed && r.local.Failures == 0 {
		pr.reference.reset(false)
		pr.dismissed = true
	}
	if r.local.Override != nil || r.local.Manual > 0 {
		pr.reference.reset(true)
	}
	return w.onTime(p)
}

// sameRecord reports whether two records of one generation differ only in counts, ends of
// leases and shorter waits.
func sameRecord(a, b *Record) bool {
	return a.State == b.State && a.Since == b.Since && a.Opened == b.Opened && a.Manual == b.Manual && a.hasEvidence() == b.hasEvidence() &&
		a.Witness == b.Witness && (a.Override == nil || b.Override == nil || a.Override.State == b.Override.State)
}

// onTime checks that nothing is due before the timer fires: at any earlier time the view
// is the same, and there is no request to send.
func (w *world) onTime(p int) *violation {
	pr := w.procs[p]
	if due(pr.armed, w.now) { // its timer fires now
		return nil
	}
	r := &pr.replica
	try := func(at time.Time) *violation {
		copied := r.clone()
		copied.acquireEpisode()
		if change := copied.outgoing(at); change != nil {
			return violates("I7", "%c would send %s at %s, and its timer fires at %s", 'a'+p, w.showChange(change.Change), w.at(at), w.at(pr.armed))
		}
		var v view
		v.derive(&copied, "x", at)
		if pr.view.tallies { // it may tally a bit longer than necessary
			v.tallies, v.plain, v.fast = true, pr.view.plain, pr.view.fast
		}
		if !v.same(pr.view) || v.quiet != pr.view.quiet {
			return violates("I7", "the view of %c is %v (%d) at %s, not %v (%d), and its timer fires at %s", 'a'+p, v.state, v.admits, w.at(at), pr.view.state, pr.view.admits, w.at(pr.armed))
		}
		return nil
	}
	if problem := try(w.now); problem != nil {
		return problem
	}
	times := [...]time.Time{r.out.delayUntil, r.out.checkAt, r.retryAt}
	turns := append(make([]time.Time, 0, 16), r.local.DueAt, r.shared.DueAt, r.shared.RetryAt, r.local.RetryAt, r.detachedAt.Add(detachedPause),
		r.shared.SuspectAt.Add(w.kind.settings.limits.longestOpen(true)), w.now.Add(time.Hour))
	for _, trials := range [...][]Trial{r.local.Trials, r.shared.Trials} {
		for _, t := range trials {
			turns = append(turns, t.Deadline)
		}
	}
	for _, all := range [...][]time.Time{times[:], turns} {
		for _, t := range all {
			for _, early := range [...]time.Duration{0, readyEarly} {
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

// The rest is the network and the storage.

func (w *world) send(p int, c *request) {
	pr := w.procs[p]
	if pr.down {
		pr.unanswered = append(pr.unanswered, c.Number)
		return
	}
	w.messages = append(w.messages, message{process: p, incarnation: pr.incarnation, change: c, late: w.now.Add(shellLinkTimeout)})
}

func (w *world) storageNow() time.Time { return w.now.Add(w.skew) }

// kept returns the record as a storage reads it: a clock that is set back prolongs no wait.
func (w *world) kept() Record {
	if now := w.storageNow(); now.Before(w.written) {
		return w.record.translated(w.written, now)
	}
	return w.record
}

func (w *world) here(r Record) Record {
	r = r.withoutNumbers()
	if w.skew != 0 {
		r = r.translated(w.storageNow(), w.now)
	}
	return r
}

func (w *world) load() Record { return w.here(w.kept().At(w.storageNow())) }

// arrive delivers a request to the storage, and returns the answer.
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
	again := slices.ContainsFunc(w.applied, func(h lastNumber) bool { return h.source == c.Source && h.number >= c.Number })
	next, verdict := base.Apply(c, now)
	if !again && verdict != VerdictRefused {
		w.supplies(m.process, &base, &next, &c)
	}
	if problem := w.checkChange(&base, &next, &c, verdict, again, now); problem != nil {
		return nil, problem
	}
	notice := next.notice(&w.record)
	if verdict != VerdictRefused {
		if verdict == VerdictChanged {
			w.replaced = w.record
		}
		w.record, w.written = next, now
		if !again {
			w.applied = append(slices.DeleteFunc(slices.Clone(w.applied), func(h lastNumber) bool { return h.source == c.Source }), lastNumber{c.Source, c.Number})
		}
	}
	rec := w.here(next)
	if verdict == VerdictChanged {
		for p, pr := range w.procs {
			if !pr.dead && !pr.replica.stopped {
				w.change(p).pushes = append(slices.Clone(pr.pushes), push{notice, &rec})
			}
		}
	}
	return &rec, nil
}
