package infuse

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/stretchr/testify/require"
)

// What a reviewer broke of the failure rate, the ramp and the open time that
// grows. Of overrides: override_attack_test.go.

type absent struct {
	Storage
	away atomic.Bool
}

func (s *absent) Load(ctx context.Context, circuit string) (Record, error) {
	if s.away.Load() {
		return Record{}, errors.New("away")
	}
	return s.Storage.Load(ctx, circuit)
}

func (s *absent) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	if s.away.Load() {
		return Record{}, 0, errors.New("away")
	}
	return s.Storage.Apply(ctx, circuit, c)
}

var errAttack = errors.New("ill")

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

// An override of a local breaker that is over comes back with the first
// failure, and for good: the failure is "timeless", so the view is derived at
// the zero time, before Until; and the timer is set for 292 years.
// The same for a ramp: for ever after a recovery each failure puts the view
// back on the ramp.
func TestARampThatIsOverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brandNew(t, "service", Config{Ramp: time.Second, ResetTimeout: time.Second, FailMax: 3})
		for range 3 {
			_ = callOf(b, true)
		}
		time.Sleep(time.Second)
		require.NoError(t, callOf(b, false))
		time.Sleep(time.Hour)
		require.Equal(t, admitsAll, b.view.Load().admits)
		require.NoError(t, callOf(b, false))
		require.ErrorIs(t, callOf(b, true), errAttack)
		require.Equal(t, admitsAll, b.view.Load().admits, "an hour after the ramp")
	})
}

// A window keeps the width of the longest Window that it ever knew, as long
// as there is a failure in ten of these widths: under noise, for good.
func TestAShorterWindowIsBlind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brandNew(t, "service", Config{FailureRate: 0.5, Window: time.Hour})
		_ = callOf(b, true)
		require.NoError(t, b.Configure(Config{FailureRate: 0.5}))
		for range 3 * 3600 { // three hours at 1 % errors or so
			time.Sleep(time.Second)
			_ = callOf(b, time.Now().Unix()%100 == 0)
		}
		for time.Now().Unix()%360 != 60 { // a minute after a bucket began
			time.Sleep(time.Second)
			_ = callOf(b, false)
		}
		for i := range 2000 { // 200 s of a total outage, with 10 calls/s
			if b.State() == StateOpen {
				t.Logf("open after %d failures", i)
				require.Less(t, i, 200)
				return
			}
			_ = callOf(b, true)
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatal("200 s in which all of 2,000 calls failed, 3 hours after Configure: not open")
	})
}

// The same in a fleet, after a rolling deployment that is over.
func TestAShorterWindowOfAFleetIsBlind(t *testing.T) {
	long := ratedBy(func(l *Limits) { l.Window = time.Hour })
	short := ratedBy(func(l *Limits) { l.Window = 10 * time.Second })
	day := time.UnixMilli(noon.UnixMilli() / 360_000 * 360_000)
	r := Record{}.then(Change{Limits: long, Counted: []Bucket{{Start: day, Calls: 1, Failures: 1}}}, day)
	at := day
	say := func(calls, failures int) {
		for _, source := range []string{"a", "b"} {
			c := Change{Source: source, Limits: short, Counted: []Bucket{{Start: at, Calls: calls / 2, Failures: failures / 2}}}
			r, _ = r.Apply(c, at)
		}
	}
	for range 2 * 3600 { // two hours of noise, all with the short window
		at = at.Add(time.Second)
		say(200, 2)
	}
	require.Equal(t, 6*time.Minute, r.Window.Width)
	at = at.Add(30 * time.Second)
	suspicions := 0
	for range 300 { // 300 s of an outage at 100 calls/s
		at = at.Add(time.Second)
		say(100, 100)
		if r.suspect() {
			suspicions++
		}
		if r.State == StateOpen {
			t.Logf("open after %v", at)
			return
		}
	}
	t.Fatalf("30,000 failures in 300 s: state %v, in %d reports suspect", r.State, suspicions)
}

