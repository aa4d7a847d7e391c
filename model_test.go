package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// model is a circuit as a reader of the documentation would write it down, for
// calls that come one after the other.
type model struct {
	cfg       infuse.Config
	state     infuse.State
	spell     int // counts transitions: a call belongs to the spell that admitted it
	failures  int
	successes int
	due       time.Time
	trials    map[int]time.Time // by number, and when each lease ends
}

// modelCall is a call that the model has admitted.
type modelCall struct {
	number, spell int
	trial         bool
}

func (m *model) enter(s infuse.State) {
	m.state, m.spell, m.successes, m.trials = s, m.spell+1, 0, make(map[int]time.Time)
	switch s {
	case infuse.StateClosed:
		m.failures = 0
	case infuse.StateOpen:
		m.due = time.Now().Add(m.cfg.ResetTimeout)
	}
}

func (m *model) expire() {
	for n, end := range m.trials {
		if !time.Now().Before(end) {
			delete(m.trials, n)
		}
	}
}

func (m *model) acquire(number int) (modelCall, bool) {
	m.expire()
	if m.state == infuse.StateClosed {
		return modelCall{number, m.spell, false}, true
	}
	if m.state == infuse.StateOpen && !time.Now().Before(m.due) {
		m.enter(infuse.StateHalfOpen)
	}
	if m.state != infuse.StateHalfOpen || len(m.trials) == m.cfg.MaxTrials {
		return modelCall{}, false
	}
	m.trials[number] = time.Now().Add(m.cfg.TrialTimeout)
	return modelCall{number, m.spell, true}, true
}

// settle ends a call on a breaker that knows of so many failures: the success
// of one that knows of none, because they are others', is no news.
func (m *model) settle(c modelCall, outcome infuse.Outcome, known int) {
	m.expire()
	_, runs := m.trials[c.number]
	if c.spell != m.spell || c.trial && !runs {
		return
	}
	delete(m.trials, c.number)
	switch {
	case outcome == infuse.OutcomeIgnored:
	case outcome == infuse.OutcomeSuccess && c.trial:
		if m.successes++; m.successes == m.cfg.SuccessThreshold {
			m.enter(infuse.StateClosed)
		}
	case outcome == infuse.OutcomeSuccess:
		if known > 0 {
			m.failures = 0
		}
	case c.trial:
		m.enter(infuse.StateOpen)
	default:
		if m.failures++; m.failures >= m.cfg.FailMax {
			m.enter(infuse.StateOpen)
		}
	}
}

func (m *model) move(to infuse.State) {
	if to == infuse.StateClosed && m.state == infuse.StateClosed {
		m.failures = 0
		return
	}
	m.enter(to)
}

// seedEnv repeats one sequence of the model test: the one that it printed.
const seedEnv = "INFUSE_TEST_SEED"

// Random sequences of calls, moves and pauses, on several breakers that share
// a circuit in memory, go as in the model: who is admitted, and what every
// breaker shows after each step.
func TestRandomSequencesGoAsInTheModel(t *testing.T) {
	sequences, seed := 2000, rand.Uint64()
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		sequences = 1
	}
	for i := range uint64(sequences) {
		var steps strings.Builder
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("%s=%d repeats:\n%s", seedEnv, seed+i, steps.String())
				}
			}()
			runSequence(t, rand.New(rand.NewPCG(seed+i, 0)), &steps)
		})
		if t.Failed() {
			return
		}
	}
}

// openCall is a call under way in both.
type openCall struct {
	permit infuse.Permit
	cancel context.CancelFunc
	model  modelCall
	on     *infuse.Breaker
}

func runSequence(t *testing.T, r *rand.Rand, steps *strings.Builder) {
	step := func(format string, args ...any) {
		fmt.Fprintf(steps, time.Now().Format("05.000000")+" "+format+"\n", args...)
	}
	cfg := infuse.Config{
		FailMax: 1 + r.IntN(4), SuccessThreshold: 1 + r.IntN(3), MaxTrials: 1 + r.IntN(3),
		ResetTimeout: time.Second, TrialTimeout: time.Second / 2, Storage: infuse.NewMemoryStorage(),
		Strict: r.IntN(4) == 0,
	}
	step("%d failures, %d successes, %d trials, strict %v", cfg.FailMax, cfg.SuccessThreshold, cfg.MaxTrials, cfg.Strict)
	m := &model{cfg: cfg}
	var breakers []*infuse.Breaker
	for range 1 + r.IntN(3) {
		breakers = append(breakers, startBreaker(t, "prices", cfg))
	}
	var open []openCall
	for number := range 60 {
		which := r.IntN(len(breakers))
		b := breakers[which]
		switch n := r.IntN(20); {
		case n < 7:
			ctx, cancel := context.WithCancel(t.Context())
			permit, err := b.Acquire(ctx)
			call, admitted := m.acquire(number)
			step("%d: breaker %d admits call: %v", number, which, err == nil)
			require.Equal(t, admitted, err == nil, "whether the call is admitted: %v", err)
			if !admitted {
				require.ErrorIs(t, err, infuse.ErrOpen)
				cancel()
				break
			}
			open = append(open, openCall{permit, cancel, call, b})
		case n < 15:
			if len(open) == 0 {
				break
			}
			i := r.IntN(len(open))
			call := open[i]
			open[i] = open[len(open)-1]
			open = open[:len(open)-1]
			outcome := infuse.Outcome(r.IntN(3))
			step("call %d ends: %v", call.model.number, outcome)
			var result error
			switch outcome {
			case infuse.OutcomeFailure:
				result = errIll
			case infuse.OutcomeIgnored:
				call.cancel()
				result = context.Canceled
			}
			known := call.on.Failures()
			call.permit.Done(result)
			m.settle(call.model, outcome, known)
			call.cancel()
		case n < 18:
			pause := []time.Duration{time.Millisecond, 249 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second}[r.IntN(5)]
			step("%v pass", pause)
			time.Sleep(pause)
			synctest.Wait()
		case n < 19 && r.IntN(3) == 0:
			to := infuse.State(r.IntN(3))
			step("breaker %d is moved: %v", which, to)
			require.NoError(t, map[infuse.State]func(context.Context) error{
				infuse.StateClosed: b.Close, infuse.StateOpen: b.Open, infuse.StateHalfOpen: b.HalfOpen,
			}[to](t.Context()))
			m.move(to)
		case n == 19 && r.IntN(3) == 0:
			step("breaker %d joins", len(breakers))
			breakers = append(breakers, startBreaker(t, "prices", cfg))
		}
		synctest.Wait()
		requireAsModel(t, m, breakers)
	}
	for _, call := range open {
		call.cancel()
	}
}

