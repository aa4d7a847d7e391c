package rpc

import (
	"time"

	"github.com/infuse-go/infuse"
)

// RejectedText is what a server tells its clients about a rejection. It names no
// circuit and no reason: anybody may read it.
const RejectedText = "service unavailable: a circuit breaker is open"

// RetryDelay returns how long a rejection lasts, or a second if that is unknown:
// 0 would invite an immediate retry.
func RetryDelay(open *infuse.OpenError) time.Duration {
	if left := open.RetryAfter(); left > 0 {
		return left
	}
	return time.Second
}
