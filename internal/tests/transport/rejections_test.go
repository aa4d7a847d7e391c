package transport_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Retriers look for the words of a broken connection in err.Error(), and took a
// rejection for one: they tried again, and in the end lost the *OpenError.
func TestARejectionDoesNotSpeakWithItsCausesWords(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		for _, breakIt := range []func(){
			func() { s.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) },
			s.Server.Close, // then it is refused
		} {
			t.Run("", func(t *testing.T) {
				breakIt()
				require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateClosed))
				_, broken := c.get()
				require.Error(t, broken)
				_, err := c.get()
				var rejection *infuse.OpenError
				require.ErrorAs(t, err, &rejection)
				require.Error(t, rejection.Cause)
				require.ErrorIs(t, err, infuse.ErrOpen)
				for _, words := range []string{"refused", "reset", "EOF", "timeout", "broken", "closed", "stream", rejection.Cause.Error()} {
					require.NotContains(t, err.Error(), words)
				}
				for _, cause := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET} {
					require.NotErrorIs(t, err, cause)
				}
			})
		}
	})
}

func TestServiceUnavailableAnswersForTheService(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{ResetTimeout: time.Hour})
		c.transport.OnRejected = infuse.ServiceUnavailable
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))

		response, err := c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, "503 Service Unavailable", response.Status)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "HTTP/1.1", response.Proto)
		require.True(t, response.ProtoAtLeast(1, 1))
		require.Equal(t, "3600", response.Header.Get("Retry-After"))
		require.Equal(t, s.URL, response.Request.URL.String())
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, response.ContentLength, int64(len(text)))
		require.NotEmpty(t, text)

		response, err = c.Head(s.URL)
		require.NoError(t, err)
		require.Equal(t, http.NoBody, response.Body)
		require.Zero(t, s.calls.Load())

		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		_, err = c.breaker.Acquire(t.Context()) // the trial
		require.NoError(t, err)
		response, err = c.Get(s.URL)
		require.NoError(t, err)
		require.Equal(t, "1", response.Header.Get("Retry-After"), "never an invitation to come again at once")
	})
}

func TestOnRejectedIsHeldToTheContract(t *testing.T) {
	var left *closeCounter
	transport := &infuse.Transport{Breakers: groupOf(t, infuse.Config{})}
	b := breakerOf(t, transport.Breakers, "inventory.test")
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	body := &closeCounter{Reader: strings.NewReader("order")}
	r := newRequest(t, http.MethodPost, "http://inventory.test", body)

	transport.OnRejected = func(*http.Request, *infuse.OpenError) (*http.Response, error) {
		require.Equal(t, int64(1), body.closed.Load(), "the body has been closed")
		return nil, nil
	}
	response, err := transport.RoundTrip(r)
	require.Nil(t, response)
	require.ErrorIs(t, err, infuse.ErrOpen, "no answer: the rejection it is")

	transport.OnRejected = func(*http.Request, *infuse.OpenError) (*http.Response, error) {
		left = &closeCounter{Reader: strings.NewReader("stale")}
		return &http.Response{Body: left}, errUnhealthy
	}
	response, err = transport.RoundTrip(r)
	require.Nil(t, response)
	require.Equal(t, errUnhealthy, err)
	require.Equal(t, int64(1), left.closed.Load())
}

// Sentry made an issue of each rejection: "a trial may run in 59.985s" (H13).
func TestTheTextOfARejectionIsStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1})
		trip(t, b)
		for left := time.Minute; left > 0; left -= 7 * time.Second {
			rejection := requireRejected(t, b)
			require.EqualError(t, rejection, `infuse: circuit "prices" is open`)
			require.Equal(t, left, rejection.RetryAfter())
			time.Sleep(7 * time.Second)
		}
		var trial sync.WaitGroup
		trial.Go(func() {
			assert.NoError(t, b.Call(t.Context(), func(context.Context) error { time.Sleep(time.Second); return nil }))
		})
		synctest.Wait()
		require.EqualError(t, requireRejected(t, b), `infuse: circuit "prices" is half-open`)
		trial.Wait()
	})
}
