package infuse

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Replicas over a network that loses, doubles, delays and reorders what they
// send: random sequences, checked at every step and when all is quiet again. A
// sequence that fails is made short and printed with its seed.

// chaos is one run of some replicas on one record.
type chaos struct {
	kind    chaosKind
	roll    *rand.Rand
	now     float64 // seconds
	events  events
	record  Record
	nodes   []*node
	broken  bool // the network is
	failed  int  // calls that were admitted to a closed circuit and failed
	running int  // trials of the fleet
	problem error
}

// chaosKind is what a run is to show.
type chaosKind struct {
	name     string
	nodes    int
	config   Config
	lossless bool // nothing is lost: answers may still be late
	failures bool // every call fails
	moves    bool
	forgets  bool // the storage loses its record now and then
}

// node is a process: a replica, and what the shell does for it.
type node struct {
	*chaos
	number  int
	replica replica
	view    view
	timer   int
	down    bool    // its link
	sent    bool    // a request of it is under way
	late    float64 // when an answer to it was late last
	told    int64   // the generation that it was told last
}

// chaosStep is what happens at a time. The network's dice are the step's own,
// so that a sequence goes on as it did when others are taken out.
type chaosStep struct {
	at   float64
	node int
	do   string // call, move, break, heal, forget
	fail bool
	to   State
	long float64
	seed uint64
}

func (s chaosStep) String() string {
	switch s.do {
	case "call":
		return fmt.Sprintf("%.3f node %d calls: fails %v, takes %.3f", s.at, s.node, s.fail, s.long)
	case "override":
		return fmt.Sprintf("%.3f node %d overrides: %v for %.3f", s.at, s.node, s.to, s.long)
	case "move":
		return fmt.Sprintf("%.3f node %d moves: %v", s.at, s.node, s.to)
	}
	return fmt.Sprintf("%.3f %s", s.at, s.do)
}

const chaosLasts = 20.0 // seconds; then all is quiet

func (k chaosKind) steps(seed uint64) (all []chaosStep) {
	roll := rand.New(rand.NewPCG(seed, 1))
	for at := 0.0; at < chaosLasts; at += roll.ExpFloat64() * 0.1 {
		s := chaosStep{at: at, node: roll.IntN(k.nodes), do: "call", fail: k.failures || roll.IntN(3) > 0, long: roll.Float64() * 0.2, seed: roll.Uint64()}
		switch n := roll.IntN(60); {
		case n == 0 && k.moves:
			s.do, s.to = "move", State(roll.IntN(3))
		case n == 5 && k.moves:
			s.do, s.to, s.long = "override", State(roll.IntN(3)), roll.Float64()*2 // half-open clears
		case n == 1:
			s.do = "break"
		case n < 4:
			s.do = "heal"
		case n == 4 && k.forgets:
			s.do = "forget"
		}
		all = append(all, s)
	}
	return all
}

// run returns what was wrong, if anything was.
func (k chaosKind) run(steps []chaosStep) error {
	c := &chaos{kind: k, roll: rand.New(rand.NewPCG(0, 2))}
	s, err := newSettings(k.config)
	if err != nil {
		return err
	}
	for i := range k.nodes {
		n := &node{chaos: c, number: i, replica: newReplica(s, fmt.Sprint("n", i), true, uint64(i))}
		n.view.derive(&n.replica, "chaos", c.time())
		c.nodes = append(c.nodes, n)
		c.after(0.5+float64(i)/10, n.poll)
	}
	for _, s := range steps {
		c.after(s.at, func() {
			c.roll = rand.New(rand.NewPCG(s.seed, 3))
			c.do(s)
		})
	}
	c.after(chaosLasts, func() { c.broken = false })
	for len(c.events.all) > 0 && c.problem == nil {
		e := heap.Pop(&c.events).(happening)
		if e.at > chaosLasts+120 {
			break
		}
		c.now = e.at
		e.do()
		if c.events.count > 100_000 {
			return errors.New("it goes on and on")
		}
	}
	if c.problem == nil {
		c.problem = c.quiet()
	}
	return c.problem
}

