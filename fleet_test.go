package infuse

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// These tests check promises by simulated fleets. A process is healthy if at most half of
// its calls fail.

// simSum is the sum of the results of many fleets.
type simSum struct {
	simResult
	hours float64
}

func (s *simSum) add(f *simFleet, r simResult) {
	s.hours += f.lasts / 3600
	s.openings += r.openings
	s.suspicions += r.suspicions
	s.touching += r.touching
	s.trials += r.trials
	s.messages += r.messages
	s.calls += r.calls
	s.healthyCalls += r.healthyCalls
	s.healthyRejected += r.healthyRejected
	s.healthyRejectedLocally += r.healthyRejectedLocally
	s.rejected += r.rejected
	s.rejectedLocally += r.rejectedLocally
	s.openedAlone += r.openedAlone
	s.longest = max(s.longest, r.longest)
	s.mostTrials = max(s.mostTrials, r.mostTrials)
	s.wrong = cmp.Or(s.wrong, r.wrong)
}

// String returns the openings that touch a healthy process, and the share of healthy calls
// that the shared circuit rejected, with 95 % bounds.
func (s *simSum) String() string {
	return fmt.Sprintf("%s an hour; %.2g %% of healthy calls rejected, for at most %.1f s; %d suspicions in %.1f h",
		perHour(s.touching, s.hours), 100*s.share(), s.longest, s.suspicions, s.hours)
}

// share is the share of the healthy calls that the shared circuit rejected.
func (s *simSum) share() float64 { return float64(s.healthyRejected) / max(s.healthyCalls, 1) }

// perHour returns a rate with its exact 95 % interval: below 3/hours without an event.
func perHour(n int, hours float64) string {
	if n == 0 {
		return fmt.Sprintf("0 (< %.2g)", 3/hours)
	}
	atMost := func(k int, mean float64) float64 { // the probability of at most k
		sum, term := 0.0, math.Exp(-mean)
		for i := 0; i <= k; i++ {
			sum += term
			term *= mean / float64(i+1)
		}
		return sum
	}
	find := func(k int, chance float64) float64 {
		low, high := 0.0, float64(10*k+20)
		for range 60 {
			if mid := (low + high) / 2; atMost(k, mid) > chance {
				low = mid
			} else {
				high = mid
			}
		}
		return low
	}
	if n > 300 {
		half := 1.96 * math.Sqrt(float64(n))
		return fmt.Sprintf("%.2g (%.2g-%.2g)", float64(n)/hours, (float64(n)-half)/hours, (float64(n)+half)/hours)
	}
	return fmt.Sprintf("%.2g (%.2g-%.2g)", float64(n)/hours, find(n-1, 0.975)/hours, find(n, 0.025)/hours)
}

// The simulated services.

func atRandom(share float64) simHealth {
	return func(int, float64) (float64, float64) { return share, math.Inf(1) }
}

// partitioned fails all calls of the first n processes, and a share of the other calls.
func partitioned(processes int, others float64) simHealth {
	return func(process int, _ float64) (float64, float64) {
		if process < processes {
			return 1, math.Inf(1)
		}
		return others, math.Inf(1)
	}
}

func outage(onset, before, share float64) simHealth {
	return func(_ int, at float64) (float64, float64) {
		if at < onset {
			return before, onset
		}
		return share, math.Inf(1)
	}
}

// every fails all calls for a time at the start of each period. It counts as healthy.
func every(period, long, between float64) simHealth {
	return func(_ int, at float64) (float64, float64) {
		n := math.Floor(at / period)
		if at-n*period < long {
			return 1, n*period + long
		}
		return between, (n + 1) * period
	}
}

// The simulated fleets.

type simSize struct {
	processes int
	rate      float64
}

func (s simSize) String() string { return fmt.Sprintf("%d x %v/s", s.processes, s.rate) }

var simSizes = []simSize{
	{2, 0.1}, {2, 1}, {2, 20}, {3, 0.1}, {3, 1}, {3, 20}, {5, 1}, {5, 20}, {20, 0.1}, {20, 1}, {20, 5}, {20, 100}, {100, 1}, {100, 20},
}

