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

// model is a circuit for successive calls, written by the documentation.
type model struct {
	cfg       infuse.Config
	state     infuse.State
	spell     int // counts transitions: a call belongs to the spell that admitted it
	failures  int
	successes int
	due       time.Time
	trials    map[int]time.Time // the end of each lease, by number of the call
}

// modelCall is a call that the model admitted.
type modelCall struct {
	number, spell int
	trial         bool
}

func (m *model) enter(s infuse.State) {
	m.state, m.spell, m.successes = s, m.spell+1, 0 // trials keep their slots
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

func (m *model) settle(c modelCall, outcome infuse.Outcome) {
	m.expire()
	_, runs := m.trials[c.number]
	delete(m.trials, c.number)
	if c.spell != m.spell || c.trial && !runs {
		return
	}
	switch {
	case outcome == infuse.OutcomeIgnored:
	case outcome == infuse.OutcomeSuccess && c.trial:
		if m.successes++; m.successes == m.cfg.SuccessThreshold {
			m.enter(infuse.StateClosed)
		}
	case outcome == infuse.OutcomeSuccess:
		m.failures = 0
	case c.trial:
		m.enter(infuse.StateOpen)
	default:
		if m.failures++; m.failures >= m.cfg.FailMax {
			m.enter(infuse.StateOpen)
		}
	}
}

// set begins a new spell. If half-open is set again, the spell continues with its trials,
// and successes are counted from 0.
func (m *model) set(to infuse.State) {
	if to == infuse.StateHalfOpen && m.state == infuse.StateHalfOpen {
		m.successes = 0
		return
	}
	m.enter(to)
}

// seedEnv repeats one sequence of the model test, by the seed that it printed.
const seedEnv = "INFUSE_TEST_SEED"

// In random sequences of calls, manual changes and pauses, the breaker admits the calls
// that the model admits, and has its state after each step. With a storage, calls and
// manual changes must not overlap: calls that overlap are reported together, and a manual
// change ends the local trials.
// R5.
func TestRandomSequencesEqualTheModel(t *testing.T) {
	t.Parallel()
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

// openCall is a running call of the breaker and the model.
type openCall struct {
	permit infuse.Permit
	cancel context.CancelFunc
	model  modelCall
}

func runSequence(t *testing.T, r *rand.Rand, steps *strings.Builder) {
	step := func(format string, args ...any) {
		fmt.Fprintf(steps, time.Now().Format("05.000000")+" "+format+"\n", args...)
	}
	cfg := infuse.Config{
		FailMax: 1 + r.IntN(4), SuccessThreshold: 1 + r.IntN(3), MaxTrials: 1 + r.IntN(3),
		ResetTimeout: time.Second, TrialTimeout: time.Second / 2,
	}
	if r.IntN(2) == 0 {
		cfg.Storage, cfg.Strict = infuse.NewMemoryStorage(), r.IntN(4) == 0
	}
	step("%d failures, %d successes, %d trials, storage %v, strict %v", cfg.FailMax, cfg.SuccessThreshold, cfg.MaxTrials, cfg.Storage != nil, cfg.Strict)
	m := &model{cfg: cfg, trials: make(map[int]time.Time)}
	b := startBreaker(t, "prices", cfg)
	var open []openCall
	for number := range 60 {
		switch n := r.IntN(20); {
		case n < 7 && (cfg.Storage == nil || len(open) == 0):
			ctx, cancel := context.WithCancel(t.Context())
			permit, err := b.Acquire(ctx)
			call, admitted := m.acquire(number)
			step("call %d is admitted: %v", number, err == nil)
			require.Equal(t, admitted, err == nil, "the model and the breaker disagree about a call: %v", err)
			if !admitted {
				require.ErrorIs(t, err, infuse.ErrOpen)
				cancel()
				break
			}
			open = append(open, openCall{permit, cancel, call})
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
				result = errUnhealthy
			case infuse.OutcomeIgnored:
				call.cancel()
				result = context.Canceled
			}
			m.settle(call.model, outcome) // first: Done may wait for the storage
			call.permit.Done(result)
			call.cancel()
		case n < 18:
			pause := []time.Duration{time.Millisecond, 249 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second}[r.IntN(5)]
			step("%v pass", pause)
			time.Sleep(pause)
			synctest.Wait()
		case n < 19 && r.IntN(3) == 0 && (cfg.Storage == nil || len(open) == 0):
			to := infuse.State(r.IntN(3))
			step("set: %v", to)
			require.NoError(t, b.SetState(t.Context(), to))
			m.set(to)
		}
		synctest.Wait()
		requireAsModel(t, m, b)
	}
	for _, call := range open {
		call.cancel()
	}
}

func requireAsModel(t *testing.T, m *model, b *infuse.Breaker) {
	t.Helper()
	m.expire()
	require.Equal(t, m.state, b.State())
	if m.state == infuse.StateClosed {
		require.Equal(t, m.failures, failuresOf(b))
	}
	if m.state == infuse.StateOpen && time.Until(m.due) > time.Millisecond && len(m.trials) < m.cfg.MaxTrials {
		require.Equal(t, time.Until(m.due), requireRejected(t, b).RetryAfter())
	}
}

// With many goroutines on several breakers, at most MaxTrials trials run at a time, each
// rejection is ErrOpen, and at the end every breaker heals.
func TestManyGoroutinesOnSeveralBreakers(t *testing.T) {
	t.Parallel()
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
			var running atomic.Int64
			cfg := patiently(infuse.Config{
				FailMax: 3, SuccessThreshold: 2, MaxTrials: maxTrials, ResetTimeout: 2 * time.Millisecond, TrialTimeout: time.Hour,
				Suspicion: time.Millisecond,
				Listeners: []*infuse.Listener{{StateChange: func(*infuse.Breaker, infuse.Transition) { transitions.Add(1) }}},
			})
			var fleet []*infuse.Breaker
			for range 4 {
				cfg.Storage = storage()
				fleet = append(fleet, startBreaker(t, "prices", cfg))
			}
			var failing atomic.Bool
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
							if failing.Load() {
								want = errUnhealthy
							}
							p, err := b.Acquire(context.Background())
							if err != nil {
								rejected.Add(1)
								if !errors.Is(err, infuse.ErrOpen) {
									t.Errorf("a rejection is no ErrOpen: %v", err)
								}
								time.Sleep(100 * time.Microsecond)
								continue
							}
							if infuse.IsTrialOfTheFleet(p) {
								trials.Add(1)
								if n := running.Add(1); n > maxTrials {
									t.Errorf("%d trials at a time", n)
								}
								time.Sleep(time.Millisecond)
								running.Add(-1)
							}
							p.Done(want)
						}
					})
				}
			}
			all.Go(func() {
				for i := 0; !seenEnough(); i++ {
					failing.Store(!failing.Load())
					if i%3 == 0 { // then every process needs a trial
						_ = fleet[i%len(fleet)].SetState(context.Background(), infuse.StateOpen)
					}
					time.Sleep(20 * time.Millisecond)
				}
				failing.Store(false)
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
					if b.State() != infuse.StateClosed || failuresOf(b) != 0 || !recordOf(t, b).Healthy() {
						return false
					}
				}
				return true
			}, patience, pace, "all breakers heal")
		})
	}
}
