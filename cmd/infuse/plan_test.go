package main

// This file tests the command plan against documents, simulations, breakers and Redis.

import (
	"context"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

var update = flag.Bool("update", false, "update the golden files")

func TestPlanOutput(t *testing.T) {
	d := memoryCLI(t)
	for name, line := range map[string]string{
		"fleet":    "plan -calls 100 -processes 20 -errors 0.01",
		"both":     "plan -calls 1 -processes 1000 -errors 0.1 -fail-max 10 -failure-rate 0.5 -min-calls 50",
		"rate":     "plan -calls 100 -processes 1 -circuits 10 -errors 0.3 -failure-rate 0.5",
		"nothing":  "plan -calls 0.1 -processes 2 -errors 0.6 -failure-rate 0.5",
		"no-error": "plan -errors 0",
	} {
		out := d.mustRun(strings.Fields(line)...)
		path := filepath.Join("testdata", "plan-"+name+".txt")
		if *update {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(path, []byte(out), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), out, "go test -run TestPlanOutput -update updates %s", path)
	}
	var e estimate
	d.mustDecode(&e, "plan", "-processes", "2")
	require.Greater(t, *e.OutageCalls, 9.0)
	require.Positive(t, e.Healthy)
}

// The plan agrees with the tables in docs/tuning.md and with simulated fleets.
func TestPlanAgreesWithTheDocs(t *testing.T) {
	preset := planInput{calls: 100, processes: 1, circuits: 1, minCalls: 20, window: 10 * time.Second, resetTimeout: time.Minute, suspicion: 50 * time.Millisecond, pollInterval: 2 * time.Second}
	for _, row := range []struct {
		failMax int
		errors  float64
		anHour  float64
	}{{5, 0.01, 0.000036}, {5, 0.05, 0.11}, {5, 0.1, 3.2}, {10, 0.2, 0.029}, {20, 0.3, 0.0000088}} {
		p := preset
		p.failMax, p.errors = row.failMax, row.errors
		require.InEpsilon(t, row.anHour, 3600*p.localStreaks(), 0.03)
	}
	for _, row := range []struct{ n, p, chance float64 }{{20, 0.1, 0.0000072}, {50, 0.3, 0.0024}, {100, 0.45, 0.18}, {200, 0.4, 0.0026}} {
		require.InEpsilon(t, row.chance, atLeast(row.n, row.n/2, row.p), 0.04)
	}
	for _, row := range []struct{ processes, calls, measured float64 }{
		{1, 1, 5}, {2, 1, 10}, {3, 1, 10}, {5, 1, 10}, {20, 0.1, 22}, {20, 1, 21}, {20, 5, 23}, {20, 100, 89}, {100, 1, 99}, {100, 20, 143}, {1000, 1, 997}, {1000, 20, 1434}, {10000, 1, 9970},
	} {
		p := preset
		p.failMax, p.errors, p.processes, p.calls = 5, 0.01, int(row.processes), row.calls
		require.InEpsilon(t, row.measured, *p.estimate().OutageCalls, 0.12, "%v x %v/s", row.processes, row.calls)
	}
}

// simulated is the result of a simulation of the rules in docs/concepts.md. Random
// processes make calls at random times.
type simulated struct {
	suspicions, openings, seconds float64
}

func (p *planInput) simulateShared(calls int, seed uint64) (s simulated) {
	roll := rand.New(rand.NewPCG(seed, 1))
	failed, supplied := make([]bool, p.processes), make([]int, p.processes)
	step := 1 / (p.calls * float64(p.processes))
	streak, score, suspect, from := 0, 0, false, 0.0 // from: start of the suspicion, or its dismissal
	now := 0.0
	for range calls {
		now += step * roll.ExpFloat64()
		i := roll.IntN(p.processes)
		fails := roll.Float64() < p.errors
		switch {
		case suspect && fails:
			if supplied[i] < p.failMax {
				supplied[i]++
				score++
			}
		case suspect:
			score -= 4
			supplied[i] = max(0, supplied[i]-4)
		case fails:
			streak++
			supplied[i]++
		case failed[i]:
			streak = 0
			clear(supplied)
		}
		failed[i] = fails
		end := func() {
			suspect, streak, from = false, 0, now
			clear(failed)
			clear(supplied)
		}
		switch {
		case suspect && score <= 0:
			end()
		case suspect && fails && score >= 2*p.failMax && now-from >= p.suspicion.Seconds():
			s.openings++
			end()
		case !suspect && streak >= p.failMax && now-from >= p.suspicion.Seconds():
			suspect, score, from = true, p.failMax, now
			s.suspicions++
		}
	}
	s.seconds = now
	return s
}

func TestPlanAgreesWithASimulationOfTheSharedCircuit(t *testing.T) {
	t.Parallel()
	for _, p := range []planInput{
		{calls: 1, processes: 20, errors: 0.3, failMax: 5, suspicion: 50 * time.Millisecond},
		{calls: 1, processes: 20, errors: 0.5, failMax: 5, suspicion: 50 * time.Millisecond},
		{calls: 0.1, processes: 100, errors: 0.4, failMax: 3, suspicion: 50 * time.Millisecond},
		{calls: 1, processes: 100, errors: 0.2, failMax: 5, suspicion: 50 * time.Millisecond},
		{calls: 5, processes: 10, errors: 0.1, failMax: 3, suspicion: 50 * time.Millisecond},
		{calls: 2, processes: 50, errors: 0.6, failMax: 3, suspicion: 50 * time.Millisecond},
	} {
		got := p.simulateShared(3_000_000, 7)
		require.Greater(t, got.suspicions, 500.0)
		rate := p.suspicions()
		require.InEpsilon(t, rate, got.suspicions/got.seconds, 0.3, "suspicions of %+v", p)
		share := got.openings / got.suspicions
		t.Logf("%d x %v/s, %v: suspicions a second %.4g, simulated %.4g; openings of these %.4g, simulated %.4g", p.processes, p.calls, p.errors, rate, got.suspicions/got.seconds, p.opensOfSuspect(), share)
		if got.openings > 30 {
			require.InEpsilon(t, p.opensOfSuspect(), share, 0.05+3/math.Sqrt(got.openings), "openings of %+v", p)
		}
	}
}

// The plan agrees with breakers in fake time.
func TestPlanAgreesWithBreakers(t *testing.T) {
	t.Parallel()
	for _, p := range []planInput{
		{calls: 1, processes: 20, errors: 0.3, failMax: 3, suspicion: 50 * time.Millisecond},
		{calls: 1, processes: 300, errors: 0.1, failMax: 10, suspicion: 50 * time.Millisecond},
		{calls: 10, processes: 20, errors: 0.05, failMax: 5, suspicion: 50 * time.Millisecond},
	} {
		planAgainstBreakers(t, p, time.Duration(80_000/p.calls/float64(p.processes))*time.Second)
	}
}

func planAgainstBreakers(t *testing.T, p planInput, lasts time.Duration) {
	var suspicions atomic.Int64
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		var last atomic.Int64
		defer storage.Watch("service", func(r infuse.Record) {
			if at := r.SuspectAt.UnixNano(); r.Suspect() && last.Swap(at) != at {
				suspicions.Add(1)
			}
		})()
		ctx, cancel := context.WithTimeout(t.Context(), lasts)
		defer cancel()
		var all []*infuse.Breaker
		for i := range p.processes {
			// The shortest ResetTimeout: local circuits reject nothing.
			b, err := infuse.New("service", infuse.Config{Storage: storage, FailMax: p.failMax, ResetTimeout: time.Millisecond})
			require.NoError(t, err)
			all = append(all, b)
			go func() {
				roll := rand.New(rand.NewPCG(uint64(i), 3))
				for ctx.Err() == nil {
					time.Sleep(time.Duration(roll.ExpFloat64() / p.calls * float64(time.Second)))
					_ = b.Call(ctx, func(context.Context) error {
						if roll.Float64() < p.errors {
							return errors.New("503")
						}
						return nil
					})
				}
			}()
		}
		<-ctx.Done()
		for _, b := range all {
			b.Stop()
		}
		time.Sleep(time.Minute)
	})
	want := 3600 * p.suspicions()
	got := float64(suspicions.Load()) / lasts.Hours()
	t.Logf("%d x %v/s: %.0f suspicions an hour, planned %.0f", p.processes, p.calls, got, want)
	require.InEpsilon(t, want, got, 0.35)
}

