package infuse

import (
	"cmp"
	goflag "flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// Simulated fleets with a failure rate of 50 % of at least 20 calls in 10 s.

var halfOfTheCalls = Config{FailureRate: 0.5}

// R11, R22.
func TestARateOfOneProcessAloneNeverOpens(t *testing.T) {
	var sum simSum
	for i, traffic := range []simTraffic{{}, {simBursts, 20}, {simBursts, 80}, {simLoop, 1}} {
		for _, crashes := range []int{0, 25} {
			s := simulateAll([]simSize{{2, 0.1}, {3, 1}, {5, 0.1}, {20, 1}, {20, 20}, {100, 1}}, simLength(2000), 2, uint64(10*i), func(f *simFleet) {
				f.config, f.health, f.traffic = halfOfTheCalls, partitioned(1, 0), ofTheFirst(1, traffic.kind, traffic.n)
				f.rates = func(process int) float64 {
					if process == 0 {
						return max(f.rate, 10)
					}
					return f.rate
				}
				f.crashes = func(process int) int {
					if process == 0 {
						return crashes
					}
					return 0
				}
			})
			sum.add(&simFleet{lasts: 3600 * s.hours}, s.simResult)
		}
	}
	t.Logf("openings: %s an hour; %d suspicions", perHour(sum.openings, sum.hours), sum.suspicions)
	assert.NotZero(t, sum.suspicions)
	assert.Zero(t, sum.openings)
	assert.Zero(t, sum.healthyRejected+sum.healthyRejectedLocally)
	assert.Empty(t, sum.wrong)
}

// The share of its failing calls makes no difference.
func TestARateOfOneProcessWithSomeErrorsOpensNothing(t *testing.T) {
	for share := range 10 {
		f := simFleet{processes: 20, rate: 20, lasts: simLength(20), config: halfOfTheCalls}
		f.health = func(process int, _ float64) (float64, float64) {
			if process == 0 {
				return float64(share+1) / 10, 1e9
			}
			return 0, 1e9
		}
		got := simulate(f, uint64(share))
		assert.Zero(t, got.openings, "%d0 %%: %+v", share+1, got)
	}
}

func TestARateBelowTheThresholdOpensAlmostNothing(t *testing.T) {
	for _, c := range []struct{ errors, most float64 }{{0.01, 0}, {0.1, 0}, {0.3, 0.001}, {0.4, 0.02}} {
		sum := simulateAll([]simSize{{3, 1}, {20, 1}, {20, 20}, {100, 1}, {100, 20}, {1000, 2}}, simLength(6000), 10, 1, func(f *simFleet) {
			f.config, f.health = halfOfTheCalls, atRandom(c.errors)
		})
		t.Logf("%v %%: %v; %.3f messages a call", 100*c.errors, &sum, float64(sum.messages)/sum.calls)
		assert.LessOrEqual(t, sum.share(), c.most)
		assert.LessOrEqual(t, float64(sum.messages)/sum.calls, 1.2*c.errors+0.1)
		assert.Empty(t, sum.wrong)
	}
}

func TestARateAboveTheThresholdOpens(t *testing.T) {
	for _, c := range []struct {
		simSize
		share  float64
		within float64 // seconds
	}{
		{simSize{3, 1}, 1, 20}, {simSize{20, 1}, 1, 4}, {simSize{100, 1}, 1, 2}, {simSize{20, 100}, 1, 1}, {simSize{100, 20}, 1, 1}, {simSize{1000, 1}, 1, 1},
		{simSize{20, 1}, 0.6, 20}, {simSize{20, 5}, 0.6, 20}, {simSize{100, 20}, 0.6, 10},
	} {
		var opened, last []float64
		var reached []int
		wrong := ""
		for seed := range max(3, seedsFor(c.simSize)/3) {
			f := simFleet{processes: c.processes, rate: c.rate, config: halfOfTheCalls, onset: 5, lasts: 40, health: outage(5, 0, c.share)}
			if c.rate >= 5 {
				f.lasts = 15
			}
			got := simulate(f, uint64(seed))
			assert.NotZero(t, got.openAt, "%v, %v %%: %+v", c.simSize, 100*c.share, got)
			opened, last, reached, wrong = append(opened, got.openAt-5), append(last, got.lastReached), append(reached, got.reached), cmp.Or(wrong, got.wrong)
		}
		half := len(sortedOf(opened)) / 2
		t.Logf("%v, %v %%: open after %.2f s, %d calls until %.1f s", c.simSize, 100*c.share, opened[half], sortedOf(reached)[half], sortedOf(last)[half])
		assert.Less(t, opened[half], c.within, "%v, %v %%", c.simSize, 100*c.share)
		assert.Empty(t, wrong)
	}
}

// During a deployment half of the processes have no FailureRate, or another one.
func TestARateThatHalfOfTheFleetHas(t *testing.T) {
	for name, other := range map[string]Config{"none": {}, "90 %": {FailureRate: 0.9}, "another window": {FailureRate: 0.5, Window: 1e9, MinCalls: 50}} {
		f := simFleet{processes: 40, rate: 50, lasts: 6, onset: 1, config: halfOfTheCalls, health: outage(1, 0, 0.3)}
		f.configs = func(process int) *Config {
			if process%2 == 0 {
				return &other
			}
			return nil
		}
		got := simulate(f, 1)
		assert.Zero(t, got.openings, "%s: %+v", name, got)
		f.health = outage(1, 0, 1)
		got = simulate(f, 1)
		assert.NotZero(t, got.openAt, "%s: %+v", name, got)
		assert.Less(t, got.openAt-1, 1.0, "%s: %+v", name, got)
		assert.Empty(t, got.wrong)
	}
}

// loneResult compares a fleet of one with pybreaker, whose count and state survive a
// restart.
type loneResult struct {
	calls, admitted, rejected int         // all calls; admitted ones that pybreaker rejects; rejected ones that it admits
	lives                     map[int]int // lives of the process by the number of admitted calls
}

func lone(seeds int, restarts float64) loneResult {
	l := loneResult{lives: make(map[int]int)}
	const reset = 20_500 * time.Millisecond // no call arrives exactly then
	for seed := range uint64(seeds) {
		roll := rand.New(rand.NewPCG(seed, 5))
		shares := make([]float64, 360)
		for i := range shares {
			shares[i] = []float64{0.1, 0.5, 1, 1}[roll.IntN(4)]
		}
		failures, open, due, life, inLife := 0, false, time.Duration(0), 0, 0
		f := simFleet{
			processes: 1, rate: 1, lasts: 36_000, config: Config{ResetTimeout: reset},
			health: func(_ int, at float64) (float64, float64) {
				i := int(at / 100)
				return shares[i%len(shares)], float64(i+1) * 100
			},
			traffic:  func(int) simTraffic { return simTraffic{simTick, 1} },
			restarts: func(int) float64 { return restarts },
		}
		f.log = func(p *simProcess, began time.Duration, admitted, fails bool) {
			if p.life != life {
				l.lives[inLife]++
				life, inLife = p.life, 0
			}
			l.calls++
			switch should := !open || began >= due-readyEarly; {
			case should == admitted:
			case admitted:
				l.admitted++
				inLife++
			default:
				l.rejected++
			}
			switch {
			case !admitted:
			case fails:
				if failures++; open || failures >= 5 {
					open, due = true, began+time.Duration(p.callTime*1e9)+reset
				}
			default:
				failures, open = 0, false
			}
		}
		simulate(f, seed)
	}
	return l
}

// R5.
func TestAFleetOfOneIsPybreaker(t *testing.T) {
	got := lone(int(simLength(2)), 0)
	assert.Zero(t, got.admitted+got.rejected, "of %d calls", got.calls)
}

// A process that restarts while the circuit is open makes one call before it rejects.
// R12.
func TestARestartWhileOpenCostsOneCall(t *testing.T) {
	got := lone(int(simLength(4)), 45)
	t.Logf("%d calls, %d that pybreaker would have rejected, %d that it would have admitted, by life: %v", got.calls, got.admitted, got.rejected, got.lives)
	for admitted := range got.lives {
		assert.LessOrEqual(t, admitted, 1)
	}
	assert.Less(t, float64(got.rejected)/float64(got.calls), 0.002)
}

// Time alone makes no trial of a suspect circuit.
// R15.
func TestASuspectCircuitHasNoTrial(t *testing.T) {
	l := Limits{FailMax: 1, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, Suspicion: 50 * time.Millisecond}
	r, _ := Record{}.Apply(Change{Source: "a", Number: 1, Limits: l, Calls: Calls{Failures: 1, Lead: 1, Streak: 1}}, simStart)
	assert.True(t, r.Suspect())
	r, verdict := r.Apply(Change{Source: "b", Number: 1, Limits: l, Seen: r, RequestTrial: "b.1"}, simStart.Add(time.Hour))
	assert.Equal(t, VerdictRefused, verdict)
	assert.True(t, r.Suspect())
}

var fleetTable = goflag.String("fleet.table", "", "the file to write the tables of bench/RESULTS.md to (some minutes)")

// TestFleetTables writes the section "Simulated fleets" of bench/RESULTS.md:
//
//	cd bench && go run . -only simulation
func TestFleetTables(t *testing.T) {
	if *fleetTable == "" {
		t.Skip("needs -args -fleet.table=FILE")
	}
	file, err := os.Create(*fleetTable)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fmt.Fprint(file, `Any number of processes against one record in virtual time, without waiting. The state machine is the real code (state.go, replica.go, outbox.go); calls, network and storage are simulated. Calls come at random times (Poisson); defaults otherwise. The same seed gives the same run. Every run checks that the shared circuit rejects a call only in a process whose own last call failed.

### Simulated outages

Calls of the whole fleet that reach the service in an outage, until every process rejects: median and 9th decile of 31 runs (1 to 5 runs of 1,000 processes and more). 1 % of the calls fail before. "Promised" is 2.5 × FailMax, one call a process, and the calls of 55 ms. Each process needs one failing call of its own, or one burst.

`)
	fmt.Fprintln(file, "| fleet | promised | 100 % fail | until | local breakers | 90 % fail | local breakers | bursts of 5, 100 % | local breakers |")
	fmt.Fprintln(file, "|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, size := range []simSize{{1, 1}, {2, 1}, {3, 1}, {5, 1}, {20, 0.1}, {20, 1}, {20, 5}, {20, 100}, {100, 1}, {100, 20}, {1000, 1}, {1000, 20}, {10_000, 1}} {
		seeds := 31
		if size.processes >= 1000 {
			seeds = 20_000 / size.processes / 4
		}
		local := func(f *simFleet) { f.local = true }
		bursts := func(f *simFleet) { f.traffic = of(simBursts, 5) }
		cell := func(share float64, changes ...func(*simFleet)) (string, float64) {
			calls, last, wrong := outageOf(size, share, max(1, seeds), func(f *simFleet) {
				for _, change := range changes {
					change(f)
				}
			})
			if wrong != "" {
				t.Error(wrong)
			}
			return fmt.Sprintf("%d [%d]", calls[len(calls)/2], calls[len(calls)*9/10]), last[len(last)/2]
		}
		all, until := cell(1)
		allLocal, _ := cell(1, local)
		most, _ := cell(0.9)
		mostLocal, _ := cell(0.9, local)
		burst, burstLocal := "", ""
		if size.processes <= 100 {
			burst, _ = cell(1, bursts)
			burstLocal, _ = cell(1, bursts, local)
		}
		promised := 12.5 + float64(size.processes)*(1+0.055*size.rate)
		fmt.Fprintf(file, "| %v | %.0f | %s | %.2g s | %s | %s | %s | %s | %s |\n", size, promised, all, until, allLocal, most, mostLocal, burst, burstLocal)
	}
	fmt.Fprint(file, `
### Simulated false openings

An opening counts here if it rejects a call of a healthy process whose local circuit is closed. The numbers in parentheses are 95 % intervals; if none was seen, the upper bound is 3/hours, or 3/calls. Fleets have 2 to 100 processes with 0.1 to 100 calls a second each.

`)
	fmt.Fprintln(file, "| what is wrong | hours | openings an hour that touch a healthy process | healthy calls rejected by the shared circuit | longest |")
	fmt.Fprintln(file, "|---|--:|--:|--:|--:|")
	row := func(name string, calls, hours float64, sizes []simSize, change func(f *simFleet)) {
		sum := simulateAll(sizes, calls, hours, 1, change)
		if sum.wrong != "" {
			t.Error(sum.wrong)
		}
		fmt.Fprintf(file, "| %s | %.0f | %s | %s | %s |\n", name, sum.hours, perHour(sum.touching, sum.hours), percentOf(float64(sum.healthyRejected), sum.healthyCalls), fmt.Sprintf("%.1f s", sum.longest))
	}
	for _, errors := range []float64{0.01, 0.05, 0.1, 0.2, 0.3, 0.4} {
		row(fmt.Sprintf("%v %% random errors", 100*errors), min(3e6, 40_000/errors), 200, simSizes, func(f *simFleet) { f.health = atRandom(errors) })
	}
	row("10 % random errors, bursts of 5", 100_000, 200, simSizes, func(f *simFleet) { f.health, f.traffic = atRandom(0.1), of(simBursts, 5) })
	row("10 % random errors, one process makes 90 % of the calls", 400_000, 200, simSizes, func(f *simFleet) {
		f.health, f.rates = atRandom(0.1), skewed(simSize{f.processes, f.rate})
	})
	for _, others := range []float64{0, 0.01, 0.1} {
		row(fmt.Sprintf("one unhealthy process in bursts of 5, others %v %%", 100*others), 60_000, 50, simSizes, func(f *simFleet) {
			f.health, f.traffic = partitioned(1, others), ofTheFirst(1, simBursts, 5)
		})
		row(fmt.Sprintf("the same in a crash loop, others %v %%", 100*others), 60_000, 50, simSizes, func(f *simFleet) {
			f.health, f.traffic = partitioned(1, others), ofTheFirst(1, simBursts, 5)
			f.restarts = func(process int) float64 { return []float64{30, 0}[min(process, 1)] }
		})
	}
	for _, part := range []int{10, 33, 50} {
		row(fmt.Sprintf("%d %% of the processes partitioned, others 1 %%", part), 60_000, 20, []simSize{{3, 1}, {6, 0.1}, {10, 1}, {20, 1}, {20, 20}, {100, 1}, {100, 5}}, func(f *simFleet) {
			f.health = partitioned(max(1, f.processes*part/100), 0.01)
		})
	}
	for _, c := range []struct {
		name   string
		faults simFaults
	}{
		{"the storage pauses for 60 ms when a suspicion begins", simFaults{pausesAt: 0.06}},
		{"for 200 ms", simFaults{pausesAt: 0.2}}, {"for 2 s", simFaults{pausesAt: 2}},
		{"for 200 ms at random, 3 times a second", simFaults{pausesAt: 0.2, pausesOften: 3}},
		{"30 % of the notifications lost", simFaults{lost: 0.3}},
		{"a failover loses each dismissal", simFaults{failsOver: 0.1}},
	} {
		row(c.name+", 5 % errors", 60_000, 20, simSizes, func(f *simFleet) { f.health, f.storage = atRandom(0.05), c.faults })
	}
	for _, c := range []struct{ period, long float64 }{{1, 0.02}, {10, 0.05}, {10, 0.1}} {
		sum := simulateAll([]simSize{{2, 1}, {2, 20}, {5, 1}, {5, 20}, {20, 1}, {20, 20}, {20, 100}, {100, 1}, {100, 20}}, 100_000, 5, 1, func(f *simFleet) {
			f.health = every(c.period, c.long, 0.001)
		})
		fmt.Fprintf(file, "| all calls fail for %v ms every %v s | %.0f | %s | %s of all calls, local %.2g %% | |\n", 1000*c.long, c.period, sum.hours, perHour(sum.openings, sum.hours), percentOf(float64(sum.rejected), sum.calls), 100*float64(sum.rejectedLocally)/sum.calls)
	}
	for _, share := range []float64{0.5, 0.6} {
		for _, size := range []simSize{{2, 1}, {20, 1}, {20, 20}} {
			run := func(local bool) simSum {
				return simulateAll([]simSize{size}, 100_000, 2, 1, func(f *simFleet) {
					f.health, f.local, f.config.ResetTimeout = atRandom(share), local, 1e10
				})
			}
			sum, local := run(false), run(true)
			fmt.Fprintf(file, "| brownout of %v %%, %v, open for 10 s | %.1f | %s | shared %s, local %.2g %%; local breakers %.2g %% | |\n", 100*share, size, sum.hours, perHour(sum.openings, sum.hours),
				percentOf(float64(sum.rejected), sum.calls), 100*float64(sum.rejectedLocally)/sum.calls, 100*float64(local.rejectedLocally)/local.calls)
		}
	}
	for _, c := range []struct {
		name   string
		change func(f *simFleet)
	}{
		{"one in bursts of 80, others 1 %", func(f *simFleet) { f.health, f.traffic = partitioned(1, 0.01), ofTheFirst(1, simBursts, 80) }},
		{"30 % random errors", func(f *simFleet) { f.health = atRandom(0.3) }},
		{"40 % random errors", func(f *simFleet) { f.health = atRandom(0.4) }},
	} {
		row("FailureRate 50 %: "+c.name, 60_000, 5, []simSize{{3, 1}, {5, 0.1}, {20, 1}, {20, 5}, {100, 1}}, func(f *simFleet) {
			f.config = halfOfTheCalls
			c.change(f)
		})
	}
	l := lone(20, 45)
	fmt.Fprintf(file, "\n### A simulated fleet of one\n\nA process that restarts each 45 s, beside pybreaker with its state in Redis, while the service is down half of the time: of %d calls, %d run that pybreaker rejects (at most one for each restart is promised), and %d are rejected that pybreaker admits. Without restarts both decide the same for each call.\n", l.calls, l.admitted, l.rejected)
}

// percentOf returns a share, or its upper 95 % bound if it is zero.
func percentOf(n, of float64) string {
	if n == 0 {
		return fmt.Sprintf("0 (< %.2g %%)", 300/of)
	}
	return fmt.Sprintf("%.2g %%", 100*n/of)
}
