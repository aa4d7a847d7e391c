package link_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Fleets of real breakers in fake time, over a storage that can fail.

var errPartitioned = errors.New("partitioned")

// badStorage is a MemoryStorage that answers late, pauses, is unavailable, loses
// notifications, and can be set back to an older record.
type badStorage struct {
	*infuse.MemoryStorage
	oneWay time.Duration
	lost   float64 // the share of the notifications

	mu          sync.Mutex
	roll        *rand.Rand
	until       time.Time // it stands still
	unavailable bool
	suspicions  int
	onSuspicion func() // under no lock
}

func newBadStorage(seed uint64) *badStorage {
	return &badStorage{MemoryStorage: infuse.NewMemoryStorage(), oneWay: 500 * time.Microsecond, roll: rand.New(rand.NewPCG(seed, 99))}
}

func (s *badStorage) reach() error {
	time.Sleep(s.oneWay)
	s.mu.Lock()
	until, unavailable := s.until, s.unavailable
	s.mu.Unlock()
	time.Sleep(time.Until(until))
	if unavailable {
		return errors.New("unavailable")
	}
	return nil
}

func (s *badStorage) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := s.reach(); err != nil {
		return infuse.Record{}, err
	}
	defer time.Sleep(s.oneWay)
	return s.MemoryStorage.Load(ctx, circuit)
}

func (s *badStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := s.reach(); err != nil {
		return infuse.Record{}, 0, err
	}
	defer time.Sleep(s.oneWay)
	before, _ := s.MemoryStorage.Load(ctx, circuit)
	rec, verdict, err := s.MemoryStorage.Apply(ctx, circuit, c)
	if rec.Suspect() && !before.Suspect() {
		s.mu.Lock()
		s.suspicions++
		s.mu.Unlock()
		if s.onSuspicion != nil {
			s.onSuspicion()
		}
	}
	return rec, verdict, err
}

func (s *badStorage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	return s.MemoryStorage.Watch(circuit, func(r infuse.Record) {
		s.mu.Lock()
		lost := s.roll.Float64() < s.lost
		s.mu.Unlock()
		if !lost {
			time.AfterFunc(s.oneWay, func() { fn(r) })
		}
	})
}

func (s *badStorage) pause(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(d)
}

func (s *badStorage) setUnavailable(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unavailable = yes
}

// member is a process of a fleet. Its calls are made until the fleet stops.
type member struct {
	breaker         *infuse.Breaker
	calls, rejected atomic.Int64
	last            atomic.Bool // its last call failed
	wrong           atomic.Int64
}

type realFleet struct {
	t       *testing.T
	storage infuse.Storage
	seed    uint64
	stop    chan struct{}
	calls   sync.WaitGroup
}

func newRealFleet(t *testing.T, s infuse.Storage, seed uint64) *realFleet {
	return &realFleet{t: t, storage: s, seed: seed, stop: make(chan struct{})}
}

func (f *realFleet) end() {
	close(f.stop)
	f.calls.Wait()
}

func (f *realFleet) join(cfg infuse.Config) *member {
	cfg.Storage = f.storage
	b, err := infuse.New("prices", cfg)
	require.NoError(f.t, err)
	f.t.Cleanup(b.Stop)
	return &member{breaker: b}
}

// caller has the member call in groups of n at once, at the mean pace a call.
// fails decides each call.
func (f *realFleet) caller(m *member, n int, pace time.Duration, fails func() bool) {
	f.seed++
	roll := rand.New(rand.NewPCG(f.seed, 1))
	f.calls.Go(func() {
		for {
			select {
			case <-f.stop:
				return
			case <-time.After(time.Duration(roll.ExpFloat64() * float64(pace) * float64(n))):
			}
			var group sync.WaitGroup
			for range n {
				bad := fails()
				group.Go(func() { m.call(bad) })
			}
			group.Wait()
		}
	})
}

