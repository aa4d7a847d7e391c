package main

// This file contains the command plan: its input, its flags and its result.

import (
	"context"
	"flag"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// planInput is the traffic and the settings of a plan.
type planInput struct {
	calls     float64 // per second and process
	processes int
	circuits  int     // per process
	errors    float64 // baseline error rate

	failMax      int // 0: consecutive failures open no circuit
	failureRate  float64
	minCalls     int
	window       time.Duration
	resetTimeout time.Duration
	suspicion    time.Duration
	pollInterval time.Duration
}

// estimate is the result of a plan, and its JSON. Rates are those of one circuit.
type estimate struct {
	LocalPerHour    float64 `json:"local_openings_per_hour"`     // one process
	AllLocalPerHour float64 `json:"all_local_openings_per_hour"` // all processes together
	SuspectPerHour  float64 `json:"suspicions_per_hour"`         // shared circuit
	SharedPerHour   float64 `json:"shared_openings_per_hour"`

	OutageCalls      *float64 `json:"outage_calls,omitempty"`       // until all processes reject; nil: never
	OutageCallsLocal *float64 `json:"outage_calls_local,omitempty"` // with local circuits only
	OutageSeconds    *float64 `json:"outage_seconds,omitempty"`     // until all processes reject
	TrialsPerHour    float64  `json:"outage_trials_per_hour"`       // at most

	Healthy        float64 `json:"commands_per_second_healthy"`
	Baseline       float64 `json:"commands_per_second_baseline"`
	Outage         float64 `json:"commands_per_second_outage"`
	OpeningBurst   float64 `json:"commands_of_an_opening"` // in total
	LocalRateWorks bool    `json:"local_failure_rate_decides"`
	RateWorks      bool    `json:"shared_failure_rate_decides"`
}

func planFlags(f *flag.FlagSet, o *options) {
	p := &o.plan
	f.Float64Var(&p.calls, "calls", 10, "")
	f.IntVar(&p.processes, "processes", 10, "")
	f.IntVar(&p.circuits, "circuits", 1, "")
	f.Float64Var(&p.errors, "errors", 0.01, "")
	f.IntVar(&p.failMax, "fail-max", 0, "")
	f.Float64Var(&p.failureRate, "failure-rate", 0, "")
	f.IntVar(&p.minCalls, "min-calls", 20, "")
	f.DurationVar(&p.window, "window", 10*time.Second, "")
	f.DurationVar(&p.resetTimeout, "reset-timeout", time.Minute, "")
	f.DurationVar(&p.suspicion, "suspicion", 50*time.Millisecond, "")
	f.DurationVar(&p.pollInterval, "poll-interval", 2*time.Second, "")
}

func checkPlan(o *options, _ []string) error {
	p := &o.plan
	switch {
	case !(p.calls >= 1e-6 && p.calls <= 1e7):
		return usageErrorf("-calls is %v: must be from 0.000001 to 10000000 a second", p.calls)
	case p.processes < 1 || p.processes > 100_000:
		return usageErrorf("-processes is %d: must be from 1 to 100000", p.processes)
	case p.circuits < 1 || p.circuits > 1_000_000:
		return usageErrorf("-circuits is %d: must be from 1 to 1000000", p.circuits)
	case !(p.errors >= 0 && p.errors < 1):
		return usageErrorf("-errors is %v: must be from 0 to below 1, where 0.01 is 1 %%", p.errors)
	case p.failMax > 10_000 || p.minCalls > 1_000_000:
		return usageErrorf("-fail-max must be at most 10000, and -min-calls at most 1000000")
	case p.pollInterval < time.Millisecond:
		return usageErrorf("-poll-interval is %v: must be at least 1ms", p.pollInterval)
	}
	b, err := infuse.New("plan", infuse.Config{
		FailMax: p.failMax, FailureRate: p.failureRate, MinCalls: p.minCalls, Window: p.window,
		ResetTimeout: p.resetTimeout, Suspicion: p.suspicion,
	})
	if err != nil {
		return usageErrorf("%s", strings.TrimPrefix(err.Error(), "infuse: "))
	}
	b.Stop()
	if p.failMax == 0 && p.failureRate == 0 {
		p.failMax = 5
	}
	return nil
}

func plan(_ context.Context, j *job) error {
	e := j.plan.estimate()
	if j.json {
		return writeJSON(j.stdout, e, "  ")
	}
	return e.print(j.stdout, &j.plan)
}

// estimate computes the result.
func (p *planInput) estimate() *estimate {
	all := p.calls * float64(p.processes)
	e := &estimate{
		LocalRateWorks: p.rateDecides(p.calls), RateWorks: p.processes > 1 && p.rateDecides(all),
		TrialsPerHour: 2 * 3600 / p.resetTimeout.Seconds(),
	}
	reset := p.resetTimeout.Seconds() / (1 - p.errors)
	e.LocalPerHour = perHour(p.localStreaks()+p.localRates(), reset)
	e.AllLocalPerHour = e.LocalPerHour * float64(p.processes)

	suspicions, rates := p.suspicions(), p.sharedRates(0) // per second
	opens := p.opensOfSuspect()
	e.SuspectPerHour = 3600 * (suspicions + rates)
	if p.processes > 1 {
		e.SharedPerHour = perHour(suspicions*opens+p.sharedRates((1-p.failureRate)*float64(p.minCalls)), reset)
	}
	p.outage(e)
	p.load(e, suspicions+rates)
	return e
}
