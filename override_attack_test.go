package infuse

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// What a reviewer broke of overrides and histories.

func TestAnOverrideThatIsOverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brandNew(t, "service", Config{})
		require.NoError(t, b.Override(t.Context(), Override{State: StateOpen, Reason: "maintenance", Until: time.Now().Add(time.Second)}))
		time.Sleep(2 * time.Second)
		require.Equal(t, StateClosed, b.State())
		require.ErrorIs(t, callOf(b, true), errAttack)
		time.Sleep(24 * time.Hour)
		require.NoError(t, callOf(b, false), "a day later")
	})
}

func TestAGroupForgetsOverrides(t *testing.T) {
	for _, state := range []State{StateOpen, StateClosed} {
		t.Run(state.String(), func(t *testing.T) {
			g, err := NewGroup(Config{MaxCircuits: 2, FailMax: 1})
			require.NoError(t, err)
			held, _ := g.Breaker("held")
			require.NoError(t, held.Override(t.Context(), Override{State: state, Reason: "by hand"}))
			open, _ := g.Breaker("open")
			_ = callOf(open, true)
			require.Equal(t, StateOpen, open.State())
			_, _ = g.Breaker("new")
			again, _ := g.Breaker("held")
			require.NotNil(t, again.Stats().Override, "the override is gone")
		})
	}
}

func TestClearingNothingClearsAllOwnCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		one, other := brandNew(t, "service", Config{Storage: storage}), brandNew(t, "service", Config{Storage: storage})
		for range 5 {
			_ = callOf(one, true)
		}
		for range 5 {
			_ = callOf(other, false)
		}
		time.Sleep(time.Second)
		require.Equal(t, StateOpen, one.State())
		require.Equal(t, StateClosed, one.Stats().Shared.State)
		require.NoError(t, other.ClearOverride(t.Context(), "ann"))
		synctest.Wait()
		require.Equal(t, StateOpen, one.State(), "there was no override, and its own circuit is closed")
	})
}

func TestEventsOfStrangers(t *testing.T) {
	long := make([]byte, 1000)
	for i := range long {
		long[i] = 'x'
	}
	e, err := parseEvent(`{"at":1,"from":0,"to":0,"override":{"state":77,"by":"` + string(long) + `","left":-9223372036854775808}}`)
	if err == nil {
		t.Fatalf("override of state %v by %d bytes until %v", e.Override.State, len(e.Override.By), e.Override.Until)
	}
}

func TestABreakerUnderAnOverrideIsNoGarbage(t *testing.T) {
	for name, until := range map[string]time.Duration{"no end": 0, "a month": 30 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			storage := NewMemoryStorage()
			operator := brandNew(t, "service", Config{Storage: storage})
			o := Override{State: StateOpen, Reason: "upgrade"}
			if until > 0 {
				o.Until = time.Now().Add(until)
			}
			require.NoError(t, operator.Override(t.Context(), o))
			var all []weak.Pointer[Breaker]
			func() { // as a Group that evicts and makes the breaker again
				for range 10 {
					b, err := New("service", Config{Storage: storage})
					require.NoError(t, err)
					all = append(all, weak.Make(b))
				}
			}()
			live := 0
			for range 20 {
				runtime.GC()
				time.Sleep(10 * time.Millisecond)
				live = 0
				for _, w := range all {
					if w.Value() != nil {
						live++
					}
				}
			}
			require.Zero(t, live, "of 10 breakers that nobody has")
		})
	}
}

func TestAnOverrideLosesCounts(t *testing.T) {
	client := redistest.StartMini(t).Client()
	busy := redis.NewClient(client.Options())
	t.Cleanup(func() { _ = busy.Close() })
	one, other := newSender(t, busy, "one"), newSender(t, client, "other")
	one.limits.FailureRate, one.limits.Window, one.limits.MinCalls, one.limits.FailMax = 0.5, time.Hour, 1<<20, 1<<20
	other.limits = one.limits
	count := func() {
		other.must(Change{Calls: Calls{Failures: 1, Lead: 1, Streak: 1}, Counted: []Bucket{{Start: time.Now(), Calls: 1, Failures: 1}}})
	}
	count()
	one.load()
	counts := 1
	busy.AddHook(&scripts{around: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		counts++
		count()
		return next(ctx, cmd)
	}})
	one.must(Change{Override: &Override{State: StateClosed, By: "ann"}})
	r := other.load()
	require.NotNil(t, r.Override)
	w := sum(r.Window.Buckets)
	require.Equal(t, counts, r.Failures, "in a row; the window has %+v", w)
}

func TestAnOverrideToHalfOpen(t *testing.T) {
	storage := NewMemoryStorage()
	_, _, err := storage.Apply(t.Context(), "service", Change{Limits: asking, Override: &Override{State: StateHalfOpen}})
	require.Error(t, err)
}

func TestAnOverrideThatCannotBeCleared(t *testing.T) {
	for name, release := range map[string]func(ctx context.Context, b *Breaker) error{
		"ClearOverride": func(ctx context.Context, b *Breaker) error { return b.ClearOverride(ctx, "ann") },
		"Override closed": func(ctx context.Context, b *Breaker) error {
			return b.Override(ctx, Override{State: StateClosed, Reason: "over"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &absent{Storage: NewMemoryStorage()}
				b := brandNew(t, "service", Config{Storage: storage})
				require.NoError(t, b.Override(t.Context(), Override{State: StateOpen, Reason: "maintenance"}))
				storage.away.Store(true)
				_, err := b.Record(t.Context()) // meets the outage
				require.Error(t, err)
				time.Sleep(time.Second)
				err = release(t.Context(), b)
				t.Log(err)
				require.ErrorContains(t, err, "for this process alone")
				require.NoError(t, callOf(b, false), "for this process")
			})
		})
	}
}

func TestTheEndOfAnOverrideOverAnOpenCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		b := brandNew(t, "service", Config{Storage: storage})
		require.NoError(t, b.Override(t.Context(), Override{State: StateClosed, Reason: "false alarm", Until: time.Now().Add(10 * time.Second)}))
		for range 20 {
			require.ErrorIs(t, callOf(b, true), errAttack)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, StateOpen, b.State())
		require.Error(t, callOf(b, false))
		time.Sleep(time.Minute)
		require.NoError(t, callOf(b, false))
		require.Equal(t, StateClosed, b.State())
	})
}
