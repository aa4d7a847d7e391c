package tally

// This file reads the statistics of breakers, and selects the circuits with metrics.

import (
	"cmp"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/infuse-go/infuse"
)

// Failures returns the consecutive failures of the local or the shared circuit, whichever
// is more.
func Failures(s infuse.Stats) int { return max(s.Local.Failures, s.Shared.Failures) }

// Since returns the start of s.State: the later start of the circuits in that state.
func Since(s infuse.Stats) (since time.Time) {
	for _, c := range []infuse.CircuitStats{s.Local, s.Shared} {
		if c.State == s.State && c.Since.After(since) {
			since = c.Since
		}
	}
	if since.IsZero() { // neither circuit is, for example under an override
		return s.Local.Since
	}
	return since
}

// OnlyLocal reports whether the local circuit rejects calls while the shared circuit is
// closed. It is false without a storage, and under an override.
func OnlyLocal(s infuse.Stats) bool {
	return s.State != infuse.StateClosed && s.Shared.State == infuse.StateClosed && s.Override == nil && !s.Shared.Since.IsZero()
}

// MaxCircuits is the default limit of circuits with metrics in both modules. The
// instrument with the most data points, transitions, has 6 per circuit; an OpenTelemetry
// SDK allows 2000 by default.
const MaxCircuits = 300

// Circuit is a breaker with its statistics.
type Circuit struct {
	Breaker       *infuse.Breaker
	Name          string // see Name
	Stats         infuse.Stats
	ReadyForTrial bool // the circuit is open or half-open, and the next call becomes a trial
}

// Circuits returns the circuits of the breakers, and the number of omitted circuits. Of
// breakers with the same name it returns the first. If there are more than most circuits,
// those that are not closed or that have an override come first, then those with
// failures, then the others by name.
func Circuits(breakers iter.Seq[*infuse.Breaker], most int) (shown []Circuit, omitted int) {
	seen := make(map[string]bool)
	for b := range breakers {
		if b == nil {
			continue
		}
		if name := Name(b.Name()); !seen[name] {
			seen[name] = true
			s := b.Stats()
			shown = append(shown, Circuit{b, name, s, readyForTrial(b, s)})
		}
	}
	if len(shown) <= most {
		return shown, 0
	}
	slices.SortFunc(shown, func(a, b Circuit) int {
		return cmp.Or(cmp.Compare(weight(b.Stats), weight(a.Stats)), strings.Compare(a.Name, b.Name))
	})
	return shown[:most], len(shown) - most
}

// readyForTrial reports whether the next call becomes a trial.
func readyForTrial(b *infuse.Breaker, s infuse.Stats) bool {
	switch {
	case s.State == infuse.StateClosed, s.Override != nil, !b.Ready():
		return false
	case s.State == infuse.StateOpen: // in a dry run, Ready is always true
		return !s.DueAt.IsZero() && !s.DueAt.After(time.Now())
	}
	return true
}

// weight is the importance of a circuit.
func weight(s infuse.Stats) int {
	switch closed := infuse.StateClosed; {
	case s.State != closed, s.Local.State != closed, s.Shared.State != closed, s.Override != nil:
		return 2
	case Failures(s) > 0, s.Shared.Suspect:
		return 1
	}
	return 0
}

// Name returns the name of a circuit as valid UTF-8. It quotes invalid names. It also
// quotes names that begin with a quote, so that different names stay different.
func Name(circuit string) string {
	if utf8.ValidString(circuit) && !strings.HasPrefix(circuit, `"`) {
		return circuit
	}
	return strconv.Quote(circuit)
}
