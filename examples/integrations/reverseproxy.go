package integrations

import (
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/infuse-go/infuse"
)

// NewReverseProxy answers with a 503 and a Retry-After while the circuit is
// open. Its ErrorHandler does that, and not the Transport's OnRejected: then
// ModifyResponse sees answers of the service alone, and other clients may share
// the Transport.
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
