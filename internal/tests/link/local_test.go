package link_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// gobreaker's shared mode ran no request while its storage was
// down. With StorageDownLocal the process has a whole breaker of its own: it
// opens, runs one trial at a time, and closes.
// R5, R37.
func TestWithoutItsStorageAProcessHasAWholeLocalCircuit(t *testing.T) {
	inEveryTrouble(t, func(t *testing.T, r *remote, trouble func() error) {
		var heard edges
		b := startBreaker(t, "prices", infuse.Config{
			FailMax: 3, Storage: r, Listeners: []*infuse.Listener{heard.Listener()},
		})
		r.suffer(trouble)
		for i := range 3 {
			waited, err := waitOf(b, fails)
			require.Equal(t, errUnhealthy, err)
			if i > 0 {
				require.Zero(t, waited, "known to be unavailable, it is not waited for")
			}
			require.LessOrEqual(t, waited, storageTimeout)
		}
		rejection := requireRejected(t, b)
		require.Equal(t, time.Minute, rejection.RetryAfter().Round(time.Second))

		time.Sleep(time.Minute)
		trial := requireTrial(t, b)
		requireRejected(t, b)
		trial.Done(errUnhealthy)
		requireState(t, infuse.StateOpen, b)

		time.Sleep(time.Minute)
		trial = requireTrial(t, b)
		requireRejected(t, b)
		trial.Done(nil)
		requireState(t, infuse.StateClosed, b)
		waited, err := waitOf(b, succeeds)
		require.NoError(t, err)
		require.Zero(t, waited)
		heard.Require(t, 1, 0)
	})
}

// R37.
func TestStorageDownAllowRunsEveryCallAndCountsNothing(t *testing.T) {
	inEveryTrouble(t, func(t *testing.T, r *remote, trouble func() error) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r, StorageDown: infuse.StorageDownAllow})
		tripFleet(t, b, startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r.Storage}))
		time.Sleep(time.Minute)
		r.suffer(trouble)
		waited, err := waitOf(b, fails) // would be the trial
		require.Equal(t, errUnhealthy, err)
		require.LessOrEqual(t, waited, storageTimeout)
		for range 10 {
			waited, err = waitOf(b, fails)
			require.Equal(t, errUnhealthy, err)
			require.Zero(t, waited)
		}
		requireState(t, infuse.StateClosed, b)

		r.recover()
		time.Sleep(time.Minute)
		require.NotEqual(t, infuse.StateClosed, recordOf(t, b).State)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

// R37.
func TestStorageDownRejectRejectsEveryCall(t *testing.T) {
	inEveryTrouble(t, func(t *testing.T, r *remote, trouble func() error) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r, StorageDown: infuse.StorageDownReject})
		r.suffer(trouble)
		waited, err := waitOf(b, fails)
		require.Equal(t, errUnhealthy, err, "it was admitted while the storage was there")
		require.LessOrEqual(t, waited, storageTimeout)
		requireState(t, infuse.StateOpen, b)
		for range 10 {
			require.Error(t, requireRejected(t, b).Cause)
		}

		r.recover()
		time.Sleep(time.Minute)
		requireState(t, infuse.StateClosed, b)
		require.Equal(t, 1, recordOf(t, b).Failures, "the storage has received the failure")
	})
}

// The failures that opened a local circuit while the storage was unavailable are
// reported when it is available again: they make the shared circuit suspect. The
// local circuit stays open for as long as it has left.
// R38.
func TestFailuresThatOpenedALocalCircuitAreReportedLater(t *testing.T) {
	inEveryTrouble(t, func(t *testing.T, r *remote, trouble func() error) {
		var heard edges
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}})
		r.suffer(trouble)
		trip(t, b)
		opened := time.Now()
		time.Sleep(40 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		record := recordOf(t, b)
		require.True(t, record.Suspect())
		require.Equal(t, 3, record.Score)
		other := startBreaker(t, "prices", infuse.Config{Storage: r})
		requireState(t, infuse.StateClosed, other)
		require.WithinDuration(t, opened.Add(time.Minute), requireRejected(t, b).DueAt, 10*time.Millisecond)
		heard.Require(t, 1, 1)

		require.NoError(t, other.Call(t.Context(), succeeds))
		time.Sleep(time.Second)
		require.False(t, recordOf(t, b).Suspect(), "a success of another process dismisses it")
		requireState(t, infuse.StateOpen, b)
		time.Sleep(time.Minute)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

// The failure of a local trial is no evidence for the fleet: the process has
// supplied FailMax failures before.
func TestAFailedLocalTrialIsNotReported(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r})
		r.suffer(isUnavailable)
		trip(t, b)
		time.Sleep(90 * time.Second)
		requireTrial(t, b).Done(errUnhealthy)
		opened := time.Now()
		time.Sleep(10 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		record := recordOf(t, b)
		require.True(t, record.Suspect())
		require.Equal(t, 3, record.Score)
		require.WithinDuration(t, opened.Add(time.Minute), requireRejected(t, b).DueAt, 10*time.Millisecond)
	})
}

