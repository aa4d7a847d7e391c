package integrations

// This file shows resty, version 3.

import (
	"errors"

	"github.com/infuse-go/infuse"
	"resty.dev/v3"
)

// NewResty3Client is NewRestyClient for version 3. By default, version 3 retries only
// errors that report that they are temporary; a rejection does not. Your own conditions
// are also called for rejections.
func NewResty3Client(transport *infuse.Transport) *resty.Client {
	return resty.New().
		SetTransport(transport).
		SetRetryCount(3).
		AddRetryConditions(resty.RetryConditionStatus5XX, func(_ *resty.Response, err error) bool {
			return err != nil && !errors.Is(err, infuse.ErrOpen)
		})
}