// A process that nobody calls went on waking after the circuit had opened.
func TestAnOpenCircuitKeepsWaking(t *testing.T) {
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
				armed := b.armed
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

// Limits that keep to what their comment says: whole milliseconds, at least 1.
func TestAWindowOfFiveMilliseconds(t *testing.T) {
	l := ratedBy(func(l *Limits) { l.Window = 5 * time.Millisecond })
	require.NotPanics(t, func() {
		Record{}.Apply(Change{Limits: l, Counted: []Bucket{{Start: noon, Calls: 1, Failures: 1}}}, noon)
	})
}

func TestMemoryStorageHangsAfterThat(t *testing.T) {
	storage := NewMemoryStorage()
	func() {
		defer func() { _ = recover() }()
		l := ratedBy(func(l *Limits) { l.Window = 5 * time.Millisecond })
		_, _, _ = storage.Apply(t.Context(), "one", Change{Limits: l, Counted: []Bucket{{Start: time.Now(), Calls: 1, Failures: 1}}})
	}()
	done := make(chan bool)
	go func() {
		_, _ = storage.Load(context.Background(), "another")
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
		t.Fatal("the storage of all circuits hangs")
	}
}

// Limits with a MaxResetTimeout and no ResetTimeout never return.
func TestGrownWithoutAResetTimeout(t *testing.T) {
	done := make(chan bool)
	go func() {
		l := rating
		l.ResetTimeout, l.MaxResetTimeout = 0, time.Minute
		Record{}.Apply(Change{Limits: l, Counted: []Bucket{{Start: noon, Calls: 10, Failures: 10}}}, noon)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
		t.Fatal("an endless loop")
	}
}

// A Group evicts a circuit that is held by hand before any that is open, and
// one that is held closed first of all.
// ClearOverride: "where there is none, nothing changes but the history".
// While the storage is away a ramp is not kept.
func TestARampEndsWhereTheStorageIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &absent{Storage: NewMemoryStorage()}
		cfg := Config{Storage: storage, Ramp: 10 * time.Second}
		one, other := brandNew(t, "service", cfg), brandNew(t, "service", cfg)
		require.NoError(t, one.SetState(t.Context(), StateOpen))
		require.NoError(t, one.SetState(t.Context(), StateClosed))
		synctest.Wait()
		ran := func() (n int) {
			for range 100 {
				if callOf(other, false) == nil {
					n++
				}
			}
			return n
		}
		require.InDelta(t, 10, ran(), 3)
		storage.away.Store(true)
		for other.Stats().StorageErr == nil { // the first failure that runs meets the storage
			_ = callOf(other, true)
		}
		require.Equal(t, StateClosed, other.replica.local.State)
		require.Equal(t, 1, other.replica.local.Failures)
		require.InDelta(t, 10, ran(), 3, "of 100 calls, some ms later")
	})
}

// An hour of calm is forgotten by a move to open.
func TestCalmIsForgottenByAMove(t *testing.T) {
	l := Limits{FailMax: 1, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, MaxResetTimeout: time.Hour}
	now, n := noon, 0
	r := Record{}
	apply := func(c Change) { c.Limits = l; r, _ = r.Apply(c, now) }
	trial := func(o Outcome) {
		now = r.DueAt
		n++
		apply(Change{Ask: "a"})
		apply(Change{Settled: []Settlement{{ID: "a", Outcome: o}}, Seen: r})
	}
	apply(Change{Calls: Calls{Failures: 1, Lead: 1, Streak: 1}})
	for range 5 {
		trial(OutcomeFailure)
	}
	trial(OutcomeSuccess)
	require.Equal(t, StateClosed, r.State)
	require.Equal(t, 32*time.Second, r.OpenTime)
	now = now.Add(24 * time.Hour)
	require.Equal(t, time.Second, r.grown(&l, now), "after a day of calm")
	apply(Change{Move: &Move{StateOpen}})
	trial(OutcomeFailure)
	require.LessOrEqual(t, r.OpenTime, 2*time.Second, "after a day of calm and a move")
}

// An event of a stranger has any state, and more text than there may be.
// A breaker under an override with an end is kept alive by its timer.
type hrLate struct {
	Storage
	asks, settles atomic.Int64
}

