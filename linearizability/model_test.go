package linearizability_test

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/infuse-go/infuse"
)

// The model is Record.Apply. Its state is the record that the last operation
// returned: each operation must return the result of its change on that record.
//
// Time is not modeled. All durations are an hour, and outlast a history, except
// ResetTimeout: it is 1 ms, and the model accepts that it is over and that it is
// not.

// operation is the input of one operation.
type operation struct {
	do     doing
	client int
	index  int           // of the operation, among those of the client: from 1
	change infuse.Change // unless do is load
}

type doing int

const (
	load doing = iota
	apply
	count // see model.count
)

// result is the output of an operation. A count has none.
type result struct {
	record  infuse.Record
	verdict infuse.Verdict // of apply
}

// circuit is the model's state. The model remembers sequence numbers by itself,
// because a storage may return records without them.
type circuit struct {
	record   infuse.Record
	heard    [clients]uint64 // the highest sequence number that was applied
	returned [clients]int    // the index of the last operation that returned
}

type model struct{ start time.Time }

func (m model) porcupine() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Init:  func() []any { return []any{circuit{}} },
		Equal: func(a, b any) bool { return a.(circuit).essence() == b.(circuit).essence() },
		Step: func(state, input, output any) []any {
			c, o := state.(circuit), input.(operation)
			switch got := output.(result); o.do {
			case load:
				return c.next(o, got, essence(c.record) == essence(got.record))
			case apply:
				return c.next(o, got, m.applies(c, o, got))
			default:
				return m.count(c, o)
			}
		},
	}
	return nondeterministic.ToModel()
}

// next returns the circuit after an operation, or nothing if that is impossible.
func (c circuit) next(o operation, got result, possible bool) []any {
	if !possible {
		return nil
	}
	c.record = got.record
	c.returned[o.client] = o.index
	if o.do == apply && got.verdict != infuse.VerdictRefused {
		c.heard[o.client] = max(c.heard[o.client], o.change.Number)
	}
	return []any{c}
}

// applies reports whether the change of this record has this result.
func (m model) applies(c circuit, o operation, got result) bool {
	change := o.change
	if change.Seen.Generation > c.record.Generation {
		return false // no storage loses anything here
	}
	if change.Number <= c.heard[o.client] { // a duplicate: the record is only evaluated
		if change.Move != nil { // and not even that
			return got.verdict == infuse.VerdictApplied && essence(c.record) == essence(got.record)
		}
		change = infuse.Change{Source: change.Source, Seen: change.Seen, Limits: change.Limits}
	}
	change.Number = 0
	for _, now := range []time.Time{m.start.Add(-10 * time.Minute), m.start.Add(10 * time.Minute)} {
		want, verdict := c.record.Apply(change, now)
		if verdict == got.verdict && c.sameChange(want, got.record) {
			return true
		}
	}
	return false
}

// sameChange compares records whose new generations may differ: a generation
// follows the storage's clock.
func (c circuit) sameChange(want, got infuse.Record) bool {
	if want.Generation != c.record.Generation {
		if got.Generation <= c.record.Generation {
			return false
		}
		for _, g := range []*int64{&want.Since, &want.Opened, &want.Moved} {
			if *g == want.Generation {
				*g = got.Generation
			}
		}
		want.Generation = got.Generation
	}
	return essence(want) == essence(got)
}

// count is the first half of a change that only has Calls, in a storage that
// counts by itself and evaluates the record afterwards. That shows if the count
// has reached a limit: others may read the record, or evaluate it, in between.
// The second half is apply, for which this change is then a duplicate. Or the
// storage makes the change at once: then this half does nothing.
func (m model) count(c circuit, o operation) []any {
	at, change := c, o.change
	if c.returned[o.client] >= o.index || change.Number <= c.heard[o.client] || change.Seen.Generation > c.record.Generation {
		return []any{c}
	}
	const success = 4 // what it takes from the score
	upper := change.Limits.FailMax
	if !c.record.DismissedAt.IsZero() {
		upper = math.MaxInt32
	}
	switch r, calls := &at.record, &change.Calls; {
	case change.Seen.Generation < r.Since, r.State != infuse.StateClosed && r.Threshold == 0:
		return []any{c}
	case r.Threshold > 0:
		if r.Score == 0 || r.Score+calls.Failures-success*calls.Successes > 0 {
			return []any{c}
		}
		r.Score = 0
	default:
		n := r.Failures + calls.Lead
		if calls.Successes > 0 && (calls.Lead == 0 || n < upper) {
			n = calls.Streak
		}
		if r.Failures >= upper || n < upper {
			return []any{c}
		}
		r.Failures = n
	}
	at.heard[o.client] = change.Number
	return []any{c, at}
}

func (c circuit) essence() string { return fmt.Sprint(essence(c.record), c.heard, c.returned) }

// essence is everything in a record that is compared. Failures have no effect
// unless the record is closed, and RedisStorage may then lose some.
func essence(r infuse.Record) string {
	if r.State != infuse.StateClosed {
		r.Failures = 0
	}
	trials := make([]string, len(r.Trials))
	for i, t := range r.Trials {
		trials[i] = fmt.Sprint(t.ID, t.Stale)
	}
	return fmt.Sprintf("%v, generation %d since %d opened %d moved %d, failures %d, threshold %d, score %d, witness %q, successes %d, trials %v",
		r.State, r.Generation, r.Since, r.Opened, r.Moved, r.Failures, r.Threshold, r.Score, r.Witness, r.Successes, trials)
}
