package tally

import (
	"time"

	"github.com/infuse-go/infuse"
)

// Failures returns the consecutive failures of the local circuit or, if that is
// more, of the shared one.
func Failures(s infuse.Stats) int { return max(s.Local.Failures, s.Shared.Failures) }

// Since returns when the state that calls meet began: with the last change of a
// circuit that is in that state.
func Since(s infuse.Stats) (since time.Time) {
	for _, c := range []infuse.CircuitStats{s.Local, s.Shared} {
		if c.State == s.State && c.Since.After(since) {
			since = c.Since
		}
	}
	if since.IsZero() { // neither is, as with an override that is over
		return s.Local.Since
	}
	return since
}

// OnlyLocal reports whether only the local circuit rejects calls.
func OnlyLocal(s infuse.Stats) bool {
	return s.State != infuse.StateClosed && s.Shared.State == infuse.StateClosed
}
