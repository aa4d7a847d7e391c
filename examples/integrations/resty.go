package integrations

import (
	"errors"
	"net/http"

	"github.com/go-resty/resty/v2"
	"github.com/infuse-go/infuse"
)

// NewRestyClient retries what may be better next time, which an open circuit
// is not. What resty's SetProxy, SetTLSClientConfig and the like would set
// belongs into the Transport's Base.
func NewRestyClient(transport *infuse.Transport) *resty.Client {
	return resty.New().
		SetTransport(transport).
		SetRetryCount(3).
		AddRetryCondition(func(response *resty.Response, err error) bool {
			return !errors.Is(err, infuse.ErrOpen) && (err != nil || response.StatusCode() >= http.StatusInternalServerError)
		})
}
