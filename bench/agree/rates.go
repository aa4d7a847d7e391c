package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// The cases of a failure rate over the fleet: one call in two of the last ten
// seconds.

var half = rule{FailureRate: 0.5}

// atLeast is the rule with another MinCalls.
func (r rule) atLeast(calls int) rule {
	r.MinCalls = calls
	return r
}

var rateSteadies = []steady{
	{size: 20, rate: 100, errors: 0.4, processes: 20, rule: half},
	{size: 100, rate: 20, errors: 0.4, rule: half},
	{size: 20, rate: 100, errors: 0.4, processes: 20, rule: half.atLeast(100)},
	{size: 100, rate: 20, errors: 0.4, rule: half.atLeast(100)},
	{size: 20, rate: 100, sick: 1, processes: 20, rule: half},
	{size: 100, rate: 20, sick: 1, rule: half},
	{size: 20, rate: 5, sick: 1, rule: half},
}

// rateOnsets are fleets whose service falls ill for all. Each round is another
// fleet, of processes of their own where it says so.
var rateOnsets = []steady{
	onsetOf(steady{size: 20, rate: 100, errors: 1, processes: 20}),
	onsetOf(steady{size: 100, rate: 20, errors: 1}),
	onsetOf(steady{size: 20, rate: 100, errors: 0.6, processes: 20}),
	onsetOf(steady{size: 100, rate: 20, errors: 0.6}),
	onsetOf(steady{size: 2, rate: 100, errors: 1, processes: 2}),
	onsetOf(steady{size: 1, rate: 100, errors: 1, processes: 1}),
	onsetOf(steady{size: 20, rate: 100, errors: 1, before: 0.01, processes: 20}),
	onsetOf(steady{size: 20, rate: 100, errors: 0.6, before: 0.01, processes: 20}),
}

// endsEarly is with how many times MinCalls a suspicion of the rate ends early.
const endsEarly = 4

// onsetOf has the fleet be well for a while first: for a window, if there are
// errors that fill it.
func onsetOf(s steady) steady {
	s.rule, s.openings, s.onset = half, 1, time.Second
	if s.before > 0 {
		s.onset = window + time.Second
	}
	return s
}

// bound is within what the fleet is to open: a second, if all calls fail and
// there are enough of them before each process stops by itself.
func (s steady) bound() time.Duration {
	if s.errors == 1 && s.before == 0 && s.size > endsEarly {
		return time.Second
	}
	return window
}

func (s steady) onsetName() string {
	name := fmt.Sprintf("%d x %g/s, %g %% errors", s.size, s.rate, 100*s.errors)
	if s.before > 0 {
		name += fmt.Sprintf(" after %g %%", 100*s.before)
	}
	return name
}

// onsetRound is how one onset went, in times since it.
type onsetRound struct {
	fleet  time.Duration // until the fleet's record is open; never if it is not
	all    time.Duration // until every member rejects, be it alone
	alone  int64         // own circuits that opened
	ran    int64         // calls that ran from then on
	failed int64         // calls that ran and failed
	sent   int64         // commands to Redis
	asked  int           // suspicions
}

const never = time.Hour

// once has one fleet meet its onset, and waits for longer than the bound.
func (s steady) once(seed uint64) (r onsetRound, err error) {
	o, err := s.run(s.onset+s.bound()+time.Second, 0, seed)
	if err != nil {
		return r, err
	}
	after := func(t time.Time) time.Duration {
		if t.IsZero() {
			return never
		}
		return t.Sub(o.Onset)
	}
	r.fleet = after(o.openedAt)
	for _, t := range o.OpenedAt {
		r.all = max(r.all, after(t))
	}
	h := o.Healthy
	r.alone, r.ran, r.failed, r.sent, r.asked = h.Openings, h.Ill, h.Failed, o.sent, len(o.suspicions)
	return r, nil
}

var onsetHead = []string{"fleet", "processes", "rounds", "the fleet's record is open after ms: p50", "max", "every process rejects after ms: p50", "max", "own circuits opened a round", "calls that ran since the onset, a round", "suspicions a round", "commands a call", "a failure", "bound ms", "verdict"}

