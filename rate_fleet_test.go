package infuse

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What simulated fleets make of a failure rate of one call in two, in 10 s.

var halfOfTheCalls = Config{FailureRate: 0.5}

func (f fleet) String() string {
	return fmt.Sprintf("%d processes, %v calls/s each", f.processes, f.rate)
}

// largeFleets are for a look by hand: with the race detector they take minutes.
var largeFleets = os.Getenv("INFUSE_FLEETS") == "large"

// ratedFleets are of 2,000 calls a second; the last two are of 20,000.
func ratedFleets(seconds float64) []fleet {
	all := []fleet{{processes: 20, rate: 100}, {processes: 100, rate: 20}, {processes: 1000, rate: 2}, {processes: 1000, rate: 20}, {processes: 10_000, rate: 2}}
	if !largeFleets {
		all = all[:3]
	}
	for i := range all {
		all[i].config = halfOfTheCalls
		all[i].lasts = seconds
	}
	return all
}

// News that takes 10 ms to reach 1,000 processes finds many failures on their
// way: they are no reason to open early.
func TestARateOpensNoFleetThatHearsLate(t *testing.T) {
	t.Parallel()
	f := fleet{processes: 1000, rate: 20, lasts: scaled(2.0), latency: 0.01, config: halfOfTheCalls}
	for seed, share := range []float64{0.4, 0.4, 0.45, 0.45} {
		f.errors = atRandom(share)
		got := simulate(f, 0, uint64(seed))
		assert.Zero(t, got.openings, "%v %%: %+v", 100*share, got)
	}
	if !long() {
		return
	}
	// Of many processes with few calls each, failures heard at once and successes
	// later would come to more than half.
	f = fleet{processes: 10_000, rate: 2, lasts: 1, config: halfOfTheCalls, errors: atRandom(0.45)}
	got := simulate(f, 0, 1)
	assert.Zero(t, got.openings, "%+v", got)
}

// The first report of each process is a failure. A fleet that believed its
// failures before it has heard of its successes opened at 30 % errors.
func TestARateBelowTheLimitOpensNoFleet(t *testing.T) {
	t.Parallel()
	seconds := scaled(20.0)
	if largeFleets {
		seconds = 60
	}
	for _, f := range ratedFleets(seconds) {
		for _, share := range []float64{0.01, 0.1, 0.3, 0.4} {
			f.errors = atRandom(share)
			if f.processes*int(f.rate) > 2000 {
				f.lasts = scaled(3.0)
			}
			got := simulate(f, 0, 1)
			calls := float64(f.processes) * f.rate * f.lasts
			what := fmt.Sprintf("%v, %v %% errors for %v s: %d suspicions, %.3f messages a call", f, 100*share, f.lasts, got.suspicions, float64(got.messages)/calls)
			assert.Zero(t, got.openings, what)
			assert.Zero(t, got.rejected, what)
			assert.LessOrEqual(t, float64(got.suspicions)/f.lasts, 20.0, what)
			assert.LessOrEqual(t, float64(got.messages), 1.1*share*calls+float64(100*f.processes), what)
			t.Log(what)
		}
	}
}

func TestARateAboveTheLimitOpensTheFleet(t *testing.T) {
	t.Parallel()
	const onset = 2
	for _, f := range ratedFleets(onset + 10) {
		for share, within := range map[float64]float64{0.6: 10, 0.8: 1, 1: 1} {
			f.errors = outage(share, onset)
			var opened []float64
			messages := 0
			for seed := range scaled(5) {
				if f.processes*int(f.rate) > 2000 && seed > 1 {
					break
				}
				got := simulate(f, onset, uint64(seed))
				require.NotZero(t, got.openAt, "%v, %v %%: %+v", f, 100*share, got)
				opened, messages = append(opened, got.openAt-onset), messages+got.messages
			}
			what := fmt.Sprintf("%v, %v %%: open %.0f to %.0f ms after the onset, %d messages a run", f, 100*share, 1000*slices.Min(opened), 1000*slices.Max(opened), messages/len(opened))
			assert.Less(t, slices.Max(opened), within, what)
			t.Log(what)
		}
	}
}

