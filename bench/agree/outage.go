package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/internal/redistest"
)

// An outage is a fleet whose service falls ill for all, again and again. The
// fleet's circuit is to open in each round.
type outage struct {
	size   int
	rate   float64 // of each; 0: nobody calls but for the five failures that bring the row to its limit
	errors float64
	rule   rule
	takes  time.Duration // how long a call of the service takes that succeeds
}

var outages = []outage{
	{size: 20, rate: 100, errors: 1}, {size: 100, rate: 20, errors: 1},
	{size: 20, rate: 100, errors: 0.9}, {size: 100, rate: 20, errors: 0.9},
	{size: 20, rate: 100, errors: 0.8}, {size: 100, rate: 20, errors: 0.8},
}

func (o outage) name() string {
	if o.rate == 0 {
		return fmt.Sprintf("%d breakers, 5 failures", o.size)
	}
	return fmt.Sprintf("%d x %g/s, %g %% errors", o.size, o.rate, 100*o.errors)
}

// round is how one outage went, in times since the limit was reached.
type round struct {
	onset   time.Duration   // before: when the service fell ill
	fleet   time.Duration   // until a member that makes no calls, and so has no reason of its own, rejects
	members []time.Duration // until each of the others does, be it alone
	asked   int             // suspicions until then
}

func (r round) last() time.Duration { return slices.Max(r.members) }

// scene is a fleet with its service.
type scene struct {
	outage
	server    *redistest.Server
	bystander *redis.Client
	members   []*member
	watcher   *watcher
	ill       atomic.Bool
	ended     chan struct{}

	mu      sync.Mutex
	row     int       // failures in a row, as the service sees it
	limit   time.Time // when it came to the limit in this round
	opened  []time.Time
	waiting int // for so many members
	counted []time.Duration
	keeps   bool    // a journal
	journal []entry // of all calls
}

// conditions are what the machine allows, in the median, while a fleet runs.
type conditions struct {
	ping    time.Duration // a round trip of one that takes no part
	counted time.Duration // what a failing call waits until it is counted: one round trip, as the fleet has it
	late    time.Duration // that a timer fires
}

// run returns the rounds, and the conditions.
func (o outage) run(rounds int, seed uint64) ([]round, conditions, error) {
	s, err := o.stage()
	if err != nil {
		return nil, conditions{}, err
	}
	defer s.close()
	var callers sync.WaitGroup
	if o.rate > 0 {
		for i, m := range s.members[:s.size] {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			callers.Go(func() { s.calls(m, random) })
		}
	}
	meanwhile := make(chan conditions, 1)
	go func() { meanwhile <- s.conditions() }()
	var all []round
	for range rounds {
		r, err := s.play()
		if err != nil {
			return nil, conditions{}, err
		}
		all = append(all, r)
	}
	close(s.ended)
	callers.Wait()
	return all, <-meanwhile, nil
}

func (o outage) stage() (*scene, error) {
	server, err := redistest.Launch()
	if err != nil {
		return nil, err
	}
	s := &scene{outage: o, server: server, bystander: server.Client(), ended: make(chan struct{}), opened: make([]time.Time, o.size+1)}
	for i := range o.size + 1 {
		m, err := join(server.Addr(), "service", o.rule, func(infuse.Transition) { s.opens(i) })
		if err != nil {
			s.close()
			return nil, err
		}
		s.members = append(s.members, m)
	}
	s.watcher = watch(server.Client(), "service")
	if err := waiting.ForSubscribers(server, o.size+2); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *scene) close() {
	for _, m := range s.members {
		m.leave()
	}
	if s.watcher != nil {
		s.watcher.end()
	}
	s.server.Close()
}

// calls has a member call until the end.
func (s *scene) calls(m *member, random *rand.Rand) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for next := time.Now(); ; {
		next = next.Add(time.Duration(random.ExpFloat64() / s.rate * float64(time.Second)))
		select {
		case <-s.ended:
			return
		case <-time.After(time.Until(next)):
		}
		roll := random.Float64()
		calls.Go(func() { s.call(m, roll) })
	}
}

func (s *scene) call(m *member, roll float64) {
	var failed time.Time
	var ran time.Time
	defer func() { s.note(ran) }()
	_ = m.breaker.Call(context.Background(), func(context.Context) error {
		ran = time.Now()
		if fails := s.ill.Load() && roll < s.errors; !fails {
			s.served(false)
			time.Sleep(s.takes)
			return nil
		}
		s.served(true)
		failed = time.Now()
		return errService
	})
	if !failed.IsZero() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.counted = append(s.counted, time.Since(failed))
	}
}

// served counts the row as the service sees it.
func (s *scene) served(failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.row++; !failed {
		s.row = 0
	}
	if s.row == failMax && s.limit.IsZero() {
		s.limit = time.Now()
	}
}

