package integrations

// This file shows otelhttp.

import (
	"net/http"

	"github.com/infuse-go/infuse"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

// NewTracedClient traces outside of the breaker: a rejected request also has a span, with
// the circuit and its state.
func NewTracedClient(transport *infuse.Transport, options ...otelhttp.Option) *http.Client {
	return &http.Client{Transport: otelhttp.NewTransport(transport, options...)}
}