func (c *chaos) time() time.Time { return noon.Add(time.Duration(c.now * float64(time.Second))) }

func (c *chaos) after(seconds float64, do func()) {
	c.events.count++
	heap.Push(&c.events, happening{c.now + seconds, c.events.count, do})
}

func (c *chaos) do(s chaosStep) {
	n := c.nodes[s.node]
	switch s.do {
	case "break":
		c.broken = true
	case "heal":
		c.broken = false
	case "forget":
		c.record = Record{}
	case "move":
		n.step(func(r *replica, now time.Time) { r.byHand(Change{Move: &Move{s.to}}, now) })
	case "override":
		o := &Override{State: s.to, By: fmt.Sprint(s.seed), Until: c.time().Add(time.Duration(s.long * float64(time.Second)))}
		switch {
		case s.to == StateHalfOpen:
			o = &Override{Until: longAgo}
		case s.long > 1.5:
			o.Until = time.Time{}
		}
		n.step(func(r *replica, now time.Time) { r.byHand(Change{Override: o}, now) })
	case "call":
		n.call(s)
	}
}

func (n *node) step(input func(r *replica, now time.Time)) {
	now := n.time()
	known := n.replica.shared.Generation
	input(&n.replica, now)
	change := n.replica.outgoing(now)
	n.view = view{}
	n.view.derive(&n.replica, "chaos", now)
	if change != nil {
		n.send(change)
	}
	if n.replica.shared.Generation < known && !n.kind.forgets {
		n.problem = fmt.Errorf("node %d went back from %d to %d", n.number, known, n.replica.shared.Generation)
	}
	n.timer++
	if at := n.replica.wakeAt(now); !at.IsZero() {
		armed := n.timer
		n.after(at.Sub(now).Seconds(), func() {
			if n.timer == armed {
				n.step(func(*replica, time.Time) {})
			}
		})
	}
	if most := n.kind.config.MaxTrials + 2; len(n.replica.leases) > most {
		n.problem = fmt.Errorf("node %d keeps %d leases", n.number, len(n.replica.leases))
	}
}

func (n *node) call(s chaosStep) {
	a, d := n.view.admission(), rejects
	switch n.view.admits {
	case admitsAll:
		d = admits
	case admitsAsker:
		n.step(func(r *replica, now time.Time) { a, d = r.asked(now) })
	}
	if d == waits {
		n.wait(a, s, n.now+0.1)
		return
	}
	n.run(a, d, s)
}

// wait has a call wait for its trial, as the shell does.
func (n *node) wait(a admission, s chaosStep, until float64) {
	if !n.replica.decided(a.trial) && n.now < until {
		n.after(0.0005, func() { n.wait(a, s, until) })
		return
	}
	var d decision
	n.step(func(r *replica, now time.Time) { a, d = r.goesOn(a, now) })
	n.run(a, d, s)
}

func (n *node) run(a admission, d decision, s chaosStep) {
	if d != admits {
		return
	}
	ofFleet := n.replica.lease(a.trial) != nil
	if n.replica.trouble != nil && a.trial != "" && n.replica.shared.at(n.time()).State != StateClosed {
		ofFleet = true // it stands in for one
	}
	if ofFleet {
		n.running++
		if most := n.kind.config.MaxTrials; n.kind.lossless && n.running > most {
			n.problem = fmt.Errorf("%d trials of the fleet at once at %.3f", n.running, n.now)
		}
	}
	n.after(s.long, func() {
		res := result{}
		if s.fail {
			res = result{outcome: OutcomeFailure, err: errSimulated}
			if a.trial == "" {
				n.failed++
			}
		}
		if ofFleet {
			n.running--
		}
		n.step(func(r *replica, now time.Time) { r.ended(&a, res, now) })
	})
}

