package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// outage is a fleet whose service fails for all.
type outage struct {
	size   int
	rate   float64 // bursts a second, of each process
	burst  int
	rule   settings
	length time.Duration // from the onset on
	apart  time.Duration // from one onset to the next: two at a time would delay each other's reports
}

func (o outage) name() string {
	name := fmt.Sprintf("%d x %g/s", o.size, o.rate)
	if o.burst > 1 {
		name += fmt.Sprintf(", bursts of %d", o.burst)
	}
	if o.rule.FailureRate > 0 {
		name += fmt.Sprintf(", FailureRate %g", o.rule.FailureRate)
	}
	return name
}

// promised is at most how many calls run until all processes reject. lag is how
// long a report takes.
func (o outage) promised() float64 {
	burst := float64(max(1, o.burst))
	return 2.5*failMax + float64(o.size)*burst + float64(o.size)*o.rate*burst*(suspicion+lag).Seconds()
}

const lag = 5 * time.Millisecond

// tolerated is by how many calls an outage may cost more than with local breakers:
// one call or burst of each process and, with a FailureRate, the calls of a bucket,
// because the buckets of a window begin at different times in the two breakers.
func (o outage) tolerated() float64 {
	n := float64(o.size * max(1, o.burst))
	if o.rule.FailureRate > 0 {
		n += float64(o.size) * o.rate * (window / 10).Seconds()
	}
	return n
}

// long is how long an outage of one call a second and process is measured: local
// breakers need up to 40 calls at 90 %. It is shorter than the open duration, so
// no trial runs.
const long = 45 * time.Second

// outages run in turn; those of one element run at a time.
var outages = [][]outage{
	{
		{size: 1, rate: 1, length: long, apart: time.Second}, {size: 2, rate: 1, length: long, apart: time.Second}, {size: 3, rate: 1, length: long, apart: time.Second},
		{size: 5, rate: 1, length: long, apart: time.Second}, {size: 20, rate: 1, length: long, apart: time.Second},
	},
	{{size: 100, rate: 1, length: long, apart: 5 * time.Second}},
	{{size: 3, rate: 100, length: 10 * time.Second, apart: time.Second}, {size: 20, rate: 20, length: 10 * time.Second, apart: time.Second}, {size: 20, rate: 1, burst: 5, length: 30 * time.Second, apart: 5 * time.Second}},
	{{size: 5, rate: 20, rule: settings{FailureRate: 0.5}, length: 15 * time.Second, apart: 3 * time.Second}, {size: 20, rate: 20, rule: settings{FailureRate: 0.5}, length: 15 * time.Second, apart: 3 * time.Second}},
}

// healthyFor is how long the service is healthy first.
var healthyFor = 5 * time.Second

var (
	outageShares = []float64{1, 0.9}
	kinds        = []kind{shared, local, gobreakers}
)

// cost is what one outage cost with one kind of breaker.
type cost struct {
	calls int64 // that ran until all processes rejected
	all   bool  // all rejected
}

// costKey is an outage of a group, the share of failing calls, and the kind.
type costKey struct {
	outage int
	share  float64
	kind   kind
}

// measure adds the costs of an outage for each round. All of them are circuits
// of the same processes.
func measure(costs map[costKey][]cost, group []outage, kinds []kind, rounds int, seed uint64) error {
	var plans []plan
	first := make([]int, len(group)) // process of each outage
	for g, o := range group {
		first[g] = len(plans)
		for range o.size {
			p := plan{Seed: seed + uint64(len(plans))}
			for s, share := range outageShares {
				for r := range rounds {
					onset := healthyFor + time.Duration(s*rounds+r)*o.apart
					p.For = onset + o.length
					for _, kind := range kinds {
						p.Calls = append(p.Calls, calls{
							Circuit: fmt.Sprintf("%s, %g %s %d", o.name(), share, kind, r), Kind: kind, Settings: o.rule,
							Rate: o.rate, Burst: o.burst, Before: 0.01, Onset: onset, After: share, End: onset + o.length, Seed: uint64(s*rounds + r),
						})
					}
				}
			}
			plans = append(plans, p)
		}
	}
	return onServer(plans, func(_ *fleet, tallies [][]tally) {
		for g, o := range group {
			for c, call := range plans[first[g]].Calls {
				one := cost{all: true}
				for _, t := range tallies[first[g] : first[g]+o.size] {
					one.calls += t[c].Ran
					one.all = one.all && t[c].RejectedAt > 0
				}
				key := costKey{g, call.After, call.Kind}
				costs[key] = append(costs[key], one)
			}
		}
	})
}