// simulateLocal counts the openings of one local circuit: consecutive failures, and a
// failure rate over a window that begins with a failure.
func (p *planInput) simulateLocal(calls int, seed uint64) (anHour float64) {
	roll := rand.New(rand.NewPCG(seed, 2))
	step, now := 1/p.calls, 0.0
	type call struct {
		at    float64
		fails bool
	}
	var window []call
	openings, streak, failures := 0, 0, 0
	forget := func() { window, streak, failures = nil, 0, 0 }
	for range calls {
		now += step
		fails := roll.Float64() < p.errors
		for len(window) > 0 && window[0].at <= now-p.window.Seconds() {
			if window[0].fails {
				failures--
			}
			window = window[1:]
		}
		if failures == 0 {
			window = nil
		}
		streak++
		if !fails {
			streak = 0
		}
		if fails || failures > 0 {
			window = append(window, call{now, fails})
		}
		if !fails {
			continue
		}
		failures++
		overRate := p.failureRate > 0 && len(window) >= p.minCalls && float64(failures) >= p.failureRate*float64(len(window))
		if p.failMax > 0 && streak >= p.failMax || overRate {
			openings++
			for now += p.resetTimeout.Seconds(); roll.Float64() < p.errors; now += p.resetTimeout.Seconds() { // trials
			}
			forget()
		}
	}
	return 3600 * float64(openings) / now
}

