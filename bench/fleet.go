package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A fleet whose breakers have a Redis client of their own each, as
// processes have, and share one circuit.

// fleet is a number of members on a redis-server of their own.
type fleet struct {
	server  *redistest.Server
	members []member
}

func startFleet(kind fleetKind, size int, s fleetSettings, opened func(i int)) (*fleet, error) {
	server, err := redistest.Launch()
	if err != nil {
		return nil, err
	}
	f := &fleet{server: server}
	s.circuit = newName()
	for i := range size {
		if opened != nil {
			s.opened = func(alone bool) {
				if !alone {
					opened(i)
				}
			}
		}
		m, err := kind.join(server.Client(), s)
		if err != nil {
			f.stop()
			return nil, fmt.Errorf("%s, member %d: %w", kind.name, i, err)
		}
		f.members = append(f.members, m)
	}
	return f, nil
}

func (f *fleet) stop() {
	var all sync.WaitGroup
	for _, m := range f.members {
		all.Go(m.stop)
	}
	all.Wait()
	f.server.Close()
}

// connectionCommands are what a client says when it connects, and what we ask
// for the counts with: of no interest here.
var connectionCommands = []string{"info", "hello", "client|setinfo", "client|maint_notifications", "client|setname"}

// commands is how many commands Redis has run, also within scripts.
func (f *fleet) commands() (int64, error) {
	counts, err := f.server.Commands(ctx)
	total := int64(0)
	for name, n := range counts {
		if !slices.Contains(connectionCommands, name) {
			total += n
		}
	}
	return total, err
}

const requestTime = 5 * time.Millisecond

// throughput is what a healthy service gets to do for a fleet.
type throughput struct {
	perSecond       float64
	commandsPerCall float64
	calls, failed   int64 // calls that ran, and calls that ended in an error though the service is healthy
}

