package infuse

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// loneResult is a fleet of one beside pybreaker, whose count and state outlive a
// restart.
type loneResult struct {
	calls, admitted, rejected int         // all; that pybreaker would have rejected; admitted
	lives                     map[int]int // how many lives of the process admitted so many
}

func lone(seeds int, restarts float64) loneResult {
	l := loneResult{lives: make(map[int]int)}
	const reset = 20_500 * time.Millisecond // no call comes at the very moment
	for seed := range uint64(seeds) {
		roll := rand.New(rand.NewPCG(seed, 5))
		shares := make([]float64, 360)
		for i := range shares {
			shares[i] = []float64{0.1, 0.5, 1, 1}[roll.IntN(4)]
		}
		failures, open, due, life, inLife := 0, false, time.Duration(0), 0, 0
		f := simFleet{
			processes: 1, rate: 1, lasts: 36_000, config: Config{ResetTimeout: reset},
			health: func(_ int, at float64) (float64, float64) {
				i := int(at / 100)
				return shares[i%len(shares)], float64(i+1) * 100
			},
			traffic:  func(int) simTraffic { return simTraffic{simTick, 1} },
			restarts: func(int) float64 { return restarts },
		}
		f.log = func(p *simProcess, began time.Duration, admitted, fails bool) {
			if p.life != life {
				l.lives[inLife]++
				life, inLife = p.life, 0
			}
			l.calls++
			switch should := !open || began >= due-armedEarly; {
			case should == admitted:
			case admitted:
				l.admitted++
				inLife++
			default:
				l.rejected++
			}
			switch {
			case !admitted:
			case fails:
				if failures++; open || failures >= 5 {
					open, due = true, began+time.Duration(p.callTime*1e9)+reset
				}
			default:
				failures, open = 0, false
			}
		}
		simulate(f, seed)
	}
	return l
}

func TestAFleetOfOneIsPybreaker(t *testing.T) {
	got := lone(int(simLength(2)), 0)
	assert.Zero(t, got.admitted+got.rejected, "of %d calls", got.calls)
}

// A process that restarted made FailMax calls before it rejected; later two, of
// which the second was a trial that opened the shared circuit.
func TestARestartWhileOpenCostsOneCall(t *testing.T) {
	got := lone(int(simLength(4)), 45)
	t.Logf("%d calls, %d that pybreaker would have rejected, %d that it would have admitted, by life: %v", got.calls, got.admitted, got.rejected, got.lives)
	for admitted := range got.lives {
		assert.LessOrEqual(t, admitted, 1)
	}
	assert.Less(t, float64(got.rejected)/float64(got.calls), 0.002)
}

// Time alone began a trial of a suspect circuit, which rejected calls of others.
func TestASuspectCircuitHasNoTrial(t *testing.T) {
	l := Limits{FailMax: 1, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second, Suspicion: 50 * time.Millisecond}
	r, _ := Record{}.Apply(Change{Source: "a", Number: 1, Limits: l, Calls: Calls{Failures: 1, Lead: 1, Streak: 1}}, simStart)
	assert.True(t, r.Suspect())
	r, verdict := r.Apply(Change{Source: "b", Number: 1, Limits: l, Seen: r, Ask: "b.1"}, simStart.Add(time.Hour))
	assert.Equal(t, VerdictRefused, verdict)
	assert.True(t, r.Suspect())
}

// What a process takes for its own when it starts is not held against it once the
// others have dismissed it.
func TestAProcessThatStartsForgetsWhatIsDismissed(t *testing.T) {
	s, err := newSettings(Config{Storage: NewMemoryStorage()})
	assert.NoError(t, err)
	suspect, _ := Record{}.Apply(Change{Source: "a", Number: 1, Limits: s.limits, Calls: Calls{Failures: 5, Lead: 5, Streak: 5}}, simStart)
	dismissed, _ := suspect.Apply(Change{Source: "b", Number: 1, Limits: s.limits, Seen: suspect, Calls: Calls{Successes: 2}}, simStart.Add(time.Second))
	assert.True(t, suspect.Suspect())
	assert.False(t, dismissed.Suspect())

	r := newReplica(s, "c", true, 1)
	r.hasRead(suspect, 0, simStart)
	assert.Equal(t, s.FailMax-1, r.local.Failures)
	r.observed(dismissed, simStart.Add(time.Second))
	assert.Zero(t, r.local.Failures)
}
