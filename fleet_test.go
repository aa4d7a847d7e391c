package infuse

import (
	"cmp"
	"container/heap"
	"errors"
	goflag "flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The simulated fleet: any number of replicas and one stored record, the very
// code of replica.go and state.go, in virtual time. A success in health changes
// nothing, so that only the failures of a quiet process are drawn, and hours of
// thousands of processes take seconds.

// fleet is what is simulated.
type fleet struct {
	processes int
	rate      float64                               // calls a second of each process
	lasts     float64                               // seconds
	errors    func(process int, at float64) float64 // the share of calls that fail
	latency   float64                               // one way to the storage, in seconds; 0.5 ms if 0
	pauses    float64                               // of the storage, once a second, in seconds
	config    Config
	other     *Config // of every second process, if not nil
}

// tally is what came of it.
type fleetTally struct {
	openings, suspicions, messages int
	rejected                       int // by the fleet's circuit
	rejectedAlone                  int // by that of the process
	openedAlone                    int
	healthyRejected                int     // rejected calls of processes for which less than half of the calls fail
	limitAt, openAt                float64 // of the first opening after the onset
	callsToOpen                    int
	counted                        int     // calls that the processes counted for the failure rate
	admitting                      int     // processes that let calls run
	shutAt                         float64 // when there was none left, after the onset
}

type simulation struct {
	fleet
	fleetTally
	onset  float64
	roll   *rand.Rand
	now    float64
	events events
	record Record
	opened int64 // the generation of the last opening that was counted
	all    []*process
}

// process is one replica and the stream of its calls.
type process struct {
	*simulation
	number  int
	replica replica
	view    view
	timer   int     // counts what the timer was set for
	stream  int     // counts how often the calls were drawn anew
	tallied float64 // since when successes that are only tallied are to be drawn
}

// happening is something that happens at a time; events are a heap of them.
type happening struct {
	at    float64
	order int
	do    func()
}

type events struct {
	all   []happening
	count int
}

func (e *events) Len() int { return len(e.all) }
func (e *events) Less(i, j int) bool {
	a, b := e.all[i], e.all[j]
	return a.at < b.at || a.at == b.at && a.order < b.order
}
func (e *events) Swap(i, j int) { e.all[i], e.all[j] = e.all[j], e.all[i] }
func (e *events) Push(x any)    { e.all = append(e.all, x.(happening)) }
func (e *events) Pop() any {
	last := e.all[len(e.all)-1]
	e.all = e.all[:len(e.all)-1]
	return last
}

const callTime = 0.002 // seconds

// simulate runs the fleet. Openings after the onset are timed.
func simulate(f fleet, onset float64, seed uint64) fleetTally {
	s := &simulation{fleet: f, onset: onset, roll: rand.New(rand.NewPCG(seed, 0))}
	if s.latency == 0 {
		s.latency = 0.0005
	}
	var all [2]*settings
	for i, cfg := range []Config{f.config, *cmp.Or(f.other, &f.config)} {
		cfg.Storage, cfg.Instance = NewMemoryStorage(), "simulated"
		var err error
		if all[i], err = newSettings(cfg); err != nil {
			panic(err)
		}
	}
	s.admitting = f.processes
	for i := range f.processes {
		p := &process{simulation: s, number: i, replica: newReplica(all[i%2], fmt.Sprint("p", i), true, seed<<20+uint64(i))}
		p.view.derive(&p.replica, "simulated", s.time())
		s.all = append(s.all, p)
		p.draw()
	}
	for len(s.events.all) > 0 {
		e := heap.Pop(&s.events).(happening)
		if e.at > f.lasts {
			break
		}
		s.now = e.at
		s.countOpening()
		e.do()
	}
	return s.fleetTally
}

func (s *simulation) time() time.Time { return noon.Add(time.Duration(s.now * float64(time.Second))) }

func (s *simulation) after(seconds float64, do func()) {
	s.events.count++
	heap.Push(&s.events, happening{s.now + seconds, s.events.count, do})
}

func (s *simulation) countOpening() {
	if r := s.record.at(s.time()); r.Opened > s.opened {
		s.opened = r.Opened
		s.openings++
		if s.openAt == 0 && s.now >= s.onset {
			s.openAt = s.now
		}
	}
}

// step is the shell's: an input, then the view, the timer and what is to be sent.
func (p *process) step(input func(r *replica, now time.Time)) {
	now := p.time()
	wasQuiet, wasAlone := p.quiet(), p.view.local && p.view.state == StateOpen
	p.takeTally(now)
	input(&p.replica, now)
	change := p.replica.outgoing(now)
	admitted := p.view.admits == admitsAll
	p.view = view{}
	p.view.derive(&p.replica, "simulated", now)
	p.noteAdmitting(admitted, p.view.admits == admitsAll)
	if p.view.local && p.view.state == StateOpen && !wasAlone {
		p.openedAlone++
	}
	if change != nil {
		p.messages++
		arrives := p.latency
		if into := math.Mod(p.now+arrives, 1); into < p.pauses {
			arrives += p.pauses - into
		}
		p.after(arrives, func() { p.arrive(change) })
	}
	p.arm(now)
	if p.quiet() != wasQuiet {
		p.draw()
	}
}

// quiet reports whether successes change nothing but a tally.
func (p *process) quiet() bool { return p.view.quiet && p.view.admits == admitsAll }

// takeTally draws how many calls have succeeded since the last step.
func (p *process) takeTally(now time.Time) {
	if p.view.tallies && p.quiet() {
		mean := p.rate * (1 - p.errors(p.number, p.now)) * (p.now - p.tallied)
		if n := p.poisson(mean); n > 0 {
			p.counted += n
			p.replica.tallied(n, now)
		}
	}
	p.tallied = p.now
}

func (s *simulation) poisson(mean float64) int {
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*s.roll.NormFloat64())))
	}
	n, left := 0, math.Exp(-mean)
	for product := s.roll.Float64(); product > left; product *= s.roll.Float64() {
		n++
	}
	return n
}

