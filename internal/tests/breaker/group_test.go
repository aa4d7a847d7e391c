package breaker_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

func TestAGroupHasOneBreakerAName(t *testing.T) {
	g := groupOf(t, infuse.Config{FailMax: 1})
	prices, rates := breakerOf(t, g, "prices"), breakerOf(t, g, "rates")
	require.NotSame(t, prices, rates)
	require.Same(t, prices, breakerOf(t, g, "prices"))
	trip(t, prices)
	requireState(t, infuse.StateClosed, rates)
	require.Equal(t, errUnhealthy, rates.Call(t.Context(), fails))
	requireState(t, infuse.StateOpen, rates)
}

func TestAGroupGivesAllThatAskTheSameBreaker(t *testing.T) {
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
						assert.NoError(t, err)
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

// Making room.

// At its bound a group evicts the least recently used circuit, whatever its
// state: hosts that a client chose and that are dead were kept, and evicted a
// circuit in use.
func TestAFullGroupEvictsTheLeastRecentlyUsed(t *testing.T) {
	g := groupOf(t, infuse.Config{FailMax: 2, ResetTimeout: time.Hour, MaxCircuits: 8})
	open, failing, healthy, again := breakerOf(t, g, "open"), breakerOf(t, g, "failing"), breakerOf(t, g, "healthy"), breakerOf(t, g, "again")
	trip(t, open)
	require.Equal(t, errUnhealthy, failing.Call(t.Context(), fails))
	require.NoError(t, healthy.Call(t.Context(), succeeds))
	for i := range 4 {
		breakerOf(t, g, fmt.Sprint("other ", i))
	}
	breakerOf(t, g, "again")
	for i, evicted := range []*infuse.Breaker{open, failing, healthy} {
		breakerOf(t, g, fmt.Sprint("newcomer ", i))
		require.NotContains(t, slices.Collect(g.All()), evicted)
		require.Len(t, namesOf(g), 8)
	}
	require.Contains(t, slices.Collect(g.All()), again)
}

// A flood of new hosts between two calls of a service that was in use before.
func TestAFloodOfHostsDoesNotEvictAnEstablishedCircuit(t *testing.T) {
	g := groupOf(t, infuse.Config{MaxCircuits: 100})
	ours := breakerOf(t, g, "ours")
	for i := range 30 {
		breakerOf(t, g, fmt.Sprint("host ", i))
	}
	require.Same(t, ours, breakerOf(t, g, "ours"))
	for i := range 500 {
		breakerOf(t, g, fmt.Sprint("flood ", i))
	}
	require.Same(t, ours, breakerOf(t, g, "ours"))
	for i := range 1000 {
		breakerOf(t, g, fmt.Sprint("more ", i))
	}
	require.NotContains(t, slices.Collect(g.All()), ours, "not used for 8 × MaxCircuits uses")
}

// Circuits that the settings name are kept, also if they are rarely used.
func TestOtherNamesDoNotEvictACircuitWithSettingsOfItsOwn(t *testing.T) {
	for name, config := range map[string]func(string) infuse.Config{
		"by a field":    func(circuit string) infuse.Config { return infuse.Config{MaxCircuits: 3, FailMax: len(circuit) % 10} },
		"by a listener": func(string) infuse.Config { return infuse.Config{MaxCircuits: 3, Listeners: []*infuse.Listener{{}}} },
		"by a func": func(string) infuse.Config {
			return infuse.Config{MaxCircuits: 3, Classify: func(context.Context, error) infuse.Outcome { return infuse.OutcomeIgnored }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
				if strings.HasPrefix(circuit, "ours-") {
					return config(circuit)
				}
				return infuse.Config{MaxCircuits: 3}
			})
			require.NoError(t, err)
			defer g.Stop()
			var ours []*infuse.Breaker
			for i := range 3 {
				ours = append(ours, breakerOf(t, g, fmt.Sprint("ours-", i)))
			}
			for i := range 100 {
				breakerOf(t, g, fmt.Sprint("host ", i))
				require.Len(t, namesOf(g), 4, "one more for all other names")
			}
			require.Subset(t, slices.Collect(g.All()), ours)
			require.NoError(t, g.Configure(infuse.Config{MaxCircuits: 3}))
			breakerOf(t, g, "host")
			require.Subset(t, slices.Collect(g.All()), ours)
			breakerOf(t, g, "ours-3")
			require.Len(t, namesOf(g), 3)
			require.NotContains(t, namesOf(g), "ours-0", "those with settings of their own are bounded, too")
		})
	}
	g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
		if circuit == "\x00" {
			panic("an unknown name")
		}
		return infuse.Config{}
	})
	require.NoError(t, err)
	breakerOf(t, g, "ours")
}

