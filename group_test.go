package infuse_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

func groupOf(t testing.TB, cfg infuse.Config) *infuse.Group {
	t.Helper()
	g, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(g.Stop)
	return g
}

func breakerOf(t testing.TB, g *infuse.Group, name string) *infuse.Breaker {
	t.Helper()
	b, err := g.Breaker(name)
	require.NoError(t, err)
	require.Equal(t, name, b.Name())
	return b
}

func TestAGroupHasOneBreakerAName(t *testing.T) {
	g := groupOf(t, infuse.Config{FailMax: 1})
	prices, rates := breakerOf(t, g, "prices"), breakerOf(t, g, "rates")
	require.NotSame(t, prices, rates)
	require.Same(t, prices, breakerOf(t, g, "prices"))
	trip(t, prices)
	requireState(t, infuse.StateClosed, rates)
	require.Equal(t, errIll, rates.Call(t.Context(), fails))
	requireState(t, infuse.StateOpen, rates)
}

func TestManyWhoAskAGroupAtOnceGetTheSameBreaker(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			g := groupOf(t, patiently(infuse.Config{Storage: storage}))
			const askers, names = 32, 8
			got := make([][names]*infuse.Breaker, askers)
			var all sync.WaitGroup
			for i := range askers {
				all.Go(func() {
					for n := range names {
						b, err := g.Breaker(fmt.Sprint("service-", (i+n)%names))
						if err != nil {
							t.Error(err)
						}
						got[i][(i+n)%names] = b
					}
				})
			}
			all.Wait()
			for i := range askers {
				for n := range names {
					require.Same(t, got[0][n], got[i][n])
				}
			}
		})
	}
}

// At its bound, a group lets go of a circuit that it can find again: healthy,
// and not used for the longest time.
func TestAFullGroupLetsGoOfTheLeastRecentlyUsedHealthyCircuit(t *testing.T) {
	g := groupOf(t, infuse.Config{FailMax: 3, ResetTimeout: time.Hour, MaxCircuits: 4})
	open, failing, old, young := breakerOf(t, g, "open"), breakerOf(t, g, "failing"), breakerOf(t, g, "old"), breakerOf(t, g, "young")
	trip(t, open)
	require.Equal(t, errIll, failing.Call(t.Context(), fails))
	breakerOf(t, g, "young")

	breakerOf(t, g, "new")
	require.Same(t, open, breakerOf(t, g, "open"))
	require.Same(t, failing, breakerOf(t, g, "failing"))
	require.Same(t, young, breakerOf(t, g, "young"))
	require.NotSame(t, old, breakerOf(t, g, "old"), "it has made room, and been made anew")
}

func TestAFullGroupKeepsWhatIsNotClosed(t *testing.T) {
	g := groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: time.Hour, MaxCircuits: 10})
	for i := range 10 {
		trip(t, breakerOf(t, g, fmt.Sprint(i)))
	}
	_, err := g.Breaker("one too many")
	require.ErrorIs(t, err, infuse.ErrGroupFull)
	require.ErrorContains(t, err, "10")
	require.NoError(t, breakerOf(t, g, "7").Close(t.Context()))
	breakerOf(t, g, "room for one more")
	for _, i := range []int{0, 1, 2, 3, 4, 5, 6, 8, 9} {
		requireRejected(t, breakerOf(t, g, fmt.Sprint(i)))
	}
}

// What a group has let go of is not forgotten: the storage still has it.
func TestACircuitThatMadeRoomIsFoundAgain(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			g := groupOf(t, patiently(infuse.Config{FailMax: 10, MaxCircuits: 2, Storage: storage}))
			for range 3 {
				require.Equal(t, errIll, breakerOf(t, g, "failing").Call(t.Context(), fails))
			}
			breakerOf(t, g, "b")
			breakerOf(t, g, "c")
			breakerOf(t, g, "d")
			require.Equal(t, 3, breakerOf(t, g, "failing").Failures())
		})
	}
}

func TestTenThousandCircuitsStayWithinTheBound(t *testing.T) {
	server := redistest.Start(t)
	for kind, storage := range map[string]infuse.Storage{"memory": nil, "redis": host(t, server)} {
		t.Run(kind, func(t *testing.T) {
			circuits := 10_000
			if kind == "redis" {
				circuits = 500
			}
			g := groupOf(t, patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour, MaxCircuits: 50, Storage: storage}))
			trip(t, breakerOf(t, g, "open"))
			made := make(map[*infuse.Breaker]bool)
			for i := range circuits {
				b := breakerOf(t, g, fmt.Sprint(i))
				require.NoError(t, b.Call(t.Context(), succeeds))
				made[b] = true
			}
			require.Len(t, made, circuits)
			kept := 0
			for i := circuits - 49; i < circuits; i++ {
				if made[breakerOf(t, g, fmt.Sprint(i))] {
					kept++
				}
			}
			require.Equal(t, 49, kept, "the most recently used are the same as before")
			requireRejected(t, breakerOf(t, g, "open"))
		})
	}
}

func TestAStoppedGroupMakesNoMoreBreakers(t *testing.T) {
	g := groupOf(t, infuse.Config{})
	b := breakerOf(t, g, "prices")
	g.Stop()
	g.Stop()
	require.Same(t, b, breakerOf(t, g, "prices"))
	require.NoError(t, b.Call(t.Context(), succeeds))
	_, err := g.Breaker("rates")
	require.ErrorContains(t, err, "stopped")
}
