package link_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Late answers, with real breakers on a storage that answers late, is unavailable,
// or whose clock is set back.

// slowStorage is a storage of one circuit with a clock of its own.
type slowStorage struct {
	late        atomic.Pointer[func(infuse.Change) time.Duration] // how long the answer to a change takes; nil: no time
	unavailable atomic.Bool
	changes     atomic.Int64

	mu       sync.Mutex
	ahead    time.Duration // of its clock
	record   infuse.Record
	written  time.Time
	watchers []func(infuse.Record)
}

// moved returns a record whose times are as far from one clock's time as they were
// from the other's.
func moved(r infuse.Record, from, to time.Time) infuse.Record {
	r, err := infuse.ParseRecord(infuse.AppendRecord(nil, r, from), to)
	if err != nil {
		panic(err)
	}
	return r
}

func (s *slowStorage) answers(late func(infuse.Change) time.Duration) { s.late.Store(&late) }

func (s *slowStorage) setClock(ahead time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = ahead
}

// kept returns the record and the storage's time. As in Redis, a clock that is set
// back prolongs nothing. s.mu is held.
func (s *slowStorage) kept() (infuse.Record, time.Time) {
	now := time.Now().Add(s.ahead)
	if now.Before(s.written) {
		return moved(s.record, s.written, now), now
	}
	return s.record, now
}

func (s *slowStorage) Load(context.Context, string) (infuse.Record, error) {
	if s.unavailable.Load() {
		return infuse.Record{}, errTroubled
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, now := s.kept()
	return moved(r.At(now), now, time.Now()), nil
}

func (s *slowStorage) Apply(_ context.Context, _ string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if s.unavailable.Load() {
		return infuse.Record{}, infuse.VerdictRefused, errTroubled
	}
	s.changes.Add(1)
	answer, verdict := s.apply(c)
	if late := s.late.Load(); late != nil {
		time.Sleep((*late)(c))
	}
	return answer, verdict, nil
}

func (s *slowStorage) apply(c infuse.Change) (infuse.Record, infuse.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, now := s.kept()
	c.Seen = moved(c.Seen, time.Now(), now)
	next, verdict := r.Apply(c, now)
	if verdict != infuse.VerdictRefused {
		s.record, s.written = next, now
	}
	answer := moved(next, now, time.Now())
	if verdict == infuse.VerdictChanged {
		for _, watcher := range s.watchers {
			go watcher(moved(answer, now, now))
		}
	}
	return answer, verdict
}

func (s *slowStorage) Watch(_ string, watcher func(infuse.Record)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, watcher)
	return func() {}
}

func failuresAreAnsweredLate(c infuse.Change) time.Duration {
	if c.Calls.Failures > 0 {
		return 60 * time.Millisecond
	}
	return 0
}

// twoOnSlowStorage returns two processes, of which the second has reported a
// failure. One more makes the circuit suspect.
func twoOnSlowStorage(t *testing.T, ahead time.Duration) (s *slowStorage, one, two *infuse.Breaker) {
	s = &slowStorage{}
	cfg := infuse.Config{FailMax: 2, Storage: s}
	one, two = startBreaker(t, "service", cfg), startBreaker(t, "service", cfg)
	require.NoError(t, two.SetState(t.Context(), infuse.StateClosed))
	synctest.Wait()
	s.setClock(ahead)
	require.Error(t, callOf(two, true))
	s.answers(failuresAreAnsweredLate)
	return s, one, two
}

// suspectBy has one process make the circuit suspect. The answer to it is late.
func suspectBy(t *testing.T, s *slowStorage, one *infuse.Breaker) {
	go func() { _ = callOf(one, true) }()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.True(t, s.record.Suspect())
}

// The late answer to the report that made a circuit suspect undid a manual
// change made meanwhile.
// R32.
func TestALateAnswerDoesNotUndoAManualChange(t *testing.T) {
	for _, to := range []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen} {
		for _, ahead := range []time.Duration{0, -10 * time.Second} { // behind: generations do not follow its time
			synctest.Test(t, func(t *testing.T) {
				s, one, two := twoOnSlowStorage(t, ahead)
				suspectBy(t, s, one)
				require.NoError(t, two.SetState(t.Context(), to))
				time.Sleep(time.Second)
				synctest.Wait()
				rec, err := one.Record(t.Context())
				require.NoError(t, err)
				require.Equal(t, to, rec.State)
				require.Equal(t, to, one.State())
				require.Equal(t, to, two.State())
				if to != infuse.StateOpen {
					require.NoError(t, callOf(one, false))
				}
			})
		}
	}
}

