package breaker_test

import (
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A breaker of an open circuit with a rate kept its timer set, and was never
// garbage-collected.
func TestABreakerOfAnOpenCircuitIsCollected(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	cfg := infuse.Config{FailureRate: 0.5, MinCalls: 5, Window: 100 * time.Millisecond, ResetTimeout: 200 * time.Millisecond, Storage: storage}
	one := startBreaker(t, "service", cfg)
	w := func() weak.Pointer[infuse.Breaker] {
		b, err := infuse.New("service", cfg)
		require.NoError(t, err)
		return weak.Make(b)
	}()
	for range 6 {
		_ = callOf(one, true)
	}
	time.Sleep(time.Second)
	require.Equal(t, infuse.StateOpen, one.State())
	for range 100 {
		runtime.GC()
		if w.Value() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("3 s later: not garbage")
}

func TestABreakerUnderAnOverrideIsCollected(t *testing.T) {
	for name, until := range map[string]time.Duration{"no end": 0, "a month": 30 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			storage := infuse.NewMemoryStorage()
			operator := startBreaker(t, "service", infuse.Config{Storage: storage})
			o := infuse.Override{State: infuse.StateOpen, Reason: "upgrade"}
			if until > 0 {
				o.Until = time.Now().Add(until)
			}
			require.NoError(t, operator.Override(t.Context(), o))
			var all []weak.Pointer[infuse.Breaker]
			func() { // as a Group that evicts and makes the breaker again
				for range 10 {
					b, err := infuse.New("service", infuse.Config{Storage: storage})
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
