package link_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// One timeout a call is still an outage: a call that needs the
// storage twice has no more patience than one that needs it once, and what the
// storage is to know reaches it all the same.
// R35.
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
				require.Equal(t, 1000, failures, "the storage receives every one, once")
			})
		})
	}
}

// A caller that loses interest does not keep the storage from hearing what its
// call has found out, and does not make it a storage that is unavailable.
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
// R27.
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
// R27.
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

// A caller that had gone waited for the whole StorageTimeout, and then ran.
// R35.
func TestACancelledCallerReturnsAtOnce(t *testing.T) {
	for name, strict := range map[string]bool{"from a trial": false, "from a read": true} {
		for _, when := range []time.Duration{0, 10 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " after ", when), func(t *testing.T) {
				inFakeTime(t, func(t *testing.T) {
					var heard edges
					r := newRemote()
					cfg := infuse.Config{FailMax: 1, TrialTimeout: time.Hour, Strict: strict, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}}
					b := startBreaker(t, "prices", cfg)
					if !strict {
						require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
						time.Sleep(time.Minute)
					}
					r.requests()
					r.suffer(takes(80 * time.Millisecond))
					ctx, cancel := context.WithTimeout(t.Context(), when)
					defer cancel()
					began, ran := time.Now(), false
					err := b.Call(ctx, func(ctx context.Context) error {
						ran = true
						return ctx.Err()
					})
					require.Equal(t, when, time.Since(began))
					if strict {
						require.ErrorIs(t, err, context.DeadlineExceeded, "it is not rejected where nothing is open")
					} else {
						require.ErrorIs(t, err, infuse.ErrOpen)
						require.False(t, ran, "a trial that was not granted")
					}
					if when == 0 {
						synctest.Wait()
						require.Empty(t, r.requests(), "it asks for nothing")
					}
					time.Sleep(2 * storageTimeout) // a trial is granted, and given back
					require.NoError(t, b.Call(t.Context(), succeeds))
					requireState(t, infuse.StateClosed, b)
					require.Empty(t, recordOf(t, b).Trials)
					heard.Require(t, 0, 0)
				})
			})
		}
	}
}
