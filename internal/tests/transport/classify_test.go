package transport_test

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

func TestTheReadyMadeClassifications(t *testing.T) {
	const success, failure, ignored = infuse.OutcomeSuccess, infuse.OutcomeFailure, infuse.OutcomeIgnored
	background := context.Background()
	cancelled, cancel := context.WithCancelCause(background)
	cancel(errUnhealthy)
	late, stop := context.WithDeadline(background, time.Now().Add(-time.Hour))
	defer stop()
	for _, test := range []struct {
		what               string
		ctx                context.Context
		status             int // 0: an error
		preset, also, only infuse.Outcome
		errors             infuse.Outcome
	}{
		{"200", background, 200, success, success, success, success},
		{"404", background, 404, success, success, success, success},
		{"429", background, 429, success, failure, success, success},
		{"500", background, 500, failure, failure, success, success},
		{"503", background, 503, failure, failure, failure, success},
		{"600", background, 600, success, success, success, success},
		{"an error", background, 0, failure, failure, failure, failure},
		{"a cancelled request", cancelled, 0, ignored, ignored, ignored, ignored},
		{"a request past its deadline", late, 0, failure, failure, failure, failure},
		{"a 503 that came before the cancellation", cancelled, 503, failure, failure, failure, success},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, "http://inventory.test", nil).WithContext(test.ctx)
			var response *http.Response
			err := errUnhealthy
			if test.status != 0 {
				response, err = &http.Response{StatusCode: test.status}, nil
			}
			require.Equal(t, test.preset, infuse.DefaultClassify(r, response, err))
			require.Equal(t, test.also, infuse.FailOn(func(status int) bool { return status == 429 || status >= 500 && status < 600 })(r, response, err))
			require.Equal(t, test.only, infuse.FailOn(func(status int) bool { return status >= 502 && status <= 504 })(r, response, err))
			require.Equal(t, test.errors, infuse.FailOn(func(int) bool { return false })(r, response, err))
		})
	}
}

func TestClassifyReplacesTheTransportsDefault(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusTooManyRequests, "later"))
		c := startFailedClient(t, s)
		c.transport.Classify = infuse.FailOn(func(status int) bool { return status == http.StatusTooManyRequests })
		_, err := c.get()
		require.NoError(t, err)
		require.Equal(t, 2, failuresOf(c.breaker))

		s.does(answers(http.StatusInternalServerError, "failed"))
		c.transport.Classify = infuse.FailOn(func(status int) bool { return status == http.StatusBadGateway })
		_, err = c.get()
		require.NoError(t, err)
		require.Zero(t, failuresOf(c.breaker))
	})
}

func TestClassifyIsAskedOfHeadersErrorsAndBodies(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		type question struct {
			status int
			err    bool
		}
		var asked []question
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			require.NotNil(t, r)
			q := question{err: err != nil}
			if response != nil {
				q.status = response.StatusCode
			}
			asked = append(asked, q)
			return infuse.DefaultClassify(r, response, err)
		}
		ask := func(h http.HandlerFunc) []question {
			s.does(h)
			asked = nil
			_, _ = c.get()
			return asked
		}
		require.Equal(t, []question{{200, false}}, ask(answers(200, "well")), "once, though the body is read")
		require.Equal(t, []question{{200, false}, {200, true}}, ask(truncates))
		require.Equal(t, []question{{503, false}}, ask(answers(503, "failed")))
		require.Equal(t, []question{{0, true}}, ask(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		require.Equal(t, 3, failuresOf(c.breaker), "a broken body, a 503 and an error since the last success")
	})
}

// What a Group's Config says of errors is true for a Transport's errors, too.
func TestErrorsAreClassifiedByTheConfigByDefault(t *testing.T) {
	failing := baseFunc(func(*http.Request) (*http.Response, error) { return nil, errUnhealthy })
	r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
	for name, cfg := range map[string]infuse.Config{
		"excluded": {Exclude: []func(error) bool{func(err error) bool { return errors.Is(err, errUnhealthy) }}},
		"classified": {Classify: func(_ context.Context, err error) infuse.Outcome {
			require.ErrorIs(t, err, errUnhealthy)
			return infuse.OutcomeSuccess
		}},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &infuse.Transport{Base: failing, Breakers: groupOf(t, cfg)}
			b, err := transport.Breakers.Breaker("inventory.test")
			require.NoError(t, err)
			_, err = transport.RoundTrip(r)
			require.Equal(t, errUnhealthy, err)
			require.Zero(t, failuresOf(b))

			transport.Classify = infuse.DefaultClassify
			_, err = transport.RoundTrip(r)
			require.Equal(t, errUnhealthy, err)
			require.Equal(t, 1, failuresOf(b), "the Transport's Classify replaces that")
		})
	}
}

// The recipe of DefaultClassify's comment: a caller whose deadlines a healthy
// service may miss.
func TestACallersOwnDeadlineCanBeIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(s.stalls)
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			if err != nil && r.Context().Err() != nil {
				return infuse.OutcomeIgnored
			}
			return infuse.DefaultClassify(r, response, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, failuresOf(c.breaker))
	})
}

// A body that the caller itself fails to deliver cannot be distinguished from a
// service's error, but by a Classify that knows it.
func TestARequestsOwnBodyThatFailsCanBeIgnored(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		c := startFailedClient(t, s)
		c.transport.Classify = func(r *http.Request, response *http.Response, err error) infuse.Outcome {
			if errors.Is(err, errUnhealthy) {
				return infuse.OutcomeIgnored
			}
			return infuse.DefaultClassify(r, response, err)
		}
		reader, writer := io.Pipe()
		require.NoError(t, writer.CloseWithError(errUnhealthy))
		_, err := c.Post(s.URL, "text/plain", reader)
		require.ErrorIs(t, err, errUnhealthy)
		require.Equal(t, 1, failuresOf(c.breaker))
	})
}

func TestAnsweredIsNeitherAConnectionErrorNorATimeout(t *testing.T) {
	_, refused := net.Dial("tcp", "127.0.0.1:1")
	_, unknown := (&net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errUnhealthy }}).LookupHost(t.Context(), "db.invalid")
	for _, err := range []error{
		refused, unknown, driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT,
		&net.OpError{Op: "read", Err: syscall.ECONNRESET}, &tls.CertificateVerificationError{Err: errUnhealthy}, &infuse.OpenError{Circuit: "another"},
	} {
		require.Error(t, err)
		require.False(t, infuse.Answered(err), "%v", err)
		require.False(t, infuse.Answered(fmt.Errorf("orders: %w", err)), "%v", err)
		require.False(t, infuse.Answered(errors.Join(errUnhealthy, err)), "%v", err)
	}
	for _, err := range []error{
		sql.ErrNoRows, sql.ErrTxDone, errors.New("duplicate key value violates unique constraint"), context.Canceled,
		&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT},
	} {
		require.True(t, infuse.Answered(err), "%v", err)
	}
}
