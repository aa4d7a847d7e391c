package main

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

// What a call costs within one process.

// A scenario is a circuit in some condition and two calls of it, made in turn.
type scenario struct {
	name    string
	failMax int
	open    bool
	even    work
	odd     work
}

const (
	closedName = "closed, the call succeeds"
	openName   = "open, the call is rejected"
	halfName   = "closed, half the calls fail"
)

var scenarios = []scenario{
	{name: closedName, failMax: fewFailures, even: healthy, odd: healthy},
	{name: openName, failMax: fewFailures, open: true, even: healthy, odd: healthy},
	{name: halfName, failMax: manyFailures, even: healthy, odd: unhealthy},
}

// has tells that a bare call is never rejected.
func (sc scenario) has(s subject) bool { return !sc.open || !s.floor }

// timing is a subject in a scenario, ready to be timed.
type timing struct {
	even, odd func() error
	stop      func()
}

func (sc scenario) prepare(s subject) (*timing, error) {
	b, err := s.start(sc.failMax)
	if err == nil && sc.open {
		err = trip(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", s.name, sc.name, err)
	}
	return &timing{b.call(sc.even), b.call(sc.odd), b.stop}, nil
}

// serial makes n calls, or one more.
func (r *timing) serial(n int) {
	for i := 0; i < n; i += 2 {
		_ = r.even()
		_ = r.odd()
	}
}

// parallel makes n calls, or a few more, from a goroutine for each processor.
func (r *timing) parallel(n int) {
	procs := runtime.GOMAXPROCS(0)
	var all sync.WaitGroup
	for range procs {
		all.Go(func() { r.serial((n + procs - 1) / procs) })
	}
	all.Wait()
}

// rejected is the share of calls that are rejected, in a hundred pairs.
func (r *timing) rejected() float64 {
	rejected := 0
	for range 100 {
		for _, call := range []func() error{r.even, r.odd} {
			if isRejection(call()) {
				rejected++
			}
		}
	}
	return float64(rejected) / 200
}

// cost is what a call takes.
type cost struct {
	ns     float64 // of wall time: with two processors busy, half of what one of them spends
	allocs float64
}

// cost times calls until they have taken as long as wanted.
func (r *timing) cost(calls func(n int), wanted time.Duration) cost {
	runtime.GC() // what others have left lying about is not its concern
	n := 2
	for {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		calls(n)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if took >= wanted/2 || n >= 1<<30 {
			return cost{
				ns:     float64(took.Nanoseconds()) / float64(n),
				allocs: float64(after.Mallocs-before.Mallocs) / float64(n),
			}
		}
		perCall := max(float64(took)/float64(n), 0.1)
		n = int(min(float64(wanted)/perCall*1.1, 100*float64(n))) + 2
	}
}