func (s steady) onsetRow(rounds []onsetRound) []string {
	var fleets, alls []time.Duration
	var sum onsetRound
	for _, r := range rounds {
		fleets, alls = append(fleets, r.fleet), append(alls, r.all)
		sum.alone, sum.ran, sum.failed = sum.alone+r.alone, sum.ran+r.ran, sum.failed+r.failed
		sum.sent, sum.asked = sum.sent+r.sent, sum.asked+r.asked
	}
	var misses []string
	late := func(what string, worst time.Duration) {
		switch {
		case worst == never:
			misses = append(misses, what+" never")
		case worst > s.bound():
			misses = append(misses, what+" after "+msOrNever(worst)+" ms")
		}
	}
	late("the fleet opens", slices.Max(fleets))
	late("a process rejects", slices.Max(alls))
	n := int64(len(rounds))
	return []string{
		s.onsetName(), s.where(), fmt.Sprint(n),
		msOrNever(percentile(fleets, 50)), msOrNever(slices.Max(fleets)), msOrNever(percentile(alls, 50)), msOrNever(slices.Max(alls)),
		quotient(sum.alone, n), quotient(sum.ran, n), quotient(int64(sum.asked), n),
		quotient(sum.sent, sum.ran), quotient(sum.sent, sum.failed), fmt.Sprint(s.bound().Milliseconds()), verdict(misses),
	}
}

func msOrNever(d time.Duration) string {
	if d == never {
		return "never"
	}
	return fmt.Sprintf("%.0f", d.Seconds()*1000)
}

func quotient(a, b int64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.3g", float64(a)/float64(b))
}

var rateHead = []string{"fleet", "MinCalls", "processes", "s", "calls", "openings of the fleet", "rejected by the fleet", "own circuits opened", "rejected by them", "gobreakers opened", "rejected by them", "calls of one cut off until it rejects", "suspicions", "in the busiest second", "commands a call that ran", "a failure", "verdict"}

func (s steady) rateRow(o outcome) []string {
	all := o.Healthy
	all.add(o.Sick)
	percent := func(n int64) string { return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(max(all.Calls, 1))) }
	return []string{
		s.name(), fmt.Sprint(s.rule.minCalls()), s.where(), fmt.Sprintf("%.0f", o.took.Seconds()), fmt.Sprint(all.Calls),
		fmt.Sprint(o.openings), fmt.Sprint(all.Fleet), fmt.Sprint(all.Openings), percent(all.Local),
		fmt.Sprint(all.Peer.Opened), percent(all.Peer.Rejected), untilRejected(o.SickRan),
		fmt.Sprint(len(o.suspicions)), fmt.Sprint(busiest(o.suspicions)), quotient(o.sent, all.Ran), quotient(o.sent, all.Failed), s.misses(o),
	}
}

// rateTables are all there is of the failure rate, and the ramp.
func rateTables(w io.Writer, s settings) (failed int, err error) {
	var rows [][]string
	for _, c := range rateSteadies {
		if !s.only.MatchString(c.name()) {
			continue
		}
		fmt.Fprintln(os.Stderr, c.name())
		o, err := c.run(2*s.usual, 0, s.seed)
		if err != nil {
			return 0, err
		}
		rows = append(rows, c.rateRow(o))
	}
	fmt.Fprint(w, "\n## Fewer errors than the rate, and one that is cut off\n\nThe fleet's circuit is to stay closed. A process may open its own: it judges its own calls alone, and of few calls it is chance that decides. Beside each member a gobreaker (sony/gobreaker/v2) has the same rule over a window of ten buckets, and is offered the same calls with the same outcomes.\n\n")
	failed = table(w, rateHead, rows)
	rows = nil
	for _, c := range rateOnsets {
		if !s.only.MatchString(c.onsetName()) {
			continue
		}
		row, err := c.onsets(s.rounds, s.seed)
		if err != nil {
			return 0, err
		}
		rows = append(rows, row)
	}
	fmt.Fprint(w, "\n## A service that falls ill for all\n\nThe service is well for a second, or has 1 % errors for 11 s, so that a window is full of successes. Then it falls ill. Times are since then. Both worst times are to keep to the bound. Each process stops by itself after 20 failures, so a fleet of two does not make the calls with which a suspicion ends early, and is asked for half a window. Commands are those of a whole round.\n\n")
	failed += table(w, onsetHead, rows)
	if !s.only.MatchString(rampName) {
		return failed, nil
	}
	more, err := rampPicture(w, s)
	return failed + more, err
}

func (s steady) onsets(rounds int, seed uint64) ([]string, error) {
	if s.before > 0 { // they take long
		rounds = (rounds + 2) / 3
	}
	var all []onsetRound
	for i := range rounds {
		fmt.Fprintln(os.Stderr, s.onsetName(), i+1)
		r, err := s.once(seed + uint64(i))
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return s.onsetRow(all), nil
}
