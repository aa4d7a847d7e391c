package connectinfuse

import "time"

// ProvedAfter has a stream prove itself sooner or later.
func ProvedAfter(d time.Duration) Option { return func(i *Interceptor) { i.proof = d } }

// HostName is the name of a host.
func HostName(addr string) string { return hostName(addr) }

// TypicalProof is how long a stream must live by default.
const TypicalProof = provedAfter
