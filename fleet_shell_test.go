package infuse

import (
	"errors"
	"math/rand/v2"
	"time"
)

// A simulated fleet has any number of replicas and one record, with the real code of
// replica.go and state.go, in virtual time. Calls, network, storage and the shell of a
// replica are simulated. The same seed gives the same run.

// simFleet is the settings of a simulation.
type simFleet struct {
	processes int
	rate      float64                   // calls per second and process
	rates     func(process int) float64 // in place of rate
	traffic   func(process int) simTraffic
	lasts     float64 // seconds
	onset     float64 // when the outage begins, in seconds
	health    simHealth
	restarts  func(process int) float64 // seconds until a restart; 0: no restart
	crashes   func(process int) int     // failures until a restart; 0: no restart
	config    Config
	configs   func(process int) *Config // in place of config, if not nil
	local     bool                      // no storage
	storage   simFaults
	callTime  float64                                                        // seconds; 2 ms if 0
	log       func(p *simProcess, began time.Duration, admitted, fails bool) // called when a call has ended
}

// simHealth returns the share of calls that fail, and until when.
type simHealth func(process int, at float64) (failing, until float64)

// simTraffic is the pattern of calls of a process.
type simTraffic struct {
	kind simKind
	n    int // calls at once
}

type simKind int

const (
	simPoisson simKind = iota
	simBursts          // n calls at once
	simLoop            // one call at a time; after a failure the next at once
	simCron            // all processes at the same moment, every 10 s: n calls each
	simTick            // a call each 1/rate seconds
)

// simFaults is the faults of the storage.
type simFaults struct {
	latency     float64 // one way, in seconds; 0.5 ms if 0
	pausesAt    float64 // seconds of a pause when a suspicion begins
	pausesOften float64 // random pauses per second, of pausesAt
	lost        float64 // the share of lost notifications
	failsOver   float64 // seconds from a dismissal until a failover restores the suspect record; 0: never
}

// simResult is the result of a simulation.
type simResult struct {
	openings, suspicions, messages, trials  int
	touching                                int // openings that rejected calls of a healthy process whose local circuit was closed
	reached                                 int // calls that ran after the onset, without trials
	lastReached                             float64
	healthyCalls                            float64 // expected
	healthyRejected, healthyRejectedLocally int     // by the shared circuit; by the local one
	calls                                   float64 // expected, of all processes
	rejected, rejectedLocally               int     // of all processes
	openedAlone                             int
	openAt                                  float64 // of the first opening after the onset
	mostTrials                              int     // of the shared circuit, at a time
	longest                                 float64 // seconds for which the shared circuit rejected a healthy process
	wrong                                   string  // a rejection after a successful call
}

type simulation struct {
	simFleet
	simResult
	roll    *rand.Rand
	now     int64 // nanoseconds
	queue   simQueue
	all     []*simProcess
	running int // trials
	settled [2]*settings

	record      Record
	suspected   Record // the last suspicion, for a failover
	pausedUntil int64
	opened      int64 // the generation of the last opening
	touched     int64 // the last generation counted as touching
}

// simEvent is an event at a time; the queue is a heap of events.
type simEvent struct {
	at    int64
	order uint64
	do    func()
}

type simQueue struct {
	all   []simEvent
	count uint64
}

func (e *simEvent) before(f *simEvent) bool { return e.at < f.at || e.at == f.at && e.order < f.order }

func (q *simQueue) push(at int64, do func()) {
	q.count++
	e := simEvent{at, q.count, do}
	q.all = append(q.all, e)
	i := len(q.all) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(&q.all[up]) {
			break
		}
		q.all[i] = q.all[up]
		i = up
	}
	q.all[i] = e
}

func (q *simQueue) pop() simEvent {
	first, last := q.all[0], q.all[len(q.all)-1]
	q.all[len(q.all)-1].do = nil
	q.all = q.all[:len(q.all)-1]
	n := len(q.all)
	for i := 0; n > 0; {
		least, e := -1, &last
		for c := 4*i + 1; c <= 4*i+4 && c < n; c++ {
			if q.all[c].before(e) {
				least, e = c, &q.all[c]
			}
		}
		if least < 0 {
			q.all[i] = last
			break
		}
		q.all[i] = q.all[least]
		i = least
	}
	return first
}

var simStart = time.UnixMilli(1_790_000_000_000)

