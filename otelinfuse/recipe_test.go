package otelinfuse_test

import (
	"log"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
)

// The code in docs/recipes.md.
func ExampleRegister() {
	breakers, err := infuse.NewGroup(infuse.Config{CountCalls: true})
	if err != nil {
		log.Fatal(err)
	}
	unregister, err := otelinfuse.Register(breakers)
	if err != nil {
		log.Fatal(err)
	}
	defer unregister()
	transport := &infuse.Transport{Breakers: breakers, OnRejected: otelinfuse.OnRejected(nil)}
	client := &http.Client{Transport: otelhttp.NewTransport(transport)}
	_ = client
	// Output:
}
