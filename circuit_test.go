package infuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

var errAttack = errors.New("failed")

func callOf(b *Breaker, fail bool) error {
	return b.Call(context.Background(), func(context.Context) error {
		if fail {
			return errAttack
		}
		return nil
	})
}

func brandNew(t testing.TB, name string, cfg Config) *Breaker {
	t.Helper()
	b, err := New(name, cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return b
}

// A process that nobody calls went on waking after the circuit had opened.
func TestAnOpenCircuitSetsNoTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		cfg := Config{FailureRate: 0.5, MinCalls: 5, Window: time.Second, Storage: storage, ResetTimeout: time.Second}
		one := brandNew(t, "service", cfg)
		other := brandNew(t, "service", cfg) // is never called
		third := brandNew(t, "service", cfg)
		for range 6 {
			_ = callOf(one, true)
		}
		require.True(t, sharedOf(other).Rated)
		time.Sleep(210 * time.Millisecond) // four times Suspicion, and more
		_ = callOf(third, true)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, StateOpen, sharedOf(other).State)
		wakes := 0
		for _, b := range []*Breaker{one, other} {
			var last time.Time
			for range 1000 {
				time.Sleep(time.Millisecond)
				synctest.Wait()
				b.mu.Lock()
				armed := b.alarm.when()
				b.mu.Unlock()
				if !armed.Equal(last) {
					wakes, last = wakes+1, armed
				}
			}
		}
		require.LessOrEqual(t, wakes, 2, "timers set within a second for two circuits at rest, a minute after they opened")
	})
}

// sharedOf returns the shared record as the breaker knows it.
func sharedOf(b *Breaker) Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replica.shared.clone()
}

// Fuzz: any change on any record that ParseRecord lets through.
// Many goroutines around everything, with -race. Afterwards all must come to rest.
func TestManyAtOnceUnderAllSettings(t *testing.T) {
	if !long() {
		t.Skip("takes long: CI=true runs it")
	}
	for name, storage := range map[string]Storage{"none": nil, "memory": NewMemoryStorage()} {
		t.Run(name, func(t *testing.T) {
			cfg := func(i int) Config {
				c := Config{Storage: storage, Window: time.Second, ResetTimeout: 5 * time.Millisecond, TrialTimeout: 50 * time.Millisecond, CountCalls: i%2 == 0}
				switch i % 5 {
				case 0:
					c.FailureRate, c.Window, c.MinCalls = 0.5, 100*time.Millisecond, 5
				case 1:
					c.Ramp = 20 * time.Millisecond
				case 2:
					c.SlowCall, c.FailMax = time.Microsecond, 20
				case 3:
					c.MaxResetTimeout, c.FailureRate, c.FailMax = 50*time.Millisecond, 0.3, 10
				case 4:
					c.Strict = storage != nil
				}
				return c
			}
			var all []*Breaker
			for i := range 3 {
				all = append(all, brandNew(t, "service", cfg(i)))
			}
			var stop atomic.Bool
			var wg sync.WaitGroup
			var ran, called atomic.Int64
			for g := range 8 {
				wg.Go(func() {
					for i := 0; !stop.Load(); i++ {
						b := all[(i+g)%3]
						called.Add(1)
						if err := callOf(b, (i/50)%2 == 0); err == nil || err == errAttack {
							ran.Add(1)
						}
						if i%7 == 0 {
							if p, err := b.Acquire(context.Background()); err == nil {
								p.Settle(OutcomeSuccess)
							}
						}
					}
				})
			}
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					b := all[i%3]
					_ = b.Configure(cfg(i))
					_ = b.Stats()
					switch i % 11 {
					case 1:
						_ = b.Override(context.Background(), Override{State: State(i / 11 % 2), Reason: "attack", Until: time.Now().Add(3 * time.Millisecond)})
					case 5:
						_ = b.ClearOverride(context.Background(), "")
					case 9:
						_ = b.SetState(context.Background(), State(i/11%3))
					}
					_, _ = b.Record(context.Background())
					time.Sleep(200 * time.Microsecond)
				}
			})
			time.Sleep(3 * time.Second)
			stop.Store(true)
			wg.Wait()
			require.NotZero(t, ran.Load())
			t.Log(called.Load(), "calls", ran.Load(), "ran")
			for _, b := range all { // a trial that is slower than a microsecond closes nothing
				require.NoError(t, b.Configure(cfg(1)))
			}
			require.Eventually(t, func() bool {
				for _, b := range all {
					_ = b.ClearOverride(context.Background(), "")
					_ = callOf(b, false)
					if b.State() != StateClosed {
						return false
					}
				}
				return true
			}, 30*time.Second, 10*time.Millisecond)
			time.Sleep(3 * time.Second)
			for i, b := range all {
				b.mu.Lock()
				if b.alarm != nil {
					t.Errorf("breaker %d: a timer in %v", i, time.Until(b.alarm.when()))
				}
				b.mu.Unlock()
				require.NoError(t, callOf(b, false))
			}
		})
	}
}

