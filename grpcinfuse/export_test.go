package grpcinfuse

import "time"

// ProvedAfter has a stream prove itself sooner or later.
func ProvedAfter(d time.Duration) Option { return func(i *Interceptor) { i.proof = d } }

// NameOf is the name of a canonical target.
func NameOf(target string) string { return nameOf(target) }

// TypicalProof is how long a stream must live by default.
const TypicalProof = provedAfter
