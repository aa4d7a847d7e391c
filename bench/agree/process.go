package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/sony/gobreaker/v2"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/gobreakerstore"
	"github.com/infuse-go/infuse/bench/worker"
)

// A plan is what one process of the operating system does. It has one Redis
// client and one storage, and makes calls in many circuits at a time: so one
// run measures many fleets.
type plan struct {
	Addr  string // of Redis
	Calls []calls
	For   time.Duration
	Crash time.Duration // it is killed after so long, and started anew; 0: it is not
	Seed  uint64        // of the times and outcomes of its calls
}

// calls are those of one process in one circuit.
type calls struct {
	Circuit  string
	Kind     kind
	Settings settings
	Rate     float64       // bursts a second, at random times (Poisson)
	Burst    int           // calls that start together and end together
	Before   float64       // the share of calls that fail before the onset
	Onset    time.Duration // since the beginning; 0: there is none
	After    float64       // the share from then on
	Until    time.Duration // when Before is the share again; 0: never
	End      time.Duration // when its calls end; 0: with the process
	Seed     uint64        // calls of one process with the same seed have the same times and outcomes
}

func (c *calls) failing(at time.Duration) bool {
	return c.Onset > 0 && at >= c.Onset && (c.Until == 0 || at < c.Until)
}

// kind is the breaker that a call goes through.
type kind string

const (
	shared     kind = ""                 // Infuse
	local      kind = "local"            // gobreaker without a storage
	gobreakers kind = "gobreaker shared" // its DistributedCircuitBreaker
)

// settings are those of a breaker. What is 0 is the default.
type settings struct {
	FailMax, SuccessThreshold  int
	ResetTimeout, TrialTimeout time.Duration
	FailureRate                float64
	Ramp                       time.Duration
}

// The default settings that the promises depend on.
const (
	failMax   = 5
	suspicion = 50 * time.Millisecond
	window    = 10 * time.Second
	minCalls  = 20
)

func (s settings) config(storage infuse.Storage) infuse.Config {
	return infuse.Config{
		FailMax: s.FailMax, SuccessThreshold: s.SuccessThreshold,
		ResetTimeout: s.ResetTimeout, TrialTimeout: s.TrialTimeout,
		FailureRate: s.FailureRate, Ramp: s.Ramp, Storage: storage,
	}
}

func (s settings) gobreaker(name string) gobreaker.Settings {
	g := gobreaker.Settings{Name: name, Timeout: time.Minute, ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= failMax }}
	if s.FailureRate > 0 {
		g.Interval, g.BucketPeriod = window, window/10
		g.ReadyToTrip = func(c gobreaker.Counts) bool {
			return c.Requests >= minCalls && float64(c.TotalFailures)/float64(c.Requests) >= s.FailureRate
		}
	}
	return g
}

// slot is how finely the calls after Until are counted.
const slot = 100 * time.Millisecond

// tally is what became of the calls of one process in one circuit.
type tally struct {
	Calls, Rejected int64         // before the onset
	RejectedLocally int64         // of these, by the local circuit
	Ran             int64         // from the onset on
	RejectedAt      time.Duration // the first rejection from then on, since the onset; 0: none
	Offered, Slots  []int64       // since Until, by slot: calls that were made, and calls that ran
}

// caller makes calls, and counts what becomes of them.
type caller struct {
	calls
	do    func(func() error) error
	stop  func()
	begin time.Time

	mu sync.Mutex
	tally
}

var errService = errors.New("the service is failing")

// burst makes the calls of a burst and returns at once.
func (c *caller) burst(random *rand.Rand) {
	for range max(1, c.Burst) {
		roll := random.Float64()
		go c.call(roll)
	}
}