// The same, with an override.
// R33.
func TestALateAnswerDoesNotForgetAnOverride(t *testing.T) {
	for _, to := range []infuse.State{infuse.StateClosed, infuse.StateOpen} {
		synctest.Test(t, func(t *testing.T) {
			s, one, two := twoOnSlowStorage(t, 0)
			suspectBy(t, s, one)
			require.NoError(t, two.Override(t.Context(), infuse.Override{State: to, By: "ann", Reason: "maintenance"}))
			time.Sleep(time.Second)
			synctest.Wait()
			for _, b := range []*infuse.Breaker{one, two} {
				require.NotNil(t, b.Stats().Override)
				require.Equal(t, to, b.State())
			}
		})
	}
}

// A stopped breaker dropped every wake-up, and rejected for good.
// R46.
func TestAStoppedBreakerIsReadyForATrialWithoutItsStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStorage{}
		b := startBreaker(t, "service", infuse.Config{FailMax: 2, Storage: s, ResetTimeout: time.Second})
		b.Stop()
		s.unavailable.Store(true)
		for range 2 {
			require.Error(t, callOf(b, true))
		}
		require.Equal(t, infuse.StateOpen, b.State())
		time.Sleep(time.Second)
		synctest.Wait()
		require.NoError(t, callOf(b, false))
		require.Equal(t, infuse.StateClosed, b.State())
	})
}

// A process sent changes without a pause, to end a trial that had outlived its
// lease on a storage whose clock was set back.
// R26.
func TestATrialThatOutlivesItsLeaseIsSettledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStorage{}
		s.answers(func(infuse.Change) time.Duration { return time.Millisecond })
		b := startBreaker(t, "service", infuse.Config{FailMax: 2, Storage: s, ResetTimeout: time.Second, TrialTimeout: 30 * time.Second})
		require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(30 * time.Second) // the lease ends
		s.setClock(-10 * time.Second)
		before := s.changes.Load()
		p.Done(nil)
		time.Sleep(time.Minute)
		require.LessOrEqual(t, s.changes.Load()-before, int64(2))
	})
}

// State was half-open while the local circuit was open.
// R28.
func TestStateIsOpenWhileTheLocalCircuitIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStorage{}
		one := startBreaker(t, "service", infuse.Config{FailMax: 2, Storage: s, ResetTimeout: time.Minute})
		two := startBreaker(t, "service", infuse.Config{FailMax: 2, Storage: s, ResetTimeout: time.Second})
		require.Error(t, callOf(two, true))
		require.Error(t, callOf(two, true)) // its local circuit opens, and the shared one is suspect
		time.Sleep(100 * time.Millisecond)
		require.Error(t, callOf(one, true))
		require.Error(t, callOf(one, true))
		require.Equal(t, infuse.StateOpen, one.State())
		require.Equal(t, infuse.StateOpen, two.State())
		time.Sleep(time.Second)
		p, err := two.Acquire(t.Context()) // the trial of two
		require.NoError(t, err)
		synctest.Wait()
		stats := one.Stats()
		require.Equal(t, infuse.StateHalfOpen, stats.Shared.State)
		require.Equal(t, infuse.StateOpen, stats.Local.State)
		require.Equal(t, infuse.StateOpen, one.State())
		p.Done(nil)
		synctest.Wait()
		require.Equal(t, infuse.StateClosed, one.State(), "a trial closes it for all")
	})
}

// A late answer of the known generation brought back older counts: a process
// forgot its own failure, and did not report the successes that end the streak.
func TestALateAnswerBringsBackNoOlderCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStorage{}
		b := startBreaker(t, "service", infuse.Config{FailMax: 5, Storage: s})
		require.Error(t, callOf(b, true))
		var sent atomic.Bool
		s.answers(func(c infuse.Change) time.Duration {
			if c.Calls.Successes > 0 && sent.CompareAndSwap(false, true) {
				return 600 * time.Millisecond
			}
			return 0
		})
		require.NoError(t, callOf(b, false))
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, b.Stats().StorageErr, "the repeated report was answered")
		require.Error(t, callOf(b, true))
		require.Equal(t, 1, failuresOf(b))
		time.Sleep(200 * time.Millisecond) // the late answer comes
		for range 100 {
			require.NoError(t, callOf(b, false))
			time.Sleep(time.Millisecond)
		}
		rec, err := b.Record(t.Context())
		require.NoError(t, err)
		require.Zero(t, rec.Failures)
	})
}