// A breaker that somebody kept was stopped when it made room: it said "closed"
// for ever, whatever became of the circuit.
func TestABreakerKeptFromAGroupReceivesChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		g := groupOf(t, infuse.Config{FailMax: 2, Storage: storage, MaxCircuits: 1})
		kept := breakerOf(t, g, "prices")
		breakerOf(t, g, "rates") // in its place
		other := startBreaker(t, "prices", infuse.Config{FailMax: 2, Storage: storage})
		require.NotSame(t, kept, breakerOf(t, g, "prices"))

		require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		requireState(t, infuse.StateOpen, kept)
		require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
		synctest.Wait()
		requireState(t, infuse.StateClosed, kept)

		tripFleet(t, kept, other)
		synctest.Wait()
		requireState(t, infuse.StateOpen, kept, other)
		kept.Stop()
	})
}

// What was under way when a breaker made room was lost to the storage.
func TestACallOfAnEvictedBreakerIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		g := groupOf(t, infuse.Config{Storage: storage, MaxCircuits: 1})
		var permits []infuse.Permit
		for range 3 {
			p, err := breakerOf(t, g, "prices").Acquire(t.Context())
			require.NoError(t, err)
			permits = append(permits, p)
		}
		breakerOf(t, g, "rates")
		for _, p := range permits {
			p.Done(errUnhealthy)
		}
		require.Equal(t, 3, failuresOf(breakerOf(t, g, "prices")))
	})
}

// A breaker that nothing refers to any more stops watching in time.
func TestAnEvictedBreakerThatNobodyHoldsIsStopped(t *testing.T) {
	storage := &breakertest.Watched{Storage: infuse.NewMemoryStorage()}
	g := groupOf(t, infuse.Config{Storage: storage, MaxCircuits: 2})
	for i := range 100 {
		require.NoError(t, breakerOf(t, g, fmt.Sprint(i)).Call(t.Context(), succeeds))
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return storage.Circuits.Load() == 2
	}, patience, pace)
	require.Len(t, slices.Collect(g.All()), 2)
}

// What a group has evicted is not forgotten: the storage still has it.
func TestACircuitThatMadeRoomIsFoundAgain(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			g := groupOf(t, patiently(infuse.Config{FailMax: 10, MaxCircuits: 2, Storage: storage}))
			for range 3 {
				require.Equal(t, errUnhealthy, breakerOf(t, g, "failing").Call(t.Context(), fails))
			}
			for _, name := range []string{"b", "c"} {
				require.Equal(t, errUnhealthy, breakerOf(t, g, name).Call(t.Context(), fails))
			}
			require.NotContains(t, namesOf(g), "failing")
			require.Equal(t, 3, failuresOf(breakerOf(t, g, "failing")))
		})
	}
}

// What more hosts than circuits cost, as the comment of Group says: a read for
// each time that a circuit is made anew, and none for those that are kept.
func TestMoreHostsThanCircuitsCostReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
		g := groupOf(t, infuse.Config{Storage: storage, MaxCircuits: 10})
		visit := func(hosts, rounds int) int64 {
			before := storage.Loads.Load()
			for range rounds {
				for i := range hosts {
					require.NoError(t, breakerOf(t, g, fmt.Sprint("host-", i)).Call(t.Context(), succeeds))
				}
			}
			return storage.Loads.Load() - before
		}
		require.Equal(t, int64(10), visit(10, 100))
		require.InDelta(t, 11*100/2, visit(11, 100), 100, "one host too many, visited in turn: about half are made anew")
	})
}

func TestTenThousandCircuitsStayWithinTheBound(t *testing.T) {
	t.Parallel()
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			circuits := 10_000
			if kind == "redis" {
				circuits = 500
			}
			g := groupOf(t, patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour, MaxCircuits: 50, Storage: storage}))
			var want []string
			for i := range circuits {
				require.NoError(t, breakerOf(t, g, fmt.Sprint(i)).Call(t.Context(), succeeds))
				if i >= circuits-50 {
					want = append(want, fmt.Sprint(i))
				}
			}
			require.ElementsMatch(t, want, namesOf(g), "those that were used last")
		})
	}
}

