package main

import (
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
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.calls[r.URL.Host]++
	answer, ok := w.answers[r.URL.Host]
	if !ok {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

// start returns the service in a world that is well, without Redis.
func start(t *testing.T) (http.Handler, *world, *settings, *infuse.Group) {
	s := &settings{path: "settings.json"}
	require.NoError(t, s.reload(nil))
	breakers, err := infuse.NewGroupFunc(s.of)
	require.NoError(t, err)
	t.Cleanup(breakers.Stop)
	w := &world{answers: map[string]string{"inventory.internal": "3", "prices.internal": "9.5"}, calls: map[string]int{}}
	q := &quotes{http: newClient(w, breakers), inventory: s.file().Inventory, prices: s.file().Prices}
	return routes(q, breakers, nil), w, s, breakers
}

func get(service http.Handler, path string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	service.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
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

func TestSettingsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, world, s, breakers := start(t)
		get(service, "/quote/nails")
		s.path = t.TempDir() + "/settings.json"
		for text, mistake := range map[string]string{
			`{"circuits": {"inventory.internal": {"failMax": 2}, "prices.internal": {"failMax": -1}}}`: `"prices.internal": infuse: Config.FailMax is -1`,
			`{"circuits": {"inventory.internal": {"failMax": 2, "failMix": 2}}}`:                       "failMix",
		} {
			require.NoError(t, os.WriteFile(s.path, []byte(text), 0o600))
			require.ErrorContains(t, s.reload(breakers), mistake)
			require.Equal(t, 5, s.of("inventory.internal").FailMax, "a file with a mistake changes nothing")
		}
		require.NoError(t, os.WriteFile(s.path, []byte(`{"circuits": {"inventory.internal": {"failMax": 1}}}`), 0o600))
		require.NoError(t, s.reload(breakers))
		delete(world.answers, "inventory.internal")
		require.Equal(t, http.StatusServiceUnavailable, get(service, "/quote/nails").Code)
		require.Equal(t, 1+1, world.calls["inventory.internal"], "the first try opened the circuit")
	})
}
