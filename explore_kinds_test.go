package infuse

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Paths to the first states of kinds.
const (
	beginStreak        = "a call; a failure; *"
	beginSuspect       = "a call; a failure; *; b call; b failure; *"                                                                                                // FailMax 2: one failure each
	beginOpen          = beginSuspect + "; a call; a failure; *; @60ms; b call; b failure; *"                                                                        // and both local circuits
	beginDue           = beginOpen + "; @1s"                                                                                                                         //
	beginHalf          = beginDue + "; a call; *"                                                                                                                    // the trial of a runs
	beginWitness       = beginHalf + "; a failure; *"                                                                                                                // and failed: b must confirm
	beginTwo           = "a call; a failure; *; b call; b failure; *; a call; a call; b call; b call; a failure; *"                                                  // calls of both run just before it opens
	beginAlone         = "a call; a failure; *; a call; a failure; *"                                                                                                // suspect by one process
	beginThree         = "a call; a failure; *; a call; a failure; *; a call; a failure; *; @60ms; b call; b failure; *; b call; b failure; *; b call; b failure; *" // FailMax 3
	beginClosedWitness = beginThree + "; c call; c failure; *; @1s; c call; *; c failure; *"                                                                         // the trial of c has failed, and its local circuit is closed
	beginRestart       = beginAlone + "; a crash; a start; *"
)

var (
	anything = []Outcome{OutcomeSuccess, OutcomeFailure, OutcomeIgnored}
	either   = []Outcome{OutcomeSuccess, OutcomeFailure}
	succeed  = []Outcome{OutcomeSuccess}
	failOnly = []Outcome{OutcomeFailure}
)

func exploreConfig(failMax, trials, successes int) Config {
	return Config{FailMax: failMax, MaxTrials: trials, SuccessThreshold: successes, ResetTimeout: time.Second, TrialTimeout: 2 * time.Second, Suspicion: 50 * time.Millisecond}
}

func exploredStates() (all []Change) {
	for _, s := range [...]State{StateClosed, StateOpen, StateHalfOpen} {
		all = append(all, Change{Manual: &ManualState{s}})
	}
	return all
}

func exploredOverrides() []Change {
	return []Change{
		{Override: &Override{State: StateOpen, By: "x", Reason: "x"}},
		{Override: &Override{State: StateClosed, By: "x", Reason: "x", Until: explored.Add(1500 * time.Millisecond)}},
		{Override: &Override{By: "x", Reason: "x", Until: longAgo}},
	}
}

