package infuse

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The slot of a trial that was ignored stayed taken for TrialTimeout, while the
// storage was unavailable.
func TestAnIgnoredTrialOfADetachedProcessFreesItsSlot(t *testing.T) {
	s, err := newSettings(Config{ResetTimeout: time.Second, TrialTimeout: time.Hour})
	require.NoError(t, err)
	r := newReplica(s, "a", true, 1)
	open, _ := Record{}.Apply(Change{Move: &Move{StateOpen}, Limits: s.limits}, noon)
	r.hasRead(open, 0, noon)
	r.lost(errors.New("no route to Redis"), noon)
	for range 2 {
		a, d := r.asked(noon.Add(time.Minute))
		require.Equal(t, admits, d)
		require.NotEmpty(t, a.trial)
		r.ended(&a, result{outcome: OutcomeIgnored}, noon.Add(time.Minute))
	}
}

// While a process is detached, the record by which it rejected calls is old: after a
// success its local circuit decides alone.
func TestASuccessOfADetachedProcessEndsTheSharedOpening(t *testing.T) {
	s, err := newSettings(Config{FailMax: 5, ResetTimeout: time.Second})
	require.NoError(t, err)
	r := newReplica(s, "a", true, 1)
	r.hasRead(Record{}, 0, noon)
	call := func(o Outcome, at time.Time) decision {
		a, d := r.asked(at)
		if d == admits {
			res := result{outcome: o}
			if o == OutcomeFailure {
				res.err, res.cause = errAttack, keepCause(errAttack)
			}
			r.ended(&a, res, at)
		}
		return d
	}
	running, _ := r.asked(noon)
	require.Equal(t, admits, call(OutcomeFailure, noon))
	open := Record{
		State: StateOpen, Generation: noon.UnixMilli(), SuspectAt: noon, DueAt: noon.Add(time.Second), Threshold: 5, Score: 10,
	}
	r.observed(open, noon)
	require.Equal(t, rejects, call(OutcomeFailure, noon))
	r.lost(errors.New("no route to Redis"), noon)
	require.NotNil(t, r.standIn)
	require.Equal(t, rejects, call(OutcomeFailure, noon))
	r.ended(&running, result{outcome: OutcomeSuccess}, noon) // it began before
	require.Nil(t, r.standIn)
	for range 4 {
		require.Equal(t, admits, call(OutcomeFailure, noon))
	}
}

// A Retry-After of a failure that is not reported keeps nobody waiting, and a manual
// change of long ago clears nothing in a process that starts.
func TestAFirstRecordTakesOverNoMoreThanItsEvidence(t *testing.T) {
	s, err := newSettings(Config{FailMax: 2})
	require.NoError(t, err)
	r := newReplica(s, "a", true, 1)
	r.unread(errAttack, noon)
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
