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

// world is what the service calls: by host, an answer or an error.
type world struct {
	answers map[string]string
	calls   map[string]int
	stalls  string        // the host whose answers do not come to their end
	last    *http.Request // of all
}

// stall is a body that does not come to its end.
type stall struct{ ctx context.Context }

func (s stall) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
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

// start returns the service in a world that is well, without Redis.
func start(t *testing.T) (http.Handler, *world, *settings, *infuse.Group) {
	s := &settings{path: "settings.json"}
	require.NoError(t, s.read())
	breakers, err := infuse.NewGroupFunc(s.of)
	require.NoError(t, err)
	t.Cleanup(breakers.Stop)
	w := &world{answers: map[string]string{"inventory.internal": "3", "prices.internal": "9.5"}, calls: map[string]int{}}
	q := &quotes{http: newClient(w, breakers), inventory: s.current.Load().Inventory, prices: s.current.Load().Prices}
	return routes(q, breakers, nil), w, s, breakers
}

func get(service http.Handler, path string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	service.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
	return answer
}

func TestAQuote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, _, _, _ := start(t)
		require.Equal(t, "3 of nails, at 9.5\n", get(service, "/quote/nails").Body.String())
	})
}

// Without the prices, the last one is told, and the sick service is left alone
// until its circuit is due. All of it takes no time.
func TestAnOldPriceWhileThePricesAreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, _, _ := start(t)
		get(service, "/quote/nails")
		delete(world.answers, "prices.internal")
		for range 10 {
			require.Equal(t, "3 of nails, at 9.5\n", get(service, "/quote/nails").Body.String())
		}
		require.Equal(t, 1+3, world.calls["prices.internal"], "three tries opened the circuit, and nothing was sent after that")
		require.Equal(t, http.StatusServiceUnavailable, get(service, "/quote/screws").Code, "of which no price is known")
		world.answers["prices.internal"] = "10"
		time.Sleep(15 * time.Second)
		require.Equal(t, "3 of nails, at 10\n", get(service, "/quote/nails").Body.String())
	})
}

func TestNoAnswerWithoutTheInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, _, _ := start(t)
		delete(world.answers, "inventory.internal")
		require.Equal(t, http.StatusInternalServerError, get(service, "/quote/nails").Code, "three tries have failed")
		answer := get(service, "/quote/nails")
		require.Equal(t, http.StatusServiceUnavailable, answer.Code)
		require.Equal(t, "60", answer.Header().Get("Retry-After"))
		require.Equal(t, 5, world.calls["inventory.internal"], "the circuit opened at the fifth")
		require.Contains(t, get(service, "/metrics").Body.String(), `infuse_circuit_state{circuit="inventory.internal",state="open"} 1`)
		require.Contains(t, get(service, "/circuits/").Body.String(), "inventory.internal")
	})
}

// A service that begins to answer and stalls is as sick as one that is silent.
func TestAnAnswerThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, _, _ := start(t)
		world.stalls = "inventory.internal"
		for range 2 {
			require.Equal(t, http.StatusInternalServerError, get(service, "/quote/nails").Code)
		}
		require.Contains(t, get(service, "/metrics").Body.String(), `infuse_circuit_calls_total{circuit="inventory.internal",outcome="failure"} 2`)
	})
}

func TestAnItemIsNoPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, _, _ := start(t)
		get(service, "/quote/..%2Fadmin%3Fall")
		require.Equal(t, "/..%2Fadmin%3Fall", world.last.URL.RequestURI())
	})
}

func TestSettingsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, s, breakers := start(t)
		get(service, "/quote/nails")
		s.path = t.TempDir() + "/settings.json"
		write := func(text string) { require.NoError(t, os.WriteFile(s.path, []byte(text), 0o600)) }
		for text, wrong := range map[string]string{
			`{`: "unexpected EOF", `{"failMax": 1}`: "unknown field", `{} {}`: "goes on",
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
		delete(world.answers, "inventory.internal")
		require.Equal(t, http.StatusServiceUnavailable, get(service, "/quote/nails").Code)
		require.Equal(t, 1+1, world.calls["inventory.internal"], "the first try opened the circuit")
	})
}
