package connectinfuse

import (
	"time"

	"github.com/infuse-go/infuse/internal/rpc"
)

// EstablishedAfter has a stream be established sooner or later.
func EstablishedAfter(d time.Duration) Option {
	return func(i *Interceptor) { i.establishedAfter = d }
}

// HostName is the name of a host.
func HostName(addr string) string { return hostName(addr) }

// DefaultEstablishedAfter is how long a stream must live by default.
const DefaultEstablishedAfter = rpc.EstablishedAfter
