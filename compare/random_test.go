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

const sequences = 3000

// In random sequences with random settings our breaker opens at a failure if
// every window does whose length is that of Config.Window give or take a
// bucket's width, and does not if none does. For the rest it is the reference,
// call by call.
func TestRandomSequencesGoAsInTheReference(t *testing.T) {
	first, n := rand.Uint64(), sequences
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		first, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		n = 1
	}
	var sum tally
	for seed := first; seed != first+uint64(n); seed++ {
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("%s=%d repeats it", seedEnv, seed)
				}
			}()
			runRandom(t, rand.New(rand.NewPCG(seed, 0)), &sum)
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%+v", sum)
	if n > 1 {
		require.Greater(t, sum.opened, n, "the sequences say something")
		require.Less(t, sum.undecided, sum.failures/10, "nor is most left open")
	}
}

// tally is what the sequences came to.
type tally struct{ calls, failures, opened, undecided int }

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

func runRandom(t *testing.T, r *rand.Rand, sum *tally) {
	s := randomSettings(r)
	b, err := infuse.New("service", s.config(nil))
	require.NoError(t, err)
	defer b.Stop()
	ref := &bounded{settings: s}
	var steps strings.Builder
	for range 3 + r.IntN(6) {
		step, failing := randomStep(r, s.window), pick(r, 0, 0.01, 0.1, 0.3, 0.5, 0.7, 1)
		fmt.Fprintf(&steps, "%v apart, %v fail\n", step, failing)
		time.Sleep(time.Duration(r.Int64N(int64(2 * s.window))))
		for range 10 + r.IntN(300) {
			time.Sleep(step)
			synctest.Wait()
			fails, ran := r.Float64() < failing, false
			_ = b.Call(context.Background(), func(context.Context) error {
				ran = true
				return outcome(fails)
			})
			synctest.Wait()
			require.Equal(t, ref.admits(), ran, "%+v\n%s", s, &steps)
			opened := ran && b.State() == infuse.StateOpen
			ref.goes(t, ran, fails, opened, sum)
		}
	}
}

// bounded is the reference, for all lengths of its window that are a bucket's
// width or less from the one that is set. Where they disagree it follows the
// breaker.
type bounded struct {
	settings
	surely   []ended // what a window of any such length keeps
	possibly []ended // what one of some such length keeps
	open     bool
	openTil  time.Time
}

func (b *bounded) admits() bool { return !b.open || !time.Now().Before(b.openTil) }

func (b *bounded) goes(t *testing.T, ran, fails, opened bool, sum *tally) {
	now := time.Now()
	sum.calls++
	switch {
	case !ran:
	case b.open:
		require.Equal(t, fails, opened, "the trial")
		b.moves(opened, now)
	case !fails:
		require.False(t, opened, "at a success")
		b.add(now, false)
	default:
		b.add(now, true)
		may, must := b.over(now)
		if opened {
			require.True(t, may, "it opened, and no window does")
			sum.opened++
		} else {
			require.False(t, must, "it did not open, and every window does")
		}
		sum.failures++
		if may != must {
			sum.undecided++
		}
		if opened {
			b.moves(true, now)
		}
	}
}

func (b *bounded) moves(open bool, now time.Time) {
	b.open, b.openTil, b.surely, b.possibly = open, now.Add(b.openTime), nil, nil
}

func (b *bounded) shortest() time.Duration { return b.window * 9 / 10 }
func (b *bounded) longest() time.Duration  { return b.window * 11 / 10 }

func (b *bounded) add(now time.Time, fails bool) {
	if fails || failuresWithin(b.surely, b.shortest(), now) > 0 {
		b.surely = append(b.surely, ended{now, fails})
	}
	if fails || failuresWithin(b.possibly, b.longest(), now) > 0 {
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
