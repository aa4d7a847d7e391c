package prominfuse_test

import (
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

// An HTTP client whose circuits have metrics.
func Example() {
	transitions := new(prominfuse.Transitions)
	breakers, err := infuse.NewGroup(infuse.Config{
		CountCalls: true,
		Listeners:  []*infuse.Listener{transitions.Listener()},
	})
	if err != nil {
		log.Fatal(err)
	}
	prometheus.MustRegister(prominfuse.NewCollector(breakers, prominfuse.WithTransitions(transitions)))
	http.Handle("/metrics", promhttp.Handler())
	http.DefaultClient = &http.Client{Transport: &infuse.Transport{Breakers: breakers}}
}

// Two groups that may have circuits of the same name need another label.
func ExampleNewCollector_twoGroups() {
	registry := prometheus.NewRegistry()
	for _, client := range []string{"web", "batch"} {
		breakers, err := infuse.NewGroup(infuse.Config{})
		if err != nil {
			log.Fatal(err)
		}
		prometheus.WrapRegistererWith(prometheus.Labels{"client": client}, registry).
			MustRegister(prominfuse.NewCollector(breakers))
	}
}
