package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/waiting"
)

// rampName is what -only matches.
const rampName = "ramp"

// ramp is an outage after which traffic returns gently. A call takes long enough
// for the half-open circuit to be seen.
var ramp = outage{size: 8, rate: 100, errors: 1, rule: rule{FailMax: failMax, ResetTimeout: time.Second, Ramp: 3 * time.Second}, takes: 200 * time.Millisecond}

// slot is how finely calls are counted, and slotsBefore are shown of the open
// circuit.
const (
	slot        = 100 * time.Millisecond
	slotsBefore = 15
)

// entry is a call: when it ran or, if it did not, when it was rejected.
type entry struct {
	at  time.Time
	ran bool
}

// note keeps a call in the journal. ran is zero if it was rejected.
func (s *scene) note(ran time.Time) {
	if !s.keeps {
		return
	}
	e := entry{ran, true}
	if ran.IsZero() {
		e = entry{time.Now(), false}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal = append(s.journal, e)
}

// recovery is what was seen of one.
type recovery struct {
	outage
	opened, closed time.Time
	moves          []move
	journal        []entry
}

// recoveries returns so many recoveries of one fleet.
func (o outage) recoveries(rounds int, seed uint64) (all []recovery, err error) {
	s, err := o.stage()
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.keeps = true
	var callers sync.WaitGroup
	defer callers.Wait()
	defer close(s.ended)
	for i, m := range s.members[:s.size] {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		callers.Go(func() { s.calls(m, random) })
	}
	for range rounds {
		r, err := s.comesBack()
		if err != nil {
			return nil, err
		}
		all = append(all, r)
		if err := s.recover(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// comesBack has the service fall ill and be well again, and the fleet find out.
func (s *scene) comesBack() (r recovery, err error) {
	r.outage = s.outage
	began := time.Now()
	if _, err = s.fall(); err != nil {
		return r, err
	}
	if err = waiting.For(func() bool { return s.watcher.last(infuse.StateClosed).After(began) }); err != nil {
		return r, fmt.Errorf("the fleet does not close: %w", err)
	}
	r.opened, r.closed = s.watcher.last(infuse.StateOpen), s.watcher.last(infuse.StateClosed)
	time.Sleep(time.Until(r.closed.Add(s.rule.Ramp + 5*slot)))
	r.moves = s.watcher.movesSince(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.journal, s.journal = s.journal, nil
	return r, nil
}

// share is the share of calls that may run, so long after the closing.
func (r *recovery) share(after time.Duration) float64 {
	switch {
	case after <= 0:
		return 0
	case after >= r.rule.Ramp:
		return 1
	}
	return 0.1 + 0.9*float64(after)/float64(r.rule.Ramp)
}

// slotCount is what was counted in one slot.
type slotCount struct {
	from         time.Duration // since the closing
	offered, ran int
	state        infuse.State // of the fleet as it begins
	allowed      float64      // that ran
}

func (r *recovery) slots() []slotCount {
	all := make([]slotCount, slotsBefore+int(r.rule.Ramp/slot)+5)
	for i := range all {
		all[i].from = time.Duration(i-slotsBefore) * slot
	}
	for _, e := range r.journal {
		i := slotsBefore + int(floor(e.at.Sub(r.closed), slot))
		if i < 0 || i >= len(all) {
			continue
		}
		all[i].offered++
		if e.ran {
			all[i].ran++
		}
	}
	for i := range all {
		end := all[i].from + slot
		all[i].allowed = r.share(end) * float64(all[i].offered)
		all[i].state = r.state(r.closed.Add(all[i].from))
	}
	return all
}

func floor(d, unit time.Duration) time.Duration {
	if d < 0 {
		d -= unit - 1
	}
	return d / unit
}

func (r *recovery) state(at time.Time) (s infuse.State) {
	for _, m := range r.moves {
		if !m.at.After(at) {
			s = m.to
		}
	}
	return s
}

// trials is how many calls ran between the opening and the closing. What was
// under way when the fleet opened is none. The members hear of the closing a
// moment before the watcher does: of what runs then, one is the trial, if that was
// quick.
func (r *recovery) trials() (n int) {
	quick := 0
	for _, e := range r.journal {
		switch {
		case !e.ran || !e.at.After(r.opened.Add(slot)) || !e.at.Before(r.closed):
		case e.at.Before(r.closed.Add(-slot / 2)):
			n++
		default:
			quick = 1
		}
	}
	return max(n, quick)
}

// misses tells what is more than the share and one call a process, and whether
// there was another number of trials than one.
func (r *recovery) misses() (all []string) {
	if n := r.trials(); n != 1 {
		all = append(all, fmt.Sprintf("%d trials", n))
	}
	for _, s := range r.slots() {
		if s.from >= 0 && float64(s.ran) > s.allowed+float64(r.size) {
			all = append(all, fmt.Sprintf("%d calls after %v in place of %.0f and %d", s.ran, s.from, s.allowed, r.size))
		}
	}
	return all
}

// picture draws the calls that ran, '#' for two of them, beside those that the
// share allows.
func (r *recovery) picture(w io.Writer) {
	fmt.Fprintf(w, "\n```\nms since the   the fleet   offered  allowed  ran\nclosing        is                              # two calls that ran, | what the share allows\n")
	for _, s := range r.slots() {
		if s.offered == 0 { // before the service fell ill
			continue
		}
		bar := []byte(strings.Repeat("#", (s.ran+1)/2))
		for mark := int(s.allowed/2 + 0.5); len(bar) <= mark; {
			bar = append(bar, ' ')
			if len(bar) > mark {
				bar[mark] = '|'
			}
		}
		fmt.Fprintf(w, "%8d       %-9v  %8d  %7.1f  %3d  %s\n", s.from.Milliseconds(), s.state, s.offered, s.allowed, s.ran, bar)
	}
	fmt.Fprintln(w, "```")
}

var rampHead = []string{"recovery", "trials", "half-open for ms", "offered during the ramp", "allowed", "ran", "most above the share in 100 ms", "verdict"}

func (r *recovery) row(name string) []string {
	var sum slotCount
	most := 0.0
	for _, s := range r.slots() {
		if s.from < 0 || s.from >= r.rule.Ramp {
			continue
		}
		sum.offered, sum.ran, sum.allowed = sum.offered+s.offered, sum.ran+s.ran, sum.allowed+s.allowed
		most = max(most, float64(s.ran)-s.allowed)
	}
	halfOpen := time.Duration(0)
	for _, m := range r.moves {
		if m.to == infuse.StateHalfOpen {
			halfOpen = r.closed.Sub(m.at)
		}
	}
	return []string{
		name, fmt.Sprint(r.trials()), ms(halfOpen), fmt.Sprint(sum.offered), fmt.Sprintf("%.0f", sum.allowed), fmt.Sprint(sum.ran),
		fmt.Sprintf("%.1f", most), verdict(r.misses()),
	}
}

func rampPicture(w io.Writer, s settings) (failed int, err error) {
	const rounds = 5
	fmt.Fprintln(os.Stderr, rampName)
	all, err := ramp.recoveries(rounds, s.seed)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(w, "\n## A ramp\n\n%d breakers with a Redis client of their own each, in one process, %g calls/s each: FailMax %d, ResetTimeout %v, Ramp %v, no FailureRate. All calls fail until the fleet is open; then the service is well, and answers after %v. From the opening to the closing one call is to run, the trial. After it, in each 100 ms, at most the share as it is at their end, and one call of each breaker. A breaker whose own circuit has opened, too, begins with a trial of its own, and with a ramp of its own after that.\n\n",
		ramp.size, ramp.rate, ramp.rule.FailMax, ramp.rule.ResetTimeout, ramp.rule.Ramp, ramp.takes)
	var rows [][]string
	for i := range all {
		rows = append(rows, all[i].row(fmt.Sprint(i+1)))
	}
	failed = table(w, rampHead, rows)
	fmt.Fprintf(w, "\nThe first of them:\n")
	all[0].picture(w)
	return failed, nil
}