// opens notes that a member rejects, be it alone.
func (s *scene) opens(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened[i].IsZero() {
		s.opened[i] = time.Now()
		s.waiting--
	}
}

// play has the service fall ill, until every member rejects, and be well again.
func (s *scene) play() (round, error) {
	r, err := s.fall()
	if err != nil {
		return r, err
	}
	return r, s.recover()
}

func (s *scene) fall() (r round, err error) {
	s.mu.Lock()
	clear(s.opened)
	s.row, s.limit, s.waiting = 0, time.Time{}, len(s.members)
	s.mu.Unlock()
	began := time.Now()
	s.ill.Store(true)
	if s.rate == 0 {
		for i := range failMax {
			s.call(s.members[i], 0)
		}
	}
	err = waiting.For(func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.waiting == 0
	})
	s.ill.Store(false)
	if err != nil {
		return r, fmt.Errorf("%s: the fleet does not open: %w", s.name(), err)
	}
	s.mu.Lock()
	limit := s.limit
	suspicions := s.watcher.since(began)
	if len(suspicions) > 0 && (limit.IsZero() || suspicions[0].Before(limit)) {
		limit = suspicions[0] // in the row of the storage, which does not see all successes
	}
	r.onset, r.asked = limit.Sub(began), len(suspicions)
	for _, t := range s.opened[:s.size] {
		r.members = append(r.members, t.Sub(limit))
	}
	r.fleet = s.opened[s.size].Sub(limit)
	s.mu.Unlock()
	return r, nil
}

// recover closes all circuits by hand, and waits out what they remember.
func (s *scene) recover() error {
	time.Sleep(100 * time.Millisecond) // what is under way
	err := waiting.For(func() bool {   // a machine that stands still for 100 ms has the storage away
		return s.members[0].breaker.Move(context.Background(), infuse.StateClosed) == nil
	})
	if err != nil {
		return err
	}
	err = waiting.For(func() bool {
		return !slices.ContainsFunc(s.members, func(m *member) bool { return m.breaker.State() != infuse.StateClosed })
	})
	time.Sleep(300 * time.Millisecond)
	return err
}

// conditions measures while the fleet runs, as one that takes no part.
func (s *scene) conditions() conditions {
	const pause = 10 * time.Millisecond
	var trips, late []time.Duration
	for {
		began := time.Now()
		if s.bystander.Ping(context.Background()).Err() == nil {
			trips = append(trips, time.Since(began))
		}
		began = time.Now()
		select {
		case <-s.ended:
			s.mu.Lock()
			defer s.mu.Unlock()
			return conditions{percentile(trips, 50), percentile(s.counted, 50), percentile(late, 50)}
		case <-time.After(pause):
			late = append(late, time.Since(began)-pause)
		}
	}
}

var outageHead = []string{"fleet", "rounds", "a PING ms", "a failing call ms", "a timer is late by ms", "limit reached after ms (median)", "the fleet opens after ms: p50", "max", "a member rejects after ms: p50", "p90", "p99", "max", "the last of the fleet rejects after ms: p50", "suspicions a round", "bound ms", "by PINGs", "verdict"}

func (o outage) row(rounds []round, c conditions) []string {
	var onsets, fleets, members, lasts []time.Duration
	asked := 0
	for _, r := range rounds {
		onsets, lasts = append(onsets, r.onset), append(lasts, r.last())
		members, fleets = append(members, r.members...), append(fleets, r.fleet)
		asked += r.asked
	}
	bound, byPings, found := suspicion+3*c.counted, ms(suspicion+3*c.ping), percentile(fleets, 50)
	switch {
	case o.rate == 0:
		bound, byPings, found = 100*time.Millisecond, "", percentile(lasts, 50)
	case o.errors < 0.9:
		bound, byPings = 500*time.Millisecond, ""
	}
	var misses []string
	if found > bound {
		misses = []string{fmt.Sprintf("%s ms", ms(found))}
	}
	return []string{
		o.name(), fmt.Sprint(len(rounds)), ms(c.ping), ms(c.counted), ms(c.late), ms(percentile(onsets, 50)),
		ms(percentile(fleets, 50)), ms(slices.Max(fleets)),
		ms(percentile(members, 50)), ms(percentile(members, 90)), ms(percentile(members, 99)), ms(slices.Max(members)),
		ms(percentile(lasts, 50)), strings.TrimSuffix(fmt.Sprintf("%.1f", float64(asked)/float64(len(rounds))), ".0"),
		ms(bound), byPings, verdict(misses),
	}
}

func percentile(times []time.Duration, percent float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(math.Ceil(float64(len(sorted)-1)*percent/100))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1000) }