func (s *hrLate) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	if c.Ask != "" {
		time.Sleep(time.Duration(s.asks.Load()))
	}
	if len(c.Settled) > 0 {
		time.Sleep(time.Duration(s.settles.Load()))
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A process whose trial succeeded met a circuit on a ramp that let nothing run.
// Without a Ramp all calls run.
func TestARampThatTheStorageHasNotHeardOf(t *testing.T) {
	for _, ramp := range []time.Duration{0, time.Second} {
		t.Run(ramp.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &hrLate{Storage: NewMemoryStorage()}
				b := brandNew(t, "prices", Config{Storage: storage, Ramp: ramp})
				other := brandNew(t, "prices", Config{Storage: storage})
				for _, failing := range []*Breaker{b, other} {
					for range 5 {
						_ = callOf(failing, true)
					}
					time.Sleep(60 * time.Millisecond)
				}
				require.Equal(t, StateOpen, sharedOf(b).State)
				time.Sleep(time.Minute)
				storage.asks.Store(int64(60 * time.Millisecond))
				storage.settles.Store(int64(10 * time.Second))
				require.NoError(t, callOf(b, false))
				ran := 0
				var last error
				for range 500 { // at once: no time passes
					if err := callOf(b, false); err == nil {
						ran++
					} else {
						last = err
					}
				}
				t.Logf("state %v, away %v: %d of 500 ran; %v", b.State(), b.Stats().StorageErr, ran, last)
				if ran < 10 {
					t.Errorf("%d of 500 calls ran in a closed circuit", ran)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
			})
		})
	}
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
			}, 5*time.Second, 10*time.Millisecond)
			time.Sleep(3 * time.Second)
			for i, b := range all {
				b.mu.Lock()
				if !b.armed.IsZero() {
					t.Errorf("breaker %d: a timer in %v", i, time.Until(b.armed))
				}
				b.mu.Unlock()
				require.NoError(t, callOf(b, false))
			}
		})
	}
}

func TestASuccessAllocatesNothingUnderAnySetting(t *testing.T) {
	ctx := context.Background()
	ok, ill := func(context.Context) error { return nil }, func(context.Context) error { return errAttack }
	for name, cfg := range map[string]Config{
		"plain": {FailMax: 1000}, "rate": {FailureRate: 0.9, MinCalls: math.MaxInt32}, "rate and row": {FailureRate: 0.9, MinCalls: math.MaxInt32, FailMax: 1000},
		"counts": {FailMax: 1000, CountCalls: true}, "slow": {FailMax: 1000, SlowCall: time.Minute}, "ramp": {FailMax: 1000, Ramp: time.Second},
	} {
		b := brandNew(t, "service", cfg)
		health := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ok) })
		_ = b.Call(ctx, ill)
		_ = b.Call(ctx, ok)
		after := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ok) })
		failing := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ill); _ = b.Call(ctx, ok) })
		t.Log(name, "health", health, "with a failure", after, "failure and success", failing)
		require.Zero(t, health, name)
		require.Zero(t, after, name)
	}
	// A ramp long over.
	b := brandNew(t, "service", Config{Ramp: time.Millisecond, ResetTimeout: time.Millisecond, FailMax: 3})
	for range 3 {
		_ = b.Call(ctx, ill)
	}
	time.Sleep(5 * time.Millisecond)
	_ = b.Call(ctx, ok)
	time.Sleep(20 * time.Millisecond)
	failing := testing.AllocsPerRun(1000, func() { _ = b.Call(ctx, ill); _ = b.Call(ctx, ok) })
	t.Log("after a ramp: failure and success", failing)
}

// Chaos with a storage that forgets, and everything of issue 9.
// With default settings, and after Stop.
func TestAStoppedBreakerKeepsWaking(t *testing.T) {
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
			if other.armed != last {
				wakes, last = wakes+1, other.armed
			}
		}
		require.LessOrEqual(t, wakes, 2, "timers set within the second minute, by a stopped breaker of an open circuit")
	})
}

// ... and so it is never garbage.
func TestABreakerThatKeepsWakingIsNoGarbage(t *testing.T) {
	storage := NewMemoryStorage()
	cfg := Config{FailureRate: 0.5, MinCalls: 5, Window: 100 * time.Millisecond, ResetTimeout: 200 * time.Millisecond, Storage: storage}
	one := brandNew(t, "service", cfg)
	w := func() weak.Pointer[Breaker] {
		b, err := New("service", cfg)
		require.NoError(t, err)
		return weak.Make(b)
	}()
	for range 6 {
		_ = callOf(one, true)
	}
	time.Sleep(time.Second)
	require.Equal(t, StateOpen, one.State())
	for range 100 {
		runtime.GC()
		if w.Value() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("3 s later: not garbage")
}

// One report that cannot be makes the record unreadable for all.
func TestAStrangersCountSpoilsTheRecord(t *testing.T) {
	client := redistest.StartMini(t).Client()
	one, other := newSender(t, client, "one"), newSender(t, client, "other")
	one.limits.FailureRate, one.limits.Window, one.limits.MinCalls = 0.5, 10*time.Second, 20
	other.limits = one.limits
	other.must(failures(1))
	_, err := one.send(Change{Counted: []Bucket{{Start: time.Now(), Calls: 1, Failures: 2}}})
	t.Log("Apply:", err)
	_, err = other.send(failures(1))
	require.NoError(t, err, "and for another sender")
}

// An override while others count takes their counts back.
// A call of 8.02 tenths of a window ago has left the fleet's window.
// Who clears an override that is not there, by the history.
// An override of a state that cannot be, from a third-party sender.
// A Ramp that is set later begins in the middle, long after the closing.
// While the storage is away, an override of the fleet can neither be cleared
// nor replaced for a process alone, though the error says that it was.
// For GOARCH=386 alone: counts and ages beyond 31 bits.
func TestThirtyTwoBits(t *testing.T) {
	b := Bucket{Calls: math.MaxInt32, Failures: math.MaxInt32}
	b.add(Bucket{Calls: 20, Failures: 20})
	require.Positive(t, b.Calls)
	w := Window{Width: time.Second, Buckets: []Bucket{{noon, math.MaxInt32, math.MaxInt32}, {after(1000), 20, 20}}}
	require.True(t, w.rate(10*time.Second, 20, 0.5, after(1500)).over)
	r := Record{Window: Window{time.Second, []Bucket{{noon, 1, 1}}}}
	later := noon.Add(25 * 24 * time.Hour)
	_, err := ParseRecord(AppendRecord(nil, r, later), later)
	require.NoError(t, err)
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
	}, 10*time.Second, 10*time.Millisecond)
	time.Sleep(3 * time.Second)
	for i, b := range all {
		b.mu.Lock()
		armed := b.armed
		b.mu.Unlock()
		require.True(t, armed.IsZero(), "breaker %d: a timer in %v", i, time.Until(armed))
		require.NoError(t, callOf(b, false))
	}
}