func (p *process) noteAdmitting(before, after bool) {
	switch {
	case before && !after:
		p.admitting--
	case after && !before:
		p.admitting++
	}
	if p.admitting == 0 && p.shutAt == 0 && p.now >= p.onset {
		p.shutAt = p.now
	}
}

func (p *process) arm(now time.Time) {
	p.timer++
	if at := p.replica.wakeAt(now); !at.IsZero() {
		armed := p.timer
		p.after(at.Sub(now).Seconds(), func() {
			if p.timer == armed {
				p.step(func(*replica, time.Time) {})
			}
		})
	}
}

// arrive makes a change at the storage, and sends the answer and the news.
func (p *process) arrive(change *Change) {
	suspect := p.record.suspect()
	record, verdict := p.record.Apply(*change, p.time())
	if verdict != VerdictRefused {
		p.record = record
	}
	if record.suspect() && !suspect {
		p.suspicions++
		if p.now >= p.onset {
			p.limitAt = p.now
		}
	}
	p.after(p.latency, func() {
		p.step(func(r *replica, now time.Time) { r.answered(change, record, now) })
	})
	if verdict == VerdictMoved {
		for _, other := range p.all {
			p.after(p.latency, func() {
				other.step(func(r *replica, now time.Time) { r.observed(record, now) })
			})
		}
	}
}

// draw draws the next call: of a quiet process, the next that fails.
func (p *process) draw() {
	p.stream++
	stream, quiet := p.stream, p.quiet()
	rate, share := p.rate, p.errors(p.number, p.now)
	if quiet {
		rate *= share
	}
	longest := 5.0 // then the share of errors may be another
	if p.now < p.onset {
		longest = min(longest, p.onset-p.now)
	}
	wait := math.Inf(1)
	if rate > 0 {
		wait = p.roll.ExpFloat64() / rate
	}
	p.after(min(wait, longest), func() {
		if p.stream != stream {
			return
		}
		if wait <= longest {
			p.call(quiet || p.roll.Float64() < p.errors(p.number, p.now))
		}
		if p.stream == stream {
			p.draw()
		}
	})
}

func (p *process) call(fails bool) {
	if p.now >= p.onset && p.openAt == 0 {
		p.callsToOpen++
	}
	a, d := p.view.admission(), rejects
	switch p.view.admits {
	case admitsAll:
		d = admits
	case admitsAsker:
		p.step(func(r *replica, now time.Time) { a, d = r.asked(now) })
	}
	if d != waits {
		p.run(a, d, fails)
		return
	}
	p.after(2.1*p.latency, func() {
		p.step(func(r *replica, now time.Time) { a, d = r.goesOn(a, now) })
		p.run(a, d, fails)
	})
}

var errSimulated = errors.New("simulated")

func (p *process) run(a admission, d decision, fails bool) {
	if d == rejects {
		p.reject()
		return
	}
	p.after(callTime, func() {
		res := result{}
		if fails {
			res = result{outcome: OutcomeFailure, err: errSimulated}
		}
		p.step(func(r *replica, now time.Time) { r.ended(&a, res, now) })
	})
}

func (p *process) reject() {
	if p.errors(p.number, p.now) < 0.5 {
		p.healthyRejected++
	}
	if p.view.local {
		p.rejectedAlone++
	} else {
		p.rejected++
	}
}

// The services that are simulated.

func atRandom(share float64) func(int, float64) float64 {
	return func(int, float64) float64 { return share }
}

