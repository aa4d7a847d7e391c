package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// The ramp after an outage of two seconds.
const (
	rampSize   = 8
	rampRate   = 100
	rampLength = 3 * time.Second
	rampOpen   = time.Second
	rampOutage = 2 * time.Second
)

// share is the share of calls that the ramp admits so long after the closing.
func share(after time.Duration) float64 {
	return min(1, 0.1+0.9*float64(after)/float64(rampLength))
}

// rampTable shows how many calls run after the closing. It returns how many slots
// exceed their share by more than one call for each process.
func rampTable(w io.Writer, seed uint64) (wrong int, err error) {
	plans := make([]plan, rampSize)
	for i := range plans {
		plans[i] = plan{For: 2*rampOutage + 2*rampOpen + rampLength, Seed: seed + uint64(i), Calls: []calls{{
			Circuit: "ramp", Settings: settings{ResetTimeout: rampOpen, Ramp: rampLength},
			Rate: rampRate, Onset: rampOutage, After: 1, Until: 2 * rampOutage,
		}}}
	}
	err = onServer(plans, func(f *fleet, tallies [][]tally) {
		closed := f.watched["ramp"].closed
		if len(closed) == 0 {
			fmt.Fprintln(w, "## A ramp after an outage\n\nThe circuit did not close again.")
			wrong++
			return
		}
		after := closed[len(closed)-1].Sub(f.begin) - 2*rampOutage
		fmt.Fprintf(w, "## A ramp after an outage\n\n%d processes, %d calls/s each, ResetTimeout %v, Ramp %v. All calls fail for %v. The circuit closed %d ms after the service was healthy again. From then on, in each %v, at most the share of the calls runs, and one call of each process.\n\n```\nms since healthy  offered  allowed  ran\n", rampSize, rampRate, rampOpen, rampLength, rampOutage, after.Milliseconds(), slot)
		for s := range int((rampLength + rampOpen) / slot) {
			var offered, ran int64
			for _, t := range tallies {
				if s < len(t[0].Slots) {
					offered, ran = offered+t[0].Offered[s], ran+t[0].Slots[s]
				}
			}
			allowed := 0.0
			if end := time.Duration(s+1)*slot - after; end > 0 {
				allowed = float64(offered) * share(end)
			}
			if float64(ran) > allowed+rampSize {
				wrong++
			}
			fmt.Fprintf(w, "%16d  %7d  %7.1f  %3d  %s\n", s*int(slot.Milliseconds()), offered, allowed, ran, strings.Repeat("#", int(ran+1)/2))
		}
		fmt.Fprintln(w, "```")
	})
	return wrong, err
}