// lost rolls whether something is lost on its way.
func (c *chaos) lost() bool {
	return !c.kind.lossless && (c.broken || c.roll.IntN(20) == 0)
}

// delay is mostly short, and now and then longer than a call waits.
func (c *chaos) delay() float64 {
	if c.roll.IntN(15) == 0 {
		return 0.05 + c.roll.Float64()*0.4
	}
	return 0.0002 + c.roll.Float64()*0.003
}

// send is one attempt at a request, as the link makes it. A client that lost
// the answer may have sent it twice.
func (n *node) send(change *Change) {
	answered := false
	if n.sent {
		n.problem = fmt.Errorf("node %d sends two changes at once", n.number)
	}
	n.sent = true
	arrive := func() {
		record := n.arrive(change)
		if !n.lost() {
			back := n.delay()
			if n.kind.lossless && (change.Number == 0 || n.now < n.late+2) {
				back = 0.001 // one answer is late, and not all: a process whose answers are is cut off
			}
			if back > 0.05 {
				n.late = n.now
			}
			n.after(back, func() {
				answered = true
				n.sent = n.sent && !n.replica.awaits(change.Number)
				n.step(func(r *replica, now time.Time) { r.answered(change, record, now) })
			})
		}
	}
	if !n.lost() {
		first := n.delay()
		if n.kind.lossless { // only answers are late: a process whose requests are is cut off
			first = 0.001
		}
		n.after(first, arrive)
		if n.roll.IntN(10) == 0 {
			n.after(n.delay(), arrive)
		}
	}
	n.after(0.095, func() {
		if answered || !n.replica.awaits(change.Number) {
			return
		}
		attached := n.replica.attached()
		n.sent = false
		n.step(func(r *replica, now time.Time) { r.unanswered(change.Number, errChaos, now) })
		if attached && !n.down {
			n.down = true
			n.step(func(r *replica, now time.Time) { r.lost(errChaos, now) })
			n.after(0.05, n.probe)
		}
	})
}

var errChaos = errors.New("chaos")

func (n *node) probe() {
	if n.lost() {
		n.after(0.05+n.roll.Float64(), n.probe)
		return
	}
	n.down = false
	n.step(func(r *replica, _ time.Time) { r.back() })
}

// arrive makes a change, or reads, at the storage. News go to all, in order.
func (c *chaos) arrive(change *Change) Record {
	if change.Number == 0 {
		return c.record.At(c.time())
	}
	before := c.record
	if !before.suspect() { // it hears what came before its end, however late
		before = before.At(c.time())
	}
	record, verdict := c.record.Apply(*change, c.time())
	if verdict != VerdictRefused {
		c.record = record
	}
	switch {
	case record.Failures > before.Failures && record.State == StateClosed && change.Seen.Generation < before.Since:
		c.problem = errors.New("calls of an older state count")
	case fmt.Sprint(record.Trials) != fmt.Sprint(before.Trials) && record.Generation == before.Generation:
		c.problem = errors.New("another record of the same generation")
	}
	if verdict == VerdictMoved {
		for _, n := range c.nodes {
			if !c.lost() {
				c.after(c.delay(), func() {
					if record.Generation > n.told {
						n.tell(record)
					}
				})
			}
		}
	}
	return record
}

func (n *node) tell(record Record) {
	n.told = record.Generation
	n.step(func(r *replica, now time.Time) { r.observed(record, now) })
}

// poll is what finds a message that was lost, and a record that was.
func (n *node) poll() {
	n.after(1, n.poll)
	if !n.lost() {
		n.tell(n.record.At(n.time()))
	}
}

