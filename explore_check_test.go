package infuse

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// violation is a broken rule.
type violation struct{ rule, text string }

func (v *violation) Error() string { return v.rule + ": " + v.text }

func violates(rule, format string, args ...any) *violation {
	return &violation{rule, fmt.Sprintf(format, args...)}
}

// supplies counts the failures on record by the process that reported them.
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

// opensRightly checks an opening by evidence (R17, R22). A process whose last report
// arrives after its successor has read the record counts as two: no rule prevents this.
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
	case next.State != StateOpen || base.State == StateOpen || c.Manual != nil || w.lost || w.kind.lateCrash:
	case base.State == StateHalfOpen && (base.Witness == "" || base.Witness[0] == c.Source[0]):
		return violates("I2", "%s confirms its own failed trial: %s", c.Source, w.show(base))
	case base.State == StateHalfOpen:
	case base.State != StateClosed || !base.suspect():
		return violates("I2", "%s opens a circuit that was not suspect: %s", c.Source, w.show(base))
	case suppliers < 2:
		return violates("I2", "the reports of one process open the shared circuit: %s", w.show(next))
	case next.scored() && (next.Score < 2*next.Threshold || !suspected(limits.Suspicion)), next.Rated && !suspected(4*limits.Suspicion):
		return violates("I2", "the circuit opens with too little evidence: %s", w.show(next))
	}
	return nil
}

// checkChange checks the record and the verdict after a change.
func (w *world) checkChange(base, next *Record, c *Change, verdict Verdict, again bool, now time.Time) *violation {
	if problem := w.opensRightly(base, next, c, now); problem != nil {
		return problem
	}
	before := base.At(now)
	restored := base.Generation < c.Seen.Generation
	switch {
	case verdict == VerdictRefused && again, verdict == VerdictRefused && (c.Calls.Failures > 0 || len(c.Counted) > 0 || c.Calls.Successes > 0 && base.count() > 0) && base.State == StateClosed && c.Seen.Generation >= base.Since && !c.acts():
		return violates("I4", "the storage drops outcomes of %s: %s at %s", c.Source, w.showChange(c), w.show(base))
	case verdict == VerdictRefused:
		return nil
	case c.RequestTrial != "" && next.trial(c.RequestTrial) >= 0 && base.trial(c.RequestTrial) < 0 && base.State == StateHalfOpen && base.Witness == c.Source && now.Before(base.RetryAt) && c.Manual == nil && !w.lost:
		return violates("I9", "the process whose trial failed is granted the next trial: %s", w.show(base))
	case next.Generation < base.Generation:
		return violates("I5", "the storage goes back from generation %d to %d", base.Generation, next.Generation)
	case next.Generation == base.Generation && (!sameRecord(next, base) || next.DueAt.After(base.DueAt) || next.SuspectAt.After(base.SuspectAt) || len(next.Trials) > len(before.Trials)):
		return violates("I5", "the storage has another record of generation %d: %s, not %s", base.Generation, w.show(next), w.show(base))
	case next.Generation != base.Generation && verdict != VerdictChanged:
		return violates("I5", "a new generation without a notification")
	case again && !restored && next.Generation == base.Generation && (next.Failures != base.Failures || next.Score != base.Score || next.Successes != base.Successes || sum(next.Window.Buckets) != sum(base.Window.Buckets)):
		return violates("I4", "%s counts twice: %s, not %s", w.showChange(c), w.show(next), w.show(base))
	case again && !w.lost && next.State == StateOpen && base.State == StateHalfOpen:
		return violates("I4", "%s ends a trial twice", w.showChange(c))
	case len(liveTrials(next.Trials, now)) > w.kind.config.MaxTrials:
		return violates("I3", "the record has %d running trials", len(next.Trials))
	case !again && !restored && verdict == VerdictApplied && c.counts() && !c.acts() && base.State == StateClosed && !base.hasEvidence() && !next.hasEvidence() &&
		c.Seen.Generation >= base.Since && c.Calls.Successes == 0 && next.Failures != base.Failures+c.Calls.Failures:
		return violates("I4", "%s leaves %d of %d failures", w.showChange(c), next.Failures, base.Failures)
	case w.kind.unhealthy && next.State == StateOpen && !w.manually:
		return violates("I2", "the reports of one process open the shared circuit: %s", w.show(next))
	case before.State == StateClosed && base.Healthy() && !restored && c.counts() && !c.acts() && c.Calls.Failures == 0 && failed(c.Counted) == 0 && next.Generation != base.Generation:
		return violates("I5", "successes change a healthy record")
	}
	return nil
}

