package infuse

import (
	"slices"
	"time"
)

// This file is the actions of a world.

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
	actResume
	actGiveUp
	actWake
	actPush
	actSwapPush
	actLosePush
	actTimeout
	actUnavailable
	actUnanswered
	actProbe
	actProbeFails
	actCrash
	actStart
	actManual
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

// actions appends the actions that are possible now.
func (w *world) actions(all []action) []action {
	add := func(kind actionKind, p, i int, out Outcome) { all = append(all, action{kind, uint8(p), uint8(i), out}) }
	l, k := &w.left, w.kind
	fault := func(n int8) bool { return n > 0 && l.all > 0 }
	urgent := false
	for p, pr := range w.procs {
		if pr.dead {
			add(actStart, p, 0, 0)
			urgent = urgent || w.faultless
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
				add(actResume, p, i, 0)
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
		if pr.downPending {
			add(actUnavailable, p, 0, 0)
			urgent = true
		}
		if len(pr.unanswered) > 0 {
			add(actUnanswered, p, 0, 0)
			urgent = true
		}
		if pr.down && !pr.downPending && due(pr.probeAt, w.now) {
			add(actProbe, p, 0, 0)
			urgent = true
			if l.outages > 0 {
				add(actProbeFails, p, 0, 0)
			}
		}
		if fault(l.crash) {
			add(actCrash, p, 0, 0)
		}
		if l.manual > 0 {
			for i := range k.manual {
				add(actManual, p, i, 0)
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
		case inTransit:
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
		if !some || late && fault(l.delay) || !late && l.slow > 0 || w.faultless {
			add(actTime, 0, 0, 0)
		}
		if l.tick > 0 && w.now.Add(10*time.Millisecond).Before(next) {
			add(actTick, 0, 0, 0)
		}
	}
	return all
}

// next returns the next time at which something can change; zero if there is none.
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
	stored(r.noSuspicionUntil(l))
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

// underWay reports whether messages are in transit, and whether one times out by then.
func (w *world) underWay(at time.Time) (any, late bool) {
	for i := range w.messages {
		if m := &w.messages[i]; m.kind != dropped && !m.timedOut && m.incarnation == w.procs[m.process].incarnation {
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
		if !w.faultless {
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
				pr.reference.reset(true) // a failed trial of a circuit that was set half-open manually
			}
			return change
		})
	case actResume:
		return shelled(func(pr *process) *request {
			c := pr.calls[i]
			if !c.decided && !due(c.until, w.now) {
				w.left.leave--
			}
			n := len(pr.calls)
			_, change := pr.resume(i, w.now)
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
		push := pr.pushes[at]
		pr.pushes = slices.Delete(pr.pushes, at, at+1)
		if a.kind == actLosePush {
			spend(&w.left.losePush)
			w.unpushed = true
			return nil
		}
		return w.step(p, func(r *replica) {
			if r.noticed(push.notice) {
				r.notified(*push.record, w.now)
			}
		})
	case actTimeout:
		m := w.messages[i]
		if m.kind == dropped {
			w.messages = slices.Delete(w.messages, i, i+1)
		} else {
			w.messages[i].timedOut = true
		}
		w.detached = true
		pr := w.change(m.process)
		if pr.replica.attached() && pr.replica.awaits(m.change.Number) && !pr.down {
			pr.down, pr.downPending, pr.probeAt = true, true, w.now.Add(firstPause)
		}
		pr.unanswered = append(pr.unanswered, m.change.Number)
	case actUnavailable:
		w.change(p).downPending = false
		return w.step(p, func(r *replica) { r.unavailable(shellStorageErr, w.now) })
	case actUnanswered:
		pr := w.change(p)
		number := pr.unanswered[0]
		pr.unanswered = pr.unanswered[1:]
		return w.step(p, func(r *replica) { r.unanswered(number, shellStorageErr, w.now) })
	case actProbe:
		w.change(p).down = false
		return w.step(p, func(r *replica) { r.availableAgain() })
	case actProbeFails:
		w.left.outages--
		w.change(p).probeAt = w.now.Add(300 * time.Millisecond)
	case actCrash:
		spend(&w.left.crash)
		w.change(p).dead = true
		w.procs[p].incarnation++
		w.messages = slices.DeleteFunc(w.messages, func(m message) bool { return m.process == p && m.kind != inTransit })
	case actStart:
		if !w.kind.lateCrash { // requests of its predecessor arrive before it has read the record, or never
			w.messages = slices.DeleteFunc(w.messages, func(m message) bool { return m.process == p })
		}
		return w.start(p)
	case actManual:
		w.left.manual--
		w.manually = true
		c := w.kind.manual[i]
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
		if a.kind == actRepeat { // the first request gets no answer
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
		if m.kind == inTransit {
			spend(&w.left.loseRequest)
		} else {
			spend(&w.left.loseAnswer)
		}
		if m.kind, m.record = dropped, nil; m.timedOut || m.incarnation != w.procs[m.process].incarnation {
			w.messages = slices.Delete(w.messages, i, i+1)
		}
	case actTime:
		next := w.next()
		if some, late := w.underWay(next); !w.faultless {
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
		w.lost, w.record, w.applied = true, w.replaced, w.replaced.lastNumbers
	case actClock:
		spend(&w.left.clock)
		w.lost = true
		w.skew += w.kind.clock
	case actPoll:
		rec := w.load()
		return w.step(p, func(r *replica) { r.notified(rec, w.now) })
	}
	return nil
}
