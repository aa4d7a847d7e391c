package infuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// What holds while the storage is away holds for any storage: here for a
// stranger's that fails, hangs or panics on demand, in fake time, so that every
// wait is exact.

var errAway = errors.New("the storage is away")

const storageTimeout = 100 * time.Millisecond

// remote is somebody's storage: it keeps its records in memory, which its
// breakers cannot know, and lets every request meet its trouble first.
type remote struct {
	infuse.Storage

	mu      sync.Mutex
	trouble func() error
	cured   chan struct{} // closed when the trouble is over
	asked   []time.Time
	within  int // requests that are under way
	most    int // of them at a time
}

func newRemote() *remote {
	return &remote{Storage: infuse.NewMemoryStorage(), cured: make(chan struct{})}
}

func (r *remote) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := r.meet(); err != nil {
		return infuse.Record{}, err
	}
	defer r.leave()
	return r.Storage.Load(ctx, circuit)
}

func (r *remote) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := r.meet(); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	defer r.leave()
	return r.Storage.Apply(ctx, circuit, c)
}

func (r *remote) meet() (err error) {
	r.mu.Lock()
	r.asked = append(r.asked, time.Now())
	r.within++
	r.most = max(r.most, r.within)
	trouble := r.trouble
	r.mu.Unlock()
	healthy := false
	defer func() {
		if !healthy {
			r.leave()
		}
	}()
	if trouble != nil {
		err = trouble()
	}
	healthy = err == nil
	return err
}

func (r *remote) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.within--
}

func (r *remote) suffer(trouble func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trouble = trouble
}

// recover ends the trouble, also for the requests that hang in it.
func (r *remote) recover() {
	r.suffer(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.cured)
	r.cured = make(chan struct{})
}

// hang waits until the trouble is over.
func (r *remote) hang() error {
	r.mu.Lock()
	cured := r.cured
	r.mu.Unlock()
	<-cured
	return nil
}

// requests returns when it was asked since the last time that it was asked this.
func (r *remote) requests() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

func (r *remote) underWay() (now, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.within, r.most
}

func isAway() error { return errAway }

// troubles are the ways of a storage to be away.
func (r *remote) troubles() map[string]func() error {
	return map[string]func() error{
		"fails":             isAway,
		"panics":            func() error { panic("the storage is beside itself") },
		"hangs":             r.hang,
		"hangs, then fails": func() error { return errors.Join(r.hang(), errAway) },
	}
}

// inFakeTime runs the test, and lets the storage end what it is at when all
// breakers have stopped.
func inFakeTime(t *testing.T, test func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Hour) }) // in no real time
		test(t)
	})
}

// inEveryTrouble runs the test with a storage that is healthy, and with each
// trouble for it to get into.
func inEveryTrouble(t *testing.T, test func(t *testing.T, r *remote, trouble func() error)) {
	for name := range newRemote().troubles() {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				defer r.recover()
				test(t, r, r.troubles()[name])
			})
		})
	}
}

// gobreaker's shared mode ran no request while its storage was
// down. With StorageDownLocal the process has a whole breaker of its own: it
// opens, runs one trial at a time, and closes.
func TestWithoutItsStorageAProcessHasAWholeBreakerOfItsOwn(t *testing.T) {
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
				require.Zero(t, waited, "known to be away, it is not waited for")
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

func TestFallbackClosedRunsEveryCallAndCountsNothing(t *testing.T) {
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

func TestFallbackOpenRejectsEveryCall(t *testing.T) {
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
		require.Equal(t, 1, recordOf(t, b).Failures, "the storage has heard of the failure")
	})
}

// One timeout a call is still an outage: a call that needs the
// storage twice has no more patience than one that needs it once, and what the
// storage is to know reaches it all the same.
func TestACallWaitsNoLongerThanStorageTimeoutInAll(t *testing.T) {
	const delay = 80 * time.Millisecond
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict %v", strict), func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				var heard edges
				r := newRemote()
				b := startBreaker(t, "prices", infuse.Config{
					FailMax: 1, Storage: r, Strict: strict, Listeners: []*infuse.Listener{heard.Listener()},
				})
				r.suffer(func() error {
					time.Sleep(delay)
					return nil
				})
				waited, err := waitOf(b, fails)
				require.Equal(t, errUnhealthy, err)
				require.GreaterOrEqual(t, waited, delay)
				require.LessOrEqual(t, waited, storageTimeout)
				time.Sleep(delay)
				require.True(t, recordOf(t, b).Suspect())
				requireState(t, infuse.StateOpen, b)

				require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
				waited, err = waitOf(b, succeeds)
				require.NoError(t, err)
				require.LessOrEqual(t, waited, storageTimeout)
				if !strict { // there it waits for a read and a trial, which is too long
					time.Sleep(delay)
					require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
					heard.Require(t, 0, 0)
				}
			})
		})
	}
}

