package infuse

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Evidence of one process is never taken for that of two, and nobody's settings
// decide for others.

// delayed is a storage whose answers take time.
type delayed struct {
	Storage
	by *atomic.Int64
}

func (s delayed) Load(ctx context.Context, circuit string) (Record, error) {
	time.Sleep(time.Duration(s.by.Load()))
	return s.Storage.Load(ctx, circuit)
}

func (s delayed) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	time.Sleep(time.Duration(s.by.Load()))
	return s.Storage.Apply(ctx, circuit, c)
}

// A process that restarted, and received the record after its next failures, opened
// the shared circuit alone.
func TestAProcessThatReadsTheRecordLateDoesNotOpenItAlone(t *testing.T) {
	for _, cfg := range []Config{{}, {FailureRate: 0.5, MinCalls: 5}} {
		for _, late := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				storage := NewMemoryStorage()
				by := new(atomic.Int64)
				cfg.Storage = delayed{storage, by}
				other := brandNew(t, "service", cfg)
				for range 4 { // its lives
					b, err := New("service", cfg)
					require.NoError(t, err)
					for range 10 {
						_ = callOf(b, true)
						time.Sleep(20 * time.Millisecond)
					}
					by.Store(0)
					time.Sleep(3 * time.Second)
					rec, err := b.Record(t.Context())
					require.NoError(t, err)
					require.Equal(t, StateClosed, rec.State, "answers take %v", late)
					require.True(t, rec.Suspect())
					require.LessOrEqual(t, rec.Score, 5)
					b.Stop()
					by.Store(int64(late))
				}
				// Those of another process do.
				by.Store(0)
				for range 10 {
					_ = callOf(other, true)
					time.Sleep(20 * time.Millisecond)
				}
				time.Sleep(3 * time.Second)
				rec, err := other.Record(t.Context())
				require.NoError(t, err)
				require.Equal(t, StateOpen, rec.State, "%+v, answers took %v", rec, late)
			})
		}
	}
}

// A process with FailMax 1 and ResetTimeout 24 h made one failure of another open
// the circuit, for as long as a Retry-After may.
func TestALowFailMaxOfOneTeamDoesNotDecideForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		low := Config{Storage: storage, FailMax: 1, ResetTimeout: 24 * time.Hour}
		one, two, three := brandNew(t, "service", low), brandNew(t, "service", low), brandNew(t, "service", low)
		other := brandNew(t, "service", Config{Storage: storage, ResetTimeout: 2 * time.Second})
		require.Error(t, callOf(one, true))
		time.Sleep(time.Second)
		require.Error(t, callOf(other, true)) // its only failure
		require.NoError(t, callOf(other, false))

		// If two of that team agree, another waits for no longer than its own settings say.
		time.Sleep(time.Second)
		require.Error(t, callOf(two, true))
		time.Sleep(time.Second)
		require.Error(t, callOf(three, true))
		require.Error(t, callOf(other, true))
		rec, err := other.Record(t.Context())
		require.NoError(t, err)
		require.Equal(t, StateOpen, rec.State)
		require.ErrorIs(t, callOf(other, false), ErrOpen)
		time.Sleep(2 * time.Second)
		require.NoError(t, callOf(other, false))
	})
}

// garbled is a storage that can be unavailable, and the record of whose circuit "bad"
// cannot be read.
type garbled struct {
	Storage
	down *atomic.Bool
}

func (s garbled) fails(circuit string) error {
	switch {
	case s.down.Load():
		return errUnavailable
	case circuit == "bad":
		return &RecordError{Circuit: circuit, Reason: "is garbage"}
	}
	return nil
}

func (s garbled) Load(ctx context.Context, circuit string) (Record, error) {
	if err := s.fails(circuit); err != nil {
		return Record{}, err
	}
	return s.Storage.Load(ctx, circuit)
}

func (s garbled) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	if err := s.fails(circuit); err != nil && (s.down.Load() || c.Move == nil) {
		return Record{}, VerdictRefused, err
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A record that cannot be read when the storage is available again is a warning of its
// circuit, a manual change replaces it, and it does not prolong the outage for others.
func TestARecordThatIsGarbageAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := new(atomic.Bool)
		var mu sync.Mutex
		var events []string
		add := func(event string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, event)
		}
		listener := &Listener{
			StorageUnavailable: func(error) { add("unavailable") },
			StorageAvailable:   func(time.Duration) { add("available") },
			Warning:            func(_ *Breaker, err error) { add(err.Error()) },
		}
		cfg := Config{Storage: garbled{NewMemoryStorage(), down}, Listeners: []*Listener{listener}}
		good := brandNew(t, "good", cfg)
		down.Store(true)
		_, err := good.Record(t.Context()) // and it has nothing to store
		require.Error(t, err)
		bad := brandNew(t, "bad", cfg)
		require.Error(t, callOf(bad, true))
		time.Sleep(10 * time.Second)
		down.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.ElementsMatch(t, []string{"unavailable", `infuse: the record of circuit "bad" is garbage`, "available"}, events)
		require.ErrorContains(t, bad.Stats().StorageErr, "is garbage")
		require.NoError(t, good.Stats().StorageErr)
		require.NoError(t, bad.SetState(t.Context(), StateClosed), "it replaces the record")
	})
}

// A Retry-After of a failure that is not reported keeps nobody waiting, and a manual
// change of long ago clears nothing in a process that starts.
func TestAFirstRecordTakesOverNoMoreThanItsEvidence(t *testing.T) {
	s, err := newSettings(Config{FailMax: 2})
	require.NoError(t, err)
	r := newReplica(s, "a", true, 1)
	r.unread(errUnavailable, noon)
	for range 2 {
		a, d := r.asked(noon)
		require.Equal(t, admits, d)
		r.ended(&a, result{outcome: OutcomeFailure, err: errAttack, cause: keepCause(errAttack), openFor: time.Hour}, noon)
	}
	require.Equal(t, StateOpen, r.local.State)
	moved := noon.Add(-time.Hour).UnixMilli()
	r.hasRead(Record{Generation: moved, Moved: moved, Failures: 1}, 0, noon)
	require.Equal(t, StateOpen, r.local.State, "its local circuit is not cleared")
	require.Zero(t, r.out.next.OpenFor)
	require.Zero(t, r.out.next.Calls.Failures)
}

// Ready and Wait do not return while another call asks for the trial.
func TestWaitDoesNotSpinWhileATrialIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		by := new(atomic.Int64)
		b := brandNew(t, "service", Config{ResetTimeout: time.Second, Storage: delayed{NewMemoryStorage(), by}})
		require.NoError(t, b.SetState(t.Context(), StateOpen))
		by.Store(int64(50 * time.Millisecond))
		time.Sleep(time.Second)
		go func() { _ = callOf(b, false) }()
		synctest.Wait()
		require.False(t, b.Ready())
		began := time.Now()
		require.NoError(t, b.Wait(t.Context()))
		require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
		require.NoError(t, callOf(b, false))
		require.Equal(t, StateClosed, b.State())
	})
}
