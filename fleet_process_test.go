package infuse

import (
	"errors"
	"fmt"
	"math"
	"os"
	"time"
)

// simProcess is a replica, its shell and its stream of calls.
type simProcess struct {
	*simulation
	number  int
	life    int // counts its starts
	up      bool
	replica replica
	view    view
	version int // counts its views
	timer   int // counts the settings of the timer
	stream  int // counts how often the next calls were drawn anew
	tally   int
	waiting func() // a call that waits for a trial
	awaited uint64 // waits until this sequence number is acknowledged
	busy    int    // running calls

	down   bool // the storage is unavailable
	probes int

	lastFailed    bool
	failures      int     // since its start
	rejectedSince float64 // by the shared circuit; 0: not rejected
}

func (p *simProcess) settings() *settings {
	cfg, i := p.config, 0
	if p.configs != nil {
		if other := p.configs(p.number); other != nil {
			cfg, i = *other, 1
		}
	}
	if p.settled[i] == nil {
		cfg.Storage, cfg.Instance = NewMemoryStorage(), "simulated"
		s, err := newSettings(cfg)
		if err != nil {
			panic(err)
		}
		p.settled[i] = s
	}
	return p.settled[i]
}

// start starts the process, which reads the record before its first call.
func (p *simProcess) start() {
	p.life++
	life := p.life
	p.up, p.down, p.probes, p.waiting, p.busy, p.lastFailed, p.failures, p.rejectedSince = true, false, 0, nil, 0, false, 0, 0
	p.replica = newReplica(p.settings(), fmt.Sprintf("p%d-%d", p.number, p.life), !p.local, p.roll.Uint64())
	p.view = view{}
	p.view.derive(&p.replica, "simulated", p.time())
	p.version++
	if p.restarts != nil {
		if lives := p.restarts(p.number); lives > 0 {
			p.after(lives, func() { p.crash(life, 0) })
		}
	}
	if p.local || p.record.Generation == 0 && p.life == 1 && p.now == 0 {
		if !p.local {
			p.replica.hasRead(p.record, 0, p.time())
		}
		p.draw()
		return
	}
	ready := false
	p.request(&Change{}, func(rec Record) {
		p.step(func(r *replica, now time.Time) { r.hasRead(rec, 0, now) })
		if !ready {
			ready = true
			p.draw()
		}
	}, func() {
		p.linkDown()
		p.step(func(r *replica, now time.Time) { r.readFailed(simStorageErr, now) })
		if !ready {
			ready = true
			p.draw()
		}
	})
}

// crash ends the process, and restarts it after a time.
func (p *simProcess) crash(life int, after float64) {
	if p.life != life || !p.up {
		return
	}
	p.up = false
	p.stream++
	p.timer++
	if p.view.admits != admitsAll {
		p.noteRejecting(false)
	}
	p.after(after, p.start)
}

var simStorageErr = (errors.New("the storage is paused"))

// request sends a change or a read. late is called if no answer arrives in time.
func (p *simProcess) request(c *Change, answered func(Record), late func()) {
	life, done := p.life, false
	p.reach(func() {
		rec := p.make(c)
		p.after(p.storage.latency, func() {
			if done = true; p.life == life && p.up {
				answered(rec)
			}
		})
	})
	if p.storage.pausesAt > 0 {
		p.after(0.095, func() {
			if !done && p.life == life && p.up {
				late()
			}
		})
	}
}

// send is link.send.
func (p *simProcess) send(c *request) {
	late := func() {
		if p.replica.attached() && p.replica.awaits(c.Number) {
			p.linkDown()
		}
		p.step(func(r *replica, now time.Time) { r.unanswered(c.Number, simStorageErr, now) })
	}
	p.messages++
	p.request(c.Change, func(rec Record) {
		p.step(func(r *replica, now time.Time) { r.answered(c, rec, now) })
	}, late)
}

func (p *simProcess) linkDown() {
	if p.down {
		return
	}
	p.down, p.probes = true, 0
	p.step(func(r *replica, now time.Time) { r.unavailable(simStorageErr, now) })
	p.probe()
}

