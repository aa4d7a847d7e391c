package pybreakerstorage

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/infuse-go/infuse"
)

// Layout is how the keys of a circuit are named.
type Layout uint8

const (
	// Pybreaker has the keys of pybreaker's CircuitRedisStorage, of 1.4 and
	// later: <namespace>:pybreaker:state, fail_counter, success_counter and
	// opened_at; without a namespace, pybreaker:state and so on.
	Pybreaker Layout = iota

	// Infuse has the keys of Infuse for Python: infuse:<namespace>:state,
	// fail_counter and opened_at. By default Infuse uses Redis's database 15,
	// and namespaces like "development:inventory".
	Infuse
)

// String returns "pybreaker" or "infuse".
func (l Layout) String() string {
	switch l {
	case Pybreaker:
		return "pybreaker"
	case Infuse:
		return "infuse"
	}
	return fmt.Sprintf("Layout(%d)", uint8(l))
}

// extraKey is the key that Python knows nothing of.
const extraKey = "infuse-go"

// The indexes of Python's keys, and of their values.
const (
	stateKey = iota
	failCounterKey
	successCounterKey
	openedAtKey
	pythonKeys
)

// keys returns the names of a circuit's keys: the extra one and then Python's.
// Each ends in a name of its own, so no two namespaces share one.
func (l Layout) keys(namespace string) []string {
	base := l.String() + ":"
	switch {
	case namespace == "":
	case l == Infuse:
		base += namespace + ":"
	default:
		base = namespace + ":" + base
	}
	return []string{base + extraKey, base + "state", base + "fail_counter", base + "success_counter", base + "opened_at"}
}

// python is what Python's keys say of a circuit.
type python struct {
	state     infuse.State
	failures  int
	successes int
	openedAt  int64 // seconds of Unix time; 0: it never opened
}

// parsePython reads the values of Python's keys. A key that is not there says
// what was known before.
func parsePython(values [pythonKeys]string, known python) (python, error) {
	p := known
	var wrong []error
	if text := values[stateKey]; text != "" {
		var err error
		p.state, err = parseState(text)
		wrong = append(wrong, err)
	}
	number := func(key int, most int64, before int64) int64 {
		if values[key] == "" {
			return before
		}
		n, err := strconv.ParseInt(values[key], 10, 64)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("has %.40q for a number", values[key]))
		}
		return min(max(n, 0), most)
	}
	p.failures = int(number(failCounterKey, math.MaxInt32, int64(p.failures)))
	p.successes = int(number(successCounterKey, math.MaxInt32, int64(p.successes)))
	p.openedAt = number(openedAtKey, math.MaxInt32*2, p.openedAt)
	return p, errors.Join(wrong...)
}

func parseState(text string) (infuse.State, error) {
	for state := range infuse.StateHalfOpen + 1 {
		if text == state.String() {
			return state, nil
		}
	}
	return 0, fmt.Errorf("has the state %.40q, which Python does not know", text)
}

// values are what Python's keys are to hold. One that is empty is not written.
func (p python) values(l Layout) (values [pythonKeys]string) {
	values[stateKey] = p.state.String()
	values[failCounterKey] = strconv.Itoa(p.failures)
	if l == Pybreaker {
		values[successCounterKey] = strconv.Itoa(p.successes)
	}
	if p.openedAt > 0 {
		values[openedAtKey] = strconv.FormatInt(p.openedAt, 10)
	}
	return values
}

// movedSince reports whether Python has moved the circuit. opened_at is the
// first that an opening writes: by itself it says nothing yet.
func (p python) movedSince(known python) bool {
	return p.state != known.state || p.state == infuse.StateOpen && p.openedAt > known.openedAt
}

// follow returns what Python would have left if it had moved the circuit from
// one record to the other, at that second.
func (p python) follow(before, after *infuse.Record, second int64) python {
	switch after.State {
	case infuse.StateClosed:
		p.failures, p.successes = count(after), 0
	case infuse.StateHalfOpen:
		if after.Successes > before.Successes { // a success ends the row
			p.failures = 0
		}
		p.successes = after.Successes
	case infuse.StateOpen:
		if after.Opened == before.Opened {
			break
		}
		switch {
		case before.State == infuse.StateClosed:
			p.failures = after.Failures
		case before.State == infuse.StateHalfOpen && after.Moved != after.Opened: // by its trial
			p.failures = min(p.failures+1, math.MaxInt32)
		}
		p.successes, p.openedAt = 0, max(p.openedAt, second)
	}
	p.state = after.State
	return p
}

// count is what Python takes for the consecutive failures: while the circuit is
// suspect because of them, the score.
func count(r *infuse.Record) int {
	if scored(r) {
		return r.Score
	}
	return r.Failures
}

// scored reports whether the circuit is suspect because of consecutive failures.
func scored(r *infuse.Record) bool { return r.Suspect() && !r.Rated }
