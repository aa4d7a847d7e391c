package pybreakerstorage

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// found is what Redis has of a circuit.
type found struct {
	here time.Time // when that was, on this process's clock
	now  int64     // and in milliseconds of Redis's

	version string
	record  string // the bytes of AppendRecord; none if no Go process has written yet
	mirror  string // what Python's keys held when they were written
	written int64  // when that was, in milliseconds of Redis's clock
	values  [pythonKeys]string
}

// local is a time of Redis's clock on this process's.
func (f *found) local(milliseconds int64) time.Time {
	return f.here.Add(-time.Duration(f.now-milliseconds) * time.Millisecond)
}

// circuit is what is found of a circuit, and what it comes to.
type circuit struct {
	found
	stored infuse.Record // as it was written
	known  python        // as it was then

	record infuse.Record // with all that has happened since
	python python
}

// merged returns the circuit after what time and Python have done to it.
func (s *Storage) merged(f found) (*circuit, error) {
	c := &circuit{found: f}
	var err error
	if f.record != "" {
		if c.stored, err = infuse.ParseRecord([]byte(f.record), f.local(f.written)); err != nil {
			return nil, err
		}
		if c.known, err = parseMirror(f.mirror); err != nil {
			return nil, err
		}
	}
	if c.python, err = parsePython(f.values, c.known); err != nil {
		return nil, err
	}
	c.record = c.stored.At(f.here)
	switch present := c.python; {
	case present.movedSince(c.known):
		c.moved(s.resetTimeout)
	case c.record.State != present.state: // time has opened it
		c.python = present.follow(&c.stored, &c.record, f.now/1000)
	case present.state == infuse.StateClosed && present.failures != c.known.failures:
		c.counted()
	case present.state == infuse.StateHalfOpen && present.successes != c.known.successes:
		c.record.Successes = present.successes
		c.record.Generation = max(c.record.Generation+1, f.here.UnixMilli())
	}
	return c, nil
}

// byPython is who has moved a circuit that no Go process did.
const byPython = "python"

// noLimits judge nothing.
func noLimits(resetTimeout time.Duration) infuse.Limits {
	return infuse.Limits{FailMax: math.MaxInt32, ResetTimeout: resetTimeout, SuccessThreshold: math.MaxInt32, MaxTrials: 1, TrialTimeout: time.Millisecond}
}

// moved has the record follow a move of Python's, as one by hand: what was
// admitted before it counts for nothing.
func (c *circuit) moved(resetTimeout time.Duration) {
	c.record, _ = c.record.Apply(infuse.Change{
		Move: &infuse.Move{To: c.python.state}, Limits: noLimits(resetTimeout), By: byPython,
	}, c.here)
	c.record.Failures = c.python.failures
	switch c.record.State {
	case infuse.StateHalfOpen:
		c.record.Successes = c.python.successes
	case infuse.StateOpen:
		c.record.DueAt = c.openedAt().Add(resetTimeout)
	}
}

// openedAt is when Python opened the circuit. The clock of the process that did
// may be wrong: it was not before the record was written, and is not to come.
// An opening whose opened_at is yet to be seen is of now.
func (c *circuit) openedAt() time.Time {
	opened := c.python.openedAt * 1000
	if c.found.record != "" {
		if c.python.openedAt <= c.known.openedAt {
			return c.here
		}
		opened = max(opened, c.written)
	}
	return c.local(min(opened, c.now))
}

// counted has the record follow Python's fail_counter. If that is lower than it
// was, there was a success, and it has the failures since. A success that leaves
// it as it is cannot be seen.
func (c *circuit) counted() {
	r, added := &c.record, c.python.failures-c.known.failures
	if added > 0 && scored(r) {
		r.Score = min(r.Score+added, math.MaxInt32)
		return
	}
	if scored(r) {
		c.refute()
	}
	r.Failures = c.python.failures
}

// refute ends a suspicion: a success of Python's has ended the row, as it would
// have among Python processes alone.
func (c *circuit) refute() {
	c.record, _ = c.record.Apply(infuse.Change{
		Seen: c.record, Limits: noLimits(time.Hour), By: byPython,
		Calls: infuse.Calls{Successes: c.record.Score + 1},
	}, c.here)
}

// The mirror is what Python's keys held after a write of the Go side's, in the
// order of the keys. What differs from it was written by Python.

func (p python) mirror() string {
	return fmt.Sprintf("%v %d %d %d", p.state, p.failures, p.successes, p.openedAt)
}

func parseMirror(text string) (python, error) {
	fields := strings.Fields(text)
	if len(fields) != pythonKeys {
		return python{}, fmt.Errorf("has %s beside it for Python's keys", strconv.Quote(text))
	}
	return parsePython([pythonKeys]string(fields), python{})
}