func TestPlanAgreesWithASimulationOfALocalCircuit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		planInput
		tolerance float64
	}{
		{planInput{calls: 100, errors: 0.1, failMax: 4, minCalls: 20}, 0.1},
		{planInput{calls: 100, errors: 0.3, failMax: 5, minCalls: 20}, 0.1},
		{planInput{calls: 1, errors: 0.5, failMax: 5, minCalls: 20}, 0.1},
		{planInput{calls: 10, errors: 0.35, failureRate: 0.5, minCalls: 20}, 0.6},
		{planInput{calls: 5, errors: 0.3, failureRate: 0.5, minCalls: 20}, 0.6},
		{planInput{calls: 2, errors: 0.2, failureRate: 0.5, minCalls: 20}, 0.6},
		{planInput{calls: 2, errors: 0.55, failureRate: 0.5, minCalls: 20}, 0.6},
	} {
		p := test.planInput
		p.window, p.resetTimeout = 10*time.Second, time.Minute
		want := perHour(p.localStreaks()+p.localRates(), p.resetTimeout.Seconds()/(1-p.errors))
		got := p.simulateLocal(5_000_000, 3)
		t.Logf("%+v: %.4g an hour, simulated %.4g", p, want, got)
		require.InDelta(t, 0, math.Log(got/want), math.Log(1+test.tolerance), "%+v", p)
	}
}

