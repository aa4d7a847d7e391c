package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// plan is what some members of a fleet do, in one process.
type plan struct {
	Addr    string // of Redis
	Circuit string
	Rule    rule
	First   int // the members of this process are those from First up to Last
	Last    int

	Rate   float64       // calls a second, of each member
	Before float64       // the share of calls that fail, at random, before the onset
	Errors float64       // from then on
	Sick   int           // of the fleet's members, the first so many are cut off from the service then
	Onset  time.Duration // since the begin
	For    time.Duration
	Seed   uint64
}

// tally is what has become of calls.
type tally struct {
	Calls    int64
	Ran      int64
	Local    int64 // rejected by the circuit of the caller's process alone
	Fleet    int64 // rejected by the fleet's
	Openings int64 // of circuits of one process alone
	Told     int64 // members that were told that the fleet's opened

	Ill    int64 // calls that ran from the onset on
	Failed int64 // calls that ran and failed

	Peer peerTally
}

func (t *tally) add(u tally) {
	t.Calls += u.Calls
	t.Ran += u.Ran
	t.Local += u.Local
	t.Fleet += u.Fleet
	t.Openings += u.Openings
	t.Told += u.Told
	t.Ill += u.Ill
	t.Failed += u.Failed
	t.Peer.Opened += u.Peer.Opened
	t.Peer.Rejected += u.Peer.Rejected
}

// result is what members found.
type result struct {
	Healthy, Sick tally
	SickRan       []int64 // for each that was cut off: its calls that ran from then until it was rejected for the first time; 0 if it was not
	Onset         time.Time
	OpenedAt      []time.Time // when each rejected first, be it alone; zero if it did not
}

func (r *result) add(s result) {
	r.Healthy.add(s.Healthy)
	r.Sick.add(s.Sick)
	r.SickRan = append(r.SickRan, s.SickRan...)
	r.OpenedAt = append(r.OpenedAt, s.OpenedAt...)
	if r.Onset.IsZero() || s.Onset.Before(r.Onset) {
		r.Onset = s.Onset
	}
}

// member is one breaker of a fleet, with a Redis client and a storage of its
// own, as a process has.
type member struct {
	client  *redis.Client
	storage *infuse.RedisStorage
	breaker *infuse.Breaker
	peer    *peer // nil: there is none
	sick    bool

	calls, ran, local, fleet, openings, told, illRan, failed atomic.Int64

	ill      atomic.Bool  // the onset is over
	openedAt atomic.Int64 // in nanoseconds
	cutOff   atomic.Bool
	sickRan  atomic.Int64
	stopped  atomic.Bool // it was rejected after it was cut off
	opened   func(infuse.Transition)
}

// connections bounds a member's pool; its subscription has one more.
const connections = 2

// join makes a member. It hears of every transition to open, if it wants to.
func join(addr, circuit string, by rule, opened func(infuse.Transition)) (*member, error) {
	m := &member{opened: opened}
	m.client = redis.NewClient(&redis.Options{Addr: addr, PoolSize: connections})
	m.storage = infuse.NewRedisStorage(m.client, infuse.RedisOptions{})
	var err error
	cfg := by.config()
	cfg.Storage, cfg.Listeners = m.storage, []*infuse.Listener{{StateChange: m.moved}}
	m.breaker, err = infuse.New(circuit, cfg)
	if err != nil {
		m.leave()
		return nil, fmt.Errorf("a member cannot join: %w", err)
	}
	if by.FailureRate > 0 {
		m.peer = newPeer(by)
	}
	return m, nil
}

func (m *member) leave() {
	if m.breaker != nil {
		m.breaker.Stop()
	}
	_ = m.storage.Close()
	_ = m.client.Close()
}

func (m *member) moved(_ *infuse.Breaker, t infuse.Transition) {
	if t.To != infuse.StateOpen {
		return
	}
	m.openedAt.CompareAndSwap(0, time.Now().UnixNano())
	if t.Local {
		m.openings.Add(1)
	} else {
		m.told.Add(1)
	}
	if m.opened != nil {
		m.opened(t)
	}
}

