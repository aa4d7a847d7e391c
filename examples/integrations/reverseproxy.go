package integrations

// This file shows httputil.ReverseProxy.

import (
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/infuse-go/infuse"
)

// NewReverseProxy returns 503 with a Retry-After while the circuit is open. Its
// ErrorHandler does that, rather than OnRejected of the Transport: ModifyResponse is then
// called only for responses of the service, and other clients can share the Transport.
func NewReverseProxy(service *url.URL, transport *infuse.Transport) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(service)
			r.SetXForwarded()
		},
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !infuse.RespondUnavailable(w, err) {
				w.WriteHeader(http.StatusBadGateway)
			}
		},
	}
}