// The window of a service that had errors before holds its successes, too.
func TestARateAfterNoiseOpensWhenTheWindowSaysSo(t *testing.T) {
	for _, c := range []struct{ before, then, within float64 }{{0.4, 0.6, 10}, {0.4, 1, 3}, {0.01, 1, 6.5}} {
		f := fleet{processes: 100, rate: 20, lasts: 40, config: halfOfTheCalls}
		f.errors = func(_ int, at float64) float64 {
			if at < 20 {
				return c.before
			}
			return c.then
		}
		got := simulate(f, 20, 1)
		assert.NotZero(t, got.openAt, "%+v", got)
		assert.Less(t, got.openAt-20, c.within, "from %v to %v", c.before, c.then)
		t.Logf("%v, from %v %% to %v %%: open after %.1f s", f, 100*c.before, 100*c.then, got.openAt-20)
	}
}

func TestARateOfOneSickClientIsItsOwnProblem(t *testing.T) {
	for _, f := range append(ratedFleets(30), fleet{processes: 20, rate: 1, lasts: 600, config: halfOfTheCalls}, fleet{processes: 20, rate: 5, lasts: 600, config: halfOfTheCalls}) {
		f.errors = cutOff(1, 0)
		got := simulate(f, 0, 1)
		assert.Zero(t, got.openings, "%v: %+v", f, got)
		assert.Zero(t, got.healthyRejected, "%v: %+v", f, got)
	}
	// Whatever share of its calls fails.
	for share := range 10 {
		f := fleet{processes: 20, rate: 100, lasts: 60, config: halfOfTheCalls}
		f.errors = func(process int, _ float64) float64 {
			if process == 0 {
				return float64(share+1) / 10
			}
			return 0
		}
		got := simulate(f, 0, uint64(share))
		assert.Zero(t, got.openings, "%d0 %%: %+v", share+1, got)
		assert.Zero(t, got.rejected, "%d0 %%: %+v", share+1, got)
		assert.LessOrEqual(t, got.openedAlone, 1, "%d0 %%: %+v", share+1, got)
	}
}

// While a row counts as well, an outage opens as fast as without a rate, also
// while the fleet is asked for its rate.
func TestARateDelaysNoRow(t *testing.T) {
	t.Parallel()
	const onset = 5
	f := fleet{processes: 100, rate: 20, lasts: onset + 5, config: Config{FailureRate: 0.5, FailMax: 5}}
	for _, before := range []float64{0, 0.05} {
		f.errors = func(_ int, at float64) float64 {
			if at < onset {
				return before
			}
			return 1
		}
		var opened []float64
		for seed := range uint64(9) {
			got := simulate(f, onset, seed)
			require.NotZero(t, got.openAt, "%+v", got)
			opened = append(opened, got.openAt-onset)
		}
		slices.Sort(opened)
		assert.Less(t, opened[4], 0.08, "%v before: %v", before, opened)
	}
}

// Half of the processes of a rolling deployment have no rate yet, or another.
func TestARateThatHalfOfTheFleetHas(t *testing.T) {
	for name, other := range map[string]Config{"none": {}, "0.9": {FailureRate: 0.9}, "another window": {FailureRate: 0.5, Window: time.Second, MinCalls: 50}} {
		f := fleet{processes: 40, rate: 50, lasts: 15, config: halfOfTheCalls, other: &other}
		f.errors = outage(0.3, 1)
		got := simulate(f, 1, 1)
		assert.Zero(t, got.openings, "%s: %+v", name, got)
		f.errors = outage(1, 1)
		got = simulate(f, 1, 1)
		assert.NotZero(t, got.openAt, "%s: %+v", name, got)
		assert.Less(t, got.openAt-1, 1.0, "%s: %+v", name, got)
	}
}
