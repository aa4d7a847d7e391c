package integrations

import (
	"errors"

	"github.com/infuse-go/infuse"
	"resty.dev/v3"
)

// NewResty3Client retries what may be better next time, as NewRestyClient does.
// By itself, version 3 retries only what calls itself temporary, and a rejection
// does not. A condition of one's own is asked about a rejection, too.
func NewResty3Client(transport *infuse.Transport) *resty.Client {
	return resty.New().
		SetTransport(transport).
		SetRetryCount(3).
		AddRetryConditions(resty.RetryConditionStatus5XX, func(_ *resty.Response, err error) bool {
			return err != nil && !errors.Is(err, infuse.ErrOpen)
		})
}