func requireAsModel(t *testing.T, m *model, breakers []*infuse.Breaker) {
	t.Helper()
	m.expire()
	r := recordOf(t, breakers[0])
	require.Equal(t, m.state, r.State)
	switch m.state {
	case infuse.StateClosed:
		require.Equal(t, m.failures, r.Failures)
	case infuse.StateOpen:
		require.Equal(t, m.due, r.DueAt)
	case infuse.StateHalfOpen:
		require.Equal(t, m.successes, r.Successes)
	}
	for i, b := range breakers {
		require.Equal(t, m.state, b.State(), "breaker %d", i)
		if i == 0 && len(breakers) == 1 && m.state == infuse.StateClosed {
			require.Equal(t, m.failures, b.Failures()) // those of others are no news until they open the circuit
		}
	}
}

// trialCount counts the trials that run, by generation: when one fails, the
// others of its generation may still run when the next begins.
type trialCount struct {
	mu sync.Mutex
	n  map[int64]int
}

func (c *trialCount) add(generation int64, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[int64]int)
	}
	c.n[generation] += n
	return c.n[generation]
}

// Many goroutines on several breakers at once: no more trials than allowed at
// any time, a rejected call never runs, an admitted one returns its own
// result, and when all is quiet every breaker shows what the storage holds.
func TestManyAtOnceKeepThePromises(t *testing.T) {
	const maxTrials = 2
	for kind, storage := range map[string]func() infuse.Storage{
		"memory": func() func() infuse.Storage {
			one := infuse.NewMemoryStorage()
			return func() infuse.Storage { return one }
		}(),
		"redis": func() func() infuse.Storage {
			server := redistest.Start(t)
			return func() infuse.Storage { return host(t, server) }
		}(),
	} {
		t.Run(kind, func(t *testing.T) {
			var trials, rejected, transitions atomic.Int64
			var running trialCount
			cfg := patiently(infuse.Config{
				FailMax: 3, SuccessThreshold: 2, MaxTrials: maxTrials, ResetTimeout: 2 * time.Millisecond, TrialTimeout: time.Hour,
				Listeners: []*infuse.Listener{{StateChange: func(*infuse.Breaker, infuse.State, infuse.State) { transitions.Add(1) }}},
			})
			var fleet []*infuse.Breaker
			for range 4 {
				cfg.Storage = storage()
				fleet = append(fleet, startBreaker(t, "prices", cfg))
			}
			var ill atomic.Bool
			var all sync.WaitGroup
			end := time.Now().Add(patience)
			seenEnough := func() bool {
				return trials.Load() > 50 && rejected.Load() > 100 && transitions.Load() > 100 || time.Now().After(end)
			}
			for _, b := range fleet {
				for range 8 {
					all.Go(func() {
						for !seenEnough() {
							var want error
							if ill.Load() {
								want = errIll
							}
							p, err := b.Acquire(context.Background())
							if err != nil {
								rejected.Add(1)
								if !errors.Is(err, infuse.ErrOpen) {
									t.Errorf("rejected with %v", err)
								}
								time.Sleep(100 * time.Microsecond)
								continue
							}
							if generation, ok := infuse.TrialOf(p); ok {
								trials.Add(1)
								if n := running.add(generation, 1); n > maxTrials {
									t.Errorf("%d trials at a time", n)
								}
								time.Sleep(time.Millisecond)
								running.add(generation, -1)
							}
							p.Done(want)
						}
					})
				}
			}
			all.Go(func() {
				for !seenEnough() {
					ill.Store(!ill.Load())
					time.Sleep(10 * time.Millisecond)
				}
				ill.Store(false)
			})
			all.Wait()
			require.Greater(t, trials.Load(), int64(50))
			require.Greater(t, rejected.Load(), int64(100))
			require.Greater(t, transitions.Load(), int64(100))

			require.Eventually(t, func() bool {
				for _, b := range fleet {
					_ = b.Call(context.Background(), succeeds)
				}
				for _, b := range fleet {
					if b.State() != infuse.StateClosed || b.Failures() != 0 || !recordOf(t, b).Healthy() {
						return false
					}
				}
				return true
			}, patience, pace, "all go on in the end")
		})
	}
}
