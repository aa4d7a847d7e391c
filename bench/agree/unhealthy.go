package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/infuse-go/infuse/bench/results"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// One unhealthy process beside healthy ones. Nothing that it does may reject a
// call of theirs.

// reset is the ResetTimeout of these fleets: short, for many suspicions.
const reset = 2 * time.Second

// unhealthy is what the one process does, all of whose calls fail.
type unhealthy struct {
	name     string
	rate     float64
	burst    int
	crashes  bool // it is killed and started anew every crashEvery
	settings settings
}

const crashEvery = 3 * time.Second

var unhealthies = []unhealthy{
	{name: "5 calls/s", rate: 5},
	{name: "200 calls/s", rate: 200},
	{name: "bursts of 5", rate: 1, burst: 5},
	{name: "bursts of 50", rate: 1, burst: 50},
	{name: "crash loop, 20 calls/s", rate: 20, crashes: true},
	{name: "crash loop, bursts of 5", rate: 2, burst: 5, crashes: true},
	{name: "crash loop, TrialTimeout 24h", rate: 20, crashes: true, settings: settings{TrialTimeout: 24 * time.Hour}},
	{name: "crash loop, SuccessThreshold 1e6", rate: 20, crashes: true, settings: settings{SuccessThreshold: 1e6}},
	{name: "crash loop, FailMax 1, ResetTimeout 24h", rate: 20, crashes: true, settings: settings{FailMax: 1, ResetTimeout: 24 * time.Hour}},
}

// errorRates are the shares of failing calls of the healthy processes.
var errorRates = []float64{0, 0.01}

// found is what was seen of some fleets.
type found struct {
	calls, rejected      int64 // of the healthy processes
	suspicions, openings int
	hours                float64
}

func (f *found) add(g found) {
	f.calls += g.calls
	f.rejected += g.rejected
	f.suspicions += g.suspicions
	f.openings += g.openings
	f.hours += g.hours
}

func (f *found) row(name string) []string {
	return []string{name, fmt.Sprintf("%.2f", f.hours), fmt.Sprint(f.calls), results.Count(float64(f.rejected), float64(f.calls)/100, " %"),
		fmt.Sprint(f.suspicions), results.Count(float64(f.openings), f.hours, " an hour")}
}

// A beside is a fleet of healthy processes, and what was found of it: by the
// unhealthy process, and by the rate of the healthy ones.
type beside struct {
	size   int
	rates  []float64
	byKind []found
	byRate []found
}

// run has the unhealthy processes of all kinds beside the fleet at a time: each
// case is a circuit of the same processes.
func (b *beside) run(length time.Duration, seed uint64) error {
	b.byKind, b.byRate = make([]found, len(unhealthies)), make([]found, len(b.rates))
	plans := make([]plan, b.size+2) // one of the last two is the unhealthy process of a case
	for i := range plans {
		plans[i] = plan{For: length, Seed: seed + uint64(i)}
	}
	plans[b.size+1].Crash = crashEvery
	var cases [][2]*found // to which each circuit adds
	for k, u := range unhealthies {
		for r, rate := range b.rates {
			for _, share := range errorRates {
				c := calls{Circuit: fmt.Sprintf("%s, %d x %g per s, %g", u.name, b.size, rate, share), Rate: rate, Before: share, Settings: settings{ResetTimeout: reset}, Seed: uint64(len(cases))}
				for i := range b.size {
					plans[i].Calls = append(plans[i].Calls, c)
				}
				c.Rate, c.Burst, c.Before, c.Settings = u.rate, u.burst, 1, u.settings
				c.Settings.ResetTimeout = cmp.Or(u.settings.ResetTimeout, reset)
				i := b.size
				if u.crashes {
					i++
				}
				plans[i].Calls = append(plans[i].Calls, c)
				cases = append(cases, [2]*found{&b.byKind[k], &b.byRate[r]})
			}
		}
	}
	return onServer(plans, func(f *fleet, tallies [][]tally) {
		for i, sums := range cases {
			circuit := plans[0].Calls[i].Circuit
			one := found{hours: length.Hours()}
			for _, t := range tallies[:b.size] {
				one.calls += t[i].Calls
				one.rejected += t[i].Rejected
			}
			one.suspicions, one.openings = f.seen(circuit)
			if one.rejected > 0 || one.openings > 0 {
				fmt.Fprintf(os.Stderr, "%s: %d rejected, %d openings\n", circuit, one.rejected, one.openings)
			}
			for _, sum := range sums {
				sum.add(one)
			}
		}
	})
}

// unhealthyTable returns how many rejections and openings there were.
func unhealthyTable(w io.Writer, length time.Duration, seed uint64) (wrong int, err error) {
	rates := []float64{0.1, 1, 10}
	all := []*beside{{size: 1, rates: rates}, {size: 2, rates: rates}, {size: 4, rates: rates}, {size: 10, rates: rates}, {size: 100, rates: rates[:2]}}
	err = worker.InParallel(len(all), len(all), func(i int) error { return all[i].run(length, seed+uint64(1000*i)) })
	if err != nil {
		return 0, err
	}
	var rows [][]string
	var total found
	for k, u := range unhealthies {
		var sum found
		for _, b := range all {
			sum.add(b.byKind[k])
		}
		total.add(sum)
		rows = append(rows, sum.row(u.name))
	}
	for _, b := range all {
		for r, rate := range b.rates {
			rows = append(rows, b.byRate[r].row(fmt.Sprintf("all of these, beside %d x %g/s", b.size, rate)))
		}
	}
	rows = append(rows, total.row("all"))
	fmt.Fprintf(w, "## One unhealthy process beside healthy ones\n\nAll calls of one process fail. Of the others' calls 0 or 1 %% fail. They are 1, 2, 4 and 10 processes with 0.1, 1 and 10 calls a second each, and 100 with 0.1 and 1. Each fleet runs for %v, all at a time. ResetTimeout is %v, for many suspicions. A process in a crash loop is killed after %v. Each row is the sum of its fleets; hours are those of all its circuits. Promised: no rejection of a healthy call, no opening. After a zero comes its upper 95 %% bound: 3/calls, or 3/hours.\n\n", length, reset, crashEvery)
	table(w, []string{"unhealthy process", "hours", "healthy calls", "rejected", "suspicions", "openings of the shared circuit"}, rows)
	return int(total.rejected) + total.openings, nil
}

// onServer has the processes live on a redis-server of their own.
func onServer(plans []plan, look func(f *fleet, tallies [][]tally)) error {
	server, err := redistest.Launch()
	if err != nil {
		return err
	}
	defer server.Close()
	f, err := start(server, plans)
	if err != nil {
		return err
	}
	defer f.end()
	tallies, err := f.live(time.Now().Add(time.Second))
	if err == nil {
		look(f, tallies)
	}
	return err
}
