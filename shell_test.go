package infuse

import (
	"errors"
	"slices"
	"time"
)

// shell is the part of a Breaker around its replica, without locks, goroutines and a
// real clock: the view, the timer, the calls and the waiters. All tests of the pure core
// share it.
type shell struct {
	replica replica
	view    *view
	tally   int       // successes that the replica has not received yet
	armed   time.Time // when the timer fires; zero if it does not
	calls   []shellCall
	waits   []shellWait
	random  uint64 // the state of the random number generator at each step; 0: it continues
}

// shellCall is a call that was admitted, or that waits for a trial.
type shellCall struct {
	admission admission
	waits     bool // for the answer to its trial request
	number    uint64
	decided   bool // it waits no longer
	until     time.Time
	spell     int // of the reference breaker that admitted it
}

// shellWait is a caller that waits until its outcome is acknowledged.
type shellWait struct {
	number uint64
	until  time.Time
}

// The times are those of a link with the default StorageTimeout.
const (
	shellStorageTimeout = 100 * time.Millisecond
	shellLinkTimeout    = 95 * time.Millisecond
)

var (
	errShellCall    = errors.New("the service failed")
	errShellStorage = errors.New("the storage did not answer")
	shellStorageErr = error(errShellStorage)
	shellCause      = keepCause(errShellCall)
)

// newShell returns a process that has not read the record.
func newShell(s *settings, source string, linked bool, random uint64, now time.Time) *shell {
	h := &shell{replica: newReplica(s, source, linked, random), random: random}
	h.step(now, func(*replica) {})
	return h
}

func (h *shell) clone() *shell {
	c := *h
	c.replica = h.replica.clone()
	c.calls, c.waits = slices.Clone(h.calls), slices.Clone(h.waits)
	return &c
}

// clone returns a copy: later writes to one do not change the other.
func (r *replica) clone() replica {
	c := *r
	if r.episode == noEpisode {
		c.local.Window.Buckets = slices.Clone(r.local.Window.Buckets)
		return c
	}
	episode := *r.episode
	c.episode = &episode
	c.leases = slices.Clone(r.leases)
	if r.adopted != nil {
		adopted := *r.adopted
		c.adopted = &adopted
	}
	c.local.Window.Buckets = slices.Clone(r.local.Window.Buckets)
	c.out.counted.Buckets = slices.Clone(r.out.counted.Buckets)
	c.out.next.Settled = slices.Clone(r.out.next.Settled)
	return c
}

// step gives the replica an input, and returns the request to send, or nil.
func (h *shell) step(now time.Time, input func(r *replica)) *request {
	r := &h.replica
	if h.random != 0 {
		r.random = h.random
	}
	r.acquireEpisode()
	if h.tally > 0 {
		r.tallied(h.tally, now)
		h.tally = 0
	}
	input(r)
	change := r.outgoing(now)
	h.publish(now)
	h.armed = r.wakeAt(now)
	for i := range h.calls {
		c := &h.calls[i]
		c.decided = c.decided || c.waits && c.number <= r.doneUpTo()
	}
	h.waits = slices.DeleteFunc(h.waits, func(w shellWait) bool { return w.number <= r.doneUpTo() })
	r.releaseEpisode()
	return change
}

func (h *shell) publish(now time.Time) {
	fresh := new(view)
	fresh.derive(&h.replica, "x", now)
	if h.view == nil || !fresh.same(h.view) {
		h.view = fresh
		return
	}
	h.setQuiet(fresh.quiet)
}

func (h *shell) setQuiet(quiet bool) {
	if h.view.quiet == quiet {
		return
	}
	if h.view.twin == nil {
		w := *h.view
		w.quiet, w.fast, w.twin = quiet, w.plain && quiet, h.view
		h.view.twin = &w
	}
	h.view = h.view.twin
}

// wake is called when the timer fires.
func (h *shell) wake(now time.Time) *request { return h.step(now, func(*replica) {}) }

// call begins a call. It returns whether the call was admitted or waits, and is now the
// last of calls.
func (h *shell) call(now time.Time) (runs bool, change *request) {
	switch h.view.admits {
	case admitsNone:
		return false, nil
	case admitsAll:
		h.calls = append(h.calls, shellCall{admission: h.view.admission()})
		return true, nil
	}
	var c shellCall
	var d decision
	arrive := func(r *replica) {
		if c.admission, d = r.arrived(now); d == waits {
			c.waits, c.number, c.until = true, r.enqueued, now.Add(shellStorageTimeout)
		}
		if d != rejects {
			h.calls = append(h.calls, c)
		}
	}
	change = h.step(now, arrive)
	if d == admits {
		h.calls[len(h.calls)-1].admission.view = h.view
	}
	return d != rejects, change
}

// resume resumes the call of that index, which waited for its trial.
func (h *shell) resume(i int, now time.Time) (runs bool, change *request) {
	c := h.calls[i]
	h.calls = slices.Delete(slices.Clone(h.calls), i, i+1)
	var d decision
	change = h.step(now, func(r *replica) { c.admission, d = r.resumed(c.admission, now) })
	if d == admits {
		c.admission.view = h.view
		h.calls = append(h.calls, shellCall{admission: c.admission})
	}
	return d == admits, change
}

// end ends the call of that index.
func (h *shell) end(i int, o Outcome, now time.Time) (change *request) { return h.endFor(i, o, 0, now) }

// endFor ends a call whose response has a Retry-After.
func (h *shell) endFor(i int, o Outcome, openFor time.Duration, now time.Time) (change *request) {
	c := h.calls[i]
	h.calls = slices.Delete(slices.Clone(h.calls), i, i+1)
	a := &c.admission
	if o == OutcomeSuccess && a.trial == "" && a.view == h.view && h.view.quiet {
		if h.view.tallies {
			h.tally++
		}
		return nil
	}
	if !h.replica.linked && h.replica.onlyCounts(a, o) {
		h.setQuiet(h.replica.local.Failures == 0)
		return nil
	}
	res := result{outcome: o, openFor: openFor}
	if o == OutcomeFailure {
		res.err, res.cause = errShellCall, shellCause
	}
	var number uint64
	change = h.step(now, func(r *replica) { number = r.ended(a, res, now) })
	if number > h.replica.doneUpTo() && (o != OutcomeSuccess || a.trial != "") {
		h.waits = append(h.waits, shellWait{number, now.Add(shellStorageTimeout)})
	}
	return change
}

// randomBefore returns a state of the random number generator whose next number is about
// roll: it inverts replica.roll.
func randomBefore(roll float64) uint64 {
	unshift := func(z uint64, n uint) uint64 {
		x := z
		for i := n; i < 64; i += n {
			x = z ^ x>>n
		}
		return x
	}
	inverse := func(odd uint64) uint64 {
		x := odd
		for range 6 {
			x *= 2 - odd*x
		}
		return x
	}
	z := unshift(uint64(roll*(1<<53))<<11, 31)
	z = unshift(z*inverse(0x94d049bb133111eb), 27)
	z = unshift(z*inverse(0xbf58476d1ce4e5b9), 30)
	return z - 0x9e3779b97f4a7c15
}