// simulateAll runs each size for a number of calls, or at most for a number of hours.
func simulateAll(sizes []simSize, calls, hours float64, seed uint64, change func(f *simFleet)) (sum simSum) {
	for i, size := range sizes {
		f := simFleet{processes: size.processes, rate: size.rate}
		f.lasts = math.Ceil(min(3600*hours, calls/(float64(size.processes)*size.rate)))
		change(&f)
		sum.add(&f, simulate(f, seed+uint64(i)))
	}
	return sum
}

func of(kind simKind, n int) func(int) simTraffic {
	return func(int) simTraffic { return simTraffic{kind, n} }
}

// ofTheFirst is the traffic of the first n processes. The others call at random (Poisson).
func ofTheFirst(processes int, kind simKind, n int) func(int) simTraffic {
	return func(process int) simTraffic {
		if process < processes {
			return simTraffic{kind, n}
		}
		return simTraffic{}
	}
}

func skewed(size simSize) func(int) float64 {
	total := float64(size.processes) * size.rate
	return func(process int) float64 {
		if process == 0 {
			return 0.9 * total
		}
		return 0.1 * total / float64(size.processes-1)
	}
}

func TestOneSeedReproducesARun(t *testing.T) {
	f := simFleet{processes: 20, rate: 5, lasts: 300, health: atRandom(0.3), storage: simFaults{pausesAt: 0.2, lost: 0.1, failsOver: 0.1}}
	assert.Equal(t, simulate(f, 7), simulate(f, 7))
	assert.NotEqual(t, simulate(f, 7), simulate(f, 8))
}

// One unhealthy process, with bursts while few others call or by its trials, rejects no
// call of healthy processes.
// R7, R11.
func TestOneUnhealthyProcessRejectsNobodyElse(t *testing.T) {
	absurd := Config{FailMax: 1, ResetTimeout: 24 * time.Hour, TrialTimeout: 24 * time.Hour, SuccessThreshold: 1e6, Suspicion: 12 * time.Hour}
	first := func(n int) func(int) int {
		return func(process int) int {
			if process == 0 {
				return n
			}
			return 0
		}
	}
	kinds := map[string]func(f *simFleet){
		"Poisson":            func(*simFleet) {},
		"bursts of 5":        func(f *simFleet) { f.traffic = ofTheFirst(1, simBursts, 5) },
		"bursts of 50":       func(f *simFleet) { f.traffic = ofTheFirst(1, simBursts, 50) },
		"retry loop":         func(f *simFleet) { f.traffic = ofTheFirst(1, simLoop, 1) },
		"crash loop":         func(f *simFleet) { f.crashes = first(5) },
		"crash loop, bursts": func(f *simFleet) { f.crashes, f.traffic = first(5), ofTheFirst(1, simBursts, 5) },
		"crash loop, pauses": func(f *simFleet) { f.crashes, f.storage = first(5), simFaults{pausesAt: 0.2, pausesOften: 3} },
		"absurd settings":    func(f *simFleet) { f.configs = func(i int) *Config { return map[int]*Config{0: &absurd}[i] } },
		"absurd, bursts of 50": func(f *simFleet) {
			f.traffic = ofTheFirst(1, simBursts, 50)
			f.configs = func(i int) *Config { return map[int]*Config{0: &absurd}[i] }
		},
		"absurd, crash loop": func(f *simFleet) {
			f.crashes = first(2)
			f.configs = func(i int) *Config { return map[int]*Config{0: &absurd}[i] }
		},
		"all in bursts":         func(f *simFleet) { f.traffic = of(simBursts, 5) },
		"failure rate":          func(f *simFleet) { f.config.FailureRate = 0.5 },
		"failure rate, crashes": func(f *simFleet) { f.config.FailureRate, f.crashes = 0.5, first(25) },
	}
	var all simSum
	for name, change := range kinds {
		for _, unhealthy := range []float64{5, 200} {
			for _, healthy := range []int{1, 2, 4, 10, 100} {
				for _, rate := range []float64{0.1, 1, 10} {
					f := simFleet{processes: healthy + 1, lasts: simLength(4000 / (unhealthy*1.5 + float64(healthy)*rate)), health: partitioned(1, 0)}
					f.rates = func(process int) float64 {
						if process == 0 {
							return unhealthy
						}
						return rate
					}
					change(&f)
					got := simulate(f, 1)
					text := fmt.Sprintf("%s, %v calls/s, beside %d x %v/s: %+v", name, unhealthy, healthy, rate, got)
					assert.Zero(t, got.healthyRejected+got.healthyRejectedLocally, text)
					assert.Zero(t, got.openings, text)
					assert.Empty(t, got.wrong, text)
					all.add(&f, got)
				}
			}
		}
	}
	t.Logf("openings: %s an hour; %d suspicions", perHour(all.openings, all.hours), all.suspicions)
}

