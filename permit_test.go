package infuse_test

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
	p.Done(errIll)
}

func TestAcquireAndDoneAreACallInTwoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 2})
		for i := range 2 {
			p, err := b.Acquire(t.Context())
			require.NoError(t, err)
			p.Done(errIll)
			require.Equal(t, i+1, b.Failures())
		}
		p, err := b.Acquire(t.Context())
		require.ErrorIs(t, err, infuse.ErrOpen)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, errIll, rejection.Cause)
		p.Done(errIll) // that of a rejection is settled
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
	require.Zero(t, b.Failures())
}

// Whatever becomes of its copies, a permit counts once, also when the place
// that it is kept in has gone to another permit.
func TestAPermitCountsOnce(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1_000_000})
	var settled []infuse.Permit
	for i := range 100 {
		p, err := b.Acquire(t.Context())
		require.NoError(t, err)
		copied := p
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { copied.Done(errIll) })
		}
		p.Done(errIll)
		all.Wait()
		for _, old := range settled {
			old.Done(nil) // would clear the failures
		}
		require.Equal(t, i+1, b.Failures())
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
