package infuse

import (
	"cmp"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What simulated fleets make of a failure rate of 50 % of at least 20 calls in 10 s.

var halfOfTheCalls = Config{FailureRate: 0.5}

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
	assert.Zero(t, sum.healthyRejected+sum.healthyRejectedAlone)
	assert.Empty(t, sum.wrong)
}

// Whatever share of its calls fails.
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

func TestARateBelowTheLimitOpensAlmostNothing(t *testing.T) {
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

func TestARateAboveTheLimitOpens(t *testing.T) {
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

// Half of the processes of a deployment have no rate yet, or another.
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
