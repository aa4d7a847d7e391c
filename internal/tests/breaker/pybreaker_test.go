package breaker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A pybreakerTrace is what pybreaker itself did: a script of operations on one
// breaker, and what it answered to each. Durations are in seconds.
type pybreakerTrace struct {
	FailMax          int             `json:"fail_max"`
	ResetTimeout     float64         `json:"reset_timeout"`
	SuccessThreshold int             `json:"success_threshold"`
	Steps            []pybreakerStep `json:"ops"`
}

type pybreakerStep struct {
	Advance  float64 `json:"advance"` // waited before the operation
	Op       string  `json:"op"`
	Result   string  `json:"result"`
	State    string  `json:"state"`    // afterwards
	Failures int     `json:"failures"` // afterwards; means something while closed
}

func pybreakerTraces(t *testing.T) []pybreakerTrace {
	file, err := os.Open("testdata/pybreaker-traces.jsonl")
	require.NoError(t, err)
	defer file.Close()
	var traces []pybreakerTrace
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var trace pybreakerTrace
		require.NoError(t, json.Unmarshal(lines.Bytes(), &trace))
		traces = append(traces, trace)
	}
	require.NoError(t, lines.Err())
	require.Len(t, traces, 120)
	return traces
}

// Whatever pybreaker answered, in whichever state, this breaker answers too.
// R5.
func TestEveryTraceOfPybreakerIsReplayedInMemory(t *testing.T) {
	t.Parallel()
	t.Run("alone", func(t *testing.T) { replayInMemory(t, false) })
	t.Run("a fleet of one", func(t *testing.T) { replayInMemory(t, true) })
}

func replayInMemory(t *testing.T, shared bool) {
	for i, trace := range pybreakerTraces(t) {
		t.Run(fmt.Sprint("trace ", i+1), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := trace.config(1)
				if shared {
					cfg.Storage = infuse.NewMemoryStorage()
				}
				b, err := infuse.New("service", cfg)
				require.NoError(t, err)
				defer b.Stop()
				for i, step := range trace.Steps {
					time.Sleep(inSeconds(step.Advance))
					result := step.run(b)
					synctest.Wait() // a success reports behind the call's back
					if result != step.Result || !step.isTrueOf(b) {
						t.Fatalf("got %q, %v with %d failures\n%s", result, b.State(), failuresOf(b), trace.at(i))
					}
				}
			})
		})
	}
}

// The same with a real Redis in real time, as far as a trace can be scaled
// down to a short one whose edges are wide enough for a busy machine.
// R5.
func TestTracesOfPybreakerAreReplayedWithRedis(t *testing.T) {
	storage := infuse.NewRedisStorage(redistest.Start(t).Client(), infuse.RedisOptions{})
	defer storage.Close()
	compared := 0
	var replays sync.WaitGroup
	for i, trace := range pybreakerTraces(t) {
		trace = trace.short()
		compared += len(trace.Steps)
		cfg := trace.config(realResetTimeout.Seconds() / trace.ResetTimeout)
		cfg.Storage, cfg.StorageTimeout, cfg.Strict = storage, time.Minute, i%2 == 0
		// Not as parallel sub-tests: they mostly sleep, all may do it at once.
		replays.Go(func() {
			if err := trace.replay(fmt.Sprint("trace ", i+1), cfg); err != nil {
				t.Errorf("trace %d, strict %v: %v", i+1, cfg.Strict, err)
			}
		})
	}
	replays.Wait()
	require.Greater(t, compared, 2000, "steps compared")
}

// Redis meets a trace with its reset timeout scaled to realResetTimeout.
const (
	realResetTimeout = 400 * time.Millisecond
	mostResets       = 5.0  // no trace takes longer than so many reset timeouts
	narrowest        = 0.25 // of the reset timeout: no call that is rejected comes closer to its end
)

// short returns the beginning of the trace that can be replayed in real time.
// A wait far beyond the reset timeout is cut: it changes nothing more.
func (trace pybreakerTrace) short() pybreakerTrace {
	total, sinceOpened := 0.0, 0.0
	for i, step := range trace.Steps {
		advance := min(step.Advance, 1.5*trace.ResetTimeout)
		total += advance
		sinceOpened += advance
		tooNarrow := step.Result == "rejected" && sinceOpened > (1-narrowest)*trace.ResetTimeout
		if tooNarrow || total > mostResets*trace.ResetTimeout {
			trace.Steps = trace.Steps[:i]
			break
		}
		trace.Steps[i].Advance = advance
		if step.opens() {
			sinceOpened = 0
		}
	}
	return trace
}

