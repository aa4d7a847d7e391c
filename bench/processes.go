package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Fleets of processes of the operating system, on a real redis-server.

// callerPlan is what one process of a fleet does: it makes one call at a time.
// A call that is due while another one is under way comes right after it.
type callerPlan struct {
	Kind    string
	Addr    string // of Redis
	Weather weather
	Process uint64
}

const callerJob = "caller"

var callerWork = worker.Of(func(p callerPlan) (work func(time.Time) ([]tally, error), end func(), err error) {
	all, err := p.join()
	if err != nil {
		return nil, nil, err
	}
	return func(begin time.Time) ([]tally, error) { return p.live(begin, all), nil }, all[0].member.stop, nil
})

// join returns the caller of this process. Beside one of Infuse there is a local
// breaker, which is offered the same calls with the same outcomes.
func (p callerPlan) join() ([]*caller, error) {
	kind := kindOf(p.Kind)
	c := &caller{weather: p.Weather, kind: kind}
	var err error
	if c.member, err = kind.join(redis.NewClient(&redis.Options{Addr: p.Addr}), c.settings()); err != nil {
		return nil, err
	}
	if kind.name != infuseFleet.name {
		return []*caller{c}, nil
	}
	local := &caller{weather: p.Weather, kind: localFleet}
	local.member = localMember(local.settings())
	return []*caller{c, local}, nil
}

// live makes the calls, and returns what has become of those that are over in
// time: one that waits for gobreaker's lock may take seconds yet. The calls go on
// until the process ends, with the whole fleet: one that falls silent while it is
// suspect opens.
func (p callerPlan) live(begin time.Time, all []*caller) (tallies []tally) {
	for _, c := range all {
		c.begin = begin
	}
	time.Sleep(time.Until(begin))
	go func() {
		random := rand.New(rand.NewPCG(p.Weather.Seed, p.Process))
		for next := p.Weather.until(random, 1); ; next += p.Weather.until(random, 1) {
			time.Sleep(time.Until(begin.Add(next)))
			roll := random.Float64()
			for _, c := range all {
				c.call(roll)
			}
		}
	}()
	time.Sleep(time.Until(begin.Add(p.Weather.For)))
	for _, c := range all {
		tallies = append(tallies, c.tally())
	}
	return tallies
}

// liveInProcesses has a fleet of so many processes live. It returns what has
// become of the calls, and of those of the local breakers beside, if there are any.
func liveInProcesses(kind fleetKind, processes int, w weather) (tallies []tally, err error) {
	server, err := redistest.Launch()
	if err != nil {
		return nil, err
	}
	defer server.Close()
	plan := callerPlan{Kind: kind.name, Addr: server.Addr(), Weather: w}
	bystander, err := plan.join()
	if err != nil {
		return nil, err
	}
	defer bystander[0].member.stop()
	all, err := startProcesses(plan, processes)
	defer endAll(all)
	if err != nil {
		return nil, err
	}
	if kind.name == infuseFleet.name {
		if err := waiting.ForSubscribers(server, processes+1); err != nil {
			return nil, err
		}
	}
	found, working := make([][]tally, processes), make(chan error, 1)
	begin := time.Now().Add(100 * time.Millisecond)
	go func() {
		working <- worker.InParallel(processes, processes, func(i int) error { return all[i].Work(begin, &found[i]) })
	}()
	time.Sleep(time.Until(begin.Add(w.For)))
	told := bystander[0].tally()
	if err := <-working; err != nil {
		return nil, fmt.Errorf("%d processes, %s: %w", processes, kind.name, err)
	}
	tallies = make([]tally, len(bystander))
	for _, ofProcess := range found {
		for i, t := range ofProcess {
			tallies[i] = tallies[i].plus(t)
		}
	}
	tallies[0].told(kind, told)
	return tallies, nil
}

// startProcesses starts them, some at a time.
func startProcesses(plan callerPlan, processes int) ([]*worker.Worker, error) {
	all := make([]*worker.Worker, processes)
	err := worker.InParallel(processes, 8, func(i int) (err error) {
		own := plan
		own.Process = uint64(i)
		all[i], err = worker.Start(callerJob, own)
		return err
	})
	return slices.DeleteFunc(all, func(w *worker.Worker) bool { return w == nil }), err
}

func endAll(all []*worker.Worker) {
	_ = worker.InParallel(len(all), len(all), func(i int) error {
		all[i].End()
		return nil
	})
}
