package fleettest

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Failure rates and open times of fleets on a real Redis, each process with a
// client of its own.

// A million calls with random failures: what the record holds is what the
// processes have counted, to the last call. The suspicion near the end has every
// process tell the rest of what it has.
// R21.
func TestARateCountsEveryCall(t *testing.T) {
	const processes, goroutines = 8, 4
	each := 100_000 / processes / goroutines
	if os.Getenv("CI") == "true" {
		each *= 10
	}
	calls := 2*processes + processes*goroutines*each
	server := redistest.Start(t)
	cfg := patiently(infuse.Config{FailureRate: 0.01, MinCalls: 2 * calls, Window: time.Hour, ResetTimeout: 24 * time.Hour})
	var fleet []*infuse.Breaker
	for range processes {
		cfg := cfg
		cfg.Storage = host(t, server)
		b := startBreaker(t, "prices", cfg)
		require.Error(t, b.Call(t.Context(), fails), "from now on it counts")
		fleet = append(fleet, b)
	}
	failures := processes
	var mu sync.Mutex
	var all sync.WaitGroup
	began := time.Now()
	for i := range processes * goroutines {
		all.Go(func() {
			failed, random := 0, uint32(i)
			for range each {
				random = random*1664525 + 1013904223
				fn := succeeds
				if random>>16%50 == 0 { // one in fifty
					fn = fails
					failed++
				}
				_ = fleet[i%processes].Call(context.Background(), fn)
			}
			mu.Lock()
			failures += failed
			mu.Unlock()
		})
	}
	all.Wait()
	took := time.Since(began)
	for _, b := range fleet { // a failure reports what was counted before
		require.Error(t, b.Call(t.Context(), fails))
		failures++
	}
	var sum infuse.Bucket
	require.Eventually(t, func() bool {
		sum = infuse.Bucket{}
		for _, b := range recordOf(t, fleet[0]).Window.Buckets {
			sum.Calls, sum.Failures = sum.Calls+b.Calls, sum.Failures+b.Failures
		}
		return sum.Calls >= calls
	}, patience, 10*pace, "%d of %d calls on record", sum.Calls, calls)
	require.Equal(t, infuse.Bucket{Calls: calls, Failures: failures}, sum)
	commands, err := server.Commands(t.Context())
	require.NoError(t, err)
	t.Logf("%d calls, %d failures in %v: all on record, %d scripts", calls, failures, took.Round(time.Millisecond), commands["evalsha"])
}

// Three processes, one circuit: 1, 2, 4, 8, 8 units and back, though Redis loses
// everything in the middle.
func TestTheOpenDurationGrowsThroughARestart(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const unit = 250 * time.Millisecond
	server := redistest.Start(t)
	var fleet []*infuse.Breaker
	for range 3 {
		fleet = append(fleet, startBreaker(t, "prices", infuse.Config{
			FailMax: 3, ResetTimeout: unit, MaxResetTimeout: 8 * unit, Storage: host(t, server), StorageTimeout: time.Second,
		}))
	}
	require.Eventually(t, func() bool {
		for _, b := range fleet {
			_ = b.Call(t.Context(), fails)
		}
		return recordOf(t, fleet[0]).State == infuse.StateOpen
	}, patience, pace)
	open := func() time.Duration {
		t.Helper()
		record := recordOf(t, fleet[0])
		require.Equal(t, infuse.StateOpen, record.State)
		return record.OpenDuration
	}
	// fail has one process after the other ask for the trial, until it was one
	// of the fleet that has failed.
	fail := func() {
		t.Helper()
		before := recordOf(t, fleet[0]).Opened
		for i := 0; recordOf(t, fleet[0]).Opened == before; i++ {
			_ = fleet[i%3].Call(t.Context(), fails)
			time.Sleep(pace)
			require.Less(t, i, 10_000)
		}
	}
	require.Equal(t, unit, open())
	for i, want := range []time.Duration{2, 4, 8, 8} {
		fail()
		require.Equal(t, want*unit, open())
		if i == 2 {
			require.NoError(t, server.Restart())
			require.Eventually(t, func() bool {
				record, err := fleet[0].Record(t.Context())
				return err == nil && record.State == infuse.StateOpen && record.OpenDuration == 8*unit
			}, patience, pace, "the processes put it back")
		}
	}
	for _, b := range fleet {
		require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
	}
	closed := recordOf(t, fleet[0])
	require.Equal(t, infuse.StateClosed, closed.State)
	time.Sleep(time.Until(closed.ClosedAt.Add(12*unit + unit/4))) // 8 + 4: two doublings are forgotten
	require.Eventually(t, func() bool {
		for _, b := range fleet {
			_ = b.Call(t.Context(), fails)
		}
		return recordOf(t, fleet[0]).State == infuse.StateOpen
	}, patience, 100*time.Millisecond) // rounds of failures, so that Suspicion passes between them
	record := recordOf(t, fleet[0])
	want := 4 * unit
	switch calm := record.DueAt.Add(-record.OpenDuration).Sub(closed.ClosedAt); { // longer, where the machine stalls
	case calm >= 15*unit:
		want = unit
	case calm >= 14*unit:
		want = 2 * unit
	}
	require.Equal(t, want, record.OpenDuration)
}