// 1,000 goroutines fail at once at a storage that hangs: each
// waits once, a few dozen of them behind the storage, and nothing is left of
// them when it is back.
func TestAThousandFailuresAtOnceWaitOnceBehindAStorageThatHangs(t *testing.T) {
	for _, circuits := range []int{1, 1000} {
		t.Run(fmt.Sprintf("%d circuits", circuits), func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				breakers := startGroup(t, circuits, infuse.Config{FailMax: 5000, Storage: r})
				r.suffer(r.hang)
				defer r.recover()
				var all sync.WaitGroup
				var worst atomic.Int64
				for i := range 1000 {
					all.Go(func() {
						waited, err := waitOf(breakers[i%circuits], fails)
						assert.Equal(t, errUnhealthy, err)
						for seen := worst.Load(); int64(waited) > seen && !worst.CompareAndSwap(seen, int64(waited)); seen = worst.Load() {
						}
					})
				}
				all.Wait()
				require.LessOrEqual(t, time.Duration(worst.Load()), storageTimeout)
				time.Sleep(time.Hour)
				now, most := r.underWay()
				t.Logf("worst extra wait %v, at most %d requests under way, %d after an hour", time.Duration(worst.Load()), most, now)
				require.LessOrEqual(t, most, 100, "64 places, and the probes of an hour")

				r.recover()
				time.Sleep(time.Minute)
				now, _ = r.underWay()
				require.Zero(t, now)
				failures := 0
				for _, b := range breakers {
					failures += recordOf(t, b).Failures
				}
				require.Equal(t, 1000, failures, "the storage hears of every one, once")
			})
		})
	}
}

// A caller that loses interest does not keep the storage from hearing what its
// call has found out, and does not make it a storage that is away.
func TestACancelledCallStillReports(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{
			FailMax: 2, Storage: r, Listeners: []*infuse.Listener{heard.Listener()},
			Classify: func(_ context.Context, err error) infuse.Outcome {
				if err != nil {
					return infuse.OutcomeFailure
				}
				return infuse.OutcomeSuccess
			},
		})
		r.suffer(func() error {
			time.Sleep(storageTimeout / 2)
			return nil
		})
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			require.Equal(t, errUnhealthy, b.Call(ctx, func(context.Context) error {
				cancel()
				return errUnhealthy
			}))
		}
		require.True(t, recordOf(t, b).Suspect())

		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		require.NoError(t, b.Call(ctx, func(context.Context) error {
			cancel()
			return nil
		}))
		require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
		heard.Require(t, 0, 0)
	})
}

// One answer was late: its trial was given back while a call of the process ran
// all the same, and another process ran a second trial at once.
func TestALateAnswerMakesNoSecondTrial(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1, TrialTimeout: time.Hour, Storage: r})
		other := startBreaker(t, "prices", infuse.Config{Storage: r.Storage})
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		time.Sleep(time.Minute)
		r.suffer(func() error {
			r.suffer(nil) // one answer, and no more
			time.Sleep(3 * storageTimeout / 2)
			return nil
		})
		requireRejected(t, b)
		var held []infuse.Permit
		for range 1000 { // both ask all the time
			for _, asker := range []*infuse.Breaker{b, other} {
				if p, err := asker.Acquire(t.Context()); err == nil {
					held = append(held, p)
				}
			}
			require.LessOrEqual(t, len(held), 1)
			time.Sleep(time.Millisecond)
		}
		require.Len(t, held, 1)
		held[0].Done(nil)
		synctest.Wait()
		requireState(t, infuse.StateClosed, b, other)
		require.Empty(t, recordOf(t, other).Trials)
	})
}

// A trial that the storage grants when nobody waits for it any more is given
// back, so that it does not hold its place for a whole lease.
func TestATrialThatNobodyRunsIsGivenBack(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1, TrialTimeout: time.Hour, StorageDown: infuse.StorageDownReject, Storage: r})
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		time.Sleep(time.Minute)
		r.suffer(func() error {
			time.Sleep(3 * storageTimeout)
			return nil
		})
		requireRejected(t, b)
		time.Sleep(10 * storageTimeout)
		r.suffer(nil)
		time.Sleep(10 * time.Second)
		require.Empty(t, recordOf(t, b).Trials)
		require.NoError(t, b.Call(t.Context(), succeeds))
		requireState(t, infuse.StateClosed, b)
	})
}

