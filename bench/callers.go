package main

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// The calls of fleets, real and simulated alike: they come at random times
// (Poisson), take no time, and fail at random.

// weather is what the members of a fleet meet.
type weather struct {
	Rate   float64       // calls a second of each member
	Errors float64       // the share of calls that fail while the service is healthy
	For    time.Duration // in all
	Onset  time.Duration // from then on all calls fail; 0: never
	Seed   uint64
}

func (w weather) String() string {
	if w.Onset > 0 {
		return fmt.Sprintf("an outage after %v", w.Onset)
	}
	return fmt.Sprintf("%g %% errors for %v", 100*w.Errors, w.For)
}

// fails tells whether a call fails, by a random number from 0 up to 1.
func (w weather) fails(roll float64, at time.Duration) bool {
	return roll < w.Errors || w.unhealthy(at)
}

func (w weather) unhealthy(at time.Duration) bool { return w.Onset > 0 && at >= w.Onset }

// until returns the time to the next of so many members' calls.
func (w weather) until(random *rand.Rand, members int) time.Duration {
	return time.Duration(random.ExpFloat64() / (w.Rate * float64(members)) * float64(time.Second))
}

// sharedName is the circuit that they share.
const sharedName = "service"

// caller makes the calls of one member, and counts what becomes of them. It is
// safe for concurrent use.
type caller struct {
	weather
	kind   fleetKind
	member member
	begin  time.Time

	verdicts                 [broke + 1]atomic.Int64
	openedAlone, openedByAll atomic.Int64
	unhealthy                atomic.Int64 // calls that reached the service from the onset on
	last                     atomic.Int64 // when the last of them did, since the onset
}

// settings are those of the caller's member: the defaults of Infuse.
func (c *caller) settings() fleetSettings {
	return fleetSettings{circuit: sharedName, failMax: fewFailures, resetTimeout: time.Minute, opened: func(alone bool) {
		if alone {
			c.openedAlone.Add(1)
		} else {
			c.openedByAll.Add(1)
		}
	}}
}

func (c *caller) call(roll float64) {
	err := c.member.call(func() error {
		at := time.Since(c.begin)
		if c.weather.unhealthy(at) {
			c.unhealthy.Add(1)
			c.last.Store(int64(at - c.Onset))
		}
		if c.fails(roll, at) {
			return errUnhealthy
		}
		return nil
	})
	c.verdicts[c.kind.verdictOf(err)].Add(1)
}

// tally is what has become of the calls of some members.
type tally struct {
	Ran, RejectedAlone, RejectedByAll, Broke int64
	OpenedAlone, OpenedByAll                 int64 // as the members saw it
	Unhealthy                                int64
	Last                                     time.Duration
}

func (c *caller) tally() tally {
	return tally{
		Ran: c.verdicts[ran].Load(), RejectedAlone: c.verdicts[rejectedAlone].Load(), RejectedByAll: c.verdicts[rejectedByAll].Load(), Broke: c.verdicts[broke].Load(),
		OpenedAlone: c.openedAlone.Load(), OpenedByAll: c.openedByAll.Load(),
		Unhealthy: c.unhealthy.Load(), Last: time.Duration(c.last.Load()),
	}
}

func (t tally) plus(u tally) tally {
	return tally{
		Ran: t.Ran + u.Ran, RejectedAlone: t.RejectedAlone + u.RejectedAlone, RejectedByAll: t.RejectedByAll + u.RejectedByAll, Broke: t.Broke + u.Broke,
		OpenedAlone: t.OpenedAlone + u.OpenedAlone, OpenedByAll: t.OpenedByAll + u.OpenedByAll,
		Unhealthy: t.Unhealthy + u.Unhealthy, Last: max(t.Last, u.Last),
	}
}

func (t tally) calls() int64 { return t.Ran + t.RejectedAlone + t.RejectedByAll + t.Broke }

// told corrects how often the fleet's circuit opened, by what a member found that
// makes no calls: in a fleet of Infuse all are notified of each opening.
func (t *tally) told(kind fleetKind, bystander tally) {
	if kind.name == infuseFleet.name {
		t.OpenedByAll = bystander.OpenedByAll
	}
}

// rejected is the share of calls that were rejected.
func (t tally) rejected() float64 {
	return float64(t.RejectedAlone+t.RejectedByAll) / float64(max(1, t.calls()))
}