func namesOf(g *infuse.Group) (names []string) {
	for b := range g.All() {
		names = append(names, b.Name())
	}
	return names
}

// All, Configure, and settings by name.

func TestAllReturnsTheBreakersOfTheGroup(t *testing.T) {
	g := groupOf(t, infuse.Config{MaxCircuits: 3})
	require.Empty(t, namesOf(g))
	a, b, c := breakerOf(t, g, "a"), breakerOf(t, g, "b"), breakerOf(t, g, "c")
	all := g.All()
	require.ElementsMatch(t, []*infuse.Breaker{a, b, c}, slices.Collect(all))
	for range all {
		break // and not all of them
	}
	for x := range all {
		breakerOf(t, g, x.Name()+" anew") // the group may be used meanwhile
	}
	require.ElementsMatch(t, []*infuse.Breaker{a, b, c}, slices.Collect(all), "those of when it was called")
	require.ElementsMatch(t, []string{"a anew", "b anew", "c anew"}, namesOf(g))
}

// An exporter that reads all circuits every few seconds must not change which
// one was used least recently.
func TestAllIsNoUseOfABreaker(t *testing.T) {
	g := groupOf(t, infuse.Config{MaxCircuits: 2})
	breakerOf(t, g, "old")
	breakerOf(t, g, "young")
	_ = slices.Collect(g.All())
	breakerOf(t, g, "new")
	require.ElementsMatch(t, []string{"young", "new"}, namesOf(g))
}

func TestConfigureChangesAGroupAndItsBreakers(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	g := groupOf(t, infuse.Config{FailMax: 5, MaxCircuits: 2, Storage: storage})
	b := breakerOf(t, g, "prices")
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	for _, same := range []infuse.Storage{nil, storage} {
		require.NoError(t, g.Configure(infuse.Config{FailMax: 2, MaxCircuits: 3, Storage: same}))
	}
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	requireState(t, infuse.StateOpen, b)
	trip(t, breakerOf(t, g, "rates"))
	breakerOf(t, g, "stock")
	require.Len(t, namesOf(g), 3)
	require.Equal(t, 2, failuresOf(breakerOf(t, g, "rates")), "a new one has them, too")

	require.ErrorContains(t, g.Configure(infuse.Config{FailMax: -1}), "Config.FailMax is -1")
	require.ErrorContains(t, g.Configure(infuse.Config{Storage: infuse.NewMemoryStorage()}), "Config.Storage is another")
	require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	requireState(t, infuse.StateOpen, b)
}

// tagged is a storage whose type can be compared and whose value cannot.
type tagged struct {
	infuse.Storage
	tags any
}

// Configure panicked for it: the type alone was looked at.
func TestConfigureWithAnUncomparableStorage(t *testing.T) {
	storage := tagged{infuse.NewMemoryStorage(), []string{"eu"}}
	b := startBreaker(t, "prices", infuse.Config{Storage: storage})
	g := groupOf(t, infuse.Config{Storage: storage})
	breakerOf(t, g, "prices")
	for _, configure := range []func(infuse.Config) error{b.Configure, g.Configure} {
		require.ErrorContains(t, configure(infuse.Config{Storage: storage}), "Config.Storage is another breaker_test.tagged")
		require.NoError(t, configure(infuse.Config{}))
	}
}