// A fleet sends as many commands to Redis as planned.
func TestPlanAgreesWithRedis(t *testing.T) {
	if os.Getenv("CI") == "" {
		t.Skip("takes 25 s: set CI=true")
	}
	t.Parallel()
	server := redistest.Start(t)
	p := planInput{
		calls: 40, processes: 10, circuits: 1, errors: 0.05, failMax: 5, minCalls: 20, window: 10 * time.Second,
		resetTimeout: 4 * time.Second, suspicion: 50 * time.Millisecond, pollInterval: 400 * time.Millisecond,
	}
	var errorRate, calls atomic.Uint64
	pause := float64(time.Second) / p.calls
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range p.processes {
		client := server.Client(func(o *redis.Options) { o.PoolSize = 4 })
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: p.pollInterval})
		b, err := infuse.New("service", infuse.Config{Storage: storage, FailMax: p.failMax, ResetTimeout: p.resetTimeout, StorageTimeout: 5 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { b.Stop(); _ = storage.Close() })
		go func() {
			roll := rand.New(rand.NewPCG(uint64(i), 4))
			for ctx.Err() == nil {
				time.Sleep(time.Duration(roll.ExpFloat64() * pause))
				calls.Add(1)
				_ = b.Call(ctx, func(context.Context) error {
					if roll.Float64() < math.Float64frombits(errorRate.Load()) {
						return errors.New("503")
					}
					return nil
				})
			}
		}()
	}
	for _, phase := range []struct {
		name             string
		rate             float64
		want             func(*estimate) float64
		wait, lasts      time.Duration
		toleranceInTimes float64
	}{
		{"healthy", 0, func(e *estimate) float64 { return e.Healthy }, 3 * time.Second, 6 * time.Second, 1.5},
		{"baseline", p.errors, func(e *estimate) float64 { return e.Baseline }, time.Second, 6 * time.Second, 1.4},
		{"outage", 1, func(e *estimate) float64 { return e.Outage }, time.Second, 8 * time.Second, 1.6},
	} {
		errorRate.Store(math.Float64bits(phase.rate))
		requireAgreement(t, server, phase.name, phase.toleranceInTimes, func() (got, want float64) {
			time.Sleep(phase.wait)
			before, called, began := commandsOf(t, server), calls.Load(), time.Now()
			time.Sleep(phase.lasts)
			lasted := time.Since(began).Seconds()
			actual := p
			actual.calls = float64(calls.Load()-called) / lasted / float64(p.processes*p.circuits) // a busy machine makes fewer
			return float64(commandsOf(t, server)-before) / lasted, phase.want(actual.estimate())
		})
	}
}

// requireAgreement fails unless one of three measurements agrees with the formula: on a
// busy machine one may not, and if the formula is wrong, none does. The formula is that
// of a Redis that replies at once, so a machine that is busy all the time shows nothing.
func requireAgreement(t *testing.T, server *redistest.Server, name string, toleranceInTimes float64, measure func() (got, want float64)) {
	t.Helper()
	var got, want float64
	quickest := time.Hour
	for range 3 {
		replies := replyTimes(t, server.Client())
		got, want = measure()
		typical := replies()
		quickest = min(quickest, typical)
		t.Logf("%s: %.1f commands/s, by the formula %.1f; Redis replies within %v", name, got, want, typical)
		if math.Abs(math.Log(got/want)) <= math.Log(toleranceInTimes) {
			return
		}
	}
	if quickest > slowReply {
		t.Skipf("%s: the machine is too busy: Redis replies within %v", name, quickest)
	}
	require.FailNow(t, "the formula is wrong", "%s: %.1f commands/s, by the formula %.1f", name, got, want)
}

// slowReply is the 90th percentile of reply times that shows a busy machine.
const slowReply = 20 * time.Millisecond

// replyTimes measures how long replies of Redis take until the 90th percentile of them is
// asked for.
func replyTimes(t *testing.T, client *redis.Client) (percentile func() time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	var all []time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			began := time.Now()
			_ = client.Echo(ctx, "").Err() // commandsOf does not count it
			all = append(all, time.Since(began))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return func() time.Duration {
		cancel()
		<-done
		slices.Sort(all)
		return all[len(all)*9/10]
	}
}

// commandsOf counts the commands that breakers send.
func commandsOf(t *testing.T, server *redistest.Server) int64 {
	all, err := server.Commands(t.Context())
	require.NoError(t, err)
	return all["evalsha"] + all["eval"] + all["ping"]
}