// gobreaker's shared mode is measured by itself and where few calls are made: the
// waiting for its lock takes most of a machine.
const sharedRounds = 3

func (o outage) hasShared() bool { return o.length == long }

// summary prints the median and the most, and in how many rounds some process
// never rejected.
func summary(costs []cost) string {
	if len(costs) == 0 {
		return ""
	}
	var counts []int64
	open := 0
	for _, c := range costs {
		counts = append(counts, c.calls)
		if !c.all {
			open++
		}
	}
	slices.Sort(counts)
	text := fmt.Sprintf("%d [%d]", counts[len(counts)/2], counts[len(counts)-1])
	if open > 0 {
		text += fmt.Sprintf(", not all reject in %d of %d", open, len(costs))
	}
	return text
}

// outageTable returns in how many rounds the promise was broken.
func outageTable(w io.Writer, rounds int, seed uint64) (wrong int, err error) {
	var rows [][]string
	for _, group := range outages {
		for _, o := range group {
			fmt.Fprintln(os.Stderr, "outage of", o.name())
		}
		costs := map[costKey][]cost{}
		if err := measure(costs, group, kinds[:2], rounds, seed); err != nil {
			return 0, err
		}
		if group[0].hasShared() {
			if err := measure(costs, group, kinds[2:], sharedRounds, seed); err != nil {
				return 0, err
			}
		}
		for g, o := range group {
			row := []string{o.name(), fmt.Sprintf("%.0f", o.promised())}
			if o.rule.FailureRate > 0 {
				row[1] = ""
			}
			for _, share := range outageShares {
				for _, kind := range kinds {
					row = append(row, summary(costs[costKey{g, share, kind}]))
				}
				locals := costs[costKey{g, share, local}]
				for r, c := range costs[costKey{g, share, shared}] {
					if !c.all || o.rule.FailureRate == 0 && share == 1 && float64(c.calls) > o.promised() || float64(c.calls-locals[r].calls) > o.tolerated() {
						wrong++
						fmt.Fprintf(os.Stderr, "%s, %g, round %d: %+v, local breakers %+v\n", o.name(), share, r, c, locals[r])
					}
				}
			}
			rows = append(rows, row)
		}
	}
	fmt.Fprintf(w, "## Outages of real processes\n\nThe service is healthy for %v or more (1 %% of the calls fail), then fails 100 %% or 90 %% of the calls for all processes. The columns are calls of the whole fleet that run from then on until every process rejects: median [most] of %d rounds, of %d with gobreaker's shared mode. Local breakers are offered the same calls at the same times. Promised are 2.5 × FailMax, one call or burst a process, and the calls of %v: Suspicion, and %v for a report. At 90 %% successes take from the score, so the worst round may need more. With a FailureRate, the successes before the outage are in the windows of both breakers. gobreaker's shared mode is not measured where its lock cannot keep up; it opens for all because of 5 failures of one process.\n\n", healthyFor, rounds, min(rounds, sharedRounds), suspicion+lag, lag)
	table(w, []string{"fleet", "promised", "100 %: Infuse", "local breakers", "gobreaker shared", "90 %: Infuse", "local breakers", "gobreaker shared"}, rows)
	return wrong, nil
}
