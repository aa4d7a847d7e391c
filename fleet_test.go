package infuse

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func atRandom(share float64) simHealth {
	return func(int, float64) (float64, float64) { return share, math.Inf(1) }
}

func outage(onset, before, share float64) simHealth {
	return func(_ int, at float64) (float64, float64) {
		if at < onset {
			return before, onset
		}
		return share, math.Inf(1)
	}
}

func TestTryAfter(t *testing.T) {
	for _, c := range []struct {
		n       int
		rate, x float64
	}{{3, 1, 5}, {3, 1, 100}, {20, 1, 1}, {20, 1, 20}, {20, 1, 200}, {20, 20, 200}, {100, 1, 100}, {100, 20, 200}} {
		var rej []float64
		trials, most := 0, 0
		wrong := ""
		for seed := range uint64(9) {
			f := simFleet{processes: c.n, lasts: 600, rates: func(i int) float64 {
				if i == 0 {
					return c.x
				}
				return c.rate
			},
				health: func(i int, at float64) (float64, float64) {
					switch {
					case at < 10:
						return 0, 10
					case at < 40:
						return 1, 40
					case i == 0:
						return 1, math.Inf(1)
					}
					return 0, math.Inf(1)
				}}
			if c.n*int(c.rate) >= 400 && seed > 2 {
				continue
			}
			got := simulate(f, seed)
			rej = append(rej, 100*float64(got.healthyRejected)/got.healthyCalls)
			trials += got.trials
			most = max(most, got.mostTrials)
			if got.wrong != "" {
				wrong = got.wrong
			}
		}
		slices.Sort(rej)
		fmt.Printf("%d x %v, %v: %.1f %% [%.1f %.1f] trials %.1f most %d %s\n", c.n, c.rate, c.x, rej[len(rej)/2], rej[0], rej[len(rej)-1], float64(trials)/float64(len(rej)), most, wrong)
	}
}

func TestTryOne(t *testing.T) {
	for _, x := range []float64{5, 200} {
		for _, kind := range []string{"poisson", "bursts of 5", "bursts of 50", "loop", "crash loop", "crash loop bursts", "absurd", "absurd bursts"} {
			for _, n := range []int{1, 2, 4, 10, 100} {
				for _, rate := range []float64{0.1, 1, 10} {
					f := simFleet{processes: n + 1, lasts: 1800, rates: func(i int) float64 {
						if i == 0 {
							return x
						}
						return rate
					},
						health: func(i int, at float64) (float64, float64) {
							if i == 0 {
								return 1, math.Inf(1)
							}
							return 0, math.Inf(1)
						}}
					one := func(tr simTraffic) {
						f.traffic = func(i int) simTraffic {
							if i == 0 {
								return tr
							}
							return simTraffic{}
						}
					}
					switch kind {
					case "bursts of 5":
						one(simTraffic{simBursts, 5})
					case "bursts of 50":
						one(simTraffic{simBursts, 50})
					case "loop":
						one(simTraffic{simLoop, 1})
					case "crash loop":
						f.crashes = func(i int) int {
							if i == 0 {
								return 5
							}
							return 0
						}
					case "crash loop bursts":
						one(simTraffic{simBursts, 5})
						f.crashes = func(i int) int {
							if i == 0 {
								return 5
							}
							return 0
						}
					case "absurd", "absurd bursts":
						cfg := Config{FailMax: 1, ResetTimeout: 24 * 3600e9, TrialTimeout: 24 * 3600e9, SuccessThreshold: 1e6, Suspicion: 12 * 3600e9}
						f.configs = func(i int) *Config {
							if i == 0 {
								return &cfg
							}
							return nil
						}
						if kind == "absurd bursts" {
							one(simTraffic{simBursts, 50})
						}
					}
					f.lasts = 130
					if x > 100 {
						f.lasts = 65
					}
					got := simulate(f, 1)
					if got.healthyRejected+got.openings+got.healthyRejectedAlone > 0 || got.wrong != "" || got.touching > 0 {
						fmt.Printf("%v %s %d %v: %+v\n", x, kind, n, rate, got)
					}
				}
			}
		}
	}
}

func TestTryRandom(t *testing.T) {
	for _, p := range []float64{0.01, 0.05, 0.1, 0.2, 0.3, 0.4} {
		var all simResult
		hours := 0.0
		for _, n := range []int{2, 3, 5, 20, 100} {
			for _, rate := range []float64{.1, 1, 5, 20, 100} {
				for _, tr := range []simTraffic{{simPoisson, 1}, {simBursts, 5}, {simLoop, 1}} {
					f := simFleet{processes: n, rate: rate, health: atRandom(p), traffic: func(int) simTraffic { return tr }}
					f.lasts = min(20*3600, 1000/(float64(n)*rate*p))
					if tr.kind != simPoisson {
						f.lasts = min(20*3600, 1000/(float64(n)*rate))
					}
					got := simulate(f, 1)
					all.openings += got.openings
					all.suspicions += got.suspicions
					all.touching += got.touching
					all.healthyCalls += got.healthyCalls
					all.healthyRejected += got.healthyRejected
					all.longest = max(all.longest, got.longest)
					if got.wrong != "" {
						fmt.Println(n, rate, tr, got.wrong)
					}
					hours += f.lasts / 3600
				}
			}
		}
		fmt.Printf("%v: %v h, %d susp, %d openings, %d touching %.2g/h, rejected %.2g %%, longest %.1f\n", p, hours, all.suspicions, all.openings, all.touching, float64(all.touching)/hours, 100*float64(all.healthyRejected)/all.healthyCalls, all.longest)
	}
}
