package pybreakerstorage

// This file merges the changes of Python into the record of the Go side.

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// found is the content of Redis for a circuit.
type found struct {
	readAt time.Time // on the local clock
	now    int64     // on the clock of Redis, in milliseconds

	version string
	record  string // the bytes of AppendRecord; empty: no Go process has written yet
	mirror  string // copy of Python's values at the last write of Go
	written int64  // time of that write on the clock of Redis, in milliseconds
	values  [pythonKeys]string
}

// local translates a time of Redis to the local clock.
func (f *found) local(milliseconds int64) time.Time {
	return f.readAt.Add(-time.Duration(f.now-milliseconds) * time.Millisecond)
}

// circuit is the content of Redis with its merged result.
type circuit struct {
	found
	stored infuse.Record // at the last write of Go
	known  python        // Python's values at the last write of Go

	record infuse.Record // with the changes since then
	python python
}

// merged returns the circuit with the changes since the last write of Go.
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
	c.record = c.stored.At(f.readAt)
	switch present := c.python; {
	case present.movedSince(c.known):
		c.moved(s.resetTimeout)
	case c.record.State != present.state: // the record has changed by time
		c.python = present.follow(&c.stored, &c.record, f.now/1000)
	case present.state == infuse.StateClosed && present.failures != c.known.failures:
		c.counted()
	case present.state == infuse.StateHalfOpen && present.successes != c.known.successes:
		c.record.Successes = present.successes
		c.record.Generation = max(c.record.Generation+1, f.readAt.UnixMilli())
	}
	return c, nil
}

// byPython is the author of states that Python has set.
const byPython = "python"

// noLimits returns limits that change no state.
func noLimits(resetTimeout time.Duration) infuse.Limits {
	return infuse.Limits{FailMax: math.MaxInt32, ResetTimeout: resetTimeout, SuccessThreshold: math.MaxInt32, MaxTrials: 1, TrialTimeout: time.Millisecond}
}

// moved applies a state that Python has set, as if set manually: calls that were admitted
// before it are not counted.
func (c *circuit) moved(resetTimeout time.Duration) {
	c.record, _ = c.record.Apply(infuse.Change{
		Manual: &infuse.ManualState{To: c.python.state}, Limits: noLimits(resetTimeout), By: byPython,
	}, c.readAt)
	c.record.Failures = c.python.failures
	switch c.record.State {
	case infuse.StateHalfOpen:
		c.record.Successes = c.python.successes
	case infuse.StateOpen:
		c.record.DueAt = c.openedAt().Add(resetTimeout)
	}
}

// openedAt returns when Python opened the circuit. The clock of that process may be
// wrong, so the time is limited to between the last write of Go and now. It is now if
// Python has not written opened_at yet.
func (c *circuit) openedAt() time.Time {
	opened := c.python.openedAt * 1000
	if c.found.record != "" {
		if c.python.openedAt <= c.known.openedAt {
			return c.readAt
		}
		opened = max(opened, c.written)
	}
	return c.local(min(opened, c.now))
}

// counted applies Python's fail_counter. A lower value means that there was a success,
// and is the number of failures since then.
func (c *circuit) counted() {
	r, added := &c.record, c.python.failures-c.known.failures
	if added > 0 && scored(r) {
		r.Score = min(r.Score+added, math.MaxInt32)
		return
	}
	if scored(r) {
		c.dismiss()
	}
	r.Failures = c.python.failures
}

// dismiss ends a suspicion: a success in Python has ended the streak.
func (c *circuit) dismiss() {
	c.record, _ = c.record.Apply(infuse.Change{
		Seen: c.record, Limits: noLimits(time.Hour), By: byPython,
		Calls: infuse.Calls{Successes: c.record.Score + 1},
	}, c.readAt)
}

// mirror returns the copy of Python's values for the hash, in the order of the keys.
func (p python) mirror() string {
	return fmt.Sprintf("%v %d %d %d", p.state, p.failures, p.successes, p.openedAt)
}

func parseMirror(text string) (python, error) {
	fields := strings.Fields(text)
	if len(fields) != pythonKeys {
		return python{}, fmt.Errorf("has the invalid copy %s of Python's keys", strconv.Quote(text))
	}
	return parsePython([pythonKeys]string(fields), python{})
}
