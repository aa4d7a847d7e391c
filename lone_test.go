package infuse

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestTryLone(t *testing.T) {
	for _, every := range []float64{0, 45} {
		for _, kinds := range []string{"tick", "poisson"} {
		calls, extra, kept, most := 0, 0, 0, 0
		perRestart := map[int]int{}
		for seed := range uint64(20) {
			roll := rand.New(rand.NewPCG(seed, 5))
			p := make([]float64, 400)
			for i := range p {
				p[i] = []float64{.1, .5, 1, 1}[roll.IntN(4)]
			}
			const reset = 20.5
			n, open, due, life, inLife, startOpen := 0, false, 0.0, 0, 0, false
			f := simFleet{processes: 1, rate: 1, lasts: 36000, config: Config{ResetTimeout: 20500 * time.Millisecond},
				health: func(_ int, at float64) (float64, float64) { i := int(at / 100); return p[i%400], float64(i+1) * 100 },
				traffic: func(int) simTraffic { if kinds == "tick" { return simTraffic{simTick, 1} }; return simTraffic{simPoisson, 1} },
				restarts: func(int) float64 { return every },
			}
			f.log = func(p *simProcess, began time.Duration, admitted, fails bool) {
				if p.life != life {
					perRestart[inLife]++
					life, inLife, startOpen = p.life, 0, open
				}
				_ = startOpen
				at := began.Seconds()
				calls++
				should := !open || at >= due-0.001
				switch {
				case should == admitted:
				case admitted:
					extra++
					inLife++
					most = max(most, inLife)
				default:
					kept++
					return
				}
				if !admitted {
					return
				}
				if fails {
					if n++; open || n >= 5 {
						open, due = true, at+0.002+reset
					}
				} else {
					n, open = 0, false
				}
			}
			simulate(f, seed)
		}
		_ = math.Pi
		fmt.Printf("%s, restarts every %v s: %d calls, %d let through, %d rejected; extras per life %v\n", kinds, every, calls, extra, kept, perRestart)
		}
	}
}
