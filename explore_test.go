package infuse

import (
	testflag "flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// kind is a fleet to explore: its settings, first state, and the events that may happen.
type kind struct {
	name      string
	processes int
	config    Config
	begin     string // a path; see world.run
	left      faults
	open      int // calls of one process at a time
	outcomes  [3][]Outcome
	manual    []Change
	clock     time.Duration // added to the storage's clock
	states    int           // at most
	heals     uint64        // one state of so many is healed
	dies      uint64        // from one state of so many on, every call fails
	unhealthy bool          // only the first process has failures
	lateCrash bool          // a request of a crashed process may arrive after its successor has read the record
	readsLate bool          // a restarted process may call before it has read the record
	noStorage bool          // there is no storage
	roll      float64

	alike    bool
	settings *settings
	seed     uint64
}

// search is a breadth-first search, so each path that it finds is a shortest one.
type search struct {
	kind    *kind
	encoder encoder
	seen    map[uint64]struct{}
	nodes   []node
	root    *world
	healed  map[uint64]time.Duration

	transitions, depth int
	complete           bool
	violations         int
	found              map[string]int
	paths              []string
	slowest            time.Duration // healing
	most               int           // calls to a dead service until all processes reject
	t                  testing.TB
}

// anyViolation is set when a search finds a violation.
var anyViolation atomic.Bool

// node is the last step of the path to a state.
type node struct {
	parent int32
	action action
}

func (k *kind) init(t testing.TB) {
	c := k.config
	c.Storage, c.Instance = NewMemoryStorage(), "x"
	s, err := newSettings(c)
	if err != nil {
		t.Fatal(err)
	}
	k.settings = s
	k.seed = randomBefore(k.roll)
	k.alike = true
	for p := 1; p < k.processes; p++ {
		k.alike = k.alike && slices.Equal(k.outcomes[0], k.outcomes[p])
	}
}

// world returns the first state of the search.
func (k *kind) world(t testing.TB) *world {
	k.init(t)
	w := newWorld(k)
	w.left = faults{calls: 100, crash: 9, all: 100}
	outcomes, open := k.outcomes, k.open
	all := []Outcome{OutcomeSuccess, OutcomeFailure, OutcomeIgnored}
	k.outcomes, k.open = [3][]Outcome{all, all, all}, 9
	w, problem := w.run(k.begin)
	k.outcomes, k.open = outcomes, open
	if problem != nil {
		t.Errorf("%s: at its first path %q: %v", k.name, k.begin, problem)
		return nil
	}
	w.left = k.left
	w.manually, w.detached = w.manually && k.left.manual > 0 || strings.Contains(k.begin, "manual"), false
	return w
}

func (k *kind) search(t testing.TB) *search {
	s := &search{kind: k, seen: make(map[uint64]struct{}), found: make(map[string]int), healed: make(map[uint64]time.Duration), t: t}
	if s.root = k.world(t); s.root == nil {
		return s
	}
	type front struct {
		world *world
		node  int32
	}
	began := time.Now()
	s.nodes = append(s.nodes, node{})
	s.seen[s.root.key(&s.encoder)] = struct{}{}
	level := []front{{s.root, 0}}
	var some []action
search:
	for ; len(level) > 0; s.depth++ {
		var next []front
		for n, f := range level {
			level[n].world = nil
			some = f.world.actions(some[:0])
			for _, a := range some {
				s.transitions++
				w, problem := f.world.do(a)
				if problem != nil {
					s.violated(problem, f.node, &a, nil)
					continue
				}
				key := w.key(&s.encoder)
				if _, known := s.seen[key]; known {
					continue
				}
				s.seen[key] = struct{}{}
				at := int32(len(s.nodes))
				s.nodes = append(s.nodes, node{f.node, a})
				if k.heals > 0 && key%k.heals == 0 {
					s.heals(w, at)
				}
				if k.dies > 0 && key%k.dies == 0 {
					s.dies(w, at)
				}
				next = append(next, front{w, at})
			}
			if len(s.nodes) > k.states || s.violations > 200 || anyViolation.Load() && testflag.Lookup("test.failfast").Value.String() == "true" {
				break search
			}
		}
		level = next
	}
	s.complete = len(level) == 0
	t.Logf("%-34s %8d states, depth %2d, complete %-5v %7.0f transitions/s, heals in %v, all reject after %d calls, found %v", k.name, len(s.nodes), s.depth, s.complete,
		float64(s.transitions)/time.Since(began).Seconds(), s.slowest, s.most, s.found)
	return s
}

// violated prints the shortest path to the first violation of each rule.
func (s *search) violated(problem *violation, at int32, last *action, then []string) {
	anyViolation.Store(true)
	s.violations++
	s.found[problem.rule]++
	if s.found[problem.rule] > 1 {
		return
	}
	var actions []action
	if last != nil {
		actions = append(actions, *last)
	}
	for ; at > 0; at = s.nodes[at].parent {
		actions = append(actions, s.nodes[at].action)
	}
	slices.Reverse(actions)
	var path, lines []string
	w := s.root
	for _, a := range actions {
		name := w.describe(a)
		path = append(path, name)
		w, _ = w.do(a)
		line := fmt.Sprintf("%-8s %-22s storage %s", w.at(w.now), name, w.show(&w.record))
		for p, pr := range w.procs {
			if !pr.dead {
				line += fmt.Sprintf("\n            %c: local %s shared %s failing %v supplied %d inherited %v detached %v %v", 'a'+p, w.show(&pr.replica.local), w.show(pr.replica.shared), pr.replica.failing, pr.replica.supplied, pr.replica.inherited, pr.replica.storageErr != nil, pr.view.state)
			}
		}
		lines = append(lines, line)
	}
	if len(then) > 60 {
		then = slices.Concat(then[:40], []string{"..."}, then[len(then)-20:])
	}
	s.paths = append(s.paths, s.kind.begin+"; "+strings.Join(path, "; "))
	s.t.Errorf("%s: %v\n{%q, %q},\n%s\n%s", s.kind.name, problem, s.kind.name, strings.Join(path, "; "), strings.Join(lines, "\n"), strings.Join(then, "\n"))
}

// withoutFaults returns the world without further faults.
func (w *world) withoutFaults() *world {
	w = w.clone()
	w.faultless, w.left = true, faults{calls: 1}
	return w
}

const healStep = 50 * time.Millisecond

// nextAction returns the next action without faults; false if only time passes.
func (w *world) nextAction(o Outcome) (action, bool) {
	if a, some := w.pending(); some {
		return a, true
	}
	for p, pr := range w.procs {
		if len(pr.calls) > 0 && !pr.calls[0].waits {
			return action{actEnd, uint8(p), 0, o}, true
		}
	}
	for p, pr := range w.procs {
		if !pr.calledAt.Equal(w.now) && pr.view.admits != admitsNone && len(pr.calls)+len(pr.waits) == 0 {
			return action{actCall, uint8(p), 0, 0}, true
		}
	}
	if w.quiet() { // polls find lost notifications
		kept := w.load()
		for p, pr := range w.procs {
			if r := &pr.replica; r.attached() && r.shared.Generation != kept.Generation && r.out.checkAt.IsZero() {
				return action{actPoll, uint8(p), 0, 0}, true
			}
		}
	}
	return action{}, false
}

// advance lets time pass until the next event, for healStep at most.
func (w *world) advance() *world {
	w = w.clone()
	at := w.now.Add(healStep)
	if next := w.next(); !next.IsZero() && next.Before(at) {
		at = next
	}
	w.now = at
	return w
}

// isHealthy reports whether all circuits are closed and healthy, and nothing is pending.
func (w *world) isHealthy() bool {
	if !w.quiet() || w.load().State != StateClosed || w.record.hasEvidence() || len(w.load().Trials) > 0 {
		return false
	}
	for _, pr := range w.procs {
		r := &pr.replica
		if !r.attached() || r.out.sentNumber() > 0 || r.out.next.Calls != (Calls{}) || r.out.next.acts() || len(r.leases) > 0 || len(pr.calls)+len(pr.waits) > 0 || r.local.State != StateClosed || r.local.Failures > 0 ||
			r.shared.hasEvidence() || r.shared.State != StateClosed || pr.view.admits != admitsAll || !pr.view.quiet || r.doneUpTo() != r.enqueued ||
			r.shared.Generation != w.record.Generation && !w.lost {
			return false
		}
	}
	return true
}

// overridden reports whether there is an override, or one may still arrive.
func (w *world) overridden() bool {
	if w.record.Override != nil {
		return true
	}
	for _, pr := range w.procs {
		if r := &pr.replica; r.override(w.now) != nil || r.out.sent != nil && r.out.sent.Override != nil || r.out.next.Override != nil || r.shared.Override != nil {
			return true
		}
	}
	return slices.ContainsFunc(w.messages, func(m message) bool { return m.change.Override != nil })
}

// heals checks that the fleet heals if every call succeeds from now on.
func (s *search) heals(w *world, at int32) {
	w = w.withoutFaults()
	type mark struct {
		key uint64
		now time.Time
	}
	var marks []mark
	var names []string
	began, total := w.now, time.Duration(-1)
	last, repeats := w.now, 0
	problem := func(v *violation) { s.violated(v, at, nil, names) }
	for total < 0 {
		if repeats++; !w.now.Equal(last) {
			last, repeats = w.now, 0
		}
		key := w.key(&s.encoder)
		if rest, known := s.healed[key]; known {
			total = w.now.Sub(began) + rest
			break
		}
		marks = append(marks, mark{key, w.now})
		switch {
		case w.isHealthy(), w.overridden() && w.quiet() && w.now.Sub(began) > 5*time.Second:
			total = w.now.Sub(began)
			continue
		case repeats > 300:
			problem(violates("I7", "the actions at %s do not end", w.at(w.now)))
			total = time.Minute
			continue
		case w.now.Sub(began) > 20*time.Second:
			problem(violates("I8", "the fleet does not heal"))
			total = time.Minute
			continue
		}
		a, some := w.nextAction(OutcomeSuccess)
		if !some {
			w = w.advance()
			continue
		}
		if s.found["I7"]+s.found["I8"] < 3 {
			names = append(names, "heals: "+w.at(w.now)+" "+w.describe(a))
		}
		var v *violation
		if w, v = w.do(a); v != nil {
			problem(v)
			total = time.Minute
		}
	}
	for _, m := range marks {
		s.healed[m.key] = began.Add(total).Sub(m.now)
	}
	if limit := 2*s.kind.settings.TrialTimeout + s.kind.settings.limits.longestOpen(true) + 500*time.Millisecond; total > limit && total < 30*time.Second && !w.overridden() {
		problem(violates("I8", "the fleet heals in %v", total))
	}
	if total < 30*time.Second {
		s.slowest = max(s.slowest, total)
	}
}

// wasDismissed reports whether the failures that a new process took for its own were
// dismissed since the last call.
func (w *world) wasDismissed() (yes bool) {
	for _, pr := range w.procs {
		yes, pr.dismissed = yes || pr.dismissed, false
	}
	return yes
}

// dies checks that all processes reject if every call fails from now on.
func (s *search) dies(w *world, at int32) {
	if w = w.withoutFaults(); w.overridden() || w.manually {
		return
	}
	reset, began := s.kind.settings.limits.longestOpen(true), w.now
	var failures []time.Time
	var names []string
	allReject := false
	for steps := 0; steps < 3000 && w.now.Sub(began) < 6*reset; steps++ {
		a, some := w.nextAction(OutcomeFailure)
		if some {
			if s.found["I9"] < 2 {
				names = append(names, "dead: "+w.at(w.now)+" "+w.describe(a))
			}
			if a.kind == actEnd {
				failures = append(failures, w.now)
			}
			var v *violation
			if w, v = w.do(a); v != nil {
				s.violated(v, at, nil, names)
				return
			}
			continue
		}
		all := w.quiet()
		for _, pr := range w.procs {
			all = all && pr.view.state != StateClosed
		}
		switch {
		case all && !allReject:
			allReject = true
			s.most = max(s.most, len(failures))
			// At most as many as with local breakers, and the calls that run already.
			if k := s.kind; len(failures) > k.processes*(max(k.config.FailMax, k.config.MinCalls)+k.open) {
				s.violated(violates("I9", "all processes reject only after %d calls", len(failures)), at, nil, names)
				return
			}
		case !all && w.quiet() && allReject && w.wasDismissed():
			allReject = false // the failures of a restarted process were dismissed
		case !all && w.quiet() && allReject:
			s.violated(violates("I9", "a process admits calls to a dead service again"), at, nil, names)
			return
		}
		w = w.advance()
	}
	if !allReject {
		s.violated(violates("I9", "not all processes reject"), at, nil, names)
		return
	}
	// From the third open duration on, at most two trials fail in each.
	for i, first := range failures {
		if n := i + 2*s.kind.config.MaxTrials; first.Sub(began) > 3*reset && n < len(failures) && failures[n].Sub(first) < reset-10*time.Millisecond {
			s.violated(violates("I9", "%d trials fail in %v", n-i+1, failures[n].Sub(first)), at, nil, names)
			return
		}
	}
}

// TestExplore tries every order of events in small fleets, up to a number of states.
// INFUSE_EXPLORE multiplies this number. INFUSE_EXPLORE_KIND selects kinds by the
// beginning of their names. "make explore" goes deeper.
// R7, R11, R13, R16, R17, R25, R28, R32.
func TestExplore(t *testing.T) {
	factor := 0.004
	if os.Getenv("CI") != "" {
		factor = 0.01
	}
	if n, err := strconv.ParseFloat(os.Getenv("INFUSE_EXPLORE"), 64); err == nil {
		factor = n
	}
	began := time.Now()
	var states, transitions atomic.Int64
	t.Run("kinds", func(t *testing.T) {
		for _, k := range kinds() {
			if !strings.HasPrefix(k.name, os.Getenv("INFUSE_EXPLORE_KIND")) {
				continue
			}
			k.states = int(factor * float64(k.states))
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				s := k.search(t)
				states.Add(int64(len(s.nodes)))
				transitions.Add(int64(s.transitions))
			})
		}
	})
	fmt.Printf("explored %d states by %d transitions in %v\n", states.Load(), transitions.Load(), time.Since(began).Round(time.Second))
}
