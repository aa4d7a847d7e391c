package compare_test

// This file compares random sequences with the reference.

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

// seedEnv is the variable with the seed of the sequences to repeat. A failure prints it.
const seedEnv = "INFUSE_COMPARE_SEED"

// In random sequences with random settings, a breaker behaves like the reference for each
// call. The length of its window may differ from Config.Window by the width of a bucket: it
// opens if all such windows reach the rate, and does not open if none does.
func TestRandomSequences(t *testing.T) {
	n := 2000
	sum := runSequences(t, n, func() infuse.Storage { return nil })
	t.Logf("%+v", sum)
	if n == sum.sequences {
		require.Greater(t, sum.opened, n, "the sequences contain openings")
		require.Less(t, sum.undecided, sum.failures/10, "few failures are undecided")
		require.Zero(t, sum.early)
	}
}

// A fleet of one process opens no later, because its local circuit is the same. It can
// open earlier, because the shared window differs: it keeps its failures when only the
// local circuit has opened and closed, and does not receive successes that were not
// reported before the last failure left the window.
func TestFleetOfOneOpensNoLaterThanTheReference(t *testing.T) {
	n := 1000
	sum := runSequences(t, n, func() infuse.Storage { return infuse.NewMemoryStorage() })
	t.Logf("%+v", sum)
	if n == sum.sequences {
		require.Greater(t, sum.opened, n, "the sequences contain openings")
		require.Less(t, sum.early, sum.opened/10)
	}
}

// tally is the sums over the sequences.
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
					t.Logf("repeat with %s=%d", seedEnv, seed)
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

// randomStep returns the time between two calls. Some calls are on the edge of a bucket.
func randomStep(r *rand.Rand, window time.Duration) time.Duration {
	return pick(r, window/1000, window/100, window/37, window/10, window/10+1, window/3, time.Duration(r.Int64N(int64(window/20))))
}

func runRandom(t *testing.T, r *rand.Rand, storage infuse.Storage, sum *tally) {
	s := randomSettings(r)
	b, err := infuse.New("service", s.config(storage))
	require.NoError(t, err)
	defer b.Stop()
	ref := &bounded{settings: s, reportsAll: storage != nil}
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
				return // from now on the two have different calls
			case ran != ref.admits(), opened && !allowed, !opened && required:
				require.Fail(t, "differs from the reference", "ran: %v, opened: %v, may open: %v, must: %v\n%+v\n%s", ran, opened, allowed, required, s, &steps)
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

// runs reports whether a call ran.
func runs(b *infuse.Breaker, fails bool) (ran bool) {
	_ = b.Call(context.Background(), func(context.Context) error {
		ran = true
		return outcome(fails)
	})
	return ran
}

// bounded is the reference for all window lengths that differ from the setting by at most
// the width of a bucket. If they disagree, it follows the breaker.
type bounded struct {
	settings
	surely     []ended // calls in the windows of all such lengths
	possibly   []ended // calls in the window of at least one such length
	reportsAll bool    // all calls may have been reported, not only failures
	open       bool
	openTil    time.Time
}

func (b *bounded) admits() bool { return !b.open || !time.Now().Before(b.openTil) }

// opens counts a call that ends now. It reports whether the breaker may open at it, and
// whether it must.
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

// follow sets the reference to the state of the breaker.
func (b *bounded) follow(ran, opened bool) {
	if opened || ran && b.open {
		b.open, b.openTil, b.surely, b.possibly = opened, time.Now().Add(b.openTime), nil, nil
	}
}

func (b *bounded) shortest() time.Duration { return b.window * 9 / 10 }
func (b *bounded) longest() time.Duration  { return b.window * 11 / 10 }

func (b *bounded) add(now time.Time, fails bool) {
	if failuresWithin(b.surely, b.shortest(), now) == 0 {
		b.surely = nil
	}
	if fails || b.surely != nil {
		b.surely = append(b.surely, ended{now, fails})
	}
	if fails || b.reportsAll || failuresWithin(b.possibly, b.longest(), now) > 0 {
		b.possibly = append(b.possibly, ended{now, fails})
	}
}

func failuresWithin(calls []ended, length time.Duration, now time.Time) int {
	_, failures := within(calls, length, now)
	return failures
}

// over reports whether some of the windows reach the rate, and whether all do. It uses the
// minimum and maximum of failures and successes over the windows, although not every pair
// of them is one window's.
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
