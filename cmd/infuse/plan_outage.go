package main

// This file contains the formulas for an outage and for the load of Redis, in the order
// of README.md.

import (
	"math"
)

// outage computes the calls and the duration of an outage until all processes reject.
func (p *planInput) outage(e *estimate) {
	n, r, all := float64(p.processes), p.calls, p.calls*float64(p.processes)
	// local is the number of calls until the local circuit of a process opens.
	local := math.Inf(1)
	if p.failMax > 0 {
		local = float64(p.failMax)
	}
	if p.rateDecides(r) {
		local = min(local, r*p.outageRateTime(r, p.localCounted(), p.errors, 0))
	}
	if !math.IsInf(local, 1) {
		total := n * local
		e.OutageCallsLocal = &total
	}
	// opens is the number of seconds until the shared circuit opens.
	opens := math.Inf(1)
	if p.processes > 1 && p.failMax > 0 {
		opens = max(2*float64(p.failMax)/all, float64(p.failMax)/all+p.suspicion.Seconds())
	}
	if e.RateWorks {
		calls, errors := p.counted()
		suspect := p.outageRateTime(all, calls, errors, 0)
		sure := p.outageRateTime(all, calls, errors, (1-p.failureRate)*float64(p.minCalls))
		opens = min(opens, max(sure, suspect+4*p.suspicion.Seconds()))
	}
	var calls, seconds float64
	switch {
	case math.IsInf(opens, 1) && math.IsInf(local, 1):
		return
	case math.IsInf(opens, 1):
		calls, seconds = n*local, local/r
	default:
		// Each process makes calls until the shared or its local circuit opens. A process
		// that has made no call by then makes one.
		none := math.Exp(-r * opens)
		calls = n * (meanOfAtMost(local, r*opens) + none)
		if p.failMax > 0 { // the required score
			calls = max(calls, min(2*float64(p.failMax), n*local))
		}
		last := n * none
		if last > 1 {
			last = math.Log(last) + 0.58
		}
		seconds = opens + last/r
	}
	e.OutageCalls, e.OutageSeconds = &calls, &seconds
}

// localCounted returns the calls a second in the window of one process.
func (p *planInput) localCounted() float64 {
	if p.errors*p.calls*p.window.Seconds() < 1 { // the window is mostly empty
		return 0
	}
	return p.calls
}

// outageRateTime returns the seconds of an outage until FailureRate plus more failures
// is reached. Before the outage the window counted before calls a second, of which the
// fraction errors failed.
func (p *planInput) outageRateTime(calls, before, errors, more float64) float64 {
	f, excess := p.failureRate, before*max(0, p.failureRate-errors)
	t := (more + excess*p.window.Seconds()) / (calls*(1-f) + excess)
	if calls*(1-f)+excess == 0 { // FailureRate 1
		t = p.window.Seconds()
	}
	return max(t, float64(p.minCalls)/calls)
}

// meanOfAtMost returns the mean of min(limit, N) for a Poisson number N.
func meanOfAtMost(limit, mean float64) float64 {
	if math.IsInf(limit, 1) || mean > 100*limit+1000 {
		return min(limit, mean)
	}
	sum, below := 0.0, 0.0
	spread := 20*math.Sqrt(mean) + 40
	for k := math.Floor(max(0, mean-spread)); k < limit && k < mean+spread; k++ {
		chance := poisson(k, mean)
		sum, below = sum+k*chance, below+chance
	}
	return sum + limit*max(0, 1-below)
}

// load computes the commands a second that Redis runs.
func (p *planInput) load(e *estimate, suspicions float64) {
	n, circuits, all := float64(p.processes), float64(p.circuits), p.calls*float64(p.processes)
	const ping = 0.5 // one every 2 s without other commands
	poll := p.pollInterval.Seconds()
	e.Healthy = n * (ping + circuits/(15*poll))

	reports := all * p.errors // failures
	if p.failMax > 0 {        // and the successes that follow them
		reports += all * p.errors * (1 - p.errors)
	}
	// Measured: a suspicion costs about one command for each process. Those that fail
	// read the record twice, and others report successes until it is dismissed.
	e.Baseline = e.Healthy + circuits*(reports+suspicions*n)

	// Two trials per open duration: each is requested and reported, with a message each.
	e.Outage = n*ping + circuits*(n/poll+2*(2+2*n)/p.resetTimeout.Seconds())
	if e.OutageCalls != nil {
		e.OpeningBurst = circuits * (*e.OutageCalls + 2*n)
	}
}