// quiet checks what must hold when everything has been delivered.
func (c *chaos) quiet() error {
	if c.running != 0 {
		return fmt.Errorf("%d trials run", c.running)
	}
	stored := c.record.At(c.time())
	if len(stored.Trials) > 0 {
		var known []string
		for _, n := range c.nodes {
			known = append(known, fmt.Sprintf("%d: generation %d, %d leases, trouble %v", n.number, n.replica.shared.Generation, len(n.replica.leases), n.replica.trouble))
		}
		return fmt.Errorf("a ghost holds a place in %+v, known is %q", stored, known)
	}
	if c.kind.failures && c.record.Failures != c.failed {
		return fmt.Errorf("%d failures on record, %d calls failed", c.record.Failures, c.failed)
	}
	if err := c.windows(); err != nil {
		return err
	}
	for _, n := range c.nodes {
		r := &n.replica
		switch known := r.shared.at(c.time()); {
		case !r.attached():
			return fmt.Errorf("node %d is on its own: %w", n.number, r.trouble)
		case !r.idle() || r.out.under:
			return fmt.Errorf("node %d has something to say: %+v", n.number, r.out)
		case len(r.leases) > 0:
			return fmt.Errorf("node %d keeps leases: %+v", n.number, r.leases)
		case known.Generation != stored.Generation || known.State != stored.State || known.Since != stored.Since:
			return fmt.Errorf("node %d knows\n%+v, not\n%+v", n.number, *known, stored)
		case !sameOverride(known.Override, stored.Override):
			return fmt.Errorf("node %d knows the override %+v, not %+v", n.number, known.Override, stored.Override)
		case r.override(c.time()) != nil:
			if n.view.state != r.override(c.time()).State {
				return fmt.Errorf("node %d shows %v under %+v", n.number, n.view.state, r.override(c.time()))
			}
		case r.own.State == StateClosed && n.view.state != stored.State:
			return fmt.Errorf("node %d shows %v, not %v", n.number, n.view.state, stored.State)
		}
	}
	return nil
}

// windows checks that the record has what all processes have counted, but for
// the successes that they are yet to tell. It is for windows that nothing leaves.
func (c *chaos) windows() error {
	if c.kind.config.Window < time.Hour {
		return nil
	}
	told := c.record.Window.sum()
	var counted Bucket
	for _, n := range c.nodes {
		counted.add(n.replica.own.Window.sum())
		told.add(n.replica.out.counted.sum())
	}
	if told != counted {
		return fmt.Errorf("told %+v, counted %+v", told, counted)
	}
	return nil
}

// sum is all that is in the window, as one bucket.
func (w *Window) sum() (all Bucket) {
	for _, b := range w.Buckets {
		all.add(b)
	}
	return all
}

// shorten takes out steps as long as the sequence fails.
func (k chaosKind) shorten(steps []chaosStep) []chaosStep {
	for size := len(steps) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(steps); {
			fewer := append(append([]chaosStep(nil), steps[:i]...), steps[i+size:]...)
			if k.run(fewer) != nil {
				steps = fewer
			} else {
				i += size
			}
		}
	}
	return steps
}

func chaosKinds() []chaosKind {
	storage := NewMemoryStorage()
	quick := Config{FailMax: 3, ResetTimeout: 100 * time.Millisecond, TrialTimeout: time.Hour, MaxTrials: 1, Storage: storage}
	two := quick
	two.MaxTrials, two.SuccessThreshold = 2, 2
	counting := Config{FailMax: 1 << 30, MaxTrials: 1, Storage: storage}
	rate := quick
	rate.FailMax, rate.FailureRate, rate.MinCalls, rate.Window = 0, 0.6, 10, time.Second
	both := rate
	both.FailMax, both.MaxResetTimeout, both.Ramp = 4, time.Second, 300*time.Millisecond
	countingRate := Config{FailureRate: 1, MinCalls: 1 << 30, Window: time.Hour, MaxTrials: 1, Storage: storage}
	return []chaosKind{
		{name: "exact counts", nodes: 5, config: counting, failures: true},
		{name: "late answers", nodes: 4, config: quick, lossless: true, moves: true},
		{name: "late answers, two trials", nodes: 4, config: two, lossless: true, moves: true},
		{name: "losses", nodes: 4, config: quick, moves: true},
		{name: "losses, two trials", nodes: 3, config: two, moves: true},
		{name: "a storage that forgets", nodes: 3, config: quick, moves: true, forgets: true},
		{name: "one process", nodes: 1, config: quick, moves: true},
		{name: "exact counts of a rate", nodes: 5, config: countingRate},
		{name: "a rate", nodes: 4, config: rate, moves: true},
		{name: "a row, a rate and a ramp", nodes: 4, config: both, moves: true},
		{name: "late answers, a row, a rate and a ramp", nodes: 4, config: both, lossless: true, moves: true},
	}
}