// cutOff fails every call of so many processes from then on.
func cutOff(processes int, from float64) func(int, float64) float64 {
	return func(process int, at float64) float64 {
		if process < processes && at >= from {
			return 1
		}
		return 0
	}
}

func outage(share, from float64) func(int, float64) float64 {
	return func(_ int, at float64) float64 {
		if at >= from {
			return share
		}
		return 0
	}
}

// long tells that the long runs are asked for.
func long() bool { return os.Getenv("CI") == "true" }

// scaled is n, and a quarter of it with -short: of runs that take the processor
// for seconds.
func scaled[N int | float64](n N) N {
	if testing.Short() {
		return n / 4
	}
	return n
}

// 100 processes at 1 % random errors closed a healthy service to 82 % of calls.
func TestAFleetStaysClosedAtRandomErrors(t *testing.T) {
	t.Parallel()
	for _, f := range []fleet{
		{processes: 20, rate: 100, lasts: 120}, {processes: 100, rate: 20, lasts: 60},
		{processes: 1000, rate: 20, lasts: 3}, {processes: 10_000, rate: 2, lasts: 0.5},
		{processes: 100, rate: 1, lasts: 600}, {processes: 20, rate: 5, lasts: 600}, {processes: 20, rate: 1, lasts: 1800},
	} {
		if !long() && f.lasts > 1 {
			f.lasts /= 4
		}
		f.lasts = scaled(f.lasts)
		for _, share := range []float64{0.01, 0.05, 0.10} {
			f.errors = atRandom(share)
			got := simulate(f, 0, 1)
			what := fmt.Sprintf("%d processes, %v calls/s each, %v %% errors", f.processes, f.rate, 100*share)
			assert.Zero(t, got.openings, what)
			assert.Zero(t, got.rejected, what)
			assert.LessOrEqual(t, float64(got.suspicions)/max(f.lasts, 1), 20.0, what)
		}
	}
}

// A storage that pauses for longer than the fleet is asked keeps back the
// successes of all, and hears of them late. It rejected 5 % of the calls.
func TestAStorageThatPausesOpensLittle(t *testing.T) {
	t.Parallel()
	f := fleet{processes: 100, rate: 20, lasts: scaled(60.0), pauses: 0.2, config: Config{ResetTimeout: time.Second}}
	if long() {
		f.lasts = 600
	}
	for _, share := range []float64{0.01, 0.1} {
		f.errors, f.config.Suspicion = atRandom(share), 0
		got := simulate(f, 0, 1)
		rejected := float64(got.rejected) / (float64(f.processes) * f.rate * f.lasts)
		t.Logf("%v pauses, %v %% errors: %d openings, %.2f %% of the calls rejected", f.lasts, 100*share, got.openings, 100*rejected)
		assert.NotZero(t, got.suspicions)
		assert.Less(t, rejected, 0.01, "%v %% errors", 100*share)
		f.config.Suspicion = 250 * time.Millisecond
		got = simulate(f, 0, 1)
		assert.Zero(t, got.openings, "%v %% errors: %+v", 100*share, got)
	}
}

// One client of 20 that was cut off closed the service to two thirds of
// everybody's calls.
func TestOneSickClientIsItsOwnProblem(t *testing.T) {
	for _, f := range []fleet{
		{processes: 5, rate: 0.1, lasts: 3600}, {processes: 20, rate: 1, lasts: 600},
		{processes: 20, rate: 100, lasts: 600}, {processes: 1000, rate: 20, lasts: 185},
	} {
		f.errors = cutOff(1, 0)
		got := simulate(f, 0, 1)
		what := fmt.Sprintf("of %d processes, %v calls/s each: %+v", f.processes, f.rate, got)
		assert.Zero(t, got.openings, what)
		assert.Zero(t, got.healthyRejected, what)
		assert.LessOrEqual(t, got.suspicions, 2*got.openedAlone, what)
		assert.GreaterOrEqual(t, got.openedAlone, 1, what)
	}
}

func TestAPartitionIsItsOwnProblem(t *testing.T) {
	for _, processes := range []int{100, 1000} {
		for part, most := range map[int]int{33: 0, 66: 1} {
			f := fleet{processes: processes, rate: 20, lasts: 35, errors: cutOff(processes*part/100, 5)}
			got := simulate(f, 5, 1)
			what := fmt.Sprintf("%d of 100, of %d: %+v", part, processes, got)
			assert.LessOrEqual(t, got.openings, most, what)
			if most == 0 {
				assert.Zero(t, got.healthyRejected, what)
			} else if got.openings > 0 {
				assert.Less(t, got.openAt, 6.0, "at the onset: %s", what)
			}
		}
	}
}

