package pybreakerstorage

// This file contains Python's keys: their names, and their values.

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/infuse-go/infuse"
)

// Layout determines the names of the keys of a circuit.
type Layout uint8

const (
	// Pybreaker is the layout of pybreaker's CircuitRedisStorage, version 1.4 or
	// later: <namespace>:pybreaker:state, fail_counter, success_counter and
	// opened_at. Without a namespace: pybreaker:state and so on.
	Pybreaker Layout = iota

	// Infuse is the layout of Infuse for Python: infuse:<namespace>:state,
	// fail_counter and opened_at. By default Infuse uses database 15 of Redis, and
	// namespaces like "development:inventory".
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

// extraKey is the key that only Go uses.
const extraKey = "infuse-go"

// The indexes of Python's keys, and of their values.
const (
	stateKey = iota
	failCounterKey
	successCounterKey
	openedAtKey
	pythonKeys
)

// keys returns the names of a circuit's keys: the extra key, then Python's. Different
// namespaces share no key.
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

// python is the content of Python's keys.
type python struct {
	state     infuse.State
	failures  int
	successes int
	openedAt  int64 // seconds of Unix time; 0: never opened
}

// parsePython parses the values of Python's keys. A missing key keeps its known value.
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
			wrong = append(wrong, fmt.Errorf("has the invalid number %.40q", values[key]))
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
	return 0, fmt.Errorf("has the invalid state %.40q", text)
}

// values returns the values to write to Python's keys. Empty values are not written.
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

// movedSince reports whether Python has set a state. A new opened_at alone is not enough:
// Python writes it before the state.
func (p python) movedSince(known python) bool {
	return p.state != known.state || p.state == infuse.StateOpen && p.openedAt > known.openedAt
}

// follow returns the values that Python would have written for the transition between the
// records, at that second.
func (p python) follow(before, after *infuse.Record, second int64) python {
	switch after.State {
	case infuse.StateClosed:
		p.failures, p.successes = count(after), 0
	case infuse.StateHalfOpen:
		if after.Successes > before.Successes { // a success ends the streak
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
		case before.State == infuse.StateHalfOpen && after.Manual != after.Opened: // by a failed trial
			p.failures = min(p.failures+1, math.MaxInt32)
		}
		p.successes, p.openedAt = 0, max(p.openedAt, second)
	}
	p.state = after.State
	return p
}

// count returns the consecutive failures for Python: while the circuit is suspect because
// of them, the score.
func count(r *infuse.Record) int {
	if scored(r) {
		return r.Score
	}
	return r.Failures
}

// scored reports whether the circuit is suspect because of consecutive failures.
func scored(r *infuse.Record) bool { return r.Suspect() && !r.Rated }
