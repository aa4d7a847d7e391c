package main

import (
	"fmt"
	"io"
	"time"

	"github.com/infuse-go/infuse/bench/results"
	"github.com/infuse-go/infuse/bench/worker"
)

// Fleets with a FailureRate whose service fails fewer calls than that, or fails for one
// process.

// rateCase is a fleet with a FailureRate of 0.5, from 20 calls in 10 s.
type rateCase struct {
	size   int
	rate   float64
	errors float64
	alone  bool // all calls of one process fail
}

func (c rateCase) name() string {
	name := fmt.Sprintf("%d x %g/s, %g %% errors", c.size, c.rate, 100*c.errors)
	if c.alone {
		name += ", 100 % of one process"
	}
	return name
}

var rateCases = []rateCase{
	{size: 5, rate: 5, errors: 0.3}, {size: 20, rate: 5, errors: 0.3}, {size: 20, rate: 20, errors: 0.3},
	{size: 5, rate: 5, errors: 0.4}, {size: 20, rate: 5, errors: 0.4}, {size: 20, rate: 20, errors: 0.4},
	{size: 5, rate: 5, errors: 0.01, alone: true}, {size: 20, rate: 5, errors: 0.01, alone: true}, {size: 20, rate: 20, errors: 0.01, alone: true},
}

// rated is what became of the calls of the healthy processes.
type rated struct {
	calls, rejected, rejectedLocally, byLocalBreakers int64
	suspicions, openings                              int
}

func (c rateCase) measure(length time.Duration, seed uint64) (found rated, err error) {
	plans := make([]plan, c.size)
	for i := range plans {
		plans[i] = plan{For: length, Seed: seed + uint64(i)}
		for _, kind := range []kind{shared, local} {
			one := calls{Circuit: string("rate" + kind), Kind: kind, Settings: settings{FailureRate: 0.5}, Rate: c.rate, Before: c.errors, Seed: 1}
			if c.alone && i == c.size-1 {
				one.Before = 1
			}
			plans[i].Calls = append(plans[i].Calls, one)
		}
	}
	healthy := c.size
	if c.alone {
		healthy--
	}
	err = onServer(plans, func(f *fleet, tallies [][]tally) {
		for _, t := range tallies[:healthy] {
			found.calls += t[0].Calls
			found.rejected += t[0].Rejected - t[0].RejectedLocally
			found.rejectedLocally += t[0].RejectedLocally
			found.byLocalBreakers += t[1].Rejected
		}
		found.suspicions, found.openings = f.seen(plans[0].Calls[0].Circuit)
	})
	return found, err
}

// rateTable has no values that may be wrong: near its rate a circuit opens by chance.
func rateTable(w io.Writer, length time.Duration, seed uint64) error {
	rows := make([][]string, len(rateCases))
	err := worker.InParallel(len(rateCases), len(rateCases), func(i int) error {
		c := rateCases[i]
		x, err := c.measure(length, seed+uint64(100*i))
		share := func(n int64) string { return results.Count(float64(n), float64(x.calls)/100, " %") }
		rows[i] = []string{
			c.name(), fmt.Sprint(x.calls), fmt.Sprint(x.suspicions), results.Count(float64(x.openings), length.Hours(), " an hour"),
			share(x.rejected), share(x.rejectedLocally), share(x.byLocalBreakers),
		}
		return err
	})
	fmt.Fprintf(w, "## Failure rates of real processes\n\nFailureRate 0.5, MinCalls 20, Window 10 s, no FailMax. The service fails fewer calls than half at random, or all calls of one process; the columns count the calls of the other processes, in %v. gobreaker (as a local breaker) has the same rule and the same calls. A window of Infuse begins with a failure, so a young one has a higher rate, and local circuits open more often than those breakers. All fleets run at a time, each with its own Redis. After a zero comes its upper 95 %% bound: 3/calls, or 3/hours.\n\n", length)
	table(w, []string{"fleet", "healthy calls", "suspicions", "openings of the shared circuit", "rejected by it", "rejected by local circuits", "rejected by local breakers"}, rows)
	return err
}
