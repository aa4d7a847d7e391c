package prominfuse_test

// This file runs a fleet and scrapes it.

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

// process is one process of a fleet.
type process struct {
	group *infuse.Group
	url   string // of its /metrics
}

func startProcess(t *testing.T, storage infuse.Storage) process {
	counted := new(prominfuse.Transitions)
	group := newGroup(t, infuse.Config{
		FailMax: 3, ResetTimeout: time.Hour, CountCalls: true,
		Storage: storage, Listeners: []*infuse.Listener{counted.Listener()},
	})
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(prominfuse.NewCollector(group, prominfuse.WithTransitions(counted))))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return process{group, server.URL + "/metrics"}
}

// sample is a series with one value, as scraped.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

// String returns the series.
func (s sample) String() string {
	pairs := make([]string, 0, len(s.labels))
	for _, name := range slices.Sorted(maps.Keys(s.labels)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", name, s.labels[name]))
	}
	return s.name + "{" + strings.Join(pairs, ",") + "}"
}

// scrapeFleet runs a fleet, and scrapes it. In the processes a and b, the circuit failing
// is open and the circuit forced is forced open. For c, d and e the storage is
// unavailable, and their local circuit partitioned is open. All call healthy.
func scrapeFleet(t *testing.T) []sample {
	shared := infuse.NewMemoryStorage()
	fleet := map[string]process{"a": startProcess(t, shared), "b": startProcess(t, shared)}
	for _, name := range []string{"c", "d", "e"} {
		fleet[name] = startProcess(t, nowhere(t))
		partitioned := breakerOf(t, fleet[name].group, "partitioned")
		trip(t, partitioned)
		require.ErrorIs(t, partitioned.Call(t.Context(), succeeds), infuse.ErrOpen)
	}
	for _, p := range fleet {
		require.NoError(t, breakerOf(t, p.group, "healthy").Call(t.Context(), succeeds))
	}
	a, b := fleet["a"].group, fleet["b"].group
	breakerOf(t, b, "failing")
	breakerOf(t, b, "forced")
	trip(t, breakerOf(t, a, "failing"))
	time.Sleep(60 * time.Millisecond)
	trip(t, breakerOf(t, b, "failing")) // one process alone does not open the shared circuit
	require.NoError(t, breakerOf(t, a, "forced").Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "upgrade"}))
	require.Eventually(t, func() bool {
		failing, mine, forced := breakerOf(t, b, "failing").Stats(), breakerOf(t, a, "failing").Stats(), breakerOf(t, b, "forced").Stats()
		return failing.State == infuse.StateOpen && mine.Shared.State == infuse.StateOpen && forced.Override != nil
	}, 10*time.Second, time.Millisecond)
	for _, name := range []string{"failing", "forced"} {
		require.ErrorIs(t, breakerOf(t, b, name).Call(t.Context(), succeeds), infuse.ErrOpen)
	}

	var all []sample
	for _, instance := range slices.Sorted(maps.Keys(fleet)) {
		all = append(all, scrape(t, instance, fleet[instance].url)...)
	}
	return all
}

func scrape(t *testing.T, instance, url string) (all []sample) {
	response, err := http.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(response.Body)
	require.NoError(t, err)
	for name, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{name: name, labels: map[string]string{"job": "shop", "instance": instance}, value: valueOf(m)}
			for _, label := range m.GetLabel() {
				s.labels[label.GetName()] = label.GetValue()
			}
			all = append(all, s)
		}
	}
	return all
}

func valueOf(m *dto.Metric) float64 {
	if m.GetCounter() != nil {
		return m.GetCounter().GetValue()
	}
	return m.GetGauge().GetValue()
}
