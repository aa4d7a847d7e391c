package infuse

import (
	"math"
	"slices"
	"time"
)

// This file is the window of recent calls, and the failure rate in it. Like state.go it
// is pure. count.lua carries out Window.add too.

// Window is a part of a Record, for authors of a Storage: the outcomes of recent calls, in
// at most ten buckets of time. It begins with a failure, and is empty without a failure
// in its length (R19).
type Window struct {
	Width   time.Duration // of a bucket: a tenth of the longest Limits.Window of its senders
	Buckets []Bucket      // oldest first
}

// Bucket is a part of a Change and of a Window, for authors of a Storage: the calls that
// ended in a tenth of the sender's window, from Start on. If windows of senders differ in
// length, the oldest bucket has all older calls.
type Bucket struct {
	Start    time.Time // a multiple of the width, on the clock of the process or storage that counts
	Calls    int       // including failures
	Failures int
}

const windowBuckets = 10

// unlimited bounds every count of a record.
const unlimited = math.MaxInt32

// add adds calls by the times when they ended. It changes the buckets in place.
// R19.
func (w *Window) add(counted []Bucket, width time.Duration, now time.Time) {
	if len(counted) == 0 || width < time.Millisecond {
		return
	}
	w.forget(now)
	if len(w.Buckets) > 0 {
		w.Width = max(w.Width, width)
	} else if failed(counted) > 0 {
		w.Width = width
	} else {
		return
	}
	for _, c := range counted {
		w.put(c, width)
	}
	w.forget(now)
}

// put adds the calls of one bucket to the bucket of their time, or to a new one. It skips
// invalid numbers.
func (w *Window) put(c Bucket, width time.Duration) {
	if c.Calls < 1 || c.Failures < 0 || c.Failures > c.Calls {
		return
	}
	i := len(w.Buckets)
	for i > 0 && w.Buckets[i-1].Start.After(c.Start) {
		i--
	}
	ms := width.Milliseconds()
	start := time.UnixMilli(c.Start.UnixMilli() / ms * ms)
	if i > 0 {
		ends := w.Buckets[i-1].Start.Add(width)
		if c.Start.Before(ends) {
			w.Buckets[i-1].add(c)
			return
		}
		if start.Before(ends) {
			start = ends
		}
	}
	w.Buckets = slices.Insert(w.Buckets, i, Bucket{start, c.Calls, c.Failures})
	if len(w.Buckets) > windowBuckets { // some senders have narrower buckets
		w.Buckets[0].add(w.Buckets[1])
		w.Buckets = slices.Delete(w.Buckets, 1, 2)
	}
}

func (b *Bucket) add(c Bucket) {
	plus := func(a, b int) int { return int(min(int64(a)+int64(b), unlimited)) }
	b.Calls, b.Failures = plus(b.Calls, c.Calls), plus(b.Failures, c.Failures)
}

// sum returns all calls, without a Start.
func sum(buckets []Bucket) (all Bucket) {
	for _, b := range buckets {
		all.add(b)
	}
	return all
}

// failed returns the number of failures.
func failed(counted []Bucket) (n int) {
	for _, c := range counted {
		n += c.Failures
	}
	return n
}

// dropFailures keeps only the calls that succeeded.
func (w *Window) dropFailures() {
	for i := range w.Buckets {
		w.Buckets[i].Calls -= w.Buckets[i].Failures
		w.Buckets[i].Failures = 0
	}
	w.Buckets = slices.DeleteFunc(w.Buckets, func(b Bucket) bool { return b.Calls == 0 })
}

// one is a bucket of n calls with the same outcome.
func one(failed bool, n int, now time.Time) Bucket {
	b := Bucket{Start: now, Calls: n}
	if failed {
		b.Failures = n
	}
	return b
}

// forget drops the calls that left the window; all calls if no failure is left.
func (w *Window) forget(now time.Time) {
	w.prune(now)
	if failed(w.Buckets) == 0 {
		w.Buckets, w.Width = w.Buckets[:0], 0
	}
}

// middles returns the buckets for a window with another width: each starts at the middle
// of its time, or now if that is earlier.
func (w *Window) middles(now time.Time) []Bucket {
	for i := range w.Buckets {
		b := &w.Buckets[i]
		if b.Start = b.Start.Add(w.Width / 2); b.Start.After(now) {
			b.Start = now
		}
	}
	return w.Buckets
}

// prune drops the buckets that began a window ago, and those that a clock made that was
// set back since.
func (w *Window) prune(now time.Time) {
	oldest, newest := now.Add(-windowBuckets*w.Width), now.Add(w.Width)
	first, end := 0, len(w.Buckets)
	for first < end && !w.Buckets[first].Start.After(oldest) {
		first++
	}
	for end > first && w.Buckets[end-1].Start.After(newest) {
		end--
	}
	w.Buckets = slices.Delete(w.Buckets[:end], 0, first) // keeps the capacity
}

// last returns the buckets that began within the given length.
func (w *Window) last(length time.Duration, now time.Time) []Bucket {
	from := now.Add(-length)
	for i := range w.Buckets {
		if w.Buckets[i].Start.After(from) {
			return w.Buckets[i:]
		}
	}
	return nil
}

// nextBucket is when calls begin to belong to another bucket of that width.
func (w *Window) nextBucket(width time.Duration, now time.Time) time.Time {
	if len(w.Buckets) == 0 {
		return time.Time{}
	}
	start := w.Buckets[len(w.Buckets)-1].Start
	return start.Add((max(0, now.Sub(start))/width + 1) * width)
}

// rate is the evaluation of a window by certain limits.
type rate struct {
	over  bool // at least MinCalls, and at least FailureRate of them failed
	sure  bool // over, by as much as MinCalls consecutive failures
	under bool // fewer than FailureRate of the calls failed, however few calls there are
	empty bool // there are no calls
}

// R20.
func (w *Window) rate(length time.Duration, minCalls int, failureRate float64, now time.Time) (r rate) {
	if failureRate == 0 {
		return r
	}
	var calls, failures int64
	for _, b := range w.last(length, now) {
		calls, failures = calls+int64(b.Calls), failures+int64(b.Failures)
	}
	if calls == 0 {
		return rate{empty: true}
	}
	// The quotient of whole numbers equals a literal such as 0.55 exactly; a product
	// does not.
	r.under = float64(failures)/float64(calls) < failureRate
	r.over = !r.under && calls >= int64(minCalls)
	r.sure = r.over && float64(failures)-failureRate*float64(calls) >= (1-failureRate)*float64(minCalls)
	return r
}