// A suspect rate under an override that is held closed, and the end of it.
// On Redis: until a poll tells of the opening.
func TestHowLongARedisCircuitKeepsWaking(t *testing.T) {
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
		armed := other.armed
		other.mu.Unlock()
		if !armed.Equal(last) {
			wakes, last, ended = wakes+1, armed, time.Since(start)
		}
	}
	t.Logf("state %v; %d timers set, the last after %v", other.State(), wakes, ended)
	require.Less(t, ended, 2*time.Second)
}

// Half of a small fleet has a row, half a rate.
// What a process has opened by itself while the storage was away is reported
// as MinCalls failed calls, that nobody made. docs/semantics.md: "reported as
// FailMax failures".
func TestCallsThatNobodyMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &absent{Storage: NewMemoryStorage()}
		b := brandNew(t, "service", Config{Storage: storage, FailMax: 5, FailureRate: 0.5, MinCalls: 50})
		storage.away.Store(true)
		for range 10 {
			_ = callOf(b, true)
		}
		require.Equal(t, StateOpen, b.State())
		storage.away.Store(false)
		for b.Stats().StorageErr != nil {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		r, err := b.Record(t.Context())
		require.NoError(t, err)
		w := sum(r.Window.Buckets)
		require.LessOrEqual(t, w.Calls, 10, "%+v, state %v, failures %d, suspect %v rated %v", w, r.State, r.Failures, r.suspect(), r.Rated)
	})
}

// Strict: "every call waits for its outcome to be known". While the fleet is
// asked for its rate, a failure is not.
func TestStrictFailuresAreNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		cfg := Config{Storage: storage, FailureRate: 0.5, MinCalls: 5, Strict: true}
		one, other := brandNew(t, "service", cfg), brandNew(t, "service", cfg)
		for range 5 {
			_ = callOf(one, true)
		}
		synctest.Wait()
		before, err := other.Record(t.Context())
		require.NoError(t, err)
		require.True(t, before.Rated)
		for range 3 {
			require.ErrorIs(t, callOf(other, true), errAttack)
		}
		after, err := other.Record(t.Context())
		require.NoError(t, err)
		was, is := sum(before.Window.Buckets), sum(after.Window.Buckets)
		require.Equal(t, was.Failures+3, is.Failures)
	})
}

// A window of a length that ten does not divide differs by where it is kept.
func TestAWidthIsWholeMilliseconds(t *testing.T) {
	l := ratedBy(func(l *Limits) { l.Window = 105 * time.Millisecond })
	r := Record{}.then(counted(l, 1, 1), noon)
	parsed, err := ParseRecord(AppendRecord(nil, r, noon), noon)
	require.NoError(t, err)
	redis, err := parseWindow(formatWindow(r.Window))
	require.NoError(t, err)
	t.Log(r.Window.Width, parsed.Window.Width, redis.Width)
	require.Equal(t, r.Window.Width, parsed.Window.Width)
	require.Equal(t, r.Window.Width, redis.Width)
}

// A thousand circuits with a rate, each of which had one failure: the
// timers that fire, and what that costs.