// After an outage the last call of every process has failed, and one process stays
// unhealthy and calls most. It must not run every trial.
// R25.
func TestAfterAnOutageOneUnhealthyProcessCostsOneOpenDuration(t *testing.T) {
	for _, c := range []struct {
		simSize
		unhealthy float64
	}{{simSize{3, 1}, 5}, {simSize{3, 1}, 100}, {simSize{20, 1}, 1}, {simSize{20, 1}, 20}, {simSize{20, 1}, 200}, {simSize{20, 20}, 200}, {simSize{100, 1}, 100}, {simSize{100, 20}, 200}} {
		f := simFleet{processes: c.processes, lasts: 600}
		f.rates = func(process int) float64 {
			if process == 0 {
				return c.unhealthy
			}
			return c.rate
		}
		f.health = func(process int, at float64) (float64, float64) {
			switch {
			case at < 10:
				return 0, 10
			case at < 40:
				return 1, 40
			case process == 0:
				return 1, math.Inf(1)
			}
			return 0, math.Inf(1)
		}
		seeds := int(simLength(1))
		if f.rates(1)*float64(c.processes) < 200 {
			seeds *= 3
		}
		var rejected []float64
		for seed := range seeds {
			got := simulate(f, uint64(seed))
			// It is open for at most 60 s after the suspicion began; 30 s of these are the outage.
			rejected = append(rejected, float64(got.healthyRejected+got.healthyRejectedLocally)/(c.rate*float64(c.processes-1)))
			assert.LessOrEqual(t, got.mostTrials, 1)
			assert.Empty(t, got.wrong)
		}
		slices.Sort(rejected)
		t.Logf("%v, one %v/s: healthy calls rejected for %.1f s [%.1f-%.1f]", c.simSize, c.unhealthy, rejected[len(rejected)/2], rejected[0], rejected[len(rejected)-1])
		assert.Less(t, rejected[len(rejected)-1], 60.0*1.1+3/c.rate)
	}
}

// outageOf returns the calls that reached a service from the onset of its outage until
// no process called, and the seconds, in ascending order.
func outageOf(size simSize, share float64, seeds int, change func(f *simFleet)) (reached []int, last []float64, wrong string) {
	for seed := range seeds {
		onset, over := 20.0, 55.0
		if float64(size.processes)*size.rate > 100 {
			onset = 2
		}
		if size.rate >= 5 {
			over = 5
		}
		f := simFleet{processes: size.processes, rate: size.rate, onset: onset, lasts: onset + over, health: outage(onset, 0.01, share)}
		change(&f)
		got := simulate(f, uint64(seed))
		reached, last, wrong = append(reached, got.reached), append(last, got.lastReached), cmp.Or(wrong, got.wrong)
	}
	slices.Sort(reached)
	slices.Sort(last)
	return reached, last, wrong
}

func seedsFor(size simSize) int {
	switch {
	case size.processes >= 10_000:
		return int(max(1, simLength(0.1)))
	case size.processes >= 1000 || float64(size.processes)*size.rate > 1000:
		return int(max(1, simLength(0.3)))
	}
	return int(simLength(15))
}

