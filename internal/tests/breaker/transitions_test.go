package breaker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// However many breakers move a circuit at once, and however slow a listener
// is, every breaker's listener hears a chain: from where the last one led to.
// R43.
func TestTransitionsFormAChainUnderConcurrentMoves(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			var chains [3]stateLog
			var fleet []*infuse.Breaker
			for i := range chains {
				slow := &infuse.Listener{StateChange: func(*infuse.Breaker, infuse.Transition) { runtime.Gosched() }}
				fleet = append(fleet, startBreaker(t, "prices", patiently(infuse.Config{
					Storage: storage, Listeners: []*infuse.Listener{slow, chains[i].Listener()},
				})))
			}
			var all sync.WaitGroup
			for _, b := range fleet {
				all.Go(func() {
					for range 30 {
						_, _, _ = b.SetState(context.Background(), infuse.StateOpen), b.SetState(context.Background(), infuse.StateHalfOpen), b.SetState(context.Background(), infuse.StateClosed)
					}
				})
			}
			all.Wait()
			require.NoError(t, fleet[0].SetState(context.Background(), infuse.StateOpen))
			for i := range chains {
				require.Eventually(t, func() bool {
					return strings.HasSuffix(strings.Join(chains[i].All(), " "), ">open") && fleet[i].State() == infuse.StateOpen
				}, patience, pace)
				at := "closed"
				for _, event := range chains[i].All() {
					from, to, _ := strings.Cut(event, ">")
					require.Equal(t, at, from)
					require.NotEqual(t, from, to)
					at = to
				}
				require.Equal(t, "open", at)
			}
		})
	}
}

// The call that tripped the circuit returned "open" in place of
// what had happened to it.
// R8.
func TestRejectionsCarryTheErrorOfTheTrip(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 2, ResetTimeout: time.Hour})
	first, last := fmt.Errorf("first: %w", errUnhealthy), fmt.Errorf("last: %w", errUnhealthy)
	require.Equal(t, first, b.Call(t.Context(), func(context.Context) error { return first }))
	require.Equal(t, last, b.Call(t.Context(), func(context.Context) error { return last }))

	rejection := requireRejected(t, b)
	require.EqualError(t, rejection.Cause, last.Error())
	require.ErrorIs(t, rejection.Cause, errUnhealthy)
	require.NotErrorIs(t, rejection, errUnhealthy, "a rejection is not the failure")
	require.Equal(t, "prices", rejection.Circuit)
	require.Equal(t, infuse.StateOpen, rejection.State)
	require.EqualError(t, rejection, `infuse: circuit "prices" is open`)
	require.NotContains(t, rejection.Error(), last.Error(), "clients match on words of an error")
}

// heavyError holds on to what a call worked with.
type heavyError struct{ request *[1 << 20]byte }

func (e *heavyError) Error() string { return "heavy" }

func (e *heavyError) Unwrap() error { return errUnhealthy }

// As long as the circuit was open, it kept alive the request that
// had opened it, with its body.
func TestAnOpenCircuitKeepsNoRequestAlive(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1, ResetTimeout: time.Hour})
	var request weak.Pointer[[1 << 20]byte]
	func() {
		err := &heavyError{new([1 << 20]byte)}
		request = weak.Make(err.request)
		require.Equal(t, error(err), b.Call(t.Context(), func(context.Context) error { return err }))
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		return request.Value() == nil
	}, patience, pace)
	rejection := requireRejected(t, b)
	require.EqualError(t, rejection.Cause, "heavy")
	require.ErrorIs(t, rejection.Cause, errUnhealthy)
}