func TestReplicasOnABadNetwork(t *testing.T) {
	t.Parallel()
	runs, first := scaled(50), rand.Uint64()
	if long() {
		runs *= 4
	}
	if given := os.Getenv(chaosSeed); given != "" {
		var err error
		first, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
		runs = 1
	}
	for _, k := range chaosKinds() {
		t.Run(k.name, func(t *testing.T) {
			for seed := first; seed < first+uint64(runs); seed++ {
				steps := k.steps(seed)
				if k.run(steps) == nil {
					continue
				}
				steps = k.shorten(steps)
				var story strings.Builder
				for _, s := range steps {
					fmt.Fprintln(&story, s)
				}
				t.Fatalf("%s=%d: %v\n%s", chaosSeed, seed, k.run(steps), &story)
			}
		})
	}
}

// chaosSeed repeats one sequence: the one that was printed.
const chaosSeed = "INFUSE_CHAOS_SEED"

// withDefaults returns a replica of a storage, with the default settings.
func withDefaults(t *testing.T) replica {
	s, err := newSettings(Config{Storage: NewMemoryStorage()})
	require.NoError(t, err)
	return newReplica(s, "p", true, 1)
}

// suspicious returns a replica that has heard at noon of a suspicion, which ends
// after 50 ms.
func suspicious(t *testing.T) (r replica, suspect Record) {
	r = withDefaults(t)
	suspect = Record{}.then(calls(asking, "fffff"), noon)
	r.observed(suspect, noon)
	return r, suspect
}

func TestAnOpeningByTimeIsChecked(t *testing.T) {
	r, suspect := suspicious(t)
	require.Nil(t, r.outgoing(after(51)))
	at := r.wakeAt(after(51))
	require.True(t, at.After(after(51)) && !at.After(after(50).Add(checkWithin)), "%v", at)
	require.Equal(t, StateOpen, r.met(at).State, "until then it holds")
	check := r.outgoing(at)
	require.NotNil(t, check)
	require.False(t, check.counts() || check.acts())
	r.answered(check, suspect, at.Add(time.Millisecond))
	require.Nil(t, r.outgoing(at.Add(10*time.Second)), "once")
	r.observed(Record{}, at.Add(10*time.Second))
	lost := r.outgoing(at.Add(11 * time.Second))
	require.NotNil(t, lost)
	back, _ := Record{}.Apply(*lost, at.Add(11*time.Second))
	require.Equal(t, StateOpen, back.State, "what was confirmed is put back")

	r, suspect = suspicious(t)
	refuted, _ := suspect.Apply(knowing(suspect, asking, "ss"), after(90))
	check = r.outgoing(at)
	r.answered(check, refuted, at.Add(time.Millisecond))
	require.Equal(t, StateClosed, r.met(at).State)
}

// A storage that is away may not have heard what refutes, and told nobody.
func TestAnOpeningThatNobodyHasCheckedIsNotTakenOver(t *testing.T) {
	r, _ := suspicious(t)
	r.lost(errStorageTimeout, after(60))
	require.Equal(t, StateClosed, r.own.State)

	r, suspect := suspicious(t)
	check := r.outgoing(after(600))
	r.answered(check, suspect, after(601))
	r.lost(errStorageTimeout, after(700))
	require.Equal(t, StateOpen, r.own.State)

	r, suspect = suspicious(t)
	r.observed(suspect.At(after(50)), after(60))
	r.lost(errStorageTimeout, after(70))
	require.Equal(t, StateOpen, r.own.State, "the storage itself has said so")
}

