package otelinfuse_test

import (
	"context"
	"log"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
)

// An HTTP client whose circuits have metrics. The spans of rejected requests have
// attributes of the rejection.
func Example() {
	transitions := new(otelinfuse.Transitions)
	breakers, err := infuse.NewGroup(infuse.Config{
		CountCalls: true,
		Listeners:  []*infuse.Listener{transitions.Listener()},
	})
	if err != nil {
		log.Fatal(err)
	}
	unregister, err := otelinfuse.Register(breakers, otelinfuse.WithTransitions(transitions))
	if err != nil {
		log.Fatal(err)
	}
	defer unregister()
	http.DefaultClient = &http.Client{Transport: otelhttp.NewTransport(&infuse.Transport{
		Breakers:   breakers,
		OnRejected: otelinfuse.OnRejected(nil),
	})}
}

// Calls other than HTTP requests set the attributes with Rejected.
func ExampleRejected() {
	breaker, err := infuse.New("inventory", infuse.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, span := otel.Tracer("shop").Start(context.Background(), "reserve")
	defer span.End()
	err = breaker.Call(ctx, func(context.Context) error { return nil })
	otelinfuse.Rejected(ctx, err)
}
