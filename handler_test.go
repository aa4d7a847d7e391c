package infuse_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

type handlerFunc = func(http.ResponseWriter, *http.Request) error

// rejectionFor returns the error with which a client's call was rejected.
func rejectionFor(t *testing.T, wait time.Duration) error {
	t.Helper()
	b := startBreaker(t, "inventory", infuse.Config{ResetTimeout: wait})
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
	return fmt.Errorf("loading the stock: %w", requireRejected(t, b))
}

func TestAHandlerAnswersARejectionWith503(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		rejection := rejectionFor(t, time.Hour)
		s.does(infuse.Handler(func(http.ResponseWriter, *http.Request) error { return rejection }, nil).ServeHTTP)
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "3600", response.Header.Get("Retry-After"))
		require.NotContains(t, text, "inventory", "strangers do not hear what it depends on")
	})
}

// A service whose own client was rejected: its callers hear of it as a 503.
func TestARejectionTravelsFromTheClientToTheCaller(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		client := startWebClient(t, s, infuse.Config{ResetTimeout: time.Hour})
		require.NoError(t, client.breaker.SetState(t.Context(), infuse.StateOpen))
		w := httptest.NewRecorder()
		infuse.Handler(func(http.ResponseWriter, *http.Request) error {
			_, err := client.get()
			return err
		}, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "3600", w.Header().Get("Retry-After"))
	})
}

func TestAHandlersOtherErrors(t *testing.T) {
	serve := func(onError func(http.ResponseWriter, *http.Request, error), h handlerFunc) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		infuse.Handler(h, onError).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w
	}
	fails := func(http.ResponseWriter, *http.Request) error { return errIll }

	w := serve(nil, fails)
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.NotContains(t, w.Body.String(), errIll.Error())

	w = serve(func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusTeapot)
	}, fails)
	require.Equal(t, http.StatusTeapot, w.Code)

	w = serve(nil, func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, "well")
		return err
	})
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "well", w.Body.String())
}

// strictWriter fails the test when an answer is begun twice.
type strictWriter struct {
	*httptest.ResponseRecorder
	t      *testing.T
	begun  int
	hijack net.Conn
}

func (w *strictWriter) WriteHeader(status int) {
	if status >= 200 {
		w.begun++
		assert.LessOrEqual(w.t, w.begun, 1, "an answer was begun twice")
	}
	w.ResponseRecorder.WriteHeader(status)
}

func (w *strictWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.hijack, nil, nil }

func TestAnAnswerThatHasBegunIsLeftAlone(t *testing.T) {
	rejection := rejectionFor(t, time.Hour)
	for name, begin := range map[string]func(http.ResponseWriter){
		"by WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusAccepted) },
		"by Write":       func(w http.ResponseWriter) { _, _ = w.Write([]byte("half")) },
		"by io.Copy":     func(w http.ResponseWriter) { _, _ = io.Copy(w, strings.NewReader("half")) },
		"by ReadFrom":    func(w http.ResponseWriter) { _, _ = io.Copy(w, io.LimitReader(strings.NewReader("half"), 9)) },
		"by Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"by the ResponseController": func(w http.ResponseWriter) {
			require.NoError(t, http.NewResponseController(w).Flush())
		},
		"by Hijack": func(w http.ResponseWriter) {
			_, _, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
		},
	} {
		for _, err := range []error{rejection, errIll} {
			t.Run(name, func(t *testing.T) {
				var after string
				w := &strictWriter{ResponseRecorder: httptest.NewRecorder(), t: t}
				infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
					begin(w)
					return err
				}, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
				after = w.Body.String()
				require.True(t, after == "" || after == "half", after)
				require.Empty(t, w.Header().Get("Retry-After"))
				require.NotEqual(t, http.StatusServiceUnavailable, w.Code)
			})
		}
	}
}

func TestAnInterimResponseIsNoAnswer(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		rejection := rejectionFor(t, time.Hour)
		s.does(infuse.Handler(func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.Copy(w, io.LimitReader(strings.NewReader(""), 9))
			assert.NoError(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)), "what else it can do is there")
			return rejection
		}, nil).ServeHTTP)
		response, err := s.Server.Client().Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	})
}

func TestRespondUnavailableAnswersForAReverseProxy(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		client := startWebClient(t, s, infuse.Config{ResetTimeout: 90 * time.Minute})
		target, err := url.Parse(s.URL)
		require.NoError(t, err)
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.Transport = client.transport
		proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			if !infuse.RespondUnavailable(w, err) {
				w.WriteHeader(http.StatusBadGateway)
			}
		}
		serve := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			proxy.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			return w
		}
		require.Equal(t, "well", serve().Body.String())
		require.NoError(t, client.breaker.SetState(t.Context(), infuse.StateOpen))
		w := serve()
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "5400", w.Header().Get("Retry-After"))
	})
	w := httptest.NewRecorder()
	require.False(t, infuse.RespondUnavailable(w, errors.New("other")))
	require.False(t, infuse.RespondUnavailable(w, nil))
	require.Zero(t, w.Body.Len())
}
