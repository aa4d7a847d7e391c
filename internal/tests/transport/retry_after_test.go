package transport_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

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

// requireOpenFor checks how long a rejected request must wait, with a
// minute for a machine that has other things to do.
func requireOpenFor(t *testing.T, want time.Duration, err error) {
	t.Helper()
	var rejection *infuse.OpenError
	require.ErrorAs(t, err, &rejection)
	require.LessOrEqual(t, rejection.RetryAfter(), want)
	require.Greater(t, rejection.RetryAfter(), want-time.Minute)
}

// R29.
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
		{"a date in the far future", "Fri, 31 Dec 9999 23:59:59 GMT", 503, time.Hour},
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
				c := startWebClient(t, s, infuse.Config{FailMax: 1, ResetTimeout: reset, MaxRetryAfter: time.Hour})
				c.transport.Classify = infuse.FailOn(func(status int) bool { return status == http.StatusTooManyRequests || status >= 500 })
				_, err := c.get()
				require.NoError(t, err)
				_, err = c.get()
				requireOpenFor(t, test.want, err)
			})
		})
	}
}

// A service that asked for an hour was not called for an hour, with a
// ResetTimeout of a second and a MaxResetTimeout of ten.
// R29, R41.
func TestMaxRetryAfterIsTheLongestThatARetryAfterKeepsTheCircuitOpen(t *testing.T) {
	for _, test := range []struct {
		name, value string
		most, want  time.Duration
	}{
		{"5 minutes by default", "3600", 0, 5 * time.Minute},
		{"a date, too", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 0, 5 * time.Minute},
		{"less than it", "120", 10 * time.Minute, 2 * time.Minute},
		{"more than it", "3600", 10 * time.Second, 10 * time.Second},
		{"less than a second", "3600", 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"shorter than ResetTimeout", "3600", time.Millisecond, time.Second},
		{"ignored", "3600", -1, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			transport := &infuse.Transport{
				Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: time.Second, MaxResetTimeout: 10 * time.Second, MaxRetryAfter: test.most}),
				Base: baseFunc(func(r *http.Request) (*http.Response, error) {
					response, _ := always(http.StatusServiceUnavailable, "")(r)
					response.Header.Set("Retry-After", test.value)
					return response, nil
				}),
			}
			r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
			_, err := transport.RoundTrip(r)
			require.NoError(t, err)
			_, err = transport.RoundTrip(r)
			var rejection *infuse.OpenError
			require.ErrorAs(t, err, &rejection)
			require.InDelta(t, test.want, rejection.RetryAfter(), float64(test.want/2))
		})
	}
	_, err := infuse.New("x", infuse.Config{MaxRetryAfter: 367 * 24 * time.Hour})
	require.ErrorContains(t, err, "Config.MaxRetryAfter is 8808h0m0s: must be at most")
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
		c := startWebClient(t, s, infuse.Config{FailMax: 1, MaxRetryAfter: time.Hour})
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)

		s.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Date"] = nil // no Date: the client's clock must do
			w.Header().Set("Retry-After", time.Now().UTC().Add(20*time.Minute).Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateClosed))
		_, err = c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestRetryAfterOfATrialKeepsTheCircuitOpen(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{MaxRetryAfter: time.Hour})
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		_, err := c.get()
		require.NoError(t, err)
		_, err = c.get()
		requireOpenFor(t, 20*time.Minute, err)
	})
}

func TestServiceUnavailableTellsWhatTheServiceAskedFor(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1, MaxRetryAfter: time.Hour})
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

// One process meets a 503 with a Retry-After, and the others wait as long. The
// suspicion passes first.
// R29.
func TestRetryAfterHoldsForTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unhealthy := baseFunc(func(r *http.Request) (*http.Response, error) {
			response, _ := always(http.StatusServiceUnavailable, "")(r)
			response.Header.Set("Retry-After", "1200")
			return response, nil
		})
		cfg := infuse.Config{FailMax: 2, MaxRetryAfter: time.Hour, Storage: infuse.NewMemoryStorage()}
		first := &infuse.Transport{Base: unhealthy, Breakers: groupOf(t, cfg)}
		second := &infuse.Transport{Base: unhealthy, Breakers: groupOf(t, cfg)}
		breakerOf(t, second.Breakers, "inventory.test")
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		for range 2 {
			_, err := first.RoundTrip(r)
			require.NoError(t, err)
		}
		_, err := first.RoundTrip(r)
		requireOpenFor(t, 20*time.Minute, err)
		passSuspicion()
		third := &infuse.Transport{Base: unhealthy, Breakers: groupOf(t, cfg)}
		breakerOf(t, third.Breakers, "inventory.test")
		for range 2 {
			_, err := second.RoundTrip(r)
			require.NoError(t, err)
		}
		synctest.Wait()
		_, err = third.RoundTrip(r)
		require.NoError(t, err, "one failure of its own")
		for _, transport := range []*infuse.Transport{first, second, third} {
			_, err := transport.RoundTrip(r)
			requireOpenFor(t, 20*time.Minute, err)
		}
	})
}

func TestRetryAfterHoldsForTheFleetOnRedis(t *testing.T) {
	server := redistest.Start(t)
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(asksFor(http.StatusServiceUnavailable, "1200"))
		cfg := patiently(infuse.Config{FailMax: 2, MaxRetryAfter: time.Hour, Storage: host(t, server)})
		first := startWebClient(t, s, cfg)
		cfg.Storage = host(t, server)
		second := startWebClient(t, s, cfg)
		for range 2 {
			_, err := first.get()
			require.NoError(t, err)
		}
		_, err := first.get()
		requireOpenFor(t, 20*time.Minute, err)
		time.Sleep(suspicion)
		for range 2 {
			_, err = second.get()
			require.NoError(t, err)
		}
		require.Equal(t, infuse.StateOpen, recordOf(t, first.breaker).State)
		third := startWebClient(t, s, cfg)
		time.Sleep(pace) // Redis keeps whole milliseconds, and rounds up
		_, err = third.get()
		require.NoError(t, err, "one failure of its own")
		_, err = third.get()
		requireOpenFor(t, 20*time.Minute, err)
		require.Equal(t, int64(5), s.calls.Load())
	})
}

func TestRetryAfterIsOverWhenItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := http.StatusServiceUnavailable
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: time.Millisecond, MaxRetryAfter: time.Hour}),
			Base: baseFunc(func(r *http.Request) (*http.Response, error) {
				response, _ := always(status, "")(r)
				response.Header.Set("Retry-After", "1200")
				return response, nil
			}),
		}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		status = http.StatusOK
		time.Sleep(20*time.Minute - 10*time.Millisecond)
		_, err = transport.RoundTrip(r)
		require.ErrorIs(t, err, infuse.ErrOpen)
		time.Sleep(10 * time.Millisecond)
		_, err = transport.RoundTrip(r)
		require.NoError(t, err)
	})
}

// Whatever the service writes there: a circuit opens for its reset timeout at
// least, and for an hour at most.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{"1200", "-1", "9223372036854775808", "Fri, 31 Dec 9999 23:59:59 GMT", "\x00"} {
		f.Add(value, "Mon, 01 Jan 1900 00:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		const reset = 5 * time.Minute
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{FailMax: 1, ResetTimeout: reset, MaxRetryAfter: time.Hour}),
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