// The storage panics when it is given back a trial that came too late: on a
// goroutine of ours, where nobody else could recover it.
func TestAStorageThatPanicsBehindACallEndsNothing(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Storage: r})
		tripFleet(t, b, startBreaker(t, "prices", infuse.Config{FailMax: 1, Storage: r.Storage}))
		time.Sleep(time.Minute)
		var asked atomic.Int32
		r.suffer(func() error {
			time.Sleep(3 * storageTimeout)
			if asked.Add(1) > 1 {
				panic("the storage is beside itself")
			}
			return nil
		})
		requireRejected(t, b)
		time.Sleep(time.Second)
		require.NoError(t, b.Call(t.Context(), succeeds), "alone")
		time.Sleep(time.Minute)
		require.Greater(t, asked.Load(), int32(1))
	})
}

// The failures that opened a local circuit while the storage was unavailable are
// reported when it is available again: they make the shared circuit suspect. The
// local circuit stays open for as long as it has left.
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
		r.suffer(isAway)
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

// A process that starts while the storage is away is protected at once, waits
// for nothing, and is shared once the storage is there.
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
		r.suffer(isAway)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		tripFleet(t, fleet, startBreaker(t, "prices", infuse.Config{FailMax: 3, Storage: r.Storage}))
		requireState(t, infuse.StateClosed, b)
		r.recover()
		time.Sleep(5 * time.Second)
		requireState(t, infuse.StateOpen, b)
		require.Equal(t, recordOf(t, fleet), recordOf(t, b))
	})
}

// silent is a storage that never tells its watchers.
type silent struct{ infuse.Storage }

func (silent) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

// Failures that did not open the circuit count once the storage is back, and
// those that the storage has counted already, though its answer came too late,
// do not count twice.
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
		r.suffer(isAway)
		time.Sleep(10 * time.Second)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		require.Equal(t, 2, failuresOf(b))
		r.recover()
		time.Sleep(5 * time.Second)
		require.Equal(t, 2, recordOf(t, b).Failures)
		require.Equal(t, 2, failuresOf(b))
	})
}

// The end of a trial that the storage granted, and then was away for, reaches
// it later.
func TestATrialThatEndsWhileCutOffIsSettledLater(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1, TrialTimeout: time.Hour, Storage: r})
		trip(t, b)
		time.Sleep(time.Minute)
		trial := requireTrial(t, b)
		r.suffer(isAway)
		trial.Done(nil)
		requireState(t, infuse.StateClosed, b)
		r.recover()
		time.Sleep(5 * time.Second)
		require.Equal(t, infuse.StateClosed, recordOf(t, b).State)
		requireState(t, infuse.StateClosed, b)
	})
}

// A hundred circuits of a process do not knock a hundred times: the pauses
// between attempts grow, differ, and are the storage's.
func TestAHundredCircuitsKnockAsOne(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		r := newRemote()
		breakers := startGroup(t, 100, infuse.Config{FailMax: 3, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}})
		r.requests()
		r.suffer(isAway)
		began := time.Now()
		for range 10 {
			for _, b := range breakers {
				_ = b.Call(t.Context(), fails)
			}
		}
		require.Len(t, r.requests(), 1, "one call found out for all")
		time.Sleep(time.Minute)
		knocks := r.requests()
		require.Less(t, len(knocks), 130, "of a minute, with a second and less between them")
		require.Greater(t, len(knocks), 40)
		var pauses []time.Duration
		different := map[time.Duration]bool{}
		for i, at := range knocks {
			pauses = append(pauses, at.Sub(began))
			different[pauses[i]] = true
			began = at
		}
		t.Logf("%d knocks in a minute, the first pauses: %v", len(knocks), pauses[:8])
		require.Less(t, pauses[0], 100*time.Millisecond)
		require.Greater(t, pauses[len(pauses)-1], 400*time.Millisecond)
		require.Greater(t, len(different), len(pauses)/2, "jittered")

		heard.Require(t, 1, 0)
		r.recover()
		time.Sleep(5 * time.Second)
		heard.Require(t, 1, 1)
		for _, b := range breakers {
			require.True(t, recordOf(t, b).Suspect())
		}
	})
}

