package linearizability_test

import (
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/infuse-go/infuse"
)

// The model is Record.Apply. What takes an hour takes longer than a history,
// so an open circuit stays open until it is moved, and no lease ends. Only a
// suspicion, and the calm after it, may be over within a history: before each
// step the model allows both, that they are over and that they are not. Once a
// suspicion is over the circuit is open, and for a while what comes late may yet
// refute that.

var noTime = time.UnixMilli(0)

// step is the input of an operation: to acquire a permit, to settle one, or to
// move the circuit by hand.
type step struct {
	do      doing
	permit  int            // of acquire and settle
	outcome infuse.Outcome // of settle
	to      infuse.State   // of move
}

type doing int

const (
	acquire doing = iota
	settle
	move
)

// answer is the output of acquire.
type answer struct {
	admitted bool
	state    infuse.State // of a rejection
}

// circuit is the model's state.
type circuit struct {
	record infuse.Record
	over   bool // its suspicion is; what comes late is judged as if it was not
	held   map[int]held
}

// held is a permit that is not settled.
type held struct {
	generation int64
	trial      bool
}

func model(limits infuse.Limits) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init:  func() []any { return []any{circuit{}} },
		Equal: reflect.DeepEqual,
		Step: func(state, input, output any) (next []any) {
			for _, c := range state.(circuit).withTime() {
				if c, ok := c.step(input.(step), output, limits); ok {
					next = append(next, c.plain())
				}
			}
			return next
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	}
	return m.ToModel()
}

// withTime returns the circuit as it is and, if a suspicion or the calm after
// it has begun, as it is when that is over: open, for good or not.
func (c circuit) withTime() []circuit {
	over, later := c, c
	switch r := c.record; {
	case !r.OpensAt.IsZero():
		over.over = true
		later.over, later.record = false, r.At(r.OpensAt)
		if c.over {
			return []circuit{c, later}
		}
		return []circuit{c, over, later}
	case !r.CalmUntil.IsZero():
		later.record.CalmUntil = time.Time{}
		return []circuit{c, later}
	}
	return []circuit{c}
}

// plain returns the circuit without what makes no difference any more, so that
// the checker finds fewer states: generations matter by their order alone.
func (c circuit) plain() circuit {
	all := make(map[int]held, len(c.held))
	for permit, h := range c.held {
		generation := int64(0) // of an older state
		if h.generation >= c.record.Since {
			generation = 1
		}
		all[permit] = held{generation, h.trial}
	}
	c.held = all
	c.record.Generation, c.record.Since, c.record.Opened, c.record.Moved = 1, 1, 0, 0
	if c.record.State != infuse.StateClosed {
		c.record.Failures = 0
	}
	return c
}

func (c circuit) step(s step, output any, limits infuse.Limits) (circuit, bool) {
	switch s.do {
	case acquire:
		return c.acquire(s, output.(answer), limits)
	case settle:
		return c.settle(s, limits)
	default:
		return c.change(infuse.Change{Move: &infuse.Move{To: s.to}}, limits), !c.over // what is done makes the opening final
	}
}

func (c circuit) acquire(s step, a answer, limits infuse.Limits) (circuit, bool) {
	if c.over {
		return c, !a.admitted && a.state == infuse.StateOpen
	}
	trial := c.record.State != infuse.StateClosed
	if trial {
		record, verdict := c.record.Apply(infuse.Change{Ask: fmt.Sprint(s.permit), Limits: limits}, noTime)
		if verdict == infuse.VerdictRefused {
			return c, !a.admitted && a.state == c.record.State
		}
		c.record = record
	}
	c.held = maps.Clone(c.held)
	if c.held == nil {
		c.held = make(map[int]held)
	}
	c.held[s.permit] = held{c.record.Generation, trial}
	return c, a.admitted
}

func (c circuit) settle(s step, limits infuse.Limits) (circuit, bool) {
	permit, ok := c.held[s.permit]
	if !ok {
		return c, false // not acquired yet
	}
	c.held = maps.Clone(c.held)
	delete(c.held, s.permit)
	change := infuse.Change{Seen: infuse.Record{Generation: permit.generation}}
	switch {
	case permit.trial && c.over:
		return c, false // as a move
	case permit.trial:
		change.Settled = []infuse.Settlement{{ID: fmt.Sprint(s.permit), Outcome: s.outcome}}
	case s.outcome == infuse.OutcomeFailure:
		change.Calls = infuse.Calls{Failures: 1, Lead: 1, Streak: 1}
	case s.outcome == infuse.OutcomeSuccess:
		change.Calls = infuse.Calls{Successes: 1}
	default:
		return c, true
	}
	return c.change(change, limits), true
}

func (c circuit) change(change infuse.Change, limits infuse.Limits) circuit {
	change.Limits = limits
	opens := c.record.OpensAt
	c.record, _ = c.record.Apply(change, noTime)
	c.over = c.over && c.record.OpensAt.Equal(opens)
	return c
}
