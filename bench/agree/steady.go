package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A steady case is a fleet that calls a service which is well, or ill for a
// part of the fleet alone. The fleet's circuit is to stay closed.
type steady struct {
	size      int
	rate      float64 // of each
	errors    float64
	sick      int
	length    float64 // times the usual
	processes int     // of the operating system; 0: all members in this one
	openings  int     // that are allowed
	rule      rule    // the defaults if it is zero

	before float64 // the share of errors before the onset
	onset  time.Duration
}

// defaults of the breakers, by which the bounds go.
const (
	failMax   = 5
	resetTime = time.Minute
	suspicion = 50 * time.Millisecond
)

// The cases with more calls than that take turns, so that none disturbs
// another; the others run all at once, beside them.
const lightly = 200 // calls a second

func (s steady) isLight() bool { return float64(s.size)*s.rate <= lightly }

var steadies = func() (all []steady) {
	for _, errors := range []float64{0.01, 0.05, 0.10} {
		all = append(all,
			steady{size: 20, rate: 100, errors: errors, processes: 20},
			steady{size: 100, rate: 20, errors: errors},
			steady{size: 100, rate: 1, errors: errors},
			steady{size: 20, rate: 5, errors: errors},
			steady{size: 20, rate: 1, errors: errors})
	}
	return append(all,
		steady{size: 5, rate: 0.1, sick: 1, length: 5},
		steady{size: 20, rate: 1, sick: 1, length: 5},
		steady{size: 20, rate: 100, sick: 1, processes: 20},
		steady{size: 100, rate: 20, sick: 33},
		steady{size: 100, rate: 20, sick: 66, openings: 1})
}()

func (s steady) name() string {
	name := fmt.Sprintf("%d x %g/s", s.size, s.rate)
	switch {
	case s.sick == 1:
		return name + ", one cut off"
	case s.sick > 1:
		return fmt.Sprintf("%s, %d cut off", name, s.sick)
	}
	return fmt.Sprintf("%s, %g %% errors", name, 100*s.errors)
}

// outcome is what was found of a steady case.
type outcome struct {
	result
	openings   int
	suspicions []time.Time
	openedAt   time.Time // when the fleet's record was seen to open last; zero if it did not
	sent       int64     // commands to Redis
	commands   float64   // that Redis was sent, a second
	took       time.Duration
}

// run has the fleet live, on a redis-server of its own.
func (s steady) run(usual, pause time.Duration, seed uint64) (o outcome, err error) {
	server, err := redistest.Launch()
	if err != nil {
		return o, err
	}
	defer server.Close()
	if s.length > 0 {
		usual = time.Duration(s.length * float64(usual))
	}
	onset := s.onset
	if s.sick > 1 { // all at once, as a zone is
		onset = time.Second
		usual += onset
	}
	p := plan{Addr: server.Addr(), Circuit: "service", Rule: s.rule, Rate: s.rate, Before: s.before, Errors: s.errors, Sick: s.sick, Onset: onset, For: usual, Seed: seed}
	groups, err := muster(p, s.size, s.processes)
	if err != nil {
		return o, err
	}
	defer leaveAll(groups)
	w := watch(server.Client(), p.Circuit)
	if err := waiting.ForSubscribers(server, s.size+1); err != nil {
		return o, err
	}
	before := sent(server)
	began := time.Now()
	goOn := pauses(server, pause)
	o.result = liveAll(groups)
	goOn()
	o.took = time.Since(began)
	o.sent = sent(server) - before
	o.commands = float64(o.sent) / o.took.Seconds()
	o.suspicions, o.openings = w.end()
	o.openedAt = w.last(infuse.StateOpen)
	return o, nil
}

// misses tells what does not keep to the bounds.
func (s steady) misses(o outcome) string {
	var all []string
	miss := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if o.openings > s.openings {
		miss("%d openings", o.openings)
	}
	if s.openings == 0 && o.Healthy.Fleet > 0 {
		miss("%d calls rejected by the fleet", o.Healthy.Fleet)
	}
	if s.sick > 0 && s.openings == 0 && o.Healthy.Local > 0 {
		miss("%d calls of the healthy rejected", o.Healthy.Local)
	}
	if n := busiest(o.suspicions); n > 20 {
		miss("%d suspicions in a second", n)
	}
	openTimes := 1 + int(o.took/resetTime)
	if s.sick == 1 && len(o.suspicions) > 2*openTimes {
		miss("%d suspicions in %d open times", len(o.suspicions), openTimes)
	}
	for _, ran := range o.SickRan {
		if ran > int64(s.rule.ownLimit()) && s.sick == 1 {
			miss("its own circuit opens at failure %d", ran)
		}
	}
	if want := float64(s.size) * s.rate * o.took.Seconds(); math.Abs(float64(o.calls())-want) > 0.05*want+5*math.Sqrt(want) {
		miss("%d calls in place of %.0f: this machine is too slow", o.calls(), want)
	}
	return verdict(all)
}

func (o outcome) calls() int64 { return o.Healthy.Calls + o.Sick.Calls }

func verdict(misses []string) string {
	if misses == nil {
		return "pass"
	}
	return "**FAIL**: " + strings.Join(misses, "; ")
}

var steadyHead = []string{"fleet", "processes", "s", "calls", "openings of the fleet", "rejected by the fleet", "own circuits opened", "rejected by them: of the healthy", "of those cut off", "calls of one cut off until it rejects", "suspicions", "in the busiest second", "commands/s to Redis", "verdict"}

func (s steady) row(o outcome) []string {
	return []string{
		s.name(), s.where(), fmt.Sprintf("%.0f", o.took.Seconds()), fmt.Sprint(o.calls()),
		fmt.Sprint(o.openings), fmt.Sprint(o.Healthy.Fleet + o.Sick.Fleet), fmt.Sprint(o.Healthy.Openings + o.Sick.Openings),
		fmt.Sprint(o.Healthy.Local), fmt.Sprint(o.Sick.Local), untilRejected(o.SickRan),
		fmt.Sprint(len(o.suspicions)), fmt.Sprint(busiest(o.suspicions)), fmt.Sprintf("%.0f", o.commands), s.misses(o),
	}
}

// where tells in how many processes the members are.
func (s steady) where() string {
	if s.processes == 0 {
		return "in one"
	}
	return fmt.Sprint(s.processes)
}

// untilRejected sums up how many calls it took those that were cut off.
func untilRejected(ran []int64) string {
	var known []int64
	for _, n := range ran {
		if n > 0 {
			known = append(known, n)
		}
	}
	switch {
	case len(ran) == 0:
		return ""
	case len(known) == 0:
		return "not yet"
	case slices.Min(known) == slices.Max(known):
		return fmt.Sprint(known[0])
	}
	return fmt.Sprintf("%d to %d", slices.Min(known), slices.Max(known))
}
