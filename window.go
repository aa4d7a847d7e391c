package infuse

import (
	"math"
	"slices"
	"time"
)

// This file is what a record knows of the calls of late, and what that says of
// the failure rate. Like state.go it is pure. Adding calls is mirrored by
// count.lua.

// Window is a part of a Record, for authors of a Storage: what the calls of
// late came to, in at most ten buckets of time. It begins with a failure, and
// is empty where there was none for its length.
type Window struct {
	Width   time.Duration // a tenth of the longest Limits.Window among its senders: so much is kept ten times
	Buckets []Bucket      // oldest first
}

// Bucket is a part of a Change and of a Window, for authors of a Storage: the
// calls that ended from Start on, for a tenth of the sender's window. Where
// senders have windows of several lengths, the oldest has all that is older
// than the others.
type Bucket struct {
	Start    time.Time // a multiple of a tenth of a window, on the clock of the process or storage that counts
	Calls    int       // all
	Failures int       // of them
}

const windowBuckets = 10

// unlimited bounds every count of a record.
const unlimited = math.MaxInt32

// add adds calls by when they ended. It writes to the buckets in place.
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

// put adds the calls of one bucket to that of their time, or to a new one. What is
// no number of calls is left out.
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
	if len(w.Buckets) > windowBuckets { // some senders have narrower ones
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

// failed returns how many of the calls have failed.
func failed(counted []Bucket) (n int) {
	for _, c := range counted {
		n += c.Failures
	}
	return n
}

// dropFailures leaves only the calls that succeeded.
func (w *Window) dropFailures() {
	for i := range w.Buckets {
		w.Buckets[i].Calls -= w.Buckets[i].Failures
		w.Buckets[i].Failures = 0
	}
	w.Buckets = slices.DeleteFunc(w.Buckets, func(b Bucket) bool { return b.Calls == 0 })
}

// one is a single outcome, or several like it, for add.
func one(failed bool, n int, now time.Time) Bucket {
	b := Bucket{Start: now, Calls: n}
	if failed {
		b.Failures = n
	}
	return b
}

// forget drops what is too old. Without a failure nothing is left.
func (w *Window) forget(now time.Time) {
	w.prune(now)
	if failed(w.Buckets) == 0 {
		w.Buckets, w.Width = w.Buckets[:0], 0
	}
}

// middles returns the buckets for somebody with other buckets: each at the middle
// of its time, or now where that is earlier.
func (w *Window) middles(now time.Time) []Bucket {
	for i := range w.Buckets {
		b := &w.Buckets[i]
		if b.Start = b.Start.Add(w.Width / 2); b.Start.After(now) {
			b.Start = now
		}
	}
	return w.Buckets
}

// prune drops the buckets that began a window ago, and those of a clock that was
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
	w.Buckets = slices.Delete(w.Buckets[:end], 0, first) // and keeps their room
}

// last returns the buckets that began in the last so long.
func (w *Window) last(length time.Duration, now time.Time) []Bucket {
	from := now.Add(-length)
	for i := range w.Buckets {
		if w.Buckets[i].Start.After(from) {
			return w.Buckets[i:]
		}
	}
	return nil
}

// nextBucket is when the calls of now on belong to another bucket of that width.
func (w *Window) nextBucket(width time.Duration, now time.Time) time.Time {
	if len(w.Buckets) == 0 {
		return time.Time{}
	}
	start := w.Buckets[len(w.Buckets)-1].Start
	return start.Add((max(0, now.Sub(start))/width + 1) * width)
}

// rate is what a window amounts to under certain limits.
type rate struct {
	over  bool // at least MinCalls, and at least FailureRate of them failed
	sure  bool // and as far above FailureRate as MinCalls failures in a row
	under bool // fewer than FailureRate of the calls failed, however many they are
	empty bool // there are no calls
}

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
	// A quotient, because that of whole numbers is exactly the one that a
	// literal such as 0.55 stands for.
	r.under = float64(failures)/float64(calls) < failureRate
	r.over = !r.under && calls >= int64(minCalls)
	r.sure = r.over && float64(failures)-failureRate*float64(calls) >= (1-failureRate)*float64(minCalls)
	return r
}
