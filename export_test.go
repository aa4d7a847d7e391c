package infuse

// IsFast reports whether a success takes neither a lock nor a look at the clock.
func IsFast(b *Breaker) bool { return b.view.Load().fast }

// RejectsAtOnce reports whether a rejection is a load and a branch.
func RejectsAtOnce(b *Breaker) bool { return b.view.Load().rejects != nil }