var errService = errors.New("the service is ill")

// call makes one call, which fails or not.
func (m *member) call(fails bool) {
	m.calls.Add(1)
	if m.peer != nil {
		m.peer.call(fails)
	}
	err := m.breaker.Call(context.Background(), func(context.Context) error {
		m.ran.Add(1)
		if m.cutOff.Load() && !m.stopped.Load() {
			m.sickRan.Add(1)
		}
		if m.ill.Load() {
			m.illRan.Add(1)
		}
		if fails {
			m.failed.Add(1)
			return errService
		}
		return nil
	})
	var rejected *infuse.OpenError
	if !errors.As(err, &rejected) {
		return
	}
	if m.cutOff.Load() {
		m.stopped.Store(true)
	}
	if rejected.Local {
		m.local.Add(1)
	} else {
		m.fleet.Add(1)
	}
}

// live makes calls at random times until the end. Each is a goroutine, as with
// a server's requests: a slow one holds back no other. fails decides by a
// random number from 0 up to 1.
func (m *member) live(random *rand.Rand, rate float64, end time.Time, fails func(roll float64) bool) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for next := time.Now(); ; {
		next = next.Add(time.Duration(random.ExpFloat64() / rate * float64(time.Second)))
		if next.After(end) {
			time.Sleep(time.Until(end))
			return
		}
		time.Sleep(time.Until(next))
		roll := random.Float64()
		calls.Go(func() { m.call(fails(roll)) })
	}
}

// crew are the members of one process.
type crew struct {
	plan    plan
	members []*member
	onset   time.Time
}

func gather(p plan) (*crew, error) {
	c := &crew{plan: p}
	for i := p.First; i < p.Last; i++ {
		m, err := join(p.Addr, p.Circuit, p.Rule, nil)
		if err != nil {
			c.leave()
			return nil, err
		}
		m.sick = i < p.Sick
		c.members = append(c.members, m)
	}
	return c, nil
}

func (c *crew) leave() {
	var all sync.WaitGroup
	for _, m := range c.members {
		all.Go(m.leave)
	}
	all.Wait()
}

// live has all members make their calls.
func (c *crew) live(start time.Time) result {
	end := start.Add(c.plan.For)
	c.onset = start.Add(c.plan.Onset)
	var all sync.WaitGroup
	for i, m := range c.members {
		random := rand.New(rand.NewPCG(c.plan.Seed, uint64(c.plan.First+i)))
		all.Go(func() {
			m.live(random, c.plan.Rate, end, func(roll float64) bool {
				if time.Now().Before(c.onset) {
					return roll < c.plan.Before
				}
				m.ill.Store(true)
				m.cutOff.Store(m.sick)
				return m.sick || roll < c.plan.Errors
			})
		})
	}
	all.Wait()
	return c.result()
}

func (c *crew) result() (r result) {
	r.Onset = c.onset
	for _, m := range c.members {
		t := m.tally()
		opened := time.Time{}
		if at := m.openedAt.Load(); at > 0 {
			opened = time.Unix(0, at)
		}
		r.OpenedAt = append(r.OpenedAt, opened)
		if !m.sick {
			r.Healthy.add(t)
			continue
		}
		r.Sick.add(t)
		ran := m.sickRan.Load()
		if !m.stopped.Load() {
			ran = 0
		}
		r.SickRan = append(r.SickRan, ran)
	}
	return r
}

func (m *member) tally() tally {
	t := tally{
		Calls: m.calls.Load(), Ran: m.ran.Load(), Local: m.local.Load(), Fleet: m.fleet.Load(),
		Openings: m.openings.Load(), Told: m.told.Load(), Ill: m.illRan.Load(), Failed: m.failed.Load(),
	}
	if m.peer != nil {
		t.Peer = m.peer.tally()
	}
	return t
}