// R17.
func TestAnOutageCostsWhatIsPromised(t *testing.T) {
	for _, size := range []simSize{{1, 1}, {2, 1}, {3, 1}, {5, 1}, {20, 0.1}, {20, 1}, {20, 5}, {20, 100}, {100, 1}, {100, 20}, {1000, 1}, {1000, 20}, {10_000, 1}} {
		if size.processes >= 10_000 && os.Getenv("INFUSE_FLEETS") != "large" {
			continue
		}
		for _, share := range []float64{1, 0.9} {
			seeds := seedsFor(size)
			shared, last, wrong := outageOf(size, share, seeds, func(*simFleet) {})
			local, _, _ := outageOf(size, share, seeds, func(f *simFleet) { f.local = true })
			n, half := float64(size.processes), len(shared)/2
			// Calls before the circuit may open, with two round trips.
			promised := 12.5 + n + 0.055*n*size.rate
			slack := 3 * math.Sqrt(promised) * (1 - share) * 10 // for calls that succeed by chance
			text := fmt.Sprintf("%v, %v %%: %d calls [%d-%d] until %.1f s, promised %.0f, local breakers %d", size, 100*share, shared[half], shared[0], shared[len(shared)-1], last[half], promised, local[half])
			t.Log(text)
			assert.LessOrEqual(t, float64(shared[len(shared)-1]), promised+slack+3*math.Sqrt(promised), text)
			assert.LessOrEqual(t, float64(shared[half]), promised*(1+0.1*(1-share)*10), text)
			assert.LessOrEqual(t, shared[half], local[half], text)
			assert.Empty(t, wrong)
		}
	}
}

// R7.
func TestRandomErrorsOpenAlmostNothing(t *testing.T) {
	for _, c := range []struct {
		errors float64
		most   float64 // share of the healthy calls
	}{{0.001, 0}, {0.01, 0}, {0.05, 0}, {0.1, 0.0001}, {0.2, 0.001}, {0.3, 0.03}, {0.4, 0.15}} {
		var sum simSum
		for i, traffic := range []simTraffic{{}, {simBursts, 5}, {simLoop, 1}} {
			calls := simLength(800)
			if i == 0 {
				calls = simLength(1500) / c.errors
			}
			s := simulateAll(simSizes, calls, 20, uint64(1000*i), func(f *simFleet) {
				f.health, f.traffic = atRandom(c.errors), func(int) simTraffic { return traffic }
			})
			sum.add(&simFleet{lasts: 3600 * s.hours}, s.simResult)
		}
		s := simulateAll([]simSize{{3, 1}, {20, 1}}, simLength(1000)/c.errors, 20, 5, func(f *simFleet) {
			f.health, f.rates = atRandom(c.errors), skewed(simSize{f.processes, f.rate})
		})
		sum.add(&simFleet{lasts: 3600 * s.hours}, s.simResult)
		s = simulateAll([]simSize{{20, 0.1}, {100, 0.1}}, simLength(1000), 20, 6, func(f *simFleet) {
			f.health, f.traffic = atRandom(c.errors), of(simCron, 1)
		})
		sum.add(&simFleet{lasts: 3600 * s.hours}, s.simResult)
		t.Logf("%v %%: %v", 100*c.errors, &sum)
		assert.LessOrEqual(t, sum.share(), c.most, "%v %%", 100*c.errors)
		assert.Empty(t, sum.wrong)
	}
}

// R7.
func TestAPartOfAFleetThatIsPartitionedRejectsNobodyElse(t *testing.T) {
	for _, part := range []int{10, 33, 50} {
		for _, others := range []float64{0, 0.01} {
			var sum simSum
			for i, kind := range []simTraffic{{}, {simBursts, 5}, {simLoop, 1}} {
				s := simulateAll([]simSize{{3, 1}, {6, 0.1}, {10, 1}, {20, 1}, {20, 20}, {100, 1}, {100, 5}}, simLength(2000), 2, uint64(100*i), func(f *simFleet) {
					cut := max(1, f.processes*part/100)
					f.health, f.traffic = partitioned(cut, others), ofTheFirst(cut, kind.kind, kind.n)
				})
				sum.add(&simFleet{lasts: 3600 * s.hours}, s.simResult)
			}
			t.Logf("%d %% partitioned, others %v %%: %v", part, 100*others, &sum)
			assert.LessOrEqual(t, sum.share(), others/100)
			assert.Empty(t, sum.wrong)
		}
	}
}