func kinds() (all []*kind) {
	add := func(name string, processes int, c Config, begin string, left faults, more ...func(*kind)) {
		if left.all == 0 {
			left.all = 9
		}
		k := &kind{name: name, processes: processes, config: c, begin: begin, left: left, open: 1, outcomes: [3][]Outcome{either, either, either}, states: 100_000, heals: 11, dies: 499}
		for _, m := range more {
			m(k)
		}
		all = append(all, k)
	}
	open := func(n int) func(*kind) { return func(k *kind) { k.open = n } }
	manual := func(c []Change) func(*kind) { return func(k *kind) { k.manual = c } }
	outcomes := func(o ...[]Outcome) func(*kind) {
		return func(k *kind) { copy(k.outcomes[:], o) }
	}
	rolls := func(f float64) func(*kind) { return func(k *kind) { k.roll = f } }
	everything := faults{calls: 2, slow: 1, delay: 1, loseAnswer: 1, loseRequest: 1, losePush: 1, swapPush: 1, repeat: 1, crash: 1, forget: 1, failover: 1, clock: 1, outages: 1, all: 1}
	back := func(k *kind) { k.clock = -10 * time.Second }
	begins := []struct{ name, path string }{
		{"healthy", ""}, {"streak", beginStreak}, {"suspect", beginSuspect}, {"open", beginOpen}, {"due", beginDue}, {"half-open", beginHalf}, {"witness", beginWitness}, {"two", beginTwo}, {"lone", beginAlone}, {"restart", beginRestart},
	}
	for _, n := range [][3]int{{2, 1, 1}, {2, 2, 2}} {
		c := exploreConfig(n[0], n[1], n[2])
		for _, b := range begins {
			name := fmt.Sprintf("%s-%d%d%d", b.name, n[0], n[1], n[2])
			add(name+"-calls", 2, c, b.path, faults{calls: 4, slow: 1}, outcomes(anything, anything))
			add(name+"-overlap", 2, c, b.path, faults{calls: 4, leave: 1}, open(2))
			add(name+"-faults", 2, c, b.path, everything, back, rolls(0.5))
			add(name+"-manual", 2, c, b.path, faults{calls: 2, manual: 1, slow: 1}, manual(slices.Concat(exploredStates(), exploredOverrides())))
			add(name+"-three", 3, c, b.path, faults{calls: 3})
			add(name+"-crash", 2, c, b.path, faults{calls: 3, crash: 2})
			if n[1] == 1 {
				add(name+"-detached", 2, c, b.path, faults{calls: 3, delay: 1, loseAnswer: 1, loseRequest: 1, outages: 1, all: 1}, rolls(0.5))
				add(name+"-late-crash", 2, c, b.path, faults{calls: 3, crash: 1, slow: 1}, func(k *kind) { k.lateCrash = true })
			}
		}
	}
	unhealthy := func(k *kind) { k.unhealthy, k.dies = true, 0 }
	for _, n := range [...]int{1, 2, 3} {
		c := exploreConfig(n, 1, 1)
		add(fmt.Sprintf("unhealthy-%d", n), 2, c, "", faults{calls: 9, slow: 1, tick: 1}, outcomes(failOnly, succeed), unhealthy)
		add(fmt.Sprintf("unhealthy-%d-crash", n), 2, c, "", faults{calls: 8, crash: 4}, outcomes(failOnly, succeed), unhealthy)
		add(fmt.Sprintf("unhealthy-%d-only", n), 1, c, "", faults{calls: 12, crash: 5}, outcomes(failOnly), unhealthy)
		add(fmt.Sprintf("unhealthy-%d-mixed", n), 2, c, "", faults{calls: 9, crash: 2}, outcomes(either, succeed), unhealthy)
		add(fmt.Sprintf("unhealthy-%d-overlap", n), 2, c, "", faults{calls: 7, crash: 1}, outcomes(failOnly, succeed), unhealthy, open(3))
		add(fmt.Sprintf("from-healthy-%d", n), 2, c, "", faults{calls: int8(2*n + 4), slow: 1}, outcomes(either, either))
		add(fmt.Sprintf("fleet-of-one-%d", n), 1, c, "", faults{calls: 8, crash: 1, slow: 1}, outcomes(anything), open(2))
		add(fmt.Sprintf("no-storage-%d", n), 1, c, "", faults{calls: 10}, outcomes(anything), open(3), func(k *kind) { k.noStorage, k.heals, k.dies = true, 0, 0 })
	}
	add("unhealthy-reads-late", 2, exploreConfig(2, 1, 1), beginAlone+"; @60ms; a crash; a start; a call; a failure", faults{calls: 8, crash: 2}, outcomes(failOnly, succeed), unhealthy, func(k *kind) { k.readsLate = true })
	c := exploreConfig(3, 1, 1)
	add("repeats", 2, c, "", faults{calls: 4, repeat: 1}, outcomes(failOnly, failOnly))
	add("witness-is-closed", 3, c, beginClosedWitness, faults{calls: 3})
	rate := Config{FailureRate: 0.5, MinCalls: 2, Window: time.Second, ResetTimeout: time.Second, TrialTimeout: 2 * time.Second, Suspicion: 50 * time.Millisecond, MaxTrials: 1, SuccessThreshold: 1}
	add("rate", 2, rate, "", faults{calls: 5, slow: 1})
	add("rate-faults", 2, rate, "a call; a failure; *; b call; b failure; *", everything, back)
	add("rate-crash", 2, rate, "a call; a failure; *; b call; b failure; *", faults{calls: 4, crash: 2})
	add("rate-unhealthy", 2, rate, "", faults{calls: 8, crash: 3}, outcomes(failOnly, succeed), unhealthy)
	add("rate-mixed", 2, rate, "a call; a failure; *; a call; a failure; *; @300ms", faults{calls: 6, crash: 1}, outcomes(either, succeed), unhealthy)
	add("rate-three", 3, rate, "a call; a failure; *; b call; b failure; *", faults{calls: 4})
	growing := exploreConfig(2, 1, 1)
	growing.MaxResetTimeout = 4 * time.Second
	add("backoff", 2, growing, beginDue, faults{calls: 4})
	return all
}

