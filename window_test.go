package infuse

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rating has a rate as its only limit, and opens at once.
var rating = Limits{FailMax: unlimited, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, FailureRate: 0.5, Window: time.Second, MinCalls: 10}

// asked is rating where the fleet is asked.
func ratedBy(change func(*Limits)) Limits {
	l := rating
	l.Suspicion = 50 * time.Millisecond
	change(&l)
	return l
}

// now stands for the time at which a change is applied.
func counted(l Limits, calls, failures int) Change {
	return Change{Limits: l, Counted: []Bucket{{Calls: calls, Failures: failures}}}
}

// 55 failures of 100 are the rate that 0.55 stands for, though 0.55*100 is
// above 55.
// R20.
func TestARateIsReachedByTheVeryNumber(t *testing.T) {
	for n := 1; n <= 1000; n++ {
		for _, calls := range []int{10, 100, 1000} {
			if n > calls {
				continue
			}
			l := rating
			l.FailureRate = float64(n) / float64(calls)
			require.True(t, Record{}.then(counted(l, calls, n), noon).State == StateOpen, "%d of %d", n, calls)
			require.True(t, Record{}.then(counted(l, calls, n-1), noon).State == StateClosed, "%d of %d", n-1, calls)
		}
	}
}

// R19.
func TestAWindowBeginsWithAFailureAndMovesOn(t *testing.T) {
	r := Record{}.then(counted(rating, 1000, 0), noon)
	require.Empty(t, r.Window.Buckets)
	r = r.then(counted(rating, 5, 1), after(0)).then(counted(rating, 5, 4), after(99)).then(counted(rating, 3, 0), after(100))
	require.Equal(t, Window{100 * time.Millisecond, []Bucket{{after(0), 10, 5}, {after(100), 3, 0}}}, Record{}.
		then(counted(ratedBy(func(l *Limits) { l.MinCalls = 100 }), 10, 5), after(0)).
		then(counted(ratedBy(func(l *Limits) { l.MinCalls = 100 }), 3, 0), after(100)).Window)
	require.Equal(t, StateOpen, r.State, "5 of 10")
}

// Random calls come to the same as in a list of them.
// R19.
func TestAWindowIsAListOfCallsToATenth(t *testing.T) {
	t.Parallel()
	type call struct {
		at   time.Time
		fail bool
	}
	l := rating
	for seed := range uint64(200) {
		roll := rand.New(rand.NewPCG(seed, 1))
		share := roll.Float64()
		var w Window
		var list []call
		now := noon
		for range 400 {
			now = now.Add(time.Duration(roll.IntN(30)) * time.Millisecond)
			if roll.IntN(40) == 0 {
				now = now.Add(time.Duration(roll.IntN(1500)) * time.Millisecond)
			}
			fail := roll.Float64() < share
			list = append(list, call{now, fail})
			outcome := OutcomeSuccess
			if fail {
				outcome = OutcomeFailure
			}
			w.add([]Bucket{one(outcome == OutcomeFailure, 1, now)}, l.width(), now)
			calls, failures := 0, 0
			for _, b := range w.last(l.Window, now) {
				calls, failures = calls+b.Calls, failures+b.Failures
			}
			// least and most are what a window of nine tenths, and one of the
			// whole length, hold after their first failure.
			count := func(length time.Duration) (calls, failures int) {
				for _, c := range list {
					if !c.at.After(now.Add(-length)) {
						continue
					}
					calls++
					if c.fail {
						failures++
					}
				}
				return calls, failures
			}
			_, least := count(l.Window * 9 / 10)
			most, mostFailures := count(l.Window)
			require.GreaterOrEqual(t, failures, least, "seed %d", seed)
			require.LessOrEqual(t, failures, mostFailures, "seed %d", seed)
			require.LessOrEqual(t, calls, most, "seed %d", seed)
			require.LessOrEqual(t, len(w.Buckets), windowBuckets)
		}
	}
}

// Half of a fleet may have another window. Buckets are as wide as the longest
// wants, and nobody loses a call.
func TestWindowsOfSeveralLengthsShareBuckets(t *testing.T) {
	short := ratedBy(func(l *Limits) { l.MinCalls = 1 << 20 })
	long := ratedBy(func(l *Limits) { l.MinCalls, l.Window = 1<<20, 10*time.Second })
	var r Record
	total := 0
	for ms := 0; ms < 9000; ms += 37 {
		l := short
		if ms%2 == 0 && ms > 500 {
			l = long
		}
		r = r.then(counted(l, 3, 1), after(ms))
		total += 3
		calls := 0
		for _, b := range r.Window.Buckets {
			calls += b.Calls
		}
		require.Equal(t, total, calls, "at %d ms", ms)
		require.LessOrEqual(t, len(r.Window.Buckets), windowBuckets)
	}
	require.Equal(t, time.Second, r.Window.Width, "so much is kept ten times")
	calls := 0
	for _, b := range r.Window.last(short.Window, after(9000)) {
		calls += b.Calls
	}
	require.Less(t, calls, 3*2*1000/37+3, "the short window sees its own length, to a bucket")
	r = r.then(counted(short, 1, 1), after(30_000))
	require.Equal(t, 100*time.Millisecond, r.Window.Width, "once they are empty, the next sender decides")
}

// A clock that was set back an hour does not keep what it counted for an hour.
func TestAWindowOutlivesNoClockThatIsSetBack(t *testing.T) {
	l := ratedBy(func(l *Limits) { l.MinCalls = 100 })
	r := Record{}.then(counted(l, 90, 90), noon.Add(time.Hour)).then(counted(l, 1, 1), noon)
	require.Equal(t, []Bucket{{noon, 1, 1}}, r.Window.Buckets)
}

// The same in a fleet, after a rolling deployment that is over.
func TestAShorterWindowOfAFleetOpensInTime(t *testing.T) {
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

// Limits that keep to what their comment says: whole milliseconds, at least 1.
func TestAWindowOfFiveMilliseconds(t *testing.T) {
	l := ratedBy(func(l *Limits) { l.Window = 5 * time.Millisecond })
	require.NotPanics(t, func() {
		Record{}.Apply(Change{Limits: l, Counted: []Bucket{{Start: noon, Calls: 1, Failures: 1}}}, noon)
	})
}

// An override while others count takes their counts back.
// A call of 8.02 tenths of a window ago has left the fleet's window.
// Who clears an override that is not there, by the history.
// An override of a state that cannot be, from a third-party sender.
// A Ramp that is set later begins in the middle, long after the closing.
// While the storage is unavailable, an override of the fleet can neither be cleared
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
