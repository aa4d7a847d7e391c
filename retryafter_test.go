package infuse_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// asksFor answers with a status, and a Retry-After.
func asksFor(status int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", retryAfter)
		w.WriteHeader(status)
	}
}

// requireOpenFor checks how long a rejected request is told to wait, with a
// minute for a machine that has other things to do.
func requireOpenFor(t *testing.T, want time.Duration, err error) {
	t.Helper()
	var rejection *infuse.OpenError
	require.ErrorAs(t, err, &rejection)
	require.LessOrEqual(t, rejection.RetryAfter(), want)
	require.Greater(t, rejection.RetryAfter(), want-time.Minute)
}

func TestRetryAfterKeepsTheCircuitOpen(t *testing.T) {
	const reset = 5 * time.Minute // Config.ResetTimeout
	httpDate := func(in time.Duration) string { return time.Now().Add(in).UTC().Format(http.TimeFormat) }
	for _, test := range []struct {
		name, value string
		status      int
		want        time.Duration
	}{
		{"seconds", "1200", 503, 20 * time.Minute},
		{"seconds with blanks", " 1200\t", 503, 20 * time.Minute},
		{"seconds of a 429", "1200", 429, 20 * time.Minute},
		{"other failures do not ask", "1200", 500, reset},
		{"less than the reset timeout", "1", 503, reset},
		{"a date", httpDate(20 * time.Minute), 503, 20 * time.Minute},
		{"a date in the old form", time.Now().Add(20 * time.Minute).UTC().Format("Monday, 02-Jan-06 15:04:05 GMT"), 503, 20 * time.Minute},
		{"a date in the past", httpDate(-20 * time.Minute), 503, reset},
		{"a date a century ago", "Mon, 01 Jan 1900 00:00:00 GMT", 503, reset},
		{"a date far away", "Fri, 31 Dec 9999 23:59:59 GMT", 503, time.Hour},
		{"too many seconds", "86400", 503, time.Hour},
		{"more seconds than a number holds", "99999999999999999999999999", 503, time.Hour},
		{"negative", "-1200", 503, reset},
		{"with a sign", "+1200", 503, reset},
		{"a fraction", "1200.5", 503, reset},
		{"hexadecimal", "0x4b0", 503, reset},
		{"garbage", "soon", 503, reset},
		{"empty", "", 503, reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, s *webServer) {
				s.does(asksFor(test.status, test.value))
				c := startWebClient(t, s, infuse.Config{FailMax: 1, ResetTimeout: reset})
				c.transport.Classify = infuse.FailAlsoOn(http.StatusTooManyRequests)
				_, err := c.get()
				require.NoError(t, err)
				_, err = c.get()
				requireOpenFor(t, test.want, err)
			})
		})
	}
}

// A host's clock may be wrong by hours. The date counts from when the service
// says that it sent it, not from what the client's clock says.
func TestRetryAfterGoesByTheServicesClock(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		theirNow := time.Now().Add(-3 * time.Hour).UTC()
		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", theirNow.Format(http.TimeFormat))
			w.Header().Set("Retry-After", theirNow.Add(20*time.Minute).Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)

		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Date"] = nil // no Date: the client's clock must do
			w.Header().Set("Retry-After", time.Now().UTC().Add(20*time.Minute).Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		require.NoError(t, c.breaker.Close(t.Context()))
		_, err = c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestRetryAfterOfATrialKeepsTheCircuitOpen(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{})
		require.NoError(t, c.breaker.HalfOpen(t.Context()))
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestServiceUnavailableTellsWhatTheServiceAskedFor(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		c.transport.OnRejected = infuse.ServiceUnavailable
		_, err := c.get()
		require.NoError(t, err)
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		told, err := time.ParseDuration(response.Header.Get("Retry-After") + "s")
		require.NoError(t, err)
		require.InDelta(t, 20*time.Minute, told, float64(time.Minute))
		require.Equal(t, int64(1), s.calls.Load())
	})
}

// requireFleetWaits has one process meet a 503 with a Retry-After, and another
// one hear of it.
func requireFleetWaits(t *testing.T, one, other infuse.Storage) {
	t.Helper()
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		cfg := patiently(infuse.Config{FailMax: 2})
		cfg.Storage = one
		first := startWebClient(t, s, cfg)
		cfg.Storage = other
		second := startWebClient(t, s, cfg)
		for range 2 {
			_, err := first.get()
			require.NoError(t, err)
		}
		_, err := first.get()
		requireOpenFor(t, 20*time.Minute, err)
		eventuallyState(t, infuse.StateOpen, second.breaker)
		_, err = second.get()
		requireOpenFor(t, 20*time.Minute, err)
		require.Equal(t, int64(2), s.calls.Load())
	})
}

func TestRetryAfterHoldsForTheFleetInMemory(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	requireFleetWaits(t, storage, storage)
}

func TestRetryAfterHoldsForTheFleetOnRedis(t *testing.T) {
	server := redistest.Start(t)
	requireFleetWaits(t, host(t, server), host(t, server))
}

func TestRetryAfterIsOverWhenItIsOver(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1, ResetTimeout: time.Millisecond})
		_, err := c.get()
		require.NoError(t, err)
		opened := time.Now()
		s.does(answers(http.StatusOK, "well"))
		require.Eventually(t, func() bool {
			_, err := c.get()
			assert.True(t, err != nil || time.Since(opened) > 500*time.Millisecond, "too early")
			return err == nil
		}, patience, pace)
	})
}

// Whatever a stranger writes there: a circuit opens for its reset timeout at
// least, and for an hour at most.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{"1200", "-1", "9223372036854775808", "Fri, 31 Dec 9999 23:59:59 GMT", "\x00"} {
		f.Add(value, "Mon, 01 Jan 1900 00:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		const reset = 5 * time.Minute
		transport := &infuse.Transport{
			Breakers: startGroup(t, infuse.Config{FailMax: 1, ResetTimeout: reset}),
			Base: baseFunc(func(r *http.Request) (*http.Response, error) {
				response, _ := always(http.StatusServiceUnavailable, "")(r)
				response.Header.Set("Retry-After", value)
				response.Header.Set("Date", date)
				return response, nil
			}),
		}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		_, err = transport.RoundTrip(r)
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Greater(t, rejection.RetryAfter(), reset-time.Minute)
		require.LessOrEqual(t, rejection.RetryAfter(), time.Hour)
	})
}