// TestPathsThatTheExplorerFound replays paths to past violations. After each, all
// processes must heal, and must reject a dead service.
func TestPathsThatTheExplorerFound(t *testing.T) {
	for _, found := range []struct{ problem, kind, path string }{
		{"the state of a circuit changes without its timer, when its witness may run a trial", "witness-211-crash", "b crash; b start; b call; time; b failure"},
		{"the same while a trial runs", "open-211-detached", "time; a wakes; a call; time; a call; a request; a answer; a resumes; a failure; a request lost; @1100ms; @2200ms; @3200ms"},
		{"a detached process continues to reject after a success", "two-211-detached", "time; time; a wakes; time; b failure; time; b request; b push; b answer late; b link down; b unanswered; a push; b answer; a success; b success"},
		{"the same after the suspicion was dismissed", "two-211-detached", "time; time; a success; time; time; a call; b failure; time; b request; b push; a request late; a link down; a resumes; a unanswered; b answer late; b link down; b unanswered; a push; a request; a push; b push; a answer; b answer; b success"},
		{"a process that was detached drops its half-open local circuit", "open-211-detached", "time; a wakes; time; time; a call; b wakes; time; a request late; a request; a push; a unanswered; a answer; a resumes; a failure"},
		{"a process that restarts and succeeds once confirms its own failure rate", "rate-mixed", "a crash; a start; a call; a success; a call; a failure; a call; a failure; time; a wakes; a request; a answer; @350ms"},
	} {
		t.Run(found.problem, func(t *testing.T) {
			for _, k := range kinds() {
				if k.name == found.kind {
					k.replay(t, found.path)
					return
				}
			}
			t.Fatalf("unknown kind %q", found.kind)
		})
	}
}

func (k *kind) replay(t *testing.T, path string) {
	s := &search{kind: k, found: make(map[string]int), healed: make(map[uint64]time.Duration), nodes: make([]node, 1), t: t}
	s.root = k.world(t)
	w, problem := s.root.run(path)
	if problem != nil {
		t.Fatal(problem)
	}
	s.heals(w, 0)
	if k.dies > 0 {
		s.dies(w, 0)
	}
}

// reference is a local circuit breaker, written by pybreaker's documentation. The local
// circuit of each process must equal it (R5).
type reference struct {
	limits              *Limits
	state               State
	spell               int // counts transitions: a call belongs to the spell that admitted it
	failures, successes int
	due                 time.Time
	trials              []referenceTrial
	off                 bool // the local circuit is not compared
}

type referenceTrial struct {
	id   string
	ends time.Time
}

func (b *reference) enter(s State, now time.Time) {
	b.state, b.successes, b.spell, b.due = s, 0, b.spell+1, now.Add(b.limits.ResetTimeout)
	if s == StateClosed {
		b.failures = 0
	}
}

func (b *reference) acquire(id string, now time.Time) {
	if b.state == StateOpen && !now.Before(b.due) {
		b.enter(StateHalfOpen, now)
	}
	b.trials = append(b.trials, referenceTrial{id, now.Add(b.limits.TrialTimeout)})
}

// end counts the outcome of a call that was admitted in the given spell.
func (b *reference) end(id string, spell int, o Outcome, now time.Time) {
	b.expire(now)
	n := len(b.trials)
	b.trials = slices.DeleteFunc(b.trials, func(t referenceTrial) bool { return t.id == id })
	ran := len(b.trials) < n
	switch {
	case o == OutcomeIgnored || b.state == StateOpen || b.state == StateHalfOpen && !ran || b.state == StateClosed && spell != b.spell:
	case b.state == StateHalfOpen && o == OutcomeFailure:
		b.enter(StateOpen, now)
	case b.state == StateHalfOpen:
		if b.successes++; b.successes >= b.limits.SuccessThreshold {
			b.enter(StateClosed, now)
		}
	case o == OutcomeSuccess:
		b.failures = 0
	default:
		if b.failures++; b.failures >= b.limits.FailMax {
			b.enter(StateOpen, now)
		}
	}
}

func (b *reference) expire(now time.Time) {
	over := func(t referenceTrial) bool { return !now.Before(t.ends) }
	if slices.ContainsFunc(b.trials, over) {
		b.trials = slices.DeleteFunc(slices.Clone(b.trials), over) // worlds share the slice
	}
}

// reset closes the circuit and drops its counts.
func (b *reference) reset(off bool) {
	*b = reference{limits: b.limits, spell: b.spell + 1, off: off}
}

func (b reference) compare(local *Record, now time.Time) *violation {
	b.expire(now)
	l := local.at(now)
	if b.off || b.limits.FailureRate > 0 || b.limits.MaxResetTimeout > 0 || l.State == b.state && len(l.Trials) == len(b.trials) &&
		(l.State != StateClosed || l.Failures == b.failures) && (l.State != StateOpen || l.DueAt.Equal(b.due)) && (l.State != StateHalfOpen || l.Successes == b.successes) {
		return nil
	}
	return violates("I6", "the local circuit is %+v, and pybreaker's is %+v", *l, b)
}
