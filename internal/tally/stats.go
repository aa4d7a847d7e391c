package tally

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

// OnlyLocal reports whether only the local circuit rejects calls, although the
// process shares one. Without a storage, and under an override, it is false.
func OnlyLocal(s infuse.Stats) bool {
	return s.State != infuse.StateClosed && s.Shared.State == infuse.StateClosed && s.Override == nil && !s.Shared.Since.IsZero()
}

// MaxCircuits is the default number of circuits with metrics, in both modules. With
// it no instrument exceeds the 2000 data points that an OpenTelemetry SDK allows
// by default: a circuit has 6 transitions.
const MaxCircuits = 300

// Circuit is a breaker, and what was read of it.
type Circuit struct {
	Breaker       *infuse.Breaker
	Name          string // see Name
	Stats         infuse.Stats
	ReadyForTrial bool // the circuit is open or half-open, and the next call becomes a trial
}

// Circuits returns the circuits of these breakers, the first of each name, and how
// many others there are. Of more than most circuits it returns the most
// important ones: those that are not closed or that have an override, then those with
// failures, then by name.
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

// readyForTrial reports whether the next call becomes a trial. A circuit that nobody
// calls stays so.
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

// Name returns the name of a circuit in a form that is valid UTF-8. Invalid names
// are quoted, and so are names that begin with a quote: no two names become one.
func Name(circuit string) string {
	if utf8.ValidString(circuit) && !strings.HasPrefix(circuit, `"`) {
		return circuit
	}
	return strconv.Quote(circuit)
}
