package compare_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// seedEnv repeats the sequences of one seed: that which a failure printed.
const seedEnv = "INFUSE_COMPARE_SEED"

// In random sequences with random settings our breaker opens at a failure if
// every window does whose length is that of Config.Window give or take a
// bucket's width, and does not if none does. For the rest it is the reference,
// call by call.
func TestRandomSequencesGoAsInTheReference(t *testing.T) {
	n := 2000
	sum := runSequences(t, n, func() infuse.Storage { return nil })
	t.Logf("%+v", sum)
	if n == sum.sequences {
		require.Greater(t, sum.opened, n, "the sequences say something")
		require.Less(t, sum.undecided, sum.failures/10, "nor is most left open")
		require.Zero(t, sum.early)
	}
}

// A fleet of one process opens no later than that, because its own circuit is
// the same. It can open earlier, because the fleet's window forgets at other
// times: it keeps its failures where the own circuit alone has opened and closed,
// and never hears of successes that were not told before the last failure left.
func TestAFleetOfOneOpensNoLaterThanTheReference(t *testing.T) {
	n := 1000
	sum := runSequences(t, n, func() infuse.Storage { return infuse.NewMemoryStorage() })
	t.Logf("%+v", sum)
	if n == sum.sequences {
		require.Greater(t, sum.opened, n, "the sequences say something")
		require.Less(t, sum.early, sum.opened/10)
	}
}

// tally is what the sequences came to.
type tally struct{ sequences, calls, failures, opened, undecided, early int }

func runSequences(t *testing.T, n int, storage func() infuse.Storage) (sum tally) {
	first := rand.Uint64()
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		first, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		n = 1
	}
	for seed := first; seed != first+uint64(n) && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("%s=%d repeats it", seedEnv, seed)
				}
			}()
			sum.sequences++
			runRandom(t, rand.New(rand.NewPCG(seed, 0)), storage(), &sum)
		})
	}
	return sum
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomSettings(r *rand.Rand) settings {
	return settings{
		rate:     pick(r, 0.1, 0.3, 0.5, 0.55, 0.9, 1),
		window:   pick(r, 100*time.Millisecond, time.Second, 3*time.Second, 10*time.Second),
		minCalls: 1 + r.IntN(40),
		openTime: pick(r, 50*time.Millisecond, time.Second, 15*time.Second),
	}
}

// randomStep is the time between two calls, some of which fall on the edge of a
// bucket.
func randomStep(r *rand.Rand, window time.Duration) time.Duration {
	return pick(r, window/1000, window/100, window/37, window/10, window/10+1, window/3, time.Duration(r.Int64N(int64(window/20))))
}

func runRandom(t *testing.T, r *rand.Rand, storage infuse.Storage, sum *tally) {
	s := randomSettings(r)
	b, err := infuse.New("service", s.config(storage))
	require.NoError(t, err)
	defer b.Stop()
	ref := &bounded{settings: s, asked: storage != nil}
	var steps strings.Builder
	for range 3 + r.IntN(6) {
		step, failing := randomStep(r, s.window), pick(r, 0, 0.01, 0.1, 0.3, 0.5, 0.7, 1)
		fmt.Fprintf(&steps, "%v apart, %v fail\n", step, failing)
		time.Sleep(time.Duration(r.Int64N(int64(2 * s.window))))
		for range 10 + r.IntN(150) {
			time.Sleep(step)
			synctest.Wait()
			fails, early := r.Float64() < failing, b.State() != infuse.StateClosed && !ref.open
			ran := runs(b, fails)
			synctest.Wait()
			opened := ran && b.State() == infuse.StateOpen
			allowed, required := ref.opens(ran, fails)
			switch {
			case storage != nil && (early || opened && !allowed):
				sum.early++
				return // from here on the two have seen different calls
			case ran != ref.admits(), opened && !allowed, !opened && required:
				require.Fail(t, "not as in the reference", "ran: %v, opened: %v, may open: %v, must: %v\n%+v\n%s", ran, opened, allowed, required, s, &steps)
			}
			sum.add(ran && fails, opened, allowed != required)
			ref.follow(ran, opened)
		}
	}
}

func (sum *tally) add(failed, opened, undecided bool) {
	count := func(n *int, is bool) {
		if is {
			*n++
		}
	}
	sum.calls++
	count(&sum.failures, failed)
	count(&sum.opened, opened)
	count(&sum.undecided, undecided)
}

// runs reports whether a call has run.
func runs(b *infuse.Breaker, fails bool) (ran bool) {
	_ = b.Call(context.Background(), func(context.Context) error {
		ran = true
		return outcome(fails)
	})
	return ran
}

// bounded is the reference, for all lengths of its window that are a bucket's
// width or less from the one that is set. Where they disagree it follows the
// breaker.
type bounded struct {
	settings
	surely   []ended // what a window of any such length keeps
	possibly []ended // what one of some such length keeps
	asked    bool    // a fleet may have asked for all calls, failures or not
	open     bool
	openTil  time.Time
}

func (b *bounded) admits() bool { return !b.open || !time.Now().Before(b.openTil) }

// opens counts a call that has ended now. It reports whether the breaker may
// open at it, and whether it must.
func (b *bounded) opens(ran, fails bool) (may, must bool) {
	switch {
	case !ran:
		return false, false
	case b.open: // the trial
		return fails, fails
	}
	now := time.Now()
	b.add(now, fails)
	if !fails {
		return false, false
	}
	return b.over(now)
}

// follow has the reference be where the breaker is.
func (b *bounded) follow(ran, opened bool) {
	if opened || ran && b.open {
		b.open, b.openTil, b.surely, b.possibly = opened, time.Now().Add(b.openTime), nil, nil
	}
}

func (b *bounded) shortest() time.Duration { return b.window * 9 / 10 }
func (b *bounded) longest() time.Duration  { return b.window * 11 / 10 }

// add keeps in possibly what followed a failure that has left the window since:
// see TestAWindowWhoseLastFailureHasLeftIsEmpty.
func (b *bounded) add(now time.Time, fails bool) {
	if failuresWithin(b.surely, b.shortest(), now) == 0 {
		b.surely = nil
	}
	if fails || b.surely != nil {
		b.surely = append(b.surely, ended{now, fails})
	}
	if fails || b.asked || failuresWithin(b.possibly, b.longest(), now) > 0 {
		b.possibly = append(b.possibly, ended{now, fails})
	}
}

func failuresWithin(calls []ended, length time.Duration, now time.Time) int {
	_, failures := within(calls, length, now)
	return failures
}

// over reports whether some of the windows are over the rate, and whether all
// are. The fewest and the most failures and successes that one can have make
// the extremes, though not every pair of them is one window's.
func (b *bounded) over(now time.Time) (may, must bool) {
	calls, minFailures := within(b.surely, b.shortest(), now)
	minSuccesses := calls - minFailures
	calls, maxFailures := within(b.possibly, b.longest(), now)
	maxSuccesses := calls - maxFailures
	enough := max(minSuccesses, min(maxSuccesses, b.minCalls-maxFailures))
	may = b.overWith(maxFailures, enough)
	must = minFailures+minSuccesses >= b.minCalls && b.overWith(minFailures, maxSuccesses)
	return may, must
}

func (b *bounded) overWith(failures, successes int) bool {
	calls := failures + successes
	return calls >= b.minCalls && float64(failures)/float64(calls) >= b.rate
}
