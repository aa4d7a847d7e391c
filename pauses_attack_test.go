package infuse

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What an opening by time must withstand that nothing has acted on yet. Each
// test tells a way in which an outcome that is no news of before the opening
// closed a circuit whose service was down.

// knowing is a change with outcomes of a sender that knows the record seen.
func knowing(seen Record, limits Limits, outcomes string) Change {
	c := calls(limits, outcomes)
	c.Seen = seen
	return c
}

// A process sent a success, lost the storage, and was answered half an hour
// later: the success closed the circuit of a service that was down by then.
func TestASuccessOfBeforeTheSuspicionDoesNotCloseAnOpening(t *testing.T) {
	row := Record{}.then(calls(asking, "f"), noon)
	kept := knowing(row, asking, "s") // under way from here on

	const later = 30 * 60_000
	suspect := row.then(calls(asking, "ffff"), after(later))
	require.True(t, suspect.suspect())
	opens := suspect.OpensAt
	require.Equal(t, StateOpen, suspect.At(opens.Add(20*time.Second)).State)
	next, _ := suspect.Apply(kept, opens.Add(20*time.Second))
	require.Equal(t, StateOpen, next.At(opens.Add(20*time.Second)).State)
}

// A process that the storage had lost before the suspicion, and that reaches the
// service on another way, brought all that it had seen since the opening.
func TestWhatAProcessThatMissedTheSuspicionSawAfterTheOpeningDoesNotCloseIt(t *testing.T) {
	row := Record{}.then(calls(asking, "f"), noon)
	r := withDefaults(t)
	r.observed(row, noon)
	r.hasRead(row, r.news, noon)
	r.lost(errStorageTimeout, after(10))

	suspect := row.then(calls(asking, "ffff"), after(100))
	require.Equal(t, StateOpen, suspect.At(after(1000)).State)
	a := r.admission("", after(10_000))
	for range 100 {
		r.ended(&a, result{}, after(10_001))
	}
	r.back()
	for again := r.outgoing(after(20_000)); again != nil; again = r.outgoing(after(20_000)) {
		next, _ := suspect.Apply(*again, after(20_000))
		require.Equal(t, StateOpen, next.At(after(20_000)).State, "%+v", again.Calls)
		r.answered(again, next, after(20_000))
	}
}

// The same, where the message of the suspicion was lost: the process calls on
// until it hears of the opening.
func TestASuccessAfterTheOpeningDoesNotCloseIt(t *testing.T) {
	row := Record{}.then(calls(asking, "f"), noon)
	r := withDefaults(t)
	r.observed(row, noon)
	r.hasRead(row, r.news, noon)

	suspect := row.then(calls(asking, "ffff"), after(1)) // and nobody tells this process
	at := after(1000)
	require.Equal(t, StateOpen, suspect.At(at).State)
	a := r.admission("", at)
	r.ended(&a, result{}, at)
	told := r.outgoing(at)
	require.NotNil(t, told)
	next, _ := suspect.Apply(*told, at)
	require.Equal(t, StateOpen, next.At(at).State)
}

// A process that was stopped while the fleet was asked told what it had held
// back a minute later.
func TestAProcessThatWasStoppedDoesNotCloseAnOpening(t *testing.T) {
	r, suspect := suspicious(t)
	r.hasRead(suspect, r.news, noon)
	a := r.admission("", after(1))
	for range 2 {
		r.ended(&a, result{}, after(1))
	}
	require.Nil(t, r.outgoing(after(1)), "a few are enough: it holds them back")
	woken := after(50_000)
	told := r.outgoing(woken)
	require.NotNil(t, told)
	next, _ := suspect.Apply(*told, woken)
	require.Equal(t, StateOpen, next.At(woken).State, "%+v", told.Calls)
}

// The suspicion that a sender has seen may be an earlier one. What comes late was
// judged as of the end of that: it wiped the window of the present one.
func TestAnEarlierSuspicionDoesNotDateWhatComesLate(t *testing.T) {
	limits := asking
	limits.FailMax, limits.FailureRate, limits.MinCalls, limits.Window = unlimited, 0.5, 10, 10*time.Second
	counted := func(at time.Time, calls, failures int) Change {
		return Change{Limits: limits, Counted: []Bucket{{Start: at, Calls: calls, Failures: failures}}}
	}
	first := Record{}.then(counted(noon, 10, 10), noon)
	require.True(t, first.rated())
	kept := counted(after(1000), 1, 1) // under way from here on
	kept.Seen = first

	refuted := first.then(counted(after(2000), 100, 0), after(2000))
	require.False(t, refuted.suspect())
	second := refuted.then(counted(after(60_000), 100, 100), after(60_000))
	require.True(t, second.rated())
	at := second.OpensAt.Add(time.Second)
	require.Equal(t, StateOpen, second.At(at).State)
	next, _ := second.Apply(kept, at)
	require.Equal(t, StateOpen, next.At(at).State, "a failure of an earlier suspicion closed it: %+v", next)
}

// An operator closed the circuit. A storage that fell back to what it had before
// that is put right by whoever knows, as a storage that fell back to an opening is.
func TestAStorageThatFellBackToASuspicionIsPutRight(t *testing.T) {
	suspect := Record{}.then(calls(asking, "fffff"), noon)
	shut := suspect.then(Change{Move: &Move{StateClosed}, Limits: asking}, after(5000))
	require.Equal(t, StateClosed, shut.State)

	opened := suspect.At(after(6000))
	next, _ := opened.Apply(Change{Seen: shut, Limits: asking}, after(6000))
	require.Equal(t, StateClosed, next.At(after(6000)).State, "fallen back to the opening")

	next, _ = suspect.Apply(Change{Seen: shut, Limits: asking}, after(6000))
	require.Equal(t, StateClosed, next.At(after(6000)).State, "fallen back to the suspicion")
}

// What a storage forgot while the fleet was asked was put back as an opening.
func TestACheckDoesNotOpenWhatTheStorageForgot(t *testing.T) {
	idle, suspect := suspicious(t)

	forgot := Record{} // and all others see successes since
	others := knowing(suspect, asking, "ssss")
	forgot, _ = forgot.Apply(others, after(20))
	require.Equal(t, StateClosed, forgot.State)
	at := idle.wakeAt(after(51))
	check := idle.outgoing(at)
	require.NotNil(t, check)
	next, _ := forgot.Apply(*check, at)
	require.Equal(t, StateClosed, next.State)
}

// A check that is due keeps back another: a storage that forgot during a long
// suspicion was not asked before that was over.
func TestAnOlderRecordIsLookedIntoSoonWhileTheFleetIsAsked(t *testing.T) {
	suspect := Record{}.then(calls(asking, "f"), noon).then(calls(asking, "ffff"), after(8000))
	require.Equal(t, after(32_000), suspect.OpensAt)
	r := withDefaults(t)
	r.observed(suspect, after(8000))
	r.observed(Record{}, after(9000))
	require.NotNil(t, r.outgoing(after(9000+100)))
}

// The same record once more cancels the check.
func TestTheSameRecordAgainDoesNotCancelACheck(t *testing.T) {
	r, suspect := suspicious(t)
	r.observed(suspect, after(51))
	require.NotNil(t, r.outgoing(after(50).Add(checkWithin)))
}