func (p *simProcess) probe() {
	p.probes++
	life := p.life
	p.after(backoff(p.probes, p.roll.Float64()).Seconds(), func() {
		if p.life != life || !p.up {
			return
		}
		returned := false
		p.request(&Change{}, func(Record) {
			if p.down && !returned {
				returned, p.down = true, false
				p.step(func(r *replica, _ time.Time) { r.availableAgain() })
			}
		}, func() {
			if p.down && !returned {
				returned = true
				p.probe()
			}
		})
	})
}

// step gives the replica an input, and then updates the view and the timer, and sends.
func (p *simProcess) step(input func(r *replica, now time.Time)) {
	now := p.time()
	p.replica.acquireEpisode()
	if p.tally > 0 {
		p.replica.tallied(p.tally, now)
		p.tally = 0
	}
	wasOpen := p.replica.local.State == StateOpen
	input(&p.replica, now)
	change := p.replica.outgoing(now)
	var fresh view
	if fresh.derive(&p.replica, "simulated", now); fresh.quiet != p.view.quiet || !fresh.same(&p.view) {
		wasThin := p.thin()
		p.noteRejecting(fresh.admits != admitsAll && p.replica.local.State == StateClosed)
		p.view = fresh
		p.version++
		if p.thin() != wasThin && p.traffic(p.number).kind == simPoisson {
			p.draw()
		}
	}
	if p.replica.local.State == StateOpen && !wasOpen {
		p.openedAlone++
	}
	if change != nil {
		p.send(change)
	}
	p.timer++
	if at := p.replica.wakeAt(now); !at.IsZero() {
		armed := p.timer
		p.queue.push(p.now+int64(at.Sub(now)), func() {
			if p.timer == armed {
				p.step(func(*replica, time.Time) {})
			}
		})
	}
	if p.waiting != nil && p.awaited <= p.replica.doneUpTo() {
		next := p.waiting
		p.waiting = nil
		p.after(0, next)
	}
	p.replica.releaseEpisode()
}

// noteRejecting keeps the longest time for which the shared circuit rejected a healthy
// process.
func (p *simProcess) noteRejecting(rejects bool) {
	switch {
	case rejects && p.rejectedSince == 0:
		p.rejectedSince = p.seconds()
	case !rejects && p.rejectedSince > 0:
		if p.healthy() {
			p.longest = max(p.longest, p.seconds()-p.rejectedSince)
		}
		p.rejectedSince = 0
	}
}

func (p *simProcess) healthy() bool {
	failing, _ := p.health(p.number, p.seconds())
	return failing <= 0.5
}

// The rest is the calls.

// thin reports whether a success changes nothing. Then only failures are drawn.
func (p *simProcess) thin() bool { return p.view.fast && !p.view.tallies && p.log == nil }

// draw draws the next call, or the next failing call of a thin process (Poisson).
func (p *simProcess) draw() {
	p.stream++
	stream := p.stream
	at := p.seconds()
	rate, traffic := p.rates(p.number), p.traffic(p.number)
	failing, until := p.health(p.number, at)
	next, thinned := math.Inf(1), false
	switch traffic.kind {
	case simPoisson, simLoop:
		if traffic.kind == simPoisson && p.thin() {
			rate, thinned = rate*failing, true
		}
		if rate > 0 {
			next = p.roll.ExpFloat64() / rate
		}
	case simBursts:
		next = p.roll.ExpFloat64() * float64(traffic.n) / rate
	case simCron:
		next = 10 - math.Mod(at, 10)
	case simTick:
		next = 1/rate - math.Mod(at, 1/rate)
		if next < 1e-6/rate {
			next += 1 / rate
		}
	}
	if thinned && at+next >= until {
		if math.IsInf(until, 1) {
			return
		}
		p.after(max(until-at, 1e-6), func() {
			if p.stream == stream {
				p.draw()
			}
		})
		return
	}
	p.after(next, func() {
		if p.stream != stream {
			return
		}
		if traffic.kind == simLoop {
			if p.busy > 0 || p.waiting != nil {
				return // the next call is drawn when this one ends
			}
			p.call(false)
			if p.busy == 0 && p.waiting == nil {
				p.draw()
			}
			return
		}
		for range max(1, traffic.n) {
			p.call(thinned)
		}
		if p.stream == stream {
			p.draw()
		}
	})
}

