package rpc

// This file contains the reply of a server to a rejected call.

import (
	"time"

	"github.com/infuse-go/infuse"
)

// RejectedText is the text of a rejection that a server sends to its clients. It contains
// no circuit name and no reason, because clients are untrusted.
const RejectedText = "service unavailable: a circuit breaker is open"

// RetryDelay returns the time until the circuit is ready for a trial, or 1 s if that is
// unknown: 0 would cause an immediate retry.
func RetryDelay(open *infuse.OpenError) time.Duration {
	if left := open.RetryAfter(); left > 0 {
		return left
	}
	return time.Second
}