// Nor does what this process has told itself open the circuit for it, only
// because the storage is late.
func TestWhatAProcessHasToldCountsForItAtOnce(t *testing.T) {
	for outcomes, want := range map[string]State{"ss": StateClosed, "ff": StateOpen} {
		r, _ := suspicious(t)
		for _, o := range outcomes {
			res := result{outcome: map[rune]Outcome{'f': OutcomeFailure, 's': OutcomeSuccess}[o], err: errChaos}
			r.ended(&admission{}, res, after(1))
		}
		require.NotNil(t, r.outgoing(after(49)))
		require.Equal(t, want, r.met(after(60)).State, outcomes)
	}
}

// What a process that is cut off sees after the circuit has opened is no news of
// before: it would close it for those who see an outage.
func TestWhatAProcessSeesOnItsOwnDoesNotRefute(t *testing.T) {
	r, suspect := suspicious(t)
	r.lost(errStorageTimeout, after(20))
	a := r.admission("", after(1000))
	for range 100 {
		r.ended(&a, result{}, after(1001))
	}
	r.back()
	for again := r.outgoing(after(2000)); again != nil; again = r.outgoing(after(2000)) {
		require.Zero(t, again.Calls)
		next, _ := suspect.Apply(*again, after(2000))
		require.Equal(t, StateOpen, next.At(after(2000)).State)
		r.answered(again, next, after(2000))
	}
}

// A mutant breaks one rule.
type mutant struct{ rule, file, from, to string }

// Replicas on a bad network notice these.
var mutantsOfReplicas = []mutant{
	{"a number counts once", "state.go", "if !r.hasHeard(c) {", "if true {"},
	{"an older change of a source is heard, too", "state.go", "h.number >= c.Number", "h.number == c.Number"},
	{"calls of an older state count for nothing", "state.go", "|| t.generation < r.Since", ""},
	{"as many trials run as may", "state.go", "len(r.Trials) >= t.limits.MaxTrials:", "len(r.Trials) > t.limits.MaxTrials:"},
	{"trials keep their places across transitions", "state.go", "		Trials: staleTrials(r.Trials), OpenTime", "		OpenTime"},
	{"a trial frees its place when it ends", "state.go", "r.Trials = slices.Concat(r.Trials[:i], r.Trials[i+1:])", "r.Trials = slices.Clone(r.Trials)"},
	{"every change but a count raises the generation", "state.go", "	default:\n		r.Generation = r.nextGeneration(t, now)\n	}\n	r.Trials", "	}\n	r.Trials"},
	{"an unanswered change goes again under its number", "outbox.go", "case r.out.sent.Number > 0:", "case false:"},
	{"an answer to another change settles nothing", "replica.go", "	if !mine {\n		return\n	}", ""},
	{"one change is under way", "outbox.go", "case !r.linked || r.out.under:", "case !r.linked:"},
	{"a lease that nobody runs is given back", "replica.go", "case !r.out.sent.settles(l.id) &&", "case false &&"},
	{"a process that is cut off leaves the trial to the fleet", "replica.go", "return r.since.Add(aloneAfter)", "return r.since"},
	{"an older record is not taken for news", "replica.go", "	case rec.Generation < r.shared.Generation:\n		if", "	case rec.Generation < r.shared.Generation:\n		r.adopt(rec, now)\n		if"},
}