func TestAGroupHasSettingsByName(t *testing.T) {
	var limit atomic.Int64
	limit.Store(3)
	g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
		switch circuit {
		case "": // the group's
			return infuse.Config{MaxCircuits: 4}
		case "payments":
			return infuse.Config{FailMax: 1}
		case "wrong":
			return infuse.Config{FailMax: -1, MaxTrials: -1}
		}
		return infuse.Config{FailMax: int(limit.Load())}
	})
	require.NoError(t, err)
	defer g.Stop()
	failuresUntilOpen := func(name string) int {
		b := breakerOf(t, g, name)
		require.NoError(t, b.SetState(t.Context(), infuse.StateClosed))
		trip(t, b)
		return failuresOf(b)
	}
	require.Equal(t, 1, failuresUntilOpen("payments"))
	require.Equal(t, 3, failuresUntilOpen("prices"))

	for range 2 { // it is not remembered as one that failed
		_, err = g.Breaker("wrong")
		require.ErrorContains(t, err, `the settings of circuit "wrong"`)
		require.ErrorContains(t, err, "Config.FailMax is -1")
		require.ErrorContains(t, err, "Config.MaxTrials is -1")
	}

	limit.Store(2)
	require.NoError(t, g.Configure(infuse.Config{MaxCircuits: 1}))
	require.Equal(t, 1, failuresUntilOpen("payments"))
	require.Equal(t, 2, failuresUntilOpen("prices"), "its func was asked again")
	limit.Store(-2)
	err = g.Configure(infuse.Config{})
	require.ErrorContains(t, err, "Config.FailMax is -2")
	require.ErrorContains(t, err, `the settings of circuit "prices"`)
	require.Equal(t, 2, failuresUntilOpen("prices"), "it keeps what it has")
}

func TestAGroupOfNoSettingsIsRefused(t *testing.T) {
	_, err := infuse.NewGroup(infuse.Config{MaxCircuits: -1})
	require.ErrorContains(t, err, "Config.MaxCircuits is -1")
	_, err = infuse.NewGroupFunc(nil)
	require.ErrorContains(t, err, "the func is nil")
	_, err = infuse.NewGroupFunc(func(string) infuse.Config { return infuse.Config{ResetTimeout: -1} })
	require.ErrorContains(t, err, "Config.ResetTimeout is -1ns")
}

// A group shares the storage of the empty name with circuits that have none.
func TestSettingsByNameShareTheGroupsStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared, apart := infuse.NewMemoryStorage(), infuse.NewMemoryStorage()
		g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
			switch circuit {
			case "":
				return infuse.Config{Storage: shared}
			case "apart":
				return infuse.Config{Storage: apart}
			}
			return infuse.Config{}
		})
		require.NoError(t, err)
		defer g.Stop()
		for _, name := range []string{"prices", "apart"} {
			require.Equal(t, errUnhealthy, breakerOf(t, g, name).Call(t.Context(), fails))
		}
		failures := func(s infuse.Storage, name string) int {
			r, err := s.Load(t.Context(), name)
			require.NoError(t, err)
			return r.Failures
		}
		require.Equal(t, 1, failures(shared, "prices"))
		require.Equal(t, 0, failures(shared, "apart"))
		require.Equal(t, 1, failures(apart, "apart"))
	})
}

// firstWatchPanics is a storage that panics once.
type firstWatchPanics struct {
	infuse.Storage
	once sync.Once
}

func (s *firstWatchPanics) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	s.once.Do(func() { panic("no more connections") })
	return s.Storage.Watch(circuit, fn)
}

// A group remembered a breaker whose making had panicked: it answered with
// neither a breaker nor an error ever after.
func TestAGroupTriesAgainAfterAPanic(t *testing.T) {
	g := groupOf(t, infuse.Config{Storage: &firstWatchPanics{Storage: infuse.NewMemoryStorage()}})
	require.PanicsWithValue(t, "no more connections", func() { _, _ = g.Breaker("prices") })
	require.NoError(t, breakerOf(t, g, "prices").Call(t.Context(), succeeds))
}

// Those who wait for a breaker whose making panics get an error.
func TestAPanicWhileMakingIsAnErrorForTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
			if circuit != "" {
				<-goOn
				panic("no such file")
			}
			return infuse.Config{}
		})
		require.NoError(t, err)
		defer g.Stop()
		var all sync.WaitGroup
		all.Go(func() { assert.Panics(t, func() { _, _ = g.Breaker("prices") }) })
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				b, err := g.Breaker("prices")
				assert.Nil(t, b)
				assert.ErrorContains(t, err, `the breaker of "prices" could not be made`)
			})
		}
		synctest.Wait()
		close(goOn)
		all.Wait()
	})
}

// A group on Redis stops with all that it has said.
func TestAGroupOnRedisStops(t *testing.T) {
	server := redistest.Start(t)
	g := groupOf(t, patiently(infuse.Config{Storage: host(t, server)}))
	for i := range 20 {
		require.Equal(t, errUnhealthy, breakerOf(t, g, fmt.Sprint(i)).Call(t.Context(), fails))
	}
	g.Stop()
	for b := range g.All() {
		require.Equal(t, 1, failuresOf(b))
	}
}
