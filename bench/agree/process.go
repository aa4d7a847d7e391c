package main

import (
	"sync"
	"time"

	"github.com/infuse-go/infuse/bench/worker"
)

// crewJob makes this program one process of a fleet: see package worker.
const crewJob = "crew"

var jobs = map[string]worker.Job{crewJob: worker.Of(func(p plan) (func(time.Time) (result, error), func(), error) {
	c, err := gather(p)
	if err != nil {
		return nil, nil, err
	}
	return func(begin time.Time) (result, error) { return c.live(begin), nil }, c.leave, nil
})}

// A group is some members of a fleet, in this process or in one of their own.
type group interface {
	live(begin time.Time) result
	leave()
}

// process is a group in a process of its own.
type process struct{ *worker.Worker }

func (p process) live(begin time.Time) (r result) {
	_ = p.Work(begin, &r) // a process that failed lacks in the number of calls
	return r
}

func (p process) leave() { p.End() }

// muster starts all groups of a fleet of that size, in so many processes; in
// this one if there are 0.
func muster(p plan, size, processes int) (groups []group, err error) {
	if processes == 0 {
		p.First, p.Last = 0, size
		c, err := gather(p)
		if err != nil {
			return nil, err
		}
		return []group{c}, nil
	}
	for i := range processes {
		p.First, p.Last = i*size/processes, (i+1)*size/processes
		w, err := worker.Start(crewJob, p)
		if err != nil {
			leaveAll(groups)
			return nil, err
		}
		groups = append(groups, process{w})
	}
	return groups, nil
}

func leaveAll(groups []group) {
	var all sync.WaitGroup
	for _, g := range groups {
		all.Go(g.leave)
	}
	all.Wait()
}

func liveAll(groups []group) (r result) {
	begin := time.Now()
	results := make([]result, len(groups))
	var all sync.WaitGroup
	for i, g := range groups {
		all.Go(func() { results[i] = g.live(begin) })
	}
	all.Wait()
	for _, s := range results {
		r.add(s)
	}
	return r
}