// The rest are invariants of every state.

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
		if r := &pr.replica; r.attached() && r.adopted != nil {
			return violates("I7", "%c is attached, and has an adopted record", 'a'+p)
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
			if own := pr.replica.shared.at(w.now); !pr.replica.isEnough(own, &kept) && (own.Generation != kept.Generation || !sameRecord(own, &kept) || !slices.EqualFunc(own.Trials, kept.Trials, func(a, b Trial) bool { return a.ID == b.ID && a.Stale == b.Stale })) {
				return violates("I7", "all messages arrived, and %c has %s, not %s", 'a'+p, w.show(own), w.show(&kept))
			}
		}
	}
	return nil
}

// isEnough reports whether a process need not read a closed record: it reports its next
// success if the circuit is suspect (R15).
func (r *replica) isEnough(own, kept *Record) bool {
	return own.State == StateClosed && kept.State == StateClosed && own.Generation < kept.Generation && !own.hasEvidence() && !kept.Rated &&
		own.Since == kept.Since && own.Manual == kept.Manual && (r.awaitsSuccess() || !kept.scored())
}

// rejectsRightly checks that a process rejects only if its own last call failed, or after
// a manual change (R7).
func (w *world) rejectsRightly(p int) *violation {
	pr := w.procs[p]
	r := &pr.replica
	if pr.view.admits == admitsAll || due(pr.armed, w.now) || r.override(w.now) != nil || pr.failed {
		return nil
	}
	local, shared := r.local.at(w.now), r.effective(w.now)
	switch {
	case w.manually && (local.State != StateClosed || shared.State != StateClosed && !shared.hasEvidence()):
	case local.State != StateClosed && pr.reference.state != StateClosed && !pr.reference.off: // as pybreaker does
	case local.State != StateClosed && pr.reference.off:
	default:
		return violates("I1", "%c rejects after a successful call: local %s, shared %s", 'a'+p, w.show(local), w.show(shared))
	}
	return nil
}

// quiet reports whether nothing is pending but calls and time.
func (w *world) quiet() bool {
	if len(w.messages) > 0 {
		return false
	}
	for _, pr := range w.procs {
		if pr.dead || len(pr.pushes) > 0 || pr.downPending || len(pr.unanswered) > 0 || pr.down || due(pr.armed, w.now) || pr.replica.out.inFlight {
			return false
		}
	}
	return true
}

// The rest makes texts, and replays paths.

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
	add(r.Manual > 0, "manual %+d", rel(r.Manual))
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
	if c.Manual != nil {
		s += " to " + c.Manual.To.String()
	}
	if c.Override != nil {
		s += " override " + c.Override.State.String()
	}
	if c.RequestTrial != "" {
		s += " requests " + c.RequestTrial
	}
	return s
}

// describe returns the name of an action in a path.
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
	case actResume:
		return numbered(p + " resumes")
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
	case actUnavailable:
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
	case actManual:
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

// run replays a path: names of actions, separated by semicolons. "*" does everything that
// is pending or due, and "@1s" also advances the time to 1 s.
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
				return w, violates("replay", "no action %q among %q", word, names)
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

// settle does everything that is pending or due, and begins no call.
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

// pending returns the first action that is pending or due.
func (w *world) pending() (action, bool) {
	var some [64]action
	all := w.actions(some[:0])
	for _, kinds := range [...][]actionKind{{actStart, actResume, actGiveUp, actTimeout, actUnavailable, actUnanswered, actProbe}, {actPush}, {actDeliver}, {actWake}} {
		for _, a := range all {
			if slices.Contains(kinds, a.kind) {
				return a, true
			}
		}
	}
	return action{}, false
}