func TestBlips(t *testing.T) {
	for _, c := range []struct{ period, long, most float64 }{{1, 0.02, 0.02}, {10, 0.05, 0.05}, {10, 0.1, 0.25}} {
		sum := simulateAll([]simSize{{2, 1}, {2, 20}, {5, 1}, {5, 20}, {20, 1}, {20, 20}, {20, 100}, {100, 1}, {100, 20}}, simLength(5000), 1, 1, func(f *simFleet) {
			f.health = every(c.period, c.long, 0.001)
		})
		rejected := float64(sum.rejected) / sum.calls
		t.Logf("%v ms each %v s: %.2g %% of the calls rejected by the shared circuit, %.2g %% by local ones; %d openings in %.1f h", 1000*c.long, c.period, 100*rejected, 100*float64(sum.rejectedLocally)/sum.calls, sum.openings, sum.hours)
		assert.LessOrEqual(t, rejected, c.most)
		assert.Empty(t, sum.wrong)
	}
}

func TestBrownoutsAndFlapping(t *testing.T) {
	for name, health := range map[string]simHealth{"50 %": atRandom(0.5), "60 %": atRandom(0.6), "70 %": atRandom(0.7), "down 2 of 13 s": every(13, 2, 0.01), "down 30 of 125 s": every(125, 30, 0.01)} {
		for _, size := range []simSize{{2, 1}, {5, 5}, {20, 1}, {20, 20}} {
			run := func(local bool) (rejected, alone float64) {
				sum := simulateAll([]simSize{size}, simLength(5000), 1, 3, func(f *simFleet) {
					f.health, f.local, f.config.ResetTimeout = health, local, 10*time.Second
				})
				assert.Empty(t, sum.wrong)
				return 100 * float64(sum.rejected) / sum.calls, 100 * float64(sum.rejectedLocally) / sum.calls
			}
			shared, own := run(false)
			_, local := run(true)
			t.Logf("%s, %v: rejected by the shared circuit %.0f %%, by local ones %.0f %%; local breakers only %.0f %%", name, size, shared, own, local)
		}
	}
}

func TestWhatAStorageDoesWrongRejectsNobodyHealthy(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults simFaults
		most   float64
	}{
		{"60 ms when a suspicion begins", simFaults{pausesAt: 0.06}, 0},
		{"200 ms when a suspicion begins", simFaults{pausesAt: 0.2}, 0},
		{"2 s when a suspicion begins", simFaults{pausesAt: 2}, 0.0001},
		{"200 ms at random, 3/s", simFaults{pausesAt: 0.2, pausesOften: 3}, 0.002},
		{"1 % of notifications lost", simFaults{lost: 0.01}, 0},
		{"30 % of notifications lost", simFaults{lost: 0.3}, 0.0001},
		{"a failover loses each dismissal", simFaults{failsOver: 0.1}, 0.0001},
		{"5 ms one way", simFaults{latency: 0.005}, 0},
	} {
		sum := simulateAll(simSizes, simLength(6000), 3, 1, func(f *simFleet) { f.health, f.storage = atRandom(0.05), c.faults })
		t.Logf("%s, 5 %% errors: %v", c.name, &sum)
		assert.LessOrEqual(t, sum.share(), c.most, c.name)
		assert.Empty(t, sum.wrong)
		one := simulateAll(simSizes, simLength(1000), 1, 1, func(f *simFleet) {
			f.health, f.storage, f.traffic = partitioned(1, 0), c.faults, ofTheFirst(1, simBursts, 5)
		})
		t.Logf("%s, one unhealthy process: %v", c.name, &one)
		assert.Zero(t, one.healthyRejected+one.healthyRejectedLocally, c.name)
		assert.Empty(t, one.wrong)
	}
}

func sortedOf[T cmp.Ordered](all []T) []T {
	slices.Sort(all)
	return all
}
