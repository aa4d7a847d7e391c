package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/infuse-go/infuse"
)

// planInput is the traffic and the settings of a plan.
type planInput struct {
	calls     float64 // a second, of one process
	processes int
	circuits  int     // of each process
	errors    float64 // baseline error rate

	failMax      int // 0: consecutive failures open nothing
	failureRate  float64
	minCalls     int
	window       time.Duration
	resetTimeout time.Duration
	suspicion    time.Duration
	pollInterval time.Duration
}

// estimate is what plan prints, with -json as it is. Rates are of one circuit.
type estimate struct {
	LocalPerHour    float64 `json:"local_openings_per_hour"`     // of one process
	AllLocalPerHour float64 `json:"all_local_openings_per_hour"` // of all processes together
	SuspectPerHour  float64 `json:"suspicions_per_hour"`         // of the shared circuit
	SharedPerHour   float64 `json:"shared_openings_per_hour"`

	OutageCalls      *float64 `json:"outage_calls,omitempty"`       // until all processes reject; none: they never do
	OutageCallsLocal *float64 `json:"outage_calls_local,omitempty"` // with local circuits alone
	OutageSeconds    *float64 `json:"outage_seconds,omitempty"`     // until all processes reject
	TrialsPerHour    float64  `json:"outage_trials_per_hour"`       // at most, afterwards

	Healthy        float64 `json:"commands_per_second_healthy"`
	Baseline       float64 `json:"commands_per_second_baseline"`
	Outage         float64 `json:"commands_per_second_outage"`
	OpeningBurst   float64 `json:"commands_of_an_opening"` // once
	LocalRateWorks bool    `json:"local_failure_rate_decides"`
	RateWorks      bool    `json:"shared_failure_rate_decides"`
}

func planFlags(f *flag.FlagSet, o *options) {
	p := &o.plan
	f.Float64Var(&p.calls, "calls", 10, "")
	f.IntVar(&p.processes, "processes", 10, "")
	f.IntVar(&p.circuits, "circuits", 1, "")
	f.Float64Var(&p.errors, "errors", 0.01, "")
	f.IntVar(&p.failMax, "fail-max", 0, "")
	f.Float64Var(&p.failureRate, "failure-rate", 0, "")
	f.IntVar(&p.minCalls, "min-calls", 20, "")
	f.DurationVar(&p.window, "window", 10*time.Second, "")
	f.DurationVar(&p.resetTimeout, "reset-timeout", time.Minute, "")
	f.DurationVar(&p.suspicion, "suspicion", 50*time.Millisecond, "")
	f.DurationVar(&p.pollInterval, "poll-interval", 2*time.Second, "")
}

func checkPlan(o *options, _ []string) error {
	p := &o.plan
	switch {
	case !(p.calls >= 1e-6 && p.calls <= 1e7):
		return misused("-calls is %v: must be from 0.000001 to 10000000 a second", p.calls)
	case p.processes < 1 || p.processes > 100_000:
		return misused("-processes is %d: must be from 1 to 100000", p.processes)
	case p.circuits < 1 || p.circuits > 1_000_000:
		return misused("-circuits is %d: must be from 1 to 1000000", p.circuits)
	case !(p.errors >= 0 && p.errors < 1):
		return misused("-errors is %v: must be from 0 to below 1, where 0.01 is 1 %%", p.errors)
	case p.failMax > 10_000 || p.minCalls > 1_000_000:
		return misused("-fail-max must be at most 10000, and -min-calls at most 1000000")
	case p.pollInterval < time.Millisecond:
		return misused("-poll-interval is %v: must be at least 1ms", p.pollInterval)
	}
	b, err := infuse.New("plan", infuse.Config{
		FailMax: p.failMax, FailureRate: p.failureRate, MinCalls: p.minCalls, Window: p.window,
		ResetTimeout: p.resetTimeout, Suspicion: p.suspicion,
	})
	if err != nil {
		return misused("%s", strings.TrimPrefix(err.Error(), "infuse: "))
	}
	b.Stop()
	if p.failMax == 0 && p.failureRate == 0 {
		p.failMax = 5
	}
	return nil
}