// A storage that is away and back again and again is knocked at less and less
// eagerly, until it has been calm for a while.
func TestAStorageThatComesAndGoesIsTriedLessAndLess(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1000, Storage: r})
		firstPause := func() time.Duration {
			r.suffer(isAway)
			_ = b.Call(t.Context(), fails)
			r.requests()
			began := time.Now()
			r.recover()
			time.Sleep(2 * time.Second)
			return r.requests()[0].Sub(began)
		}
		require.LessOrEqual(t, firstPause(), 76*time.Millisecond)
		for range 6 {
			firstPause()
		}
		require.GreaterOrEqual(t, firstPause(), 500*time.Millisecond)
		time.Sleep(time.Minute)
		require.LessOrEqual(t, firstPause(), 76*time.Millisecond)
	})
}

// full is a storage that reads, but takes changes only when it is told to.
type full struct {
	infuse.Storage
	change func(apply func() error) error
}

func (f *full) Apply(ctx context.Context, circuit string, c infuse.Change) (r infuse.Record, v infuse.Verdict, err error) {
	err = f.change(func() (err error) {
		r, v, err = f.Storage.Apply(ctx, circuit, c)
		return err
	})
	return r, v, err
}

// The answer to a change that was made before the storage was full came after
// that was known, and all circuits went up and down once more.
func TestAnAnswerFromBeforeIsNoSignOfRecovery(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var away stateLog
		storage := &full{Storage: infuse.NewMemoryStorage()}
		breakers := startGroup(t, 3, infuse.Config{Storage: storage, Listeners: []*infuse.Listener{{
			StorageUnavailable: func(error) { away.Add("unavailable") },
			StorageAvailable:   func(time.Duration) { away.Add("available") },
		}}})
		answers := make(chan struct{})
		storage.change = func(apply func() error) error {
			defer func() { <-answers }()
			return apply()
		}
		go func() { _ = breakers[0].Call(t.Context(), fails) }()
		synctest.Wait()
		storage.change = func(func() error) error { return errAway }
		_ = breakers[1].Call(t.Context(), fails)
		close(answers)
		time.Sleep(time.Second) // it answers reads
		for range 3 {
			_ = breakers[0].Call(t.Context(), fails)
			time.Sleep(time.Second)
		}
		require.Equal(t, []string{"unavailable"}, away.All(), "it refuses changes")
	})
}

func TestTheLogHasTheBeginningAndTheEndOfAnOutage(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{
			Storage:   r,
			Listeners: []*infuse.Listener{infuse.LogListener(slog.New(slog.NewTextHandler(&log, nil)))},
		})
		r.suffer(isAway)
		for range 3 {
			_ = b.Call(t.Context(), fails)
		}
		time.Sleep(10 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		b.Stop()
		synctest.Wait() // listeners of a storage are called in the background
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Len(t, lines, 2, log.String())
		for i, text := range []string{"storage unavailable, using local circuits", "storage available, using shared circuits"} {
			require.Contains(t, lines[i], text)
		}
		require.Contains(t, lines[0], errAway.Error())
	})
}

// A record that cannot be read is that circuit's trouble alone.
func TestARecordThatCannotBeReadIsNotTheStoragesTrouble(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		var warnings stateLog
		r := newRemote()
		good := startBreaker(t, "good", infuse.Config{FailMax: 2, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}})
		bad := startBreaker(t, "bad", infuse.Config{FailMax: 2, Storage: r, Listeners: []*infuse.Listener{heard.Listener(), {
			Warning: func(_ *infuse.Breaker, err error) { warnings.Add(err.Error()) },
		}}})
		r.suffer(func() error { return &infuse.RecordError{Circuit: "bad", Reason: "is garbage"} })
		trip(t, bad)
		r.recover()
		trip(t, good)
		time.Sleep(5 * time.Second)
		heard.Require(t, 0, 0)
		require.Equal(t, []string{`infuse: the record of circuit "bad" is garbage`}, warnings.All())
		require.True(t, recordOf(t, bad).Suspect())
	})
}

// Stopping breakers while the storage is away, the one that knocks among them,
// leaves the others with one that does, and in the end nobody.
func TestBreakersMayStopWhileTheStorageIsAway(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		first := startBreaker(t, "first", infuse.Config{FailMax: 1, Storage: r})
		second := startBreaker(t, "second", infuse.Config{FailMax: 1, Storage: r})
		r.suffer(isAway)
		trip(t, first)
		trip(t, second)
		first.Stop()
		time.Sleep(10 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		require.True(t, recordOf(t, second).Suspect())
		r.suffer(isAway)
		_, err := second.Record(t.Context())
		require.ErrorIs(t, err, errAway)
		second.Stop()
		r.requests()
		time.Sleep(time.Minute)
		require.Empty(t, r.requests())
	})
}