// call makes a call. fails: it was drawn as a failing call.
func (p *simProcess) call(fails bool) {
	if !p.up {
		return
	}
	a, d := p.view.admission(), rejects
	switch p.view.admits {
	case admitsAll:
		d = admits
	case admitsSome:
		p.step(func(r *replica, now time.Time) { a, d = r.arrived(now) })
	}
	if d != waits {
		p.run(a, d, fails)
		return
	}
	life, gone := p.life, false
	resume := func() {
		if gone || p.life != life || !p.up {
			return
		}
		gone = true
		p.step(func(r *replica, now time.Time) { a, d = r.resumed(a, now) })
		p.run(a, d, fails)
	}
	p.waiting, p.awaited = resume, p.replica.enqueued
	if p.storage.pausesAt > 0 {
		p.after(0.1, resume)
	}
}

func (p *simProcess) run(a admission, d decision, fails bool) {
	if d == rejects {
		p.reject()
		return
	}
	shared := a.trial != "" && p.replica.lease(a.trial) != nil
	if shared {
		p.trials++
		p.running++
		p.mostTrials = max(p.mostTrials, p.running)
	}
	if p.onset > 0 && p.seconds() >= p.onset && a.trial == "" {
		p.reached++
		p.lastReached = p.seconds() - p.onset
	}
	if !fails {
		failing, _ := p.health(p.number, p.seconds())
		fails = p.roll.Float64() < failing
	}
	life, version, quiet, began := p.life, p.version, p.view.quiet && a.trial == "", p.now
	p.busy++
	p.after(p.callTime, func() {
		if shared {
			p.running--
		}
		if p.life != life || !p.up {
			return
		}
		p.busy--
		p.lastFailed = fails
		if p.log != nil {
			p.log(p, time.Duration(began), true, fails)
		}
		switch {
		case fails:
			p.failures++
			p.step(func(r *replica, now time.Time) {
				r.ended(&a, result{outcome: OutcomeFailure, err: errSimulated, cause: keptCause{errSimulated, "simulated"}}, now)
			})
			if p.crashes != nil {
				if n := p.crashes(p.number); n > 0 && p.failures >= n {
					p.crash(life, 0.01)
					return
				}
			}
		case quiet && p.version == version:
			if p.view.tallies {
				p.tally++
			}
		default:
			p.step(func(r *replica, now time.Time) { r.ended(&a, result{}, now) })
		}
		if p.traffic(p.number).kind == simLoop && p.up {
			if fails {
				p.call(false)
			}
			if p.busy == 0 && p.waiting == nil {
				p.draw()
			}
		}
	})
}

func (p *simProcess) reject() {
	if p.log != nil {
		p.log(p, time.Duration(p.now), false, false)
	}
	healthy := p.healthy()
	if p.replica.local.State != StateClosed { // the shared circuit makes no difference
		p.rejectedLocally++
		if healthy {
			p.healthyRejectedLocally++
		}
		return
	}
	p.rejected++
	if !p.lastFailed && p.wrong == "" {
		p.wrong = fmt.Sprintf("at %v s process %d rejects after a successful call: %+v", p.seconds(), p.number, p.replica.shared)
	}
	if healthy {
		p.healthyRejected++
		if p.touched != p.opened {
			p.touched = p.opened
			p.touching++
		}
	}
	if p.traffic(p.number).kind == simLoop && p.busy == 0 && p.waiting == nil {
		p.draw()
	}
}

// simLength is the length of simulations: four times as long on a CI server, 500 times
// with INFUSE_FLEETS=large.
func simLength(short float64) float64 {
	switch {
	case os.Getenv("INFUSE_FLEETS") == "large":
		return 500 * short
	case os.Getenv("CI") == "true":
		return 1.1 * short // the race detector makes runs ten times slower
	}
	return short
}
