package integrations

// This file shows resty, version 2.

import (
	"errors"
	"net/http"

	"github.com/go-resty/resty/v2"
	"github.com/infuse-go/infuse"
)

// NewRestyClient retries errors and statuses 5xx, but not rejections. Set proxies and TLS
// in the Base of the Transport, not with SetProxy and SetTLSClientConfig of resty.
func NewRestyClient(transport *infuse.Transport) *resty.Client {
	return resty.New().
		SetTransport(transport).
		SetRetryCount(3).
		AddRetryCondition(func(response *resty.Response, err error) bool {
			return !errors.Is(err, infuse.ErrOpen) && (err != nil || response.StatusCode() >= http.StatusInternalServerError)
		})
}
