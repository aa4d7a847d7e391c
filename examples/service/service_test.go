package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// upstreams answer the requests of the service, by host.
type upstreams struct {
	answers map[string]string // without an answer: connection refused
	calls   map[string]int
	stalls  string // the host whose bodies do not end
	last    *http.Request
}

// stall is a body that does not end.
type stall struct{ ctx context.Context }

func (s stall) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (w *upstreams) RoundTrip(r *http.Request) (*http.Response, error) {
	w.calls[r.URL.Host]++
	w.last = r
	answer, ok := w.answers[r.URL.Host]
	if !ok {
		return nil, errors.New("connection refused")
	}
	var body io.Reader = strings.NewReader(answer)
	if r.URL.Host == w.stalls {
		body = stall{r.Context()}
	}
	return &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, Header: http.Header{}, Body: io.NopCloser(body), Request: r}, nil
}

// start returns the service with healthy upstreams, without Redis.
func start(t *testing.T) (http.Handler, *upstreams, *settings, *infuse.Group) {
	s := &settings{path: "settings.json"}
	require.NoError(t, s.read())
	breakers, err := infuse.NewGroupFunc(s.of)
	require.NoError(t, err)
	t.Cleanup(breakers.Stop)
	w := &upstreams{answers: map[string]string{"inventory.internal": "3", "prices.internal": "9.5"}, calls: map[string]int{}}
	q := &quotes{http: newClient(w, breakers), inventory: s.current.Load().Inventory, prices: s.current.Load().Prices}
	return routes(q, breakers, nil), w, s, breakers
}

func get(service http.Handler, path string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	service.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
	return answer
}

func TestQuote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, _, _, _ := start(t)
		require.Equal(t, "3 of nails, at 9.5\n", get(service, "/quote/nails").Body.String())
	})
}

// While the prices are unavailable, quotes have the last known price, and no request is
// sent until the circuit is ready for a trial.
func TestLastKnownPrice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, upstreams, _, _ := start(t)
		get(service, "/quote/nails")
		delete(upstreams.answers, "prices.internal")
		for range 10 {
			require.Equal(t, "3 of nails, at 9.5\n", get(service, "/quote/nails").Body.String())
		}
		require.Equal(t, 1+3, upstreams.calls["prices.internal"], "three attempts opened the circuit, and no more requests were sent")
		require.Equal(t, http.StatusServiceUnavailable, get(service, "/quote/screws").Code, "no price is known")
		upstreams.answers["prices.internal"] = "10"
		time.Sleep(15 * time.Second)
		require.Equal(t, "3 of nails, at 10\n", get(service, "/quote/nails").Body.String())
	})
}

func TestErrorWithoutInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, upstreams, _, _ := start(t)
		delete(upstreams.answers, "inventory.internal")
		require.Equal(t, http.StatusInternalServerError, get(service, "/quote/nails").Code, "three attempts failed")
		answer := get(service, "/quote/nails")
		require.Equal(t, http.StatusServiceUnavailable, answer.Code)
		require.Equal(t, "60", answer.Header().Get("Retry-After"))
		require.Equal(t, 5, upstreams.calls["inventory.internal"], "the fifth failure opened the circuit")
		require.Contains(t, get(service, "/metrics").Body.String(), `infuse_circuit_state{circuit="inventory.internal",state="open"} 1`)
		require.Contains(t, get(service, "/circuits/").Body.String(), "inventory.internal")
	})
}

// A response whose body stalls is a failure.
func TestStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, upstreams, _, _ := start(t)
		upstreams.stalls = "inventory.internal"
		for range 2 {
			require.Equal(t, http.StatusInternalServerError, get(service, "/quote/nails").Code)
		}
		require.Contains(t, get(service, "/metrics").Body.String(), `infuse_circuit_calls_total{circuit="inventory.internal",outcome="failure"} 2`)
	})
}

func TestItemIsEscaped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, upstreams, _, _ := start(t)
		get(service, "/quote/..%2Fadmin%3Fall")
		require.Equal(t, "/..%2Fadmin%3Fall", upstreams.last.URL.RequestURI())
	})
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, upstreams, s, breakers := start(t)
		get(service, "/quote/nails")
		s.path = t.TempDir() + "/settings.json"
		write := func(text string) { require.NoError(t, os.WriteFile(s.path, []byte(text), 0o600)) }
		for text, wrong := range map[string]string{
			`{`: "unexpected EOF", `{"failMax": 1}`: "unknown field", `{} {}`: "data after the settings",
			`{"circuits": {"": {"ramp": "10"}}}`:                                                    `"10" is not a duration`,
			`{"circuits": {"inventory.internal": {"failMix": 2}}}`:                                  `unknown field "failMix"`,
			`{"circuits": {"inventory.internal": {"failMax": 1}, "new.internal": {"failMax": -1}}}`: `circuit "new.internal": infuse: Config.FailMax is -1`,
		} {
			write(text)
			require.ErrorContains(t, s.reload(breakers), wrong)
			require.Equal(t, 5, s.of("inventory.internal").FailMax)
		}
		write(`{"circuits": {"inventory.internal": {"failMax": 1}}}`)
		require.NoError(t, s.reload(breakers))
		delete(upstreams.answers, "inventory.internal")
		require.Equal(t, http.StatusServiceUnavailable, get(service, "/quote/nails").Code)
		require.Equal(t, 1+1, upstreams.calls["inventory.internal"], "the first attempt opened the circuit")
	})
}
