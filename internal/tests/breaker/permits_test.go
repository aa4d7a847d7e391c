package breaker_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

func TestTheZeroPermitIsSettled(t *testing.T) {
	var p infuse.Permit
	p.Done(nil)
	p.Done(errUnhealthy)
}

func TestAcquireAndDoneAreACallInTwoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 2})
		for i := range 2 {
			p, err := b.Acquire(t.Context())
			require.NoError(t, err)
			p.Done(errUnhealthy)
			require.Equal(t, i+1, failuresOf(b))
		}
		p, err := b.Acquire(t.Context())
		require.ErrorIs(t, err, infuse.ErrOpen)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, errUnhealthy, rejection.Cause)
		p.Done(errUnhealthy) // that of a rejection is settled
		waitUntilDue(t, b)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

func TestDoneClassifiesByTheContextOfAcquire(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	p, err := b.Acquire(ctx)
	require.NoError(t, err)
	cancel()
	p.Done(ctx.Err())
	require.Zero(t, failuresOf(b))
}

// Whatever becomes of its copies, a permit counts once, also when the place
// that it is kept in has gone to another permit.
// R3.
func TestAPermitCountsOnce(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1_000_000})
	var settled []infuse.Permit
	for i := range 100 {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		copied := p
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { copied.Done(errUnhealthy) })
		}
		p.Done(errUnhealthy)
		all.Wait()
		for _, old := range settled {
			old.Done(nil) // would clear the failures
		}
		require.Equal(t, i+1, failuresOf(b))
		settled = append(settled, p)
	}
}

func TestAPermitThatIsNeverSettledHoldsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{TrialTimeout: time.Second})
		for range 1000 {
			_, err := b.Acquire(t.Context())
			require.NoError(t, err)
		}
		require.NoError(t, b.Call(t.Context(), succeeds))
		trip(t, b)
		waitUntilDue(t, b)
		requireTrial(t, b)
		time.Sleep(time.Second)
		requireTrial(t, b).Done(nil)
		requireState(t, infuse.StateClosed, b)
	})
}

func TestSettleCountsTheOutcomeThatItIsGiven(t *testing.T) {
	var heard stateLog
	b := startBreaker(t, "prices", infuse.Config{FailMax: 3, Listeners: []*infuse.Listener{everyCall(&heard)}})
	settle := func(o infuse.Outcome) {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		p.Settle(o)
	}
	settle(infuse.OutcomeFailure)
	settle(infuse.OutcomeFailure)
	require.Equal(t, 2, failuresOf(b))
	settle(infuse.OutcomeIgnored)
	settle(9)
	require.Equal(t, 2, failuresOf(b), "an outcome that does not exist is not counted")
	settle(infuse.OutcomeSuccess)
	require.Zero(t, failuresOf(b))
	for range 3 {
		settle(infuse.OutcomeFailure)
	}
	requireState(t, infuse.StateOpen, b)
	require.ErrorContains(t, requireRejected(t, b).Cause, "settled as a failure")
	require.Equal(t, []string{
		"call", "failure: infuse: settled as a failure", "call", "failure: infuse: settled as a failure",
		"call", "ignored: <nil>", "call", "ignored: <nil>", "call", "success",
	}, heard.All()[:10])
}

// Settle has the last word: Classify would have called every call a failure.
func TestSettleIsInPlaceOfClassify(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{
		FailMax: 1, Classify: func(context.Context, error) infuse.Outcome { return infuse.OutcomeFailure },
	})
	p, err := b.Acquire(t.Context())
	require.NoError(t, err)
	p.Settle(infuse.OutcomeSuccess)
	requireState(t, infuse.StateClosed, b)
}

func TestAPermitIsSettledOnceByDoneOrSettle(t *testing.T) {
	var zero infuse.Permit
	zero.Settle(infuse.OutcomeFailure)

	b := startBreaker(t, "prices", infuse.Config{FailMax: 1000})
	for i := range 100 {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { p.Settle(infuse.OutcomeFailure) })
			all.Go(func() { p.Done(errUnhealthy) })
		}
		all.Wait()
		p.Settle(infuse.OutcomeSuccess) // would clear the failures
		require.Equal(t, i+1, failuresOf(b))
	}
}

func TestSettleEndsATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, storage := range []infuse.Storage{nil, infuse.NewMemoryStorage()} {
			b := startBreaker(t, "prices", infuse.Config{FailMax: 1, Storage: storage})
			trip(t, b)
			time.Sleep(time.Minute)
			requireTrial(t, b).Settle(infuse.OutcomeIgnored)
			requireState(t, infuse.StateHalfOpen, b)
			requireTrial(t, b).Settle(infuse.OutcomeFailure)
			requireState(t, infuse.StateOpen, b)
			time.Sleep(time.Minute)
			requireTrial(t, b).Settle(infuse.OutcomeSuccess)
			requireState(t, infuse.StateClosed, b)
		}
	})
}

func TestSettlingASuccessAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("sync.Pool drops things on purpose")
	}
	b := startBreaker(t, "prices", infuse.Config{Listeners: []*infuse.Listener{new(stateLog).Listener()}})
	require.Zero(t, allocations(func() {
		p, err := b.Acquire(context.Background())
		if err != nil {
			panic(err)
		}
		p.Settle(infuse.OutcomeSuccess)
	}))
}