func plan(_ context.Context, j *job) error {
	e := j.plan.estimate()
	if j.json {
		return writeJSON(j.stdout, e, "  ")
	}
	return e.print(j.stdout, &j.plan)
}

// The formulas, in the order of docs/policies.md.

// estimate computes the plan.
func (p *planInput) estimate() *estimate {
	all := p.calls * float64(p.processes)
	e := &estimate{
		LocalRateWorks: p.rateDecides(p.calls), RateWorks: p.processes > 1 && p.rateDecides(all),
		TrialsPerHour: 2 * 3600 / p.resetTimeout.Seconds(),
	}
	reset := p.resetTimeout.Seconds() / (1 - p.errors)
	e.LocalPerHour = perHour(p.localStreaks()+p.localRates(), reset)
	e.AllLocalPerHour = e.LocalPerHour * float64(p.processes)

	suspicions, rates := p.suspicions(), p.sharedRates(0) // a second
	opens := p.opensOfSuspect()
	e.SuspectPerHour = 3600 * (suspicions + rates)
	if p.processes > 1 {
		e.SharedPerHour = perHour(suspicions*opens+p.sharedRates((1-p.failureRate)*float64(p.minCalls)), reset)
	}
	p.outage(e)
	p.load(e, suspicions+rates)
	return e
}

// perHour returns how often something happens that begins so often a second, and
// then lasts for so many seconds.
func perHour(rate, lasts float64) float64 {
	if rate == 0 {
		return 0
	}
	return 3600 / (1/rate + lasts)
}

// localStreaks returns how often a second the calls of one process fail FailMax
// times in succession: R·(1−p)·pⁿ/(1−pⁿ).
func (p *planInput) localStreaks() float64 {
	if p.failMax == 0 || p.errors == 0 {
		return 0
	}
	chance := math.Pow(p.errors, float64(p.failMax))
	return p.calls * (1 - p.errors) * chance / (1 - chance)
}

func (p *planInput) rateDecides(calls float64) bool {
	return p.failureRate > 0 && calls*p.window.Seconds() >= float64(p.minCalls)
}

// localRates returns how often a second the failure rate of one process is reached.
func (p *planInput) localRates() float64 { return p.rates(p.calls, p.errors, p.calls, 0) }

// rates returns how often a second so many counted calls a second, of which a
// fraction fails, reach FailureRate and so many failures more. Windows begin by the
// failures of process.
func (p *planInput) rates(calls, errors, process, more float64) float64 {
	f, m := p.failureRate, float64(p.minCalls)
	n := math.Floor(calls * p.window.Seconds())
	switch {
	case f == 0 || errors == 0 || n < m:
		return 0
	case errors >= f && more == 0:
		return calls / m
	}
	k := math.Ceil(f*n + more - 1e-9)
	// Near the threshold, one more failure comes so many times as often as one less:
	// so often the threshold is reached more than once by the same failures.
	again := errors * (n - k) / ((1 - errors) * k)
	full := calls * errors * (1 - errors) * binomial(n-1, k-1, errors) * max(1-again, 1/math.Sqrt(n))
	begins := process * errors * math.Pow(1-errors, n)
	return full + begins*atLeast(m-1, math.Ceil(f*m+more-1e-9)-1, errors)
}

// counted returns the calls a second in the window of the shared circuit, and the
// fraction that failed: a process counts successes only while its own window has a
// failure.
func (p *planInput) counted() (calls, errors float64) {
	all := p.calls * float64(p.processes)
	if p.errors == 0 {
		return 0, 0
	}
	counting := 1 - math.Pow(1-p.errors, p.calls*p.window.Seconds())
	calls = all * (p.errors + (1-p.errors)*counting)
	return calls, all * p.errors / calls
}