func (c *caller) call(roll float64) {
	began := time.Since(c.begin)
	ran := false
	err := c.do(func() error {
		ran = true
		at := time.Since(c.begin)
		if c.Onset > 0 && at >= c.Onset {
			c.mu.Lock()
			c.Ran++
			c.mu.Unlock()
		}
		share := c.Before
		if c.failing(at) {
			share = c.After
		}
		if c.Burst > 1 {
			time.Sleep(5 * time.Millisecond)
		}
		if roll < share {
			return errService
		}
		return nil
	})
	rejected := errors.Is(err, infuse.ErrOpen) || errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.Onset == 0 || began < c.Onset:
		c.Calls++
		if rejected {
			c.Rejected++
			if open := (*infuse.OpenError)(nil); !errors.As(err, &open) || open.Local {
				c.RejectedLocally++
			}
		}
	case rejected && c.RejectedAt == 0:
		c.RejectedAt = time.Since(c.begin) - c.Onset
	}
	if c.Until > 0 && began >= c.Until {
		i := int((began - c.Until) / slot)
		for len(c.Slots) <= i {
			c.Offered, c.Slots = append(c.Offered, 0), append(c.Slots, 0)
		}
		c.Offered[i]++
		if ran {
			c.Slots[i]++
		}
	}
}

// live makes calls until the end.
func (c *caller) live(seed uint64, begin time.Time, length time.Duration) {
	c.begin = begin
	random := rand.New(rand.NewPCG(seed, c.Seed))
	for next := time.Duration(0); ; {
		next += time.Duration(random.ExpFloat64() / c.Rate * float64(time.Second))
		time.Sleep(time.Until(begin.Add(min(next, length))))
		if next >= length {
			return
		}
		c.burst(random)
	}
}

func (c *calls) join(client *redis.Client, storage infuse.Storage) (*caller, error) {
	m := &caller{calls: *c, stop: func() {}}
	switch c.Kind {
	case local:
		b := gobreaker.NewCircuitBreaker[any](c.Settings.gobreaker(c.Circuit))
		m.do = func(work func() error) error {
			_, err := b.Execute(func() (any, error) { return nil, work() })
			return err
		}
	case gobreakers:
		b, err := gobreaker.NewDistributedCircuitBreaker[any](gobreakerstore.New(client), c.Settings.gobreaker(c.Circuit))
		if err != nil {
			return nil, err
		}
		m.do = func(work func() error) error {
			_, err := b.Execute(func() (any, error) { return nil, work() })
			return err
		}
	default:
		b, err := infuse.New(c.Circuit, c.Settings.config(storage))
		if err != nil {
			return nil, fmt.Errorf("circuit %s: %w", c.Circuit, err)
		}
		m.stop = b.Stop
		m.do = func(work func() error) error {
			return b.Call(context.Background(), func(context.Context) error { return work() })
		}
	}
	return m, nil
}

// processJob makes this program one process of a fleet: see package worker.
const processJob = "process"

var jobs = map[string]worker.Job{processJob: worker.Of(prepare)}

func prepare(p plan) (work func(time.Time) ([]tally, error), end func(), err error) {
	logging.Disable() // go-redis logs each connection that a fault costs
	client := redis.NewClient(&redis.Options{Addr: p.Addr})
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	var callers []*caller
	end = func() {
		for _, c := range callers {
			c.stop()
		}
		_ = storage.Close()
		_ = client.Close()
	}
	for _, c := range p.Calls {
		m, err := c.join(client, storage)
		if err != nil {
			end()
			return nil, nil, err
		}
		callers = append(callers, m)
	}
	return func(begin time.Time) (found []tally, err error) {
		time.Sleep(time.Until(begin))
		var all sync.WaitGroup
		for _, c := range callers {
			all.Go(func() { c.live(p.Seed, begin, cmp.Or(c.End, p.For)) })
		}
		all.Wait() // but not for calls under way: gobreaker's lock can take seconds
		for _, c := range callers {
			c.mu.Lock()
			t := c.tally
			t.Offered, t.Slots = append([]int64(nil), t.Offered...), append([]int64(nil), t.Slots...)
			c.mu.Unlock()
			found = append(found, t)
		}
		return found, nil
	}, end, nil
}