// Chaos with a storage that forgets, and everything of issue 9.
// With default settings, and after Stop.
func TestAStoppedBreakerSetsNoTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		cfg := Config{FailureRate: 0.5, MinCalls: 5, Storage: storage}
		one, other := brandNew(t, "service", cfg), brandNew(t, "service", cfg)
		for range 6 {
			_ = callOf(one, true)
		}
		time.Sleep(time.Minute)
		other.Stop()
		wakes, last := 0, time.Time{}
		for range 60_000 {
			time.Sleep(time.Millisecond)
			if other.alarm.when() != last {
				wakes, last = wakes+1, other.alarm.when()
			}
		}
		require.LessOrEqual(t, wakes, 2, "timers set within the second minute, by a stopped breaker of an open circuit")
	})
}

// As 20, on a real Redis with two storages: afterwards all agree.
func TestManyAtOnceUnderAllSettingsOnRedis(t *testing.T) {
	if !long() {
		t.Skip("takes long: CI=true runs it")
	}
	server := redistest.Start(t)
	newStorage := func() Storage {
		s := NewRedisStorage(server.Client(), RedisOptions{PollInterval: 200 * time.Millisecond})
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	storages := []Storage{newStorage(), newStorage()}
	cfg := func(i int) Config {
		c := Config{Storage: storages[i%2], ResetTimeout: 20 * time.Millisecond, TrialTimeout: 200 * time.Millisecond, FailureRate: 0.5, Window: 200 * time.Millisecond, MinCalls: 5, StorageTimeout: time.Second}
		switch i / 2 % 4 {
		case 0:
			c.Ramp, c.FailMax = 20*time.Millisecond, 5
		case 1:
			c.MaxResetTimeout = 80 * time.Millisecond
		case 2:
			c.SlowCall = 10 * time.Microsecond
		case 3:
			c.Strict = true
		}
		return c
	}
	var all []*Breaker
	for i := range 4 {
		all = append(all, brandNew(t, "service", cfg(i)))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				_ = callOf(all[(i+g)%4], (i/50)%2 == 0)
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	wg.Go(func() {
		for i := 0; !stop.Load(); i++ {
			b := all[i%4]
			_ = b.Configure(cfg(i%4 + 4*(i%2)))
			_ = b.Stats()
			switch i % 11 {
			case 1:
				_ = b.Override(context.Background(), Override{State: State(i / 11 % 2), Reason: "attack", Until: time.Now().Add(30 * time.Millisecond)})
			case 5:
				_ = b.ClearOverride(context.Background(), "")
			case 9:
				_ = b.SetState(context.Background(), State(i/11%3))
			}
			time.Sleep(time.Millisecond)
		}
	})
	time.Sleep(5 * time.Second)
	stop.Store(true)
	wg.Wait()
	require.Eventually(t, func() bool {
		for _, b := range all {
			_ = callOf(b, false)
		}
		for _, b := range all {
			if b.State() != StateClosed || b.Stats().Override != nil {
				return false
			}
		}
		return true
	}, 30*time.Second, 10*time.Millisecond)
	time.Sleep(3 * time.Second)
	for i, b := range all {
		b.mu.Lock()
		armed := b.alarm.when()
		b.mu.Unlock()
		require.True(t, armed.IsZero(), "breaker %d: a timer in %v", i, time.Until(armed))
		require.NoError(t, callOf(b, false))
	}
}

// A suspect rate under an override that is held closed, and the end of it.
// On Redis: until a poll tells of the opening.
func TestARedisCircuitStopsSettingTimers(t *testing.T) {
	if !long() {
		t.Skip("takes long: CI=true runs it")
	}
	server := redistest.Start(t)
	s := NewRedisStorage(server.Client(), RedisOptions{})
	s2 := NewRedisStorage(server.Client(), RedisOptions{})
	defer s.Close()
	defer s2.Close()
	cfg := Config{FailureRate: 0.5, MinCalls: 5, Window: 100 * time.Millisecond, ResetTimeout: 200 * time.Millisecond, Storage: s}
	one := brandNew(t, "service", cfg)
	cfg.Storage = s2
	other := brandNew(t, "service", cfg)
	for range 6 {
		_ = callOf(one, true)
	}
	start := time.Now()
	var last time.Time
	wakes := 0
	var ended time.Duration
	for time.Since(start) < 10*time.Second {
		time.Sleep(2 * time.Millisecond)
		other.mu.Lock()
		armed := other.alarm.when()
		other.mu.Unlock()
		if !armed.Equal(last) {
			wakes, last, ended = wakes+1, armed, time.Since(start)
		}
	}
	t.Logf("state %v; %d timers set, the last after %v", other.State(), wakes, ended)
	require.Less(t, ended, 7*time.Second)
}

// A probe chose a circuit that was just starting, which had no view yet, and the
// process crashed. Another received that the link was up before it took it for down,
// and was on its own until the next outage.
func TestACircuitIsReadyWhenItJoinsItsLink(t *testing.T) {
	const patience, pace = 30 * time.Second, time.Millisecond
	s, err := newSettings(Config{Storage: NewMemoryStorage()})
	require.NoError(t, err)
	l := linkTo(s.Storage)
	b := new(Breaker)
	ready := make(chan struct{})
	l.mu.Lock() // it cannot join meanwhile
	go func() {
		defer close(ready)
		b.init("prices", s, l)
	}()
	t.Cleanup(func() {
		l.mu.Unlock()
		<-ready
		b.Stop()
	})
	require.Eventually(t, func() bool { return b.view.Load() != nil }, patience, pace, "it has a view")
	require.Eventually(t, func() bool {
		for range 20 {
			if b.mu.TryLock() {
				b.mu.Unlock()
				return false
			}
			time.Sleep(pace)
		}
		return true
	}, patience, pace, "and no news comes between that it joins and what it learns by that")
}

// Circuits of a Group share the settings that are equal, but no func with other
// variables.
func TestCircuitsShareEqualSettings(t *testing.T) {
	healthy := func(context.Context, error) Outcome { return OutcomeSuccess }
	outcomes := map[string]Outcome{"failure": OutcomeFailure, "ignored": OutcomeIgnored}
	listener, storage := &Listener{}, NewMemoryStorage()
	resetTimeout := time.Second
	group, err := NewGroupFunc(func(circuit string) Config {
		cfg := Config{ResetTimeout: resetTimeout, Classify: healthy, Listeners: []*Listener{listener}}
		switch circuit {
		case "failure", "ignored":
			outcome := outcomes[circuit]
			cfg.Classify = func(context.Context, error) Outcome { return outcome }
		case "excludes":
			cfg.Exclude = []func(error) bool{func(error) bool { return true }}
		case "listens":
			cfg.Listeners = []*Listener{{}}
		case "storage":
			cfg.Storage = storage
		}
		return cfg
	})
	require.NoError(t, err)
	defer group.Stop()
	all := map[string]*settings{}
	for _, name := range []string{"a", "b", "failure", "ignored", "excludes", "listens", "storage"} {
		b, err := group.Breaker(name)
		require.NoError(t, err)
		for other, s := range all {
			require.Equal(t, name == "b" && other == "a", s == b.settings(), "%s and %s", name, other)
		}
		all[name] = b.settings()
	}
	resetTimeout = time.Minute
	require.NoError(t, group.Reload())
	a, b := group.breakers["a"].breaker.Load(), group.breakers["b"].breaker.Load()
	require.Same(t, a.settings(), b.settings())
	require.Same(t, a.view.Load(), b.view.Load())
	require.Equal(t, time.Minute, a.settings().ResetTimeout)
}

// A circuit lets go of what only a failing one needs when it is healthy again.
func TestACircuitThatRecoveredKeepsNoEpisode(t *testing.T) {
	for name, storage := range map[string]Storage{"local": nil, "memory": NewMemoryStorage()} {
		b, err := New("prices", Config{Storage: storage, FailMax: 1})
		require.NoError(t, err)
		defer b.Stop()
		kept := func() (some bool) {
			b.inspect(func(r *replica) { some = r.episode != noEpisode })
			return some
		}
		require.False(t, kept(), name)
		require.Error(t, b.Call(t.Context(), func(context.Context) error { return errors.New("a failure") }))
		require.True(t, kept(), name)
		require.NoError(t, b.SetState(t.Context(), StateClosed))
		require.NoError(t, b.Call(t.Context(), func(context.Context) error { return nil }))
		require.Eventually(t, func() bool { return !kept() }, 10*time.Second, time.Millisecond, name)
	}
}