func (p *planInput) sharedRates(more float64) float64 {
	calls, errors := p.counted()
	return p.rates(calls, errors, p.calls*float64(p.processes), more)
}

// sharedStreaks returns how often a second the reported failures reach FailMax. A
// failure adds 1; a success resets the streak if its process's last call failed. The
// streaks follow one another, from a dismissal on, when no process has failed last.
func (p *planInput) sharedStreaks() float64 {
	if p.failMax == 0 || p.errors == 0 {
		return 0
	}
	e, n := p.errors, float64(p.processes)
	high := int(min(n, n*e+12*math.Sqrt(n*e*(1-e))+20+float64(min(p.failMax, 100))))
	start := make([]float64, high+2) // of a streak: the chance that so many processes have failed last
	start[0] = 1
	calls, alive, last := 0.0, 1.0, 0.0 // calls until FailMax; the chance that it is not reached yet
	for rounds := 10_000_000/(high+1)/p.failMax + 20; rounds > 0; rounds-- {
		length, reached, next := p.streak(start, high)
		calls += length
		alive -= reached
		share := reached / (alive + reached)
		if start = next; alive < 1e-9 {
			break
		}
		if math.Abs(share-last) < 1e-6*share || rounds == 1 { // it goes on so
			calls += alive * (length / (alive + reached)) / share
			break
		}
		last = share
	}
	return p.calls * n / calls
}

// streak follows a streak that begins with so many failed processes, until it is
// reset or reaches FailMax: its mean length in calls, the chance that it reaches it,
// and the beginnings of the next.
func (p *planInput) streak(start []float64, high int) (length, reached float64, next []float64) {
	e, n := p.errors, float64(p.processes)
	x := make([]float64, high+2) // the calls that are made while so many processes have failed last
	next = make([]float64, high+2)
	failed := func(m int) float64 { return float64(m) / n }
	leaves := func(m int) float64 { return 1 - (1-failed(m))*(1-e) }
	for k := range p.failMax {
		for m := high; m >= 0; m-- {
			if k == 0 {
				x[m] = start[m] / leaves(m)
				continue
			}
			in := failed(m) * e * x[m]
			if m > 0 {
				in += (1 - failed(m-1)) * e * x[m-1]
			}
			x[m] = in / leaves(m)
		}
		reached = 0
		for m := 0; m <= high; m++ {
			length += x[m]
			reached += e * x[m]
			if m > 0 {
				next[m-1] += x[m] * failed(m) * (1 - e)
			}
		}
		if reached == 0 {
			break
		}
	}
	return length, reached, next
}

// suspicions returns how often a second the shared circuit becomes suspect of a
// streak. A suspicion that is dismissed lasts for some calls, and no other begins for
// Suspicion: of that time and the time of the streak the longer one counts.
func (p *planInput) suspicions() float64 {
	rate := p.sharedStreaks()
	if rate == 0 {
		return 0
	}
	falls := max(4-5*p.errors, 0.1) // of the score, a call
	lasts := float64(p.failMax) / falls / p.calls / float64(p.processes)
	pause := p.suspicion.Seconds()
	return 1 / (lasts + pause + math.Exp(-pause*rate)/rate)
}

// opensOfSuspect returns the probability that a circuit that is suspect of a streak
// opens: its score goes from FailMax to 2 × FailMax before it is 0, and not before
// Suspicion.
func (p *planInput) opensOfSuspect() float64 {
	if p.failMax == 0 || p.errors == 0 || p.processes < 2 {
		return 0
	}
	e, opens := p.errors, 2*p.failMax
	mean := min(p.calls*float64(p.processes)*p.suspicion.Seconds(), 5000)
	first := int(mean + 10*math.Sqrt(mean) + 10) // calls before Suspicion, at most
	reach := p.reach(opens, p.failMax+first+1)
	score := make([]float64, p.failMax+first+1) // its chance
	score[p.failMax] = 1
	sum := 0.0
	for call := 0; call <= first; call++ {
		next := make([]float64, len(score))
		alive, opened := 0.0, 0.0
		for s, chance := range score {
			if chance == 0 {
				continue
			}
			opened += chance * reach[s]
			if s+1 < len(next) {
				next[s+1] += chance * e
			}
			if s > 4 {
				next[s-4] += chance * (1 - e)
			}
			alive += chance
		}
		if alive < 1e-40 {
			break
		}
		sum += poisson(float64(call), mean) * opened
		score = next
	}
	return sum
}