var errSimulated = errors.New("simulated")

// simulate runs the fleet.
func simulate(f simFleet, seed uint64) simResult {
	s := newSimulation(f, seed)
	for i := range f.processes {
		p := &simProcess{simulation: s, number: i}
		s.all = append(s.all, p)
		p.start()
	}
	s.until(f.lasts)
	s.expect()
	return s.simResult
}

func newSimulation(f simFleet, seed uint64) *simulation {
	s := &simulation{simFleet: f, roll: rand.New(rand.NewPCG(seed, 0))}
	if s.storage.latency == 0 {
		s.storage.latency = 0.0005
	}
	if s.callTime == 0 {
		s.callTime = 0.002
	}
	if s.rates == nil {
		s.rates = func(int) float64 { return f.rate }
	}
	if s.traffic == nil {
		s.traffic = func(int) simTraffic { return simTraffic{} }
	}
	if f := s.storage.pausesOften; f > 0 {
		var pause func()
		pause = func() {
			s.pause(s.storage.pausesAt)
			s.after(s.roll.ExpFloat64()/f, pause)
		}
		s.after(s.roll.ExpFloat64()/f, pause)
	}
	return s
}

func (s *simulation) until(lasts float64) {
	end := int64(lasts * 1e9)
	for len(s.queue.all) > 0 && s.queue.all[0].at <= end {
		e := s.queue.pop()
		s.now = e.at
		e.do()
	}
}

// expect adds the expected calls: calls that change nothing are not drawn.
func (s *simulation) expect() {
	for i := range s.processes {
		for at := 0.0; at < s.lasts; {
			failing, until := s.health(i, at)
			until = min(max(until, at+1e-6), s.lasts)
			calls := s.rates(i) * (until - at)
			if s.calls += calls; failing <= 0.5 {
				s.healthyCalls += calls
			}
			at = until
		}
	}
}

func (s *simulation) time() time.Time  { return simStart.Add(time.Duration(s.now)) }
func (s *simulation) seconds() float64 { return float64(s.now) / 1e9 }

func (s *simulation) after(seconds float64, do func()) {
	s.queue.push(s.now+int64(seconds*1e9), do)
}

// The rest is the storage.

func (s *simulation) pause(seconds float64) {
	s.pausedUntil = max(s.pausedUntil, s.now+int64(seconds*1e9))
}

// reach delivers a request to the storage, after a pause of the storage.
func (s *simulation) reach(request func()) {
	s.after(s.storage.latency, func() { s.arrive(request) })
}

func (s *simulation) arrive(request func()) {
	if s.now < s.pausedUntil {
		s.queue.push(s.pausedUntil, func() { s.arrive(request) })
		return
	}
	request()
}

// make applies a change to the record, notifies all processes, and returns the answer.
func (s *simulation) make(c *Change) Record {
	if c.Number == 0 {
		return s.record.At(s.time())
	}
	before := s.record
	rec, verdict := before.Apply(*c, s.time())
	if verdict != VerdictRefused {
		s.record = rec
	}
	if verdict == VerdictChanged {
		s.notify(rec.notice(&before), rec)
	}
	if rec.suspect() && !before.suspect() {
		s.suspicions++
		s.suspected = rec
		if s.storage.pausesAt > 0 && s.storage.pausesOften == 0 {
			s.pause(s.storage.pausesAt)
		}
	}
	if rec.Opened > s.opened {
		s.opened = rec.Opened
		s.openings++
		if s.openAt == 0 && s.seconds() >= s.onset {
			s.openAt = s.seconds()
		}
	}
	if s.storage.failsOver > 0 && before.hasEvidence() && rec.DismissedAt.After(before.DismissedAt) {
		stale := s.suspected
		s.after(s.storage.failsOver, func() {
			s.record = stale
			s.notify(notice{noticeChanged, stale.Generation, 0}, stale) // watchers read it when they are connected again
		})
	}
	return rec
}

func (s *simulation) notify(n notice, rec Record) {
	s.after(s.storage.latency, func() {
		for _, p := range s.all {
			if p.up && (s.storage.lost == 0 || s.roll.Float64() >= s.storage.lost) {
				p.step(func(r *replica, now time.Time) {
					if r.noticed(n) {
						r.notified(rec, now)
					}
				})
			}
		}
	})
}
