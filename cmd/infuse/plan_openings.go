package main

// This file contains the formulas for false openings, in the order of README.md.

import (
	"math"
)

// perHour returns the number of events per hour. They start at a rate per second, except
// while one lasts, for that many seconds.
func perHour(rate, lasts float64) float64 {
	if rate == 0 {
		return 0
	}
	return 3600 / (1/rate + lasts)
}

// localStreaks returns the rate per second at which one process reaches FailMax
// consecutive failures: R·(1−p)·pⁿ/(1−pⁿ).
func (p *planInput) localStreaks() float64 {
	if p.failMax == 0 || p.errors == 0 {
		return 0
	}
	chance := math.Pow(p.errors, float64(p.failMax))
	return p.calls * (1 - p.errors) * chance / (1 - chance)
}

// rateDecides reports whether a window can reach MinCalls with that many calls a second.
func (p *planInput) rateDecides(calls float64) bool {
	return p.failureRate > 0 && calls*p.window.Seconds() >= float64(p.minCalls)
}

// localRates returns the rate per second at which one process reaches FailureRate.
func (p *planInput) localRates() float64 { return p.rates(p.calls, p.errors, p.calls, 0) }

// rates returns the rate per second at which a window reaches FailureRate plus more
// failures. It counts that many calls a second, of which the fraction errors fails. A
// failure starts a window: process is the calls a second that may do so.
func (p *planInput) rates(calls, errors, process, more float64) float64 {
	f, m := p.failureRate, float64(p.minCalls)
	n := math.Floor(calls * p.window.Seconds())
	switch {
	case f == 0 || errors == 0 || n < m:
		return 0
	case errors >= f && more == 0:
		return calls / m
	}
	k := math.Ceil(f*n + more - 1e-9)
	// Near the threshold, the same failures may reach it several times: again is how much
	// more often one failure is added than removed.
	again := errors * (n - k) / ((1 - errors) * k)
	full := calls * errors * (1 - errors) * binomial(n-1, k-1, errors) * max(1-again, 1/math.Sqrt(n))
	begins := process * errors * math.Pow(1-errors, n)
	return full + begins*atLeast(m-1, math.Ceil(f*m+more-1e-9)-1, errors)
}

// counted returns the calls a second in the window of the shared circuit, and the
// fraction that failed. A process counts successes only while its own window has a
// failure.
func (p *planInput) counted() (calls, errors float64) {
	all := p.calls * float64(p.processes)
	if p.errors == 0 {
		return 0, 0
	}
	counting := 1 - math.Pow(1-p.errors, p.calls*p.window.Seconds())
	calls = all * (p.errors + (1-p.errors)*counting)
	return calls, all * p.errors / calls
}

// sharedRates returns the rate per second at which the fleet reaches FailureRate plus
// more failures.
func (p *planInput) sharedRates(more float64) float64 {
	calls, errors := p.counted()
	return p.rates(calls, errors, p.calls*float64(p.processes), more)
}

// sharedStreaks returns the rate per second at which reported failures reach FailMax. A
// failure adds 1; a success resets the streak if its process's last call failed. After a
// dismissal, no process's last call failed, and streaks follow one another.
func (p *planInput) sharedStreaks() float64 {
	if p.failMax == 0 || p.errors == 0 {
		return 0
	}
	e, n := p.errors, float64(p.processes)
	high := int(min(n, n*e+12*math.Sqrt(n*e*(1-e))+20+float64(min(p.failMax, 100))))
	start := make([]float64, high+2) // at the start of a streak: the probability of each number of processes whose last call failed
	start[0] = 1
	calls, alive, last := 0.0, 1.0, 0.0 // calls until FailMax; the probability that it is not reached yet
	for rounds := 10_000_000/(high+1)/p.failMax + 20; rounds > 0; rounds-- {
		length, reached, next := p.streak(start, high)
		calls += length
		alive -= reached
		share := reached / (alive + reached)
		if start = next; alive < 1e-9 {
			break
		}
		if math.Abs(share-last) < 1e-6*share || rounds == 1 { // the share has converged
			calls += alive * (length / (alive + reached)) / share
			break
		}
		last = share
	}
	return p.calls * n / calls
}

