package prominfuse_test

import (
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

// The code in docs/recipes.md.
func ExampleNewCollector() {
	transitions := new(prominfuse.Transitions)
	breakers, err := infuse.NewGroup(infuse.Config{
		CountCalls: true,
		Listeners:  []*infuse.Listener{transitions.Listener()},
	})
	if err != nil {
		log.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prominfuse.NewCollector(breakers, prominfuse.WithTransitions(transitions)))
	http.Handle("/metrics/recipe", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	// Output:
}
