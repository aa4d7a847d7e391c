package connectinfuse

// This file exports internals to the tests.

import (
	"time"

	"github.com/infuse-go/infuse/internal/rpc"
)

// EstablishedAfter sets the time after which a stream is established.
func EstablishedAfter(d time.Duration) Option {
	return func(i *Interceptor) { i.establishedAfter = d }
}

// HostName is hostName.
func HostName(addr string) string { return hostName(addr) }

// DefaultEstablishedAfter is the default of EstablishedAfter.
const DefaultEstablishedAfter = rpc.EstablishedAfter