// streak follows a streak until it is reset or reaches FailMax. start is the distribution
// of processes whose last call failed. It returns the mean length in calls, the
// probability that the streak reaches FailMax, and the start of the next streak.
func (p *planInput) streak(start []float64, high int) (length, reached float64, next []float64) {
	e, n := p.errors, float64(p.processes)
	x := make([]float64, high+2) // calls made while the last calls of that many processes failed
	next = make([]float64, high+2)
	failed := func(m int) float64 { return float64(m) / n }
	leaves := func(m int) float64 { return 1 - (1-failed(m))*(1-e) }
	for k := range p.failMax {
		for m := high; m >= 0; m-- {
			if k == 0 {
				x[m] = start[m] / leaves(m)
				continue
			}
			in := failed(m) * e * x[m]
			if m > 0 {
				in += (1 - failed(m-1)) * e * x[m-1]
			}
			x[m] = in / leaves(m)
		}
		reached = 0
		for m := 0; m <= high; m++ {
			length += x[m]
			reached += e * x[m]
			if m > 0 {
				next[m-1] += x[m] * failed(m) * (1 - e)
			}
		}
		if reached == 0 {
			break
		}
	}
	return length, reached, next
}

// suspicions returns the rate per second at which a streak makes the shared circuit
// suspect. A dismissed suspicion lasts for some calls, and no other starts for the time
// Suspicion. The longer one of that time and the next streak counts.
func (p *planInput) suspicions() float64 {
	rate := p.sharedStreaks()
	if rate == 0 {
		return 0
	}
	falls := max(4-5*p.errors, 0.1) // of the score per call
	lasts := float64(p.failMax) / falls / p.calls / float64(p.processes)
	pause := p.suspicion.Seconds()
	return 1 / (lasts + pause + math.Exp(-pause*rate)/rate)
}

// opensOfSuspect returns the probability that a suspect circuit opens: after the time
// Suspicion, its score rises from FailMax to 2 × FailMax before it reaches 0.
func (p *planInput) opensOfSuspect() float64 {
	if p.failMax == 0 || p.errors == 0 || p.processes < 2 {
		return 0
	}
	e, opens := p.errors, 2*p.failMax
	mean := min(p.calls*float64(p.processes)*p.suspicion.Seconds(), 5000)
	first := int(mean + 10*math.Sqrt(mean) + 10) // most calls within the time Suspicion
	reach := p.reach(opens, p.failMax+first+1)
	score := make([]float64, p.failMax+first+1) // the probability of each score
	score[p.failMax] = 1
	sum := 0.0
	for call := 0; call <= first; call++ {
		next := make([]float64, len(score))
		alive, opened := 0.0, 0.0
		for s, chance := range score {
			if chance == 0 {
				continue
			}
			opened += chance * reach[s]
			if s+1 < len(next) {
				next[s+1] += chance * e
			}
			if s > 4 {
				next[s-4] += chance * (1 - e)
			}
			alive += chance
		}
		if alive < 1e-40 {
			break
		}
		sum += poisson(float64(call), mean) * opened
		score = next
	}
	return sum
}

// reach returns, for each score, the probability that the circuit opens once the time
// Suspicion has passed. A failure opens it whose score is then 2 × FailMax or more.
func (p *planInput) reach(opens, scores int) []float64 {
	e, reach := p.errors, make([]float64, max(opens, scores))
	for range 100_000 {
		change := 0.0
		for s := opens - 1; s > 0; s-- {
			now := e
			if s+1 < opens {
				now *= reach[s+1]
			}
			if s > 4 {
				now += (1 - e) * reach[s-4]
			}
			change = max(change, (now-reach[s])/max(now, 1e-300))
			reach[s] = now
		}
		if change < 1e-9 {
			break
		}
	}
	for s := opens; s < len(reach); s++ {
		reach[s] = e
		if s > 4 {
			reach[s] += (1 - e) * reach[s-4]
		}
	}
	return reach
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// binomial returns the probability of exactly k failures in n calls.
func binomial(n, k, p float64) float64 {
	switch {
	case k < 0 || k > n:
		return 0
	case p == 0 || p == 1:
		return boolToFloat(k == n*p)
	}
	return math.Exp(logFactorial(n) - logFactorial(k) - logFactorial(n-k) + k*math.Log(p) + (n-k)*math.Log1p(-p))
}

// atLeast returns the probability of k failures or more in n calls.
func atLeast(n, k, p float64) float64 {
	sum := 0.0
	for i := max(0, k); i <= n; i++ {
		sum += binomial(n, i, p)
	}
	return min(1, sum)
}

// poisson returns the probability of the number k.
func poisson(k, mean float64) float64 {
	if mean == 0 {
		return boolToFloat(k == 0)
	}
	return math.Exp(k*math.Log(mean) - mean - logFactorial(k))
}

func logFactorial(n float64) float64 {
	l, _ := math.Lgamma(n + 1)
	return l
}