// What opened the circuit for the fleet is known to all, and to the process that
// met it as the error itself.
func TestACauseIsKnownToTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{FailMax: 2, Storage: infuse.NewMemoryStorage(), Instance: "web-1"}
		b := startBreaker(t, "prices", cfg)
		cfg.Instance = "web-2"
		other, third := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)
		trip(t, b)
		rejection := requireRejected(t, b)
		require.True(t, rejection.Local)
		require.Equal(t, errUnhealthy, rejection.Cause)
		requireState(t, infuse.StateClosed, other)

		passSuspicion()
		trip(t, third)
		synctest.Wait()
		requireState(t, infuse.StateClosed, other)
		another := errors.New("another error")
		require.Equal(t, another, other.Call(t.Context(), func(context.Context) error { return another }))
		for _, rejection := range []*infuse.OpenError{requireRejected(t, b), requireRejected(t, other)} {
			require.False(t, rejection.Local)
			require.Equal(t, "web-1", rejection.By)
			require.EqualError(t, rejection.Cause, errUnhealthy.Error())
		}
		require.Equal(t, errUnhealthy, requireRejected(t, b).Cause)
		require.NotErrorIs(t, requireRejected(t, other).Cause, errUnhealthy, "another process has but its text")

		time.Sleep(time.Minute)
		require.NoError(t, b.Call(t.Context(), succeeds))
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		require.NoError(t, requireRejected(t, b).Cause, "opened manually")
		require.NoError(t, requireRejected(t, other).Cause)
	})
}

// A rejection named an error of last week that a success had cleared since, and
// that had opened nothing.
func TestTheCauseIsNotAnOldUnrelatedError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := infuse.Config{Storage: infuse.NewMemoryStorage()}
		a, b := startBreaker(t, "prices", cfg), startBreaker(t, "prices", cfg)
		old := errors.New("the old error of a")
		require.Equal(t, old, a.Call(t.Context(), func(context.Context) error { return old }))
		require.NoError(t, a.Call(t.Context(), succeeds))
		synctest.Wait() // a success is reported aside
		tripFleet(t, b, startBreaker(t, "prices", cfg))
		synctest.Wait()
		require.Equal(t, old, a.Call(t.Context(), func(context.Context) error { return old }))
		require.EqualError(t, requireRejected(t, a).Cause, errUnhealthy.Error())

		require.NoError(t, a.SetState(t.Context(), infuse.StateClosed))
		require.Equal(t, old, a.Call(t.Context(), func(context.Context) error { return old }))
		require.NoError(t, a.Call(t.Context(), succeeds))
		synctest.Wait()
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		synctest.Wait()
		require.NoError(t, requireRejected(t, a).Cause, "a manual change has none")
	})
}

// The comment named ECONNREFUSED as what a cause keeps, and the code lost it:
// an Errno's kind is Uintptr.
func TestTheCauseKeepsTheErrno(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	require.Equal(t, error(refused), b.Call(t.Context(), func(context.Context) error { return refused }))
	cause := requireRejected(t, b).Cause
	require.ErrorIs(t, cause, syscall.ECONNREFUSED)
	require.EqualError(t, cause, refused.Error())
	var kept *net.OpError
	require.NotErrorAs(t, cause, &kept, "what may hold a connection is not kept")
}

// Retry policies tried an open circuit again and again, each by its own rules.
func TestARejectionIsNotRetryable(t *testing.T) {
	b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
	trip(t, b)
	rejection := requireRejected(t, b)
	require.ErrorIs(t, fmt.Errorf("loading the prices: %w", rejection), infuse.ErrOpen)

	var aws interface{ RetryableError() bool } // as the AWS SDK for Go asks
	require.ErrorAs(t, error(rejection), &aws)
	require.False(t, aws.RetryableError())
	var azure interface{ NonRetriable() } // as the Azure SDK for Go asks
	require.ErrorAs(t, error(rejection), &azure)
}

func TestLogListenerLogsTransitions(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	b := startBreaker(t, "prices", infuse.Config{FailMax: 2, Instance: "web-1", Listeners: []*infuse.Listener{infuse.LogListener(logger)}})
	trip(t, b)
	require.NoError(t, b.SetState(t.Context(), infuse.StateHalfOpen))
	require.NoError(t, b.Call(t.Context(), succeeds))
	require.Equal(t, `level=WARN msg="circuit state changed" circuit=prices from=closed to=open local=true origin=web-1 cause="the service is unhealthy"
level=INFO msg="circuit state changed" circuit=prices from=open to=half-open local=true origin=web-1 cause=""
level=INFO msg="circuit state changed" circuit=prices from=half-open to=closed local=true origin=web-1 cause=""
`, out.String())
}