func (m *member) call(bad bool) {
	m.calls.Add(1)
	failedBefore := m.last.Load()
	ran := false
	err := m.breaker.Call(context.Background(), func(context.Context) error {
		ran = true
		time.Sleep(2 * time.Millisecond)
		m.last.Store(bad)
		if bad {
			return errPartitioned
		}
		return nil
	})
	if !ran && err != nil {
		m.rejected.Add(1)
		if !failedBefore && !m.last.Load() {
			m.wrong.Add(1)
		}
	}
}

func constantly(yes bool) func() bool { return func() bool { return yes } }

// forEachSeed runs f once for each seed.
func forEachSeed(t *testing.T, seeds int, f func(t *testing.T, seed uint64)) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				t.Cleanup(func() { time.Sleep(time.Minute) }) // for requests that are on their way
				f(t, seed)
			})
		})
	}
}

// seeds is how many runs of a fleet of real breakers there are.
func seeds(n int) int {
	switch {
	case os.Getenv("INFUSE_FLEETS") == "large":
		return 100 * n
	case os.Getenv("CI") == "true":
		return 5 * n
	}
	return n
}

// The shared circuit opened because nobody else called in the 50 ms of a suspicion.
// R17.
func TestSilenceOpensNoFleet(t *testing.T) {
	forEachSeed(t, seeds(1), func(t *testing.T, seed uint64) {
		f := newRealFleet(t, infuse.NewMemoryStorage(), seed)
		var healthy []*member
		for range 10 {
			m := f.join(infuse.Config{})
			healthy = append(healthy, m)
			f.caller(m, 1, 5*time.Second, constantly(false))
		}
		busy := f.join(infuse.Config{})
		f.caller(busy, 1, 10*time.Millisecond, constantly(true))
		time.Sleep(time.Duration(seeds(4)) * time.Minute)
		f.end()
		for _, m := range healthy {
			assert.Zero(t, m.rejected.Load())
		}
		assert.NotZero(t, busy.rejected.Load())
	})
}

// Of bursts of one process, 42 to 99 % opened the circuit of small fleets.
// R11.
func TestABurstOfOneProcessOpensNoFleet(t *testing.T) {
	rate := infuse.Config{FailureRate: 0.5}
	for _, c := range []struct {
		cfg     infuse.Config
		healthy int
		rate    float64
		burst   int
		gap     time.Duration
	}{
		{infuse.Config{}, 2, 1, 5, 0}, {infuse.Config{}, 19, 1, 5, time.Millisecond}, {infuse.Config{}, 19, 1, 20, 0}, {infuse.Config{}, 4, 0.1, 5, 0},
		{infuse.Config{}, 99, 1, 5, 0}, {infuse.Config{}, 19, 100, 5, 0}, {infuse.Config{}, 19, 1, 5, 200 * time.Millisecond},
		{infuse.Config{Suspicion: time.Second}, 4, 0.1, 5, 0},
		{rate, 19, 1, 20, 0}, {rate, 4, 0.1, 20, 0}, {rate, 2, 1, 20, 0}, {rate, 19, 1, 80, 0},
	} {
		forEachSeed(t, seeds(1), func(t *testing.T, seed uint64) {
			s := infuse.NewMemoryStorage()
			f := newRealFleet(t, s, seed)
			one := f.join(c.cfg)
			var healthy []*member
			for range c.healthy {
				m := f.join(c.cfg)
				healthy = append(healthy, m)
				f.caller(m, 1, time.Duration(float64(time.Second)/c.rate), constantly(false))
			}
			time.Sleep(3 * time.Second)
			var burst sync.WaitGroup
			for i := range c.burst {
				burst.Go(func() {
					time.Sleep(time.Duration(i) * c.gap)
					one.call(true)
				})
			}
			burst.Wait()
			time.Sleep(7 * time.Second)
			f.end()
			rec, err := s.Load(t.Context(), "prices")
			require.NoError(t, err)
			assert.Equal(t, infuse.StateClosed, rec.State, "%+v", c)
			for _, m := range healthy {
				assert.Zero(t, m.rejected.Load(), "%+v", c)
			}
		})
	}
}