// A true outage opens at most Suspicion and three round trips after the limit
// was reached. Where one call in five succeeds, the processes' own circuits
// have a share in it.
func TestAnOutageOpensTheFleet(t *testing.T) {
	t.Parallel()
	const onset = 5.5
	for _, f := range []fleet{{processes: 20, rate: 100}, {processes: 100, rate: 20}, {processes: 1000, rate: 2}} {
		for _, share := range []float64{1, 0.9, 0.8} {
			f.lasts, f.errors = onset+5, outage(share, onset)
			var opened, shut []float64
			for seed := range scaled(9) {
				got := simulate(f, onset, uint64(seed))
				require.NotZero(t, got.shutAt, "%+v", got)
				opened, shut = append(opened, got.openAt-got.limitAt), append(shut, got.shutAt-onset)
			}
			slices.Sort(opened)
			slices.Sort(shut)
			what := fmt.Sprintf("%d processes, %v %%, medians: opened %.1f ms after the limit, nobody calls %.1f ms after the onset",
				f.processes, 100*share, 1000*opened[len(opened)/2], 1000*shut[len(shut)/2])
			assert.LessOrEqual(t, shut[len(shut)/2], 0.5, what)
			if share > 0.8 {
				assert.LessOrEqual(t, opened[len(opened)/2], 0.05+3*2*0.0005, what)
			}
			t.Log(what)
		}
	}
}

var fleetTable = goflag.Bool("fleet.table", false, "print the tables of docs/simulation.md (some minutes)")

// go test -run TestFleetTable -v -timeout 60m . -args -fleet.table
func TestFleetTable(t *testing.T) {
	if !*fleetTable {
		t.Skip("asks for -args -fleet.table")
	}
	kinds := []fleet{
		{processes: 5, rate: 0.1, lasts: 200 * 3600}, {processes: 20, rate: 1, lasts: 20 * 3600}, {processes: 100, rate: 1, lasts: 8 * 3600},
		{processes: 20, rate: 5, lasts: 8 * 3600}, {processes: 20, rate: 100, lasts: 1800}, {processes: 1000, rate: 1, lasts: 300},
	}
	fmt.Println("| fleet | 1 % | 5 % | 10 % | 30 % | one sick client | 33 % cut off | 66 % cut off | outage 100 % | 90 % |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, f := range kinds {
		fmt.Println(tableRow(f))
	}
	fmt.Println("\nThe same for other values: openings an hour at 10 % errors, at 30 %, and with 66 % cut off; then the outage of 90 %.")
	fmt.Println("\n| a success takes | as long as | early at | latency | 10 % | 30 % | 66 % cut off | outage 90 % |\n|--:|--:|--:|--:|--:|--:|--:|--:|")
	before := suspicion
	defer func() { suspicion = before }()
	for _, latency := range []float64{0.0005, 0.005} {
		for _, v := range [][3]int{{2, 3, 4}, {3, 3, 4}, {4, 3, 4}, {9, 3, 4}, {4, 1, 4}, {4, 2, 4}, {4, 4, 4}, {4, 3, 2}, {4, 3, 3}, {4, 3, 6}} {
			suspicion.success, suspicion.length, suspicion.early = v[0], v[1], v[2]
			f := fleet{processes: 100, rate: 1, lasts: 4 * 3600, latency: latency}
			fmt.Printf("| %d | %d | %d | %v ms | %s | %s | %s | %s |\n", v[0], v[1], v[2], latency*1000,
				perHour(f, atRandom(0.1)), perHour(f, atRandom(0.3)), perHour(f, cutOff(66, 0)), outageOf(f, 0.9))
		}
	}
}

func tableRow(f fleet) string {
	cells := []string{fmt.Sprintf("%d x %v/s", f.processes, f.rate)}
	for _, share := range []float64{0.01, 0.05, 0.1, 0.3} {
		cells = append(cells, perHour(f, atRandom(share)))
	}
	for _, part := range []int{1, f.processes / 3, f.processes * 2 / 3} {
		cells = append(cells, perHour(f, cutOff(part, 0)))
	}
	cells = append(cells, outageOf(f, 1), outageOf(f, 0.9))
	return "| " + strings.Join(cells, " | ") + " |"
}

func perHour(f fleet, errors func(int, float64) float64) string {
	f.errors = errors
	n := float64(simulate(f, 0, 1).openings) * 3600 / f.lasts
	return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0")
}

// outageOf returns the median of what an outage costs until the circuit is open.
func outageOf(f fleet, share float64) string {
	const onset = 5.5
	f.errors, f.lasts = outage(share, onset), onset+5+100/f.rate/float64(f.processes)+60
	var calls, took []float64
	for seed := range uint64(15) {
		got := simulate(f, onset, seed)
		calls, took = append(calls, float64(got.callsToOpen)), append(took, 1000*(got.openAt-onset))
	}
	slices.Sort(calls)
	slices.Sort(took)
	return fmt.Sprintf("%.0f calls, %.0f ms", calls[len(calls)/2], took[len(took)/2])
}