// opens reports whether the step has opened the circuit, perhaps once more.
func (step pybreakerStep) opens() bool { return step.State == "open" && step.Result != "rejected" }

var errStalled = errors.New("the machine stalls every time")

// replay replays the trace in real time. It begins anew, at half the speed,
// should the machine stall: when a call which is to be rejected comes after the
// reset timeout by the clock, or the timer that makes the circuit due is late
// for one that is to run.
func (trace pybreakerTrace) replay(circuit string, cfg infuse.Config) (err error) {
	for attempt := range 5 {
		err = trace.replayOnce(fmt.Sprint(circuit, " attempt ", attempt), cfg)
		if !errors.Is(err, errStalled) {
			break
		}
		cfg.ResetTimeout *= 2
	}
	return err
}

func (trace pybreakerTrace) replayOnce(circuit string, cfg infuse.Config) error {
	b, err := infuse.New(circuit, cfg)
	if err != nil {
		return err
	}
	defer b.Stop()
	scale := cfg.ResetTimeout.Seconds() / trace.ResetTimeout
	var opening time.Time // it opened after that
	for i, step := range trace.Steps {
		if step.Advance > 0 {
			// A little more, for a trial at the very instant needs a timer that is on time.
			time.Sleep(inSeconds(step.Advance*scale) + 20*time.Millisecond)
		}
		before := time.Now()
		result := step.run(b)
		switch {
		case result == step.Result:
		case step.Result == "rejected" && time.Since(opening) > cfg.ResetTimeout-10*time.Millisecond,
			result == "rejected" && !opening.IsZero():
			return fmt.Errorf("%w: got %q\n%s", errStalled, result, trace.at(i))
		default:
			return fmt.Errorf("got %q\n%s", result, trace.at(i))
		}
		if !step.comesTrue(b, cfg.Strict) {
			return fmt.Errorf("got %v with %d failures\n%s", b.State(), failuresOf(b), trace.at(i))
		}
		if step.opens() {
			opening = before
		}
	}
	return nil
}

// comesTrue reports whether the breaker is as it should be after the step: at
// once if it is strict, otherwise soon, for a success reports behind the
// call's back.
func (step pybreakerStep) comesTrue(b *infuse.Breaker, strict bool) bool {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if step.isTrueOf(b) {
			return true
		}
		if strict || time.Now().After(deadline) {
			return false
		}
	}
}

func (step pybreakerStep) isTrueOf(b *infuse.Breaker) bool {
	return b.State().String() == step.State && (step.State != "closed" || failuresOf(b) == step.Failures)
}

func (trace pybreakerTrace) config(scale float64) infuse.Config {
	return infuse.Config{
		FailMax:          trace.FailMax,
		ResetTimeout:     inSeconds(trace.ResetTimeout * scale),
		SuccessThreshold: trace.SuccessThreshold,
		Exclude:          []func(error) bool{func(err error) bool { return errors.Is(err, errExcluded) }},
	}
}

// at says where a replay is, with the way there.
func (trace pybreakerTrace) at(step int) string {
	script := fmt.Sprintf("fail max %d, reset timeout %gs, success threshold %d", trace.FailMax, trace.ResetTimeout, trace.SuccessThreshold)
	for i, s := range trace.Steps[:step+1] {
		script += fmt.Sprintf("\n%3d. after %gs %s: %s, %s with %d failures", i+1, s.Advance, s.Op, s.Result, s.State, s.Failures)
	}
	return script
}

var errFailed, errExcluded = errors.New("failed"), errors.New("excluded")

// run does the operation, and says what came of it in pybreaker's words.
func (step pybreakerStep) run(b *infuse.Breaker) string {
	ctx := context.Background()
	var err error
	switch step.Op {
	case "open":
		err = b.SetState(ctx, infuse.StateOpen)
	case "half_open":
		err = b.SetState(ctx, infuse.StateHalfOpen)
	case "close":
		err = b.SetState(ctx, infuse.StateClosed)
	case "success", "failure", "excluded":
		return step.call(ctx, b)
	default:
		return "an unknown operation: " + step.Op
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func (step pybreakerStep) call(ctx context.Context, b *infuse.Breaker) string {
	errs := map[string]error{"failure": errFailed, "excluded": errExcluded}
	err := b.Call(ctx, func(context.Context) error { return errs[step.Op] })
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, infuse.ErrOpen):
		return "rejected"
	case err == errFailed:
		return "error"
	case err == errExcluded:
		return "excluded"
	}
	return err.Error()
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
