package linearizability_test

import (
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/infuse-go/infuse"
)

// The model is Record.Apply. No time passes in it: what is open stays open
// until it is moved, and no lease ends, which holds for the histories too.

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
	held   map[int]held
}

// held is a permit that is not settled.
type held struct {
	generation int64
	trial      bool
}

func model(limits infuse.Limits) porcupine.Model {
	return porcupine.Model{
		Init:  func() any { return circuit{} },
		Equal: func(a, b any) bool { return reflect.DeepEqual(a, b) },
		Step: func(state, input, output any) (bool, any) {
			c, s := state.(circuit), input.(step)
			switch s.do {
			case acquire:
				return c.acquire(s, output.(answer), limits)
			case settle:
				return c.settle(s, limits)
			default:
				return c.change(infuse.Change{Kind: infuse.ChangeMove, To: s.to}, limits)
			}
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	}
}

func (c circuit) acquire(s step, a answer, limits infuse.Limits) (bool, circuit) {
	generation, trial := c.record.Generation, false
	if c.record.State != infuse.StateClosed {
		record, verdict := c.record.Apply(infuse.Change{Kind: infuse.ChangeAcquire, Token: fmt.Sprint(s.permit), Limits: limits}, noTime)
		if verdict == infuse.VerdictRefused {
			return !a.admitted && a.state == c.record.State, c
		}
		c.record, generation, trial = record, record.Generation, true
	}
	c.held = maps.Clone(c.held)
	if c.held == nil {
		c.held = make(map[int]held)
	}
	c.held[s.permit] = held{generation, trial}
	return a.admitted, c
}

func (c circuit) settle(s step, limits infuse.Limits) (bool, circuit) {
	permit, ok := c.held[s.permit]
	if !ok {
		return false, c // not acquired yet
	}
	c.held = maps.Clone(c.held)
	delete(c.held, s.permit)
	seen := infuse.Record{Generation: permit.generation}
	switch {
	case permit.trial:
		return c.change(infuse.Change{Kind: infuse.ChangeSettle, Token: fmt.Sprint(s.permit), Outcome: s.outcome, Seen: seen}, limits)
	case s.outcome == infuse.OutcomeFailure:
		return c.change(infuse.Change{Kind: infuse.ChangeReport, Failures: 1, Seen: seen}, limits)
	case s.outcome == infuse.OutcomeSuccess:
		return c.change(infuse.Change{Kind: infuse.ChangeReport, Cleared: true, Seen: seen}, limits)
	}
	return true, c
}

func (c circuit) change(change infuse.Change, limits infuse.Limits) (bool, circuit) {
	change.Limits = limits
	c.record, _ = c.record.Apply(change, noTime)
	c.record.Tokens = nil // nothing is sent twice here
	return true, c
}
