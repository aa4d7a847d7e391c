package transport_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

func TestATrialEndsAtTheHeaders(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		goOn := make(chan struct{})
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/download" {
				sendHalf(w)
				<-goOn
				panic(http.ErrAbortHandler)
			}
		})
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))

		download, err := c.Get(s.URL + "/download")
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		_, err = c.get()
		require.NoError(t, err, "a long download holds nobody back")

		close(goOn)
		text, err := readAll(download)
		require.Error(t, err)
		require.Equal(t, "half", text)
		require.Equal(t, 1, failuresOf(c.breaker), "that it was truncated is known, too")
	})
}

func TestACancelledTrialFreesItsSlot(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startWebClient(t, s, infuse.Config{TrialTimeout: time.Hour})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			assert.Eventually(t, func() bool { return s.calls.Load() == 1 }, patience, pace)
			cancel()
		}()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.ErrorIs(t, err, context.Canceled)
		requireState(t, infuse.StateHalfOpen, c.breaker)

		s.does(answers(http.StatusOK, "well"))
		_, err = c.get()
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
	})
}

// As long as more trials are needed, each is judged by its headers alone: its
// body may end when others have been judged.
func TestEveryTrialOfManyEndsAtTheHeaders(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(truncates)
		c := startWebClient(t, s, infuse.Config{SuccessThreshold: 3})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		for range 2 {
			_, err := c.get()
			require.Error(t, err)
			require.NotErrorIs(t, err, infuse.ErrOpen)
			requireState(t, infuse.StateHalfOpen, c.breaker)
		}
		_, err := c.get()
		require.Error(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, 1, failuresOf(c.breaker), "the body after the last trial")
	})
}

func TestOneTrialOfManyRequestsRuns(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		arrived, goOn := make(chan struct{}), make(chan struct{})
		s.does(func(http.ResponseWriter, *http.Request) {
			close(arrived) // a second one would panic
			<-goOn
		})
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		trial := make(chan error)
		go func() {
			_, err := c.get()
			trial <- err
		}()
		<-arrived
		for range 20 {
			_, err := c.get()
			require.ErrorIs(t, err, infuse.ErrOpen)
		}
		close(goOn)
		require.NoError(t, <-trial)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, int64(1), s.calls.Load())
	})
}

// The recipe of docs/http.md: a service, as it starts, has its callers try it at
// once, instead of waiting out the reset timeout.
func TestAServiceThatStartsAnnouncesItself(t *testing.T) {
	redis := redistest.Start(t)
	overBoth(t, func(t *testing.T, s *webServer) {
		cfg := patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour})
		cfg.Storage = host(t, redis)
		caller := startWebClient(t, s, cfg)
		s.does(answers(http.StatusBadGateway, "failed"))
		_, err := caller.get()
		require.NoError(t, err)
		_, err = caller.get()
		require.ErrorIs(t, err, infuse.ErrOpen)

		s.does(answers(http.StatusOK, "well")) // deployed again, in a process of its own
		require.NoError(t, infuse.Announce(t.Context(), host(t, redis), s.circuit(), infuse.StateHalfOpen))
		require.Eventually(t, func() bool {
			text, err := caller.get()
			return err == nil && text == "well"
		}, patience, pace)
		requireState(t, infuse.StateClosed, caller.breaker)
	})
}