// One process that stayed unhealthy after an outage won the trials, and rejected
// the calls of ten healthy ones for as long as it called.
// R25.
func TestTheUnhealthyProcessDoesNotTakeTheTrials(t *testing.T) {
	forEachSeed(t, seeds(1), func(t *testing.T, seed uint64) {
		f := newRealFleet(t, infuse.NewMemoryStorage(), seed)
		var outage atomic.Bool
		var healthy []*member
		for range 10 {
			m := f.join(infuse.Config{})
			healthy = append(healthy, m)
			f.caller(m, 1, 200*time.Millisecond, outage.Load)
		}
		f.caller(f.join(infuse.Config{}), 1, 5*time.Millisecond, constantly(true))
		outage.Store(true)
		time.Sleep(3 * time.Second)
		outage.Store(false)
		var before int64
		for _, m := range healthy {
			before += m.rejected.Load()
		}
		time.Sleep(time.Duration(seeds(4)) * time.Minute)
		f.end()
		rejected := -before
		for _, m := range healthy {
			rejected += m.rejected.Load()
			assert.Equal(t, infuse.StateClosed, m.breaker.State())
			assert.Zero(t, m.wrong.Load())
		}
		assert.LessOrEqual(t, rejected, int64(65*50), "one open duration is 60 s of 50 calls/s")
	})
}

// A storage that was unavailable from a suspicion on opened a healthy circuit when
// it returned.
func TestAStorageThatIsUnavailableInASuspicionOpensNothing(t *testing.T) {
	for _, unavailable := range []time.Duration{200 * time.Millisecond, 4 * time.Second, 8 * time.Second, 30 * time.Second} {
		forEachSeed(t, seeds(1), func(t *testing.T, seed uint64) {
			s := newBadStorage(seed)
			f := newRealFleet(t, s, seed)
			var healthy []*member
			for range 3 {
				m := f.join(infuse.Config{})
				healthy = append(healthy, m)
				f.caller(m, 1, 30*time.Millisecond, constantly(false))
			}
			one := f.join(infuse.Config{})
			time.Sleep(time.Second)
			s.onSuspicion = func() { s.setUnavailable(true) }
			for range 5 {
				one.call(true)
			}
			time.Sleep(unavailable)
			s.onSuspicion = nil
			s.setUnavailable(false)
			time.Sleep(2 * time.Minute)
			f.end()
			assert.NotZero(t, s.suspicions)
			for _, m := range healthy {
				assert.Zero(t, m.rejected.Load())
			}
			rec, err := s.Load(t.Context(), "prices")
			require.NoError(t, err)
			assert.True(t, rec.State == infuse.StateClosed && !rec.Suspect(), "%+v", rec)
		})
	}
}

// stale is a storage that fails over to a replica: it can be set back to a record.
type stale struct {
	mu       sync.Mutex
	record   infuse.Record
	kept     infuse.Record
	watchers []func(infuse.Record)
}

func (s *stale) Load(context.Context, string) (infuse.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.At(time.Now()), nil
}

func (s *stale) Apply(_ context.Context, _ string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, verdict := s.record.Apply(c, time.Now())
	if verdict != infuse.VerdictRefused {
		if s.record = rec; rec.Suspect() {
			s.kept = rec
		}
	}
	if verdict == infuse.VerdictChanged {
		s.notify(rec)
	}
	return rec, verdict, nil
}

func (s *stale) notify(rec infuse.Record) {
	for _, fn := range s.watchers {
		time.AfterFunc(time.Millisecond, func() { fn(rec) })
	}
}

func (s *stale) Watch(_ string, fn func(infuse.Record)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, fn)
	return func() {}
}

