package infuse

import (
	"slices"
	"time"
)

// reference is a local circuit breaker as a reader of pybreaker's documentation
// would write it. Each process's local circuit must be exactly this one.
type reference struct {
	limits              *Limits
	state               State
	spell               int // a call belongs to the one that admitted it
	failures, successes int
	due                 time.Time
	trials              []referenceTrial
	off                 bool // the local circuit stands in for the shared one
}

type referenceTrial struct {
	id   string
	ends time.Time
}

func (b *reference) enter(s State, now time.Time) {
	b.state, b.successes, b.spell, b.due = s, 0, b.spell+1, now.Add(b.limits.ResetTimeout)
	if s == StateClosed {
		b.failures = 0
	}
}

func (b *reference) acquire(id string, now time.Time) {
	if b.state == StateOpen && !now.Before(b.due) {
		b.enter(StateHalfOpen, now)
	}
	b.trials = append(b.trials, referenceTrial{id, now.Add(b.limits.TrialTimeout)})
}

// end counts the outcome of a call that was admitted in the given spell.
func (b *reference) end(id string, spell int, o Outcome, now time.Time) {
	b.expire(now)
	n := len(b.trials)
	b.trials = slices.DeleteFunc(b.trials, func(t referenceTrial) bool { return t.id == id })
	ran := len(b.trials) < n
	switch {
	case o == OutcomeIgnored || b.state == StateOpen || b.state == StateHalfOpen && !ran || b.state == StateClosed && spell != b.spell:
	case b.state == StateHalfOpen && o == OutcomeFailure:
		b.enter(StateOpen, now)
	case b.state == StateHalfOpen:
		if b.successes++; b.successes >= b.limits.SuccessThreshold {
			b.enter(StateClosed, now)
		}
	case o == OutcomeSuccess:
		b.failures = 0
	default:
		if b.failures++; b.failures >= b.limits.FailMax {
			b.enter(StateOpen, now)
		}
	}
}

func (b *reference) expire(now time.Time) {
	over := func(t referenceTrial) bool { return !now.Before(t.ends) }
	if slices.ContainsFunc(b.trials, over) {
		b.trials = slices.DeleteFunc(slices.Clone(b.trials), over) // worlds share it
	}
}

// reset is a new beginning for all processes.
func (b *reference) reset(off bool) {
	*b = reference{limits: b.limits, spell: b.spell + 1, off: off}
}

func (b reference) compare(local *Record, now time.Time) *violation {
	b.expire(now)
	l := local.at(now)
	if b.off || b.limits.FailureRate > 0 || b.limits.MaxResetTimeout > 0 || l.State == b.state && len(l.Trials) == len(b.trials) &&
		(l.State != StateClosed || l.Failures == b.failures) && (l.State != StateOpen || l.DueAt.Equal(b.due)) && (l.State != StateHalfOpen || l.Successes == b.successes) {
		return nil
	}
	return violates("I6", "the local circuit is %+v, and pybreaker's is %+v", *l, b)
}