// reach returns for each score the chance that it opens the circuit, once Suspicion
// has passed: by the failure that makes it 2 × FailMax or finds it above that.
func (p *planInput) reach(opens, scores int) []float64 {
	e, reach := p.errors, make([]float64, max(opens, scores))
	for range 100_000 {
		change := 0.0
		for s := opens - 1; s > 0; s-- {
			now := e
			if s+1 < opens {
				now *= reach[s+1]
			}
			if s > 4 {
				now += (1 - e) * reach[s-4]
			}
			change = max(change, (now-reach[s])/max(now, 1e-300))
			reach[s] = now
		}
		if change < 1e-9 {
			break
		}
	}
	for s := opens; s < len(reach); s++ {
		reach[s] = e
		if s > 4 {
			reach[s] += (1 - e) * reach[s-4]
		}
	}
	return reach
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// outage fills in what an outage costs, in which all calls fail.
func (p *planInput) outage(e *estimate) {
	n, r, all := float64(p.processes), p.calls, p.calls*float64(p.processes)
	// With its local circuit, a process makes so many calls.
	local := math.Inf(1)
	if p.failMax > 0 {
		local = float64(p.failMax)
	}
	if p.rateDecides(r) {
		local = min(local, r*p.outageRateTime(r, p.localCounted(), p.errors, 0))
	}
	if !math.IsInf(local, 1) {
		total := n * local
		e.OutageCallsLocal = &total
	}
	// The shared circuit opens after so many seconds.
	opens := math.Inf(1)
	if p.processes > 1 && p.failMax > 0 {
		opens = max(2*float64(p.failMax)/all, float64(p.failMax)/all+p.suspicion.Seconds())
	}
	if e.RateWorks {
		calls, errors := p.counted()
		suspect := p.outageRateTime(all, calls, errors, 0)
		sure := p.outageRateTime(all, calls, errors, (1-p.failureRate)*float64(p.minCalls))
		opens = min(opens, max(sure, suspect+4*p.suspicion.Seconds()))
	}
	var calls, seconds float64
	switch {
	case math.IsInf(opens, 1) && math.IsInf(local, 1):
		return
	case math.IsInf(opens, 1):
		calls, seconds = n*local, local/r
	default:
		// Each process makes calls until then, or until its local circuit opens; one that
		// has made none makes one.
		none := math.Exp(-r * opens)
		calls = n * (meanOfAtMost(local, r*opens) + none)
		if p.failMax > 0 { // the evidence that it takes
			calls = max(calls, min(2*float64(p.failMax), n*local))
		}
		last := n * none
		if last > 1 {
			last = math.Log(last) + 0.58
		}
		seconds = opens + last/r
	}
	e.OutageCalls, e.OutageSeconds = &calls, &seconds
}

// localCounted is counted for the window of one process.
func (p *planInput) localCounted() float64 {
	if p.errors*p.calls*p.window.Seconds() < 1 { // it is mostly empty
		return 0
	}
	return p.calls
}

// outageRateTime returns after how many seconds of an outage the failures reach
// FailureRate and so many failures more, in a window with calls of before.
func (p *planInput) outageRateTime(calls, before, errors, more float64) float64 {
	f, excess := p.failureRate, before*max(0, p.failureRate-errors)
	t := (more + excess*p.window.Seconds()) / (calls*(1-f) + excess)
	if calls*(1-f)+excess == 0 { // FailureRate 1
		t = p.window.Seconds()
	}
	return max(t, float64(p.minCalls)/calls)
}

// meanOfAtMost returns the mean of a Poisson number that is cut off at a limit.
func meanOfAtMost(limit, mean float64) float64 {
	if math.IsInf(limit, 1) || mean > 100*limit+1000 {
		return min(limit, mean)
	}
	sum, below := 0.0, 0.0
	spread := 20*math.Sqrt(mean) + 40
	for k := math.Floor(max(0, mean-spread)); k < limit && k < mean+spread; k++ {
		chance := poisson(k, mean)
		sum, below = sum+k*chance, below+chance
	}
	return sum + limit*max(0, 1-below)
}

// load fills in the commands a second of Redis.
func (p *planInput) load(e *estimate, suspicions float64) {
	n, circuits, all := float64(p.processes), float64(p.circuits), p.calls*float64(p.processes)
	const ping = 0.5 // one after 2 s of silence
	poll := p.pollInterval.Seconds()
	e.Healthy = n * (ping + circuits/(15*poll))

	reports := all * p.errors // failures
	if p.failMax > 0 {        // and the successes behind them
		reports += all * p.errors * (1 - p.errors)
	}
	// A suspicion is two messages, which each process answers with a read, and the
	// reports that dismiss it.
	dismissal := max(math.Ceil(float64(p.failMax)/4), min(n, all*p.suspicion.Seconds()/8))
	e.Baseline = e.Healthy + circuits*(reports+suspicions*(2*n+dismissal))

	// Two trials an open duration: each is asked for and reported, with a message each.
	e.Outage = n*ping + circuits*(n/poll+2*(2+2*n)/p.resetTimeout.Seconds())
	if e.OutageCalls != nil {
		e.OpeningBurst = circuits * (*e.OutageCalls + 2*n)
	}
}

// binomial returns the probability of k failures in n calls.
func binomial(n, k, p float64) float64 {
	switch {
	case k < 0 || k > n:
		return 0
	case p == 0 || p == 1:
		return boolToFloat(k == n*p)
	}
	return math.Exp(logFactorial(n) - logFactorial(k) - logFactorial(n-k) + k*math.Log(p) + (n-k)*math.Log1p(-p))
}

// atLeast returns the probability of k failures or more in n calls.
func atLeast(n, k, p float64) float64 {
	sum := 0.0
	for i := max(0, k); i <= n; i++ {
		sum += binomial(n, i, p)
	}
	return min(1, sum)
}

func poisson(k, mean float64) float64 {
	if mean == 0 {
		return boolToFloat(k == 0)
	}
	return math.Exp(k*math.Log(mean) - mean - logFactorial(k))
}

func logFactorial(n float64) float64 {
	l, _ := math.Lgamma(n + 1)
	return l
}

// print writes the plan as text.
func (e *estimate) print(w io.Writer, p *planInput) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	row := func(name, number, text string) { fmt.Fprintf(t, "%s\t%s\t%s\n", name, number, text) }

	fmt.Fprintf(t, "Processes %d, calls/s of each %s, baseline error rate %s %%.\n", p.processes, figure(p.calls), figure(100*p.errors))
	fmt.Fprintf(t, "FailMax %s, FailureRate %s, ResetTimeout %s, Suspicion %s, PollInterval %s.\n\n",
		orOff(float64(p.failMax)), p.rateText(), brief(p.resetTimeout), p.suspicion, p.pollInterval)

	row("OPENINGS BY CHANCE", "AN HOUR", "")
	row("local circuit of one process", figure(e.LocalPerHour), often(e.LocalPerHour))
	row("local circuits of all processes", figure(e.AllLocalPerHour), often(e.AllLocalPerHour))
	row("shared circuit suspect (calls run)", figure(e.SuspectPerHour), often(e.SuspectPerHour))
	row("shared circuit open, at most", figure(e.SharedPerHour), often(e.SharedPerHour))
	row("", "", "")
	row("AN OUTAGE (every call fails)", "CALLS", "")
	if e.OutageCalls == nil {
		row("until all processes reject", "all", "these settings never detect it")
	} else {
		row("until all processes reject", figure(math.Ceil(*e.OutageCalls)), "after "+short(*e.OutageSeconds))
	}
	if e.OutageCallsLocal != nil {
		row("the same without a storage", figure(math.Ceil(*e.OutageCallsLocal)), "")
	}
	if e.OutageCalls != nil {
		row("then trials, at most", "2", "every "+brief(p.resetTimeout))
	}
	row("", "", "")
	name := "REDIS"
	if p.circuits > 1 {
		name = fmt.Sprintf("REDIS (%d circuits)", p.circuits)
	}
	row(name, "COMMANDS/S", "")
	row("no errors", figure(e.Healthy), "")
	row("baseline errors", figure(e.Baseline), "")
	if e.OutageCalls != nil {
		row("outage, while open", figure(e.Outage), "and "+figure(math.Ceil(e.OpeningBurst))+" commands when it opens")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, note := range e.notes(p) {
		b.WriteString("\n" + note + "\n")
	}
	for line := range strings.Lines(b.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// short returns seconds with two digits.
func short(s float64) string {
	if s < 60 {
		return figure(s) + " s"
	}
	return brief(time.Duration(min(s, 1e9) * float64(time.Second)))
}

func (p *planInput) rateText() string {
	if p.failureRate == 0 {
		return "off"
	}
	return fmt.Sprintf("%s (of %d calls or more in %s)", figure(p.failureRate), p.minCalls, brief(p.window))
}

// notes are warnings about the settings.
func (e *estimate) notes(p *planInput) (all []string) {
	inWindow := func(calls float64) string { return figure(math.Floor(calls * p.window.Seconds())) }
	if p.failureRate > 0 && !e.LocalRateWorks {
		all = append(all, fmt.Sprintf("The local FailureRate never decides: a window has %s calls, and MinCalls is %d.", inWindow(p.calls), p.minCalls))
	}
	if p.failureRate > 0 && p.processes > 1 && !e.RateWorks {
		all = append(all, fmt.Sprintf("The shared FailureRate never decides: a window has %s calls, and MinCalls is %d.", inWindow(p.calls*float64(p.processes)), p.minCalls))
	}
	if p.failureRate > 0 && p.errors >= p.failureRate {
		all = append(all, "The baseline error rate is not below FailureRate.")
	}
	if p.processes == 1 {
		all = append(all, "One process alone never opens the shared circuit; its local circuit opens.")
	}
	return all
}

func orOff(n float64) string {
	if n == 0 {
		return "off"
	}
	return figure(n)
}

// figure returns a number with two digits, without an exponent.
func figure(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 1e-6:
		return "< 0.000001"
	case x >= 10 && x < 1e15:
		return thousands(strconv.FormatFloat(math.Round(x), 'f', -1, 64))
	}
	short, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 2, 64), 64)
	return strconv.FormatFloat(short, 'f', -1, 64)
}

func thousands(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// often returns in words how often something happens.
func often(perHour float64) string {
	const year = 24 * 365.25
	switch {
	case perHour == 0:
		return "never"
	case perHour < 1/(1000*year):
		return "less than once in 1,000 years"
	case perHour < 1/year:
		return "once in " + figure(1/perHour/year) + " years"
	case perHour < 1.0/48:
		return "once in " + figure(1/perHour/24) + " days"
	case perHour < 1:
		return "once in " + figure(1/perHour) + " hours"
	case perHour < 60:
		return "once in " + figure(60/perHour) + " minutes"
	}
	return "once in " + figure(3600/perHour) + " seconds"
}
