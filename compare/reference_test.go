package compare_test

// This file contains the reference, a simple model of the rules.

import (
	"testing"
	"time"
)

// reference is a breaker as a reader of the documentation would write it: a list of calls
// that starts with a failure, is emptied if there was no failure for a window, and is
// evaluated at failures.
type reference struct {
	settings
	opened  func()
	calls   []ended
	open    bool
	openTil time.Time
}

type ended struct {
	at    time.Time
	fails bool
}

func startReference(_ *testing.T, s settings, opened func()) breaker {
	r := &reference{settings: s, opened: opened}
	return breaker{call: r.run, stop: func() {}}
}

func (r *reference) run(fails bool) {
	now := time.Now()
	switch {
	case r.open && now.Before(r.openTil):
	case r.open && fails: // the trial
		r.opens(now)
	case r.open:
		r.open = false
	default:
		if r.add(now, fails); fails && r.over(now) {
			r.opens(now)
		}
	}
}

func (r *reference) opens(now time.Time) {
	r.open, r.openTil, r.calls = true, now.Add(r.openTime), nil
	r.opened()
}

func (r *reference) add(now time.Time, fails bool) {
	if _, failures := within(r.calls, r.window, now); failures == 0 {
		r.calls = nil
	}
	if fails || r.calls != nil {
		r.calls = append(r.calls, ended{now, fails})
	}
}

func (r *reference) over(now time.Time) bool {
	calls, failures := within(r.calls, r.window, now)
	return calls >= r.minCalls && float64(failures)/float64(calls) >= r.rate
}

// within counts the calls within the length.
func within(all []ended, length time.Duration, now time.Time) (calls, failures int) {
	for i := len(all) - 1; i >= 0 && all[i].at.After(now.Add(-length)); i-- {
		calls++
		if all[i].fails {
			failures++
		}
	}
	return calls, failures
}