// A process that starts while the storage is unavailable is protected at once, waits
// for nothing, and is shared once the storage is there.
// R36.
func TestAProcessMayStartWithoutItsStorage(t *testing.T) {
	inEveryTrouble(t, func(t *testing.T, r *remote, trouble func() error) {
		r.suffer(trouble)
		began := time.Now()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r})
		require.LessOrEqual(t, time.Since(began), storageTimeout)
		second := startBreaker(t, "stock", infuse.Config{FailMax: 3, Storage: r})
		trip(t, b)
		trip(t, second)
		r.recover()
		time.Sleep(5 * time.Second)
		require.True(t, recordOf(t, b).Suspect())
		require.True(t, recordOf(t, second).Suspect())
		requireState(t, infuse.StateOpen, b, second)
	})
}

// The shared circuit opened while this process was partitioned, and its last call
// failed: one failure of its own is enough.
func TestACircuitThatTheFleetOpenedMeanwhileIsAdopted(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		fleet := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r.Storage})
		deaf := silent{r}
		b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: deaf})
		r.suffer(isUnavailable)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		tripFleet(t, fleet, startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r.Storage}))
		requireState(t, infuse.StateClosed, b)
		r.recover()
		time.Sleep(5 * time.Second)
		requireState(t, infuse.StateOpen, b)
		require.Equal(t, recordOf(t, fleet), recordOf(t, b))
	})
}

// Failures that did not open the circuit count once the storage is back, and
// those that the storage has counted already, though its answer came too late,
// do not count twice.
// R13.
func TestWhatTheStorageHasMissedCountsOnce(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 10, Storage: r})
		r.suffer(func() error {
			time.Sleep(2 * storageTimeout) // counted, but too late
			return nil
		})
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		time.Sleep(10 * time.Second)
		r.suffer(isUnavailable)
		time.Sleep(10 * time.Second)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, 2, failuresOf(b))
		r.recover()
		time.Sleep(5 * time.Second)
		require.Equal(t, 2, recordOf(t, b).Failures)
		require.Equal(t, 2, failuresOf(b))
	})
}

// The end of a trial that the storage granted, and then was unavailable for, reaches
// it later.
func TestATrialThatEndsWhilePartitionedIsSettledLater(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1, TrialTimeout: time.Hour, Storage: r})
		trip(t, b)
		time.Sleep(time.Minute)
		trial := requireTrial(t, b)
		r.suffer(isUnavailable)
		trial.Done(nil)
		requireState(t, infuse.StateClosed, b)
		r.recover()
		time.Sleep(5 * time.Second)
		require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
		requireState(t, infuse.StateClosed, b)
	})
}

// It holds in a process that knows it while the storage is unavailable, and a storage
// that has lost it receives it again.
// R33.
func TestAnOverrideOutlivesItsStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newRemote()
		b := startBreaker(t, "prices", infuse.Config{Storage: storage})
		require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "maintenance", Until: time.Now().Add(time.Hour)}))
		storage.suffer(isUnavailable)
		require.Error(t, b.ClearOverride(t.Context(), "ann"), "the fleet has not received it")
		require.Error(t, b.Stats().StorageErr)
		require.NoError(t, b.Call(t.Context(), succeeds), "this process has")
		storage.recover()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		requireState(t, infuse.StateClosed, b) // the clearing was sent again
	})
	server := redistest.Start(t)
	cfg := infuse.Config{Storage: host(t, server), StorageTimeout: time.Second}
	b := startBreaker(t, "prices", cfg)
	require.NoError(t, b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "maintenance"}))
	life := server.Client().TTL(t.Context(), "infuse:{prices}").Val()
	require.Greater(t, life, 365*24*time.Hour, "its key outlives it")
	require.NoError(t, server.Restart())
	require.Eventually(t, func() bool {
		r, err := b.Record(t.Context())
		return err == nil && r.Override != nil && r.Override.By == "ann"
	}, patience, pace)
	requireRejected(t, startBreaker(t, "prices", cfg))
}

// R37.
func TestWhileTheStorageIsUnavailableTheLocalWindowDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newRemote()
		cfg := infuse.Config{FailureRate: 0.5, MinCalls: 10, Storage: storage}
		one, other := startBreaker(t, "service", cfg), startBreaker(t, "service", cfg)
		storage.suffer(isUnavailable)
		require.Equal(t, 10, outcomes(t, one, strings.Repeat("f", 10)))
		requireState(t, infuse.StateClosed, other)
		storage.recover()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.NoError(t, one.Stats().StorageErr)
		require.True(t, recordOf(t, one).Rated, "its failures made the shared circuit suspect")
		requireState(t, infuse.StateOpen, one)
		require.Zero(t, outcomes(t, other, "s"))
		time.Sleep(time.Second)
		outcomes(t, other, "f")
		time.Sleep(time.Second) // it is sent at a time that does not depend on its outcome
		synctest.Wait()
		require.Equal(t, infuse.StateOpen, recordOf(t, other).State, "another process confirms it")
		requireState(t, infuse.StateOpen, one, other)
	})
}
