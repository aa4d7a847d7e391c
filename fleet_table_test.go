package infuse

import (
	goflag "flag"
	"fmt"
	"testing"
)

var fleetTable = goflag.Bool("fleet.table", false, "print the tables of bench/SIMULATION.md (some minutes)")

// go test -run TestFleetTables -v -timeout 60m . -args -fleet.table
func TestFleetTables(t *testing.T) {
	if !*fleetTable {
		t.Skip("asks for -args -fleet.table")
	}
	fmt.Println("| fleet | promised | 100 % fail | until | local breakers | 90 % fail | local breakers | bursts of 5, 100 % | local breakers |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
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
		fmt.Printf("| %v | %.0f | %s | %.2g s | %s | %s | %s | %s | %s |\n", size, promised, all, until, allLocal, most, mostLocal, burst, burstLocal)
	}
	fmt.Println("\n| what is wrong | hours | openings an hour that touch a healthy process | healthy calls rejected by the shared circuit | longest |")
	fmt.Println("|---|--:|--:|--:|--:|")
	row := func(what string, calls, hours float64, sizes []simSize, change func(f *simFleet)) {
		sum := simulateAll(sizes, calls, hours, 1, change)
		if sum.wrong != "" {
			t.Error(sum.wrong)
		}
		fmt.Printf("| %s | %.0f | %s | %.2g %% | %.1f s |\n", what, sum.hours, perHour(sum.touching, sum.hours), 100*sum.share(), sum.longest)
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
		fmt.Printf("| all calls fail for %v ms every %v s | %.0f | %s | %.2g %% of all calls, local %.2g %% | |\n", 1000*c.long, c.period, sum.hours, perHour(sum.openings, sum.hours), 100*float64(sum.rejected)/sum.calls, 100*float64(sum.rejectedAlone)/sum.calls)
	}
	for _, share := range []float64{0.5, 0.6} {
		for _, size := range []simSize{{2, 1}, {20, 1}, {20, 20}} {
			run := func(local bool) simSum {
				return simulateAll([]simSize{size}, 100_000, 2, 1, func(f *simFleet) {
					f.health, f.local, f.config.ResetTimeout = atRandom(share), local, 1e10
				})
			}
			sum, local := run(false), run(true)
			fmt.Printf("| brownout of %v %%, %v, open for 10 s | %.1f | %s | shared %.2g %%, local %.2g %%; local breakers %.2g %% | |\n", 100*share, size, sum.hours, perHour(sum.openings, sum.hours),
				100*float64(sum.rejected)/sum.calls, 100*float64(sum.rejectedAlone)/sum.calls, 100*float64(local.rejectedAlone)/local.calls)
		}
	}
	for _, c := range []struct {
		what   string
		change func(f *simFleet)
	}{
		{"one in bursts of 80, others 1 %", func(f *simFleet) { f.health, f.traffic = partitioned(1, 0.01), ofTheFirst(1, simBursts, 80) }},
		{"30 % random errors", func(f *simFleet) { f.health = atRandom(0.3) }},
		{"40 % random errors", func(f *simFleet) { f.health = atRandom(0.4) }},
	} {
		row("FailureRate 50 %: "+c.what, 60_000, 5, []simSize{{3, 1}, {5, 0.1}, {20, 1}, {20, 5}, {100, 1}}, func(f *simFleet) {
			f.config = halfOfTheCalls
			c.change(f)
		})
	}
	l := lone(20, 45)
	fmt.Printf("\nA fleet of one beside pybreaker, restarts each 45 s: %d calls, %d admitted that pybreaker would have rejected, %d rejected; lives by the number admitted: %v\n", l.calls, l.admitted, l.rejected, l.lives)
}