// A failover to a replica that had the suspicion, and not its dismissal, opened a
// healthy circuit, although every process knew better.
// R16.
func TestAFailoverThatLosesTheDismissalOpensNothing(t *testing.T) {
	forEachSeed(t, seeds(3), func(t *testing.T, seed uint64) {
		s := &stale{}
		f := newRealFleet(t, s, seed)
		var healthy []*member
		for range 3 {
			m := f.join(infuse.Config{})
			healthy = append(healthy, m)
			f.caller(m, 1, 30*time.Millisecond, constantly(false))
		}
		one := f.join(infuse.Config{})
		time.Sleep(time.Second)
		for range 5 {
			one.call(true)
		}
		time.Sleep(200 * time.Millisecond)
		s.mu.Lock()
		require.True(t, s.kept.Suspect())
		require.False(t, s.record.Suspect(), "it was dismissed")
		s.record = s.kept
		s.notify(s.kept) // those who watch read it as soon as they are connected
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		f.end()
		for _, m := range healthy {
			assert.Zero(t, m.rejected.Load())
		}
		rec, _ := s.Load(t.Context(), "prices")
		assert.True(t, rec.State == infuse.StateClosed && !rec.Suspect(), "%+v", rec)
	})
}

// One process in a crash loop beside healthy ones with several settings, over a
// storage that pauses, loses notifications and is unavailable.
// R7.
func TestFaultsOfTheStorageRejectNobodyHealthy(t *testing.T) {
	forEachSeed(t, seeds(4), func(t *testing.T, seed uint64) {
		roll := rand.New(rand.NewPCG(seed, 7))
		s := newBadStorage(seed)
		s.lost = roll.Float64() / 2
		f := newRealFleet(t, s, seed)
		var healthy []*member
		for i := range 3 + roll.IntN(20) {
			m := f.join(infuse.Config{ResetTimeout: 10 * time.Second, FailMax: 3 + i%3}) // a deployment with several settings
			healthy = append(healthy, m)
			f.caller(m, 1+2*roll.IntN(2), time.Duration(20+roll.IntN(2000))*time.Millisecond, constantly(false))
		}
		pauses := []time.Duration{60 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}
		s.onSuspicion = func() { s.pause(pauses[seed%3]) }
		for range 60 {
			one := f.join(infuse.Config{ResetTimeout: 10 * time.Second})
			for range 1 + roll.IntN(30) {
				one.call(true)
				time.Sleep(time.Duration(roll.IntN(50)) * time.Millisecond)
			}
			one.breaker.Stop()
			s.setUnavailable(roll.IntN(10) == 0)
			time.Sleep(time.Duration(roll.IntN(1000)) * time.Millisecond)
			s.setUnavailable(false)
		}
		f.end()
		for _, m := range healthy {
			assert.Zero(t, m.rejected.Load())
		}
	})
}

// An outage and its end, for a fleet of real breakers.
func TestAnOutageOfRealBreakers(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 20, 100} {
		forEachSeed(t, seeds(1), func(t *testing.T, seed uint64) {
			f := newRealFleet(t, newBadStorage(seed), seed)
			var outage atomic.Bool
			var all []*member
			for range n {
				m := f.join(infuse.Config{})
				all = append(all, m)
				f.caller(m, 1, time.Second, func() bool { return outage.Load() })
			}
			time.Sleep(10 * time.Second)
			outage.Store(true)
			count := func() (total int64) {
				for _, m := range all {
					total += m.calls.Load() - m.rejected.Load()
				}
				return total
			}
			before := count()
			time.Sleep(55 * time.Second)
			ran := count() - before
			outage.Store(false)
			time.Sleep(90 * time.Second)
			f.end()
			promised := min(5*n, 12+n+n/20) + 1
			t.Logf("%d processes: %d calls, promised %d", n, ran, promised)
			assert.LessOrEqual(t, ran, int64(promised))
			for _, m := range all {
				assert.Equal(t, infuse.StateClosed, m.breaker.State())
				assert.Zero(t, m.wrong.Load())
			}
		})
	}
}
