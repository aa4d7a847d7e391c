package linearizability_test

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/infuse-go/infuse"
)

// This file contains the model, which is Record.Apply. Its state is the record that the
// last operation returned: each operation must return the result of its change on that
// record.
//
// The model has no time. All durations are an hour, longer than a history, except
// ResetTimeout: it is 1 ms, and the model accepts both that it has passed and that it has
// not.

// operation is the input of one operation.
type operation struct {
	do     doing
	client int
	index  int           // number of the operation of the client, from 1
	change infuse.Change // unless do is load
}

type doing int

const (
	load doing = iota
	apply
	count // see model.count
)

// result is the output of an operation. A count has no output.
type result struct {
	record  infuse.Record
	verdict infuse.Verdict // of apply
}

// circuit is the model's state. It contains the sequence numbers separately, because a
// storage may return records without them.
type circuit struct {
	record   infuse.Record
	applied  [clients]uint64 // the highest sequence number that was applied
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
		c.applied[o.client] = max(c.applied[o.client], o.change.Number)
	}
	return []any{c}
}

// applies reports whether the change of this record has this result.
func (m model) applies(c circuit, o operation, got result) bool {
	change := o.change
	if change.Seen.Generation > c.record.Generation {
		return false // the storages lose nothing
	}
	if change.Number <= c.applied[o.client] { // a duplicate: the record is only evaluated
		if change.Manual != nil { // then it is not evaluated
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

// sameChange compares records whose new generations may differ, because they follow the
// storage's clock.
func (c circuit) sameChange(want, got infuse.Record) bool {
	if want.Generation != c.record.Generation {
		if got.Generation <= c.record.Generation {
			return false
		}
		for _, g := range []*int64{&want.Since, &want.Opened, &want.Manual} {
			if *g == want.Generation {
				*g = got.Generation
			}
		}
		want.Generation = got.Generation
	}
	return essence(want) == essence(got)
}

// count is the first half of a change that has only Calls, in a storage that first counts
// and then evaluates the record. The halves are visible if the count reaches the
// threshold: others may read or evaluate the record in between. The second half is apply,
// for which the change is a duplicate. If the storage makes the change in one step, this
// half does nothing.
func (m model) count(c circuit, o operation) []any {
	at, change := c, o.change
	if c.returned[o.client] >= o.index || change.Number <= c.applied[o.client] || change.Seen.Generation > c.record.Generation {
		return []any{c}
	}
	const success = 4 // subtracted from the score
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
	at.applied[o.client] = change.Number
	return []any{c, at}
}

func (c circuit) essence() string { return fmt.Sprint(essence(c.record), c.applied, c.returned) }

// essence contains the fields of a record that are compared. Failures have no effect
// unless the record is closed, and RedisStorage may lose some otherwise.
func essence(r infuse.Record) string {
	if r.State != infuse.StateClosed {
		r.Failures = 0
	}
	trials := make([]string, len(r.Trials))
	for i, t := range r.Trials {
		trials[i] = fmt.Sprint(t.ID, t.Stale)
	}
	return fmt.Sprintf("%v, generation %d since %d opened %d moved %d, failures %d, threshold %d, score %d, witness %q, successes %d, trials %v",
		r.State, r.Generation, r.Since, r.Opened, r.Manual, r.Failures, r.Threshold, r.Score, r.Witness, r.Successes, trials)
}