// Simulated fleets notice these.
var mutantsOfFleets = []mutant{
	{"successes refute", "state.go", "suspicion.success*c.Successes", "0*c.Successes"},
	{"the fleet is asked", "state.go", "if l.Suspicion == 0 {", "if true {"},
	{"a refuted circuit is above suspicion", "state.go", "r.Generation+2, calm", "r.Generation+2, time.Time{}"},
	{"a suspicion lasts as long as the failures took", "state.go", "min(max(time.Duration(suspicion.length)*lasting, shortest)", "min(shortest"},
	{"successes are told while the circuit is suspect", "outbox.go", "return r.shared.weighed() || r.settings.rowCounts() &&", "return !r.shared.weighed() && r.settings.rowCounts() &&"},
	{"successes are counted while the fleet is asked for its rate", "replica.go", "r.attached() && now.Before(r.countsUntil))", "false)"},
	{"what was counted is told while the fleet is asked", "outbox.go", "!(asked && r.out.counted.Buckets != nil)", "true"},
	{"a suspicion of the rate lasts until all have heard of it", "state.go", "}{4, 3, 4, 4}", "}{4, 3, 4, 0}"},
	{"a rate that has fallen refutes", "state.go", "case r.rated() && !rate.over:", "case false:"},
}

// Tests of what a pausing storage does notice these.
var mutantsOfPauses = []mutant{
	{"what comes late is heard", "state.go", "return r.overdue(now) && r.weighed()", "return false && r.weighed()"},
	{"an opening is final once something is done", "state.go", "(!c.acts() || r.hasHeard(c)) &&", "true &&"},
	{"what was done before is not done now", "state.go", "(!c.acts() || r.hasHeard(c)) &&", "!c.acts() &&"},
	{"what comes much later is not heard", "state.go", "now.Before(r.OpensAt.Add(lateness))", "true"},
	{"a sender that does not know of the suspicion is not heard late", "state.go", "case t.late(now) && c.Seen.Generation < r.Generation && c.counts():", "case false:"},
	{"an opening that nobody has confirmed is not put back", "state.go", "!known.suspect() && ", ""},
	{"an opening by time is checked", "replica.go", "if !r.weighed() {\n\t\treturn time.Time{}", "if true {\n\t\treturn time.Time{}"},
	{"it is checked once", "replica.go", "r.shared, r.out.checkAt = r.shared.At(now), time.Time{}", ""},
	{"a process that fails no calls takes over no opening that nobody has confirmed", "replica.go", "r.unconfirmed(now) && r.own.Failures == 0 {", "false {"},
	{"what a process has told counts for it at once", "replica.go", "r.unconfirmed(now) && r.out.sent.counts()", "false"},
	{"what a process sees on its own does not refute", "outbox.go", "r.decides() && r.shared.at(now).State == StateClosed", "r.decides() && (r.trouble != nil || r.shared.at(now).State == StateClosed)"},
}

// go test -run TestMutants -v -timeout 30m . with INFUSE_MUTANTS=1
func TestMutants(t *testing.T) {
	if os.Getenv("INFUSE_MUTANTS") == "" {
		t.Skip("compiles the package many times: asks for INFUSE_MUTANTS=1")
	}
	for _, m := range mutantsOfReplicas {
		t.Run(m.rule, func(t *testing.T) { m.isNoticedBy(t, "TestReplicas") })
	}
	for _, m := range mutantsOfPauses {
		t.Run(m.rule, func(t *testing.T) {
			m.isNoticedBy(t, "TestAnOpening|TestWhat.*Late|TestWhatAProcess|TestOnce|TestAProcessThat|TestASuccess|TestACheck|TestTheSame")
		})
	}
	for _, m := range mutantsOfFleets {
		t.Run(m.rule, func(t *testing.T) {
			m.isNoticedBy(t, "TestAFleet|TestOneSick|TestAPartition|TestAnOutage|TestARate")
		})
	}
}

func (m mutant) isNoticedBy(t *testing.T, tests string) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(".")))
	path := filepath.Join(dir, m.file)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), m.from), "the rule stands once in %s", m.file)
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(text), m.from, m.to, 1)), 0o600))
	run := exec.Command("go", "test", "-vet=off", "-failfast", "-run", tests, ".")
	run.Dir, run.Env = dir, append(os.Environ(), "INFUSE_MUTANTS=", "CI=")
	out, err := run.CombinedOutput()
	require.NotContains(t, string(out), "[build failed]")
	require.Error(t, err, "nothing has noticed")
}