// measureThroughput has every member call a healthy service, one request at a
// time, for so long.
func measureThroughput(kind fleetKind, size int, d time.Duration) (throughput, error) {
	f, err := startFleet(kind, size, fleetSettings{failMax: fewFailures, resetTimeout: openTime}, nil)
	if err != nil {
		return throughput{}, err
	}
	defer f.stop()
	before, err := f.commands()
	if err != nil {
		return throughput{}, err
	}
	var served, failed atomic.Int64
	began := time.Now()
	var all sync.WaitGroup
	for _, m := range f.members {
		all.Go(func() {
			for time.Since(began) < d {
				err := m.call(func() error {
					time.Sleep(requestTime)
					served.Add(1)
					return nil
				})
				if err != nil {
					failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	after, err := f.commands()
	calls := float64(max(served.Load(), 1))
	return throughput{calls / took.Seconds(), float64(after-before) / calls, served.Load(), failed.Load()}, err
}

// lost is what becomes of failures that all members report at once.
type lost struct{ made, kept int }

func measureLost(kind fleetKind, size, each int) (lost, error) {
	f, err := startFleet(kind, size, fleetSettings{failMax: 1_000_000, resetTimeout: openTime}, nil)
	if err != nil {
		return lost{}, err
	}
	defer f.stop()
	var made atomic.Int64
	deadline := time.Now().Add(20 * time.Second) // a shared lock makes it slow
	var all sync.WaitGroup
	for _, m := range f.members {
		all.Go(func() {
			for range each {
				_ = m.call(func() error {
					made.Add(1)
					return errUnhealthy
				})
				if time.Now().After(deadline) {
					return
				}
			}
		})
	}
	all.Wait()
	kept, err := f.members[0].failures()
	return lost{int(made.Load()), kept}, err
}

// outageSettings are those of the fleets that meet an outage.
var outageSettings = fleetSettings{failMax: fewFailures, resetTimeout: time.Second}

// spread is how long after the last counted failure the members reject.
type spread struct{ p50, p99, max time.Duration }

// suspicionTime is the default of Config.Suspicion.
const suspicionTime = 50 * time.Millisecond

// measureSpread opens the circuit of a fleet again and again, by a failure of each
// member and, after Suspicion, by more of them, and waits until every member rejects.
func measureSpread(size, trips int) (spread, error) {
	openedAt := make([]atomic.Int64, size) // nanoseconds since the start, by member; 0 while it is not open
	start := time.Now()
	s := outageSettings
	s.resetTimeout = openTime
	f, err := startFleet(infuseFleet, size, s, func(i int) { openedAt[i].CompareAndSwap(0, int64(time.Since(start))) })
	if err != nil {
		return spread{}, err
	}
	defer f.stop()
	if err := waiting.ForSubscribers(f.server, size); err != nil {
		return spread{}, err
	}
	var delays []time.Duration
	for trip := range trips {
		for i := range openedAt {
			openedAt[i].Store(0)
		}
		for _, m := range f.members { // each needs a failed call of its own
			_ = m.call(func() error { return errUnhealthy })
		}
		time.Sleep(2 * suspicionTime)
		var last time.Duration
		for i := range fewFailures {
			_ = f.members[(trip+i)%size].call(func() error {
				last = time.Since(start)
				return errUnhealthy
			})
		}
		for i := range openedAt {
			if err := waiting.For(func() bool { return openedAt[i].Load() != 0 }); err != nil {
				return spread{}, fmt.Errorf("member %d of %d does not open: %w", i, size, err)
			}
			delays = append(delays, max(0, time.Duration(openedAt[i].Load())-last))
		}
		if err := waiting.For(func() bool { return f.members[trip%size].close() == nil }); err != nil { // a machine that stands still has it fail
			return spread{}, fmt.Errorf("member %d of %d cannot close the circuit: %w", trip%size, size, err)
		}
		for i, m := range f.members {
			if err := waiting.For(m.closed); err != nil {
				return spread{}, fmt.Errorf("member %d of %d does not close: %w", i, size, err)
			}
		}
	}
	slices.Sort(delays)
	return spread{delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1]}, nil
}

// outage is what a fleet does to a service that fails, and to Redis.
type outage struct {
	offered    float64 // calls per second that the fleet makes
	healthy    float64 // Redis commands per second
	failing    float64 // the same, from the beginning of the outage on
	stragglers int64   // calls that reached the service after the circuit had opened, and before it was due
	trials     int64   // calls that reached it from then on
	due        int64   // how often a trial was due
}

// measureOutage has every member make a request now and then, and lets the
// service fail for a while.
func measureOutage(kind fleetKind, size int, health, failure time.Duration) (outage, error) {
	start := time.Now()
	var openedAt atomic.Int64 // when the first member knew
	f, err := startFleet(kind, size, outageSettings, func(int) { openedAt.CompareAndSwap(0, int64(time.Since(start))) })
	if err != nil {
		return outage{}, err
	}
	defer f.stop()
	if kind.name == infuseFleet.name {
		if err := waiting.ForSubscribers(f.server, size); err != nil {
			return outage{}, err
		}
	}

	var failing, ended atomic.Bool
	var calls, stragglers, trials atomic.Int64
	work := func() error {
		if opened := openedAt.Load(); opened != 0 {
			if time.Since(start)-time.Duration(opened) < outageSettings.resetTimeout {
				stragglers.Add(1)
			} else {
				trials.Add(1)
			}
		}
		time.Sleep(requestTime)
		if failing.Load() {
			return errUnhealthy
		}
		return nil
	}
	const pause = 9 * requestTime
	var all sync.WaitGroup
	for i, m := range f.members {
		all.Go(func() {
			time.Sleep(time.Duration(i) * (pause + requestTime) / time.Duration(size)) // not in step
			for !ended.Load() {
				calls.Add(1)
				_ = m.call(work)
				time.Sleep(pause)
			}
		})
	}
	time.Sleep(200 * time.Millisecond) // all have begun
	o, err := f.observe(health, failure, &calls, &failing)
	over := time.Since(start)
	ended.Store(true)
	all.Wait()
	o.stragglers, o.trials = stragglers.Load(), trials.Load()
	opened := time.Duration(openedAt.Load())
	if err == nil && opened == 0 {
		err = fmt.Errorf("%s of %d does not open within %v of an outage", kind.name, size, failure)
	}
	o.due = int64((over - opened) / (outageSettings.resetTimeout + requestTime))
	return o, err
}

// observe counts over a time of health, and then over an outage.
func (f *fleet) observe(health, failure time.Duration, calls *atomic.Int64, failing *atomic.Bool) (o outage, err error) {
	count := func(d time.Duration) (commandsPerSecond float64) {
		before, err1 := f.commands()
		began := time.Now()
		time.Sleep(d)
		after, err2 := f.commands()
		err = errors.Join(err, err1, err2)
		return float64(after-before) / time.Since(began).Seconds()
	}
	made, began := calls.Load(), time.Now()
	o.healthy = count(health)
	o.offered = float64(calls.Load()-made) / time.Since(began).Seconds()
	failing.Store(true)
	o.failing = count(failure)
	return o, err
}
