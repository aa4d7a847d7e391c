package infuse

import (
	"slices"
	"time"
)

// This file is what a record knows of the calls of late, and what that says of
// the failure rate. Like state.go it is pure. Adding calls is mirrored by
// count.lua.

// Window is what the calls of late came to, in at most ten buckets of time. It
// begins with a failure, and is empty where there was none for its length.
type Window struct {
	Width   time.Duration // of a bucket: a tenth of the longest Limits.Window among its senders
	Buckets []Bucket      // oldest first
}

// Bucket is the calls that ended within a Width from Start on.
type Bucket struct {
	Start    time.Time // a multiple of Width on the clock of who counts
	Calls    int       // all
	Failures int       // of them
}

const windowBuckets = 10

// add adds calls by when they ended. It writes to the buckets in place.
func (w *Window) add(counted []Bucket, width time.Duration, now time.Time) {
	if len(counted) == 0 || width == 0 {
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
		w.put(c)
	}
	w.forget(now)
	for len(w.Buckets) > windowBuckets { // they were narrower before
		w.Buckets[1].add(w.Buckets[0])
		w.drop(1)
	}
}

// put adds the calls of one bucket to that of their time, or to a new one.
func (w *Window) put(c Bucket) {
	i := len(w.Buckets)
	for i > 0 && w.Buckets[i-1].Start.After(c.Start) {
		i--
	}
	start := time.UnixMilli(c.Start.UnixMilli() / w.Width.Milliseconds() * w.Width.Milliseconds())
	if i > 0 {
		ends := w.Buckets[i-1].Start.Add(w.Width)
		if c.Start.Before(ends) {
			w.Buckets[i-1].add(c)
			return
		}
		if start.Before(ends) {
			start = ends
		}
	}
	w.Buckets = slices.Insert(w.Buckets, i, Bucket{start, c.Calls, c.Failures})
}

func (b *Bucket) add(c Bucket) {
	b.Calls, b.Failures = min(b.Calls+c.Calls, unlimited), min(b.Failures+c.Failures, unlimited)
}

// failed returns how many of the calls have failed.
func failed(counted []Bucket) (n int) {
	for _, c := range counted {
		n += c.Failures
	}
	return n
}

// one is a single outcome, or several like it, for add.
func one(o Outcome, n int, now time.Time) Bucket {
	b := Bucket{Start: now, Calls: n}
	if o == OutcomeFailure {
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
	w.Buckets = w.Buckets[:end]
	w.drop(first)
}

// drop drops the first n buckets, and keeps their room.
func (w *Window) drop(n int) {
	if n > 0 {
		w.Buckets = w.Buckets[:copy(w.Buckets, w.Buckets[n:])]
	}
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

// failing reports whether there was a failure in the last so long.
func (w *Window) failing(length time.Duration, now time.Time) bool {
	return slices.ContainsFunc(w.last(length, now), func(b Bucket) bool { return b.Failures > 0 })
}

// nextBucket is when the calls of now on belong to another bucket.
func (w *Window) nextBucket(now time.Time) time.Time {
	if len(w.Buckets) == 0 {
		return time.Time{}
	}
	start := w.Buckets[len(w.Buckets)-1].Start
	return start.Add((max(0, now.Sub(start))/w.Width + 1) * w.Width)
}

// rate is what a window says under certain limits.
type rate struct {
	over    bool          // at least MinCalls, and at least FailureRate of them failed
	far     bool          // so many that a suspicion need not last longer
	lasting time.Duration // since the first of the calls
}

func (w *Window) rate(l *Limits, now time.Time) (r rate) {
	if l.FailureRate == 0 || len(w.Buckets) == 0 {
		return r
	}
	calls, failures := 0, 0
	for _, b := range w.last(l.Window, now) {
		if calls == 0 {
			r.lasting = now.Sub(b.Start)
		}
		calls, failures = calls+b.Calls, failures+b.Failures
	}
	// A quotient, because that of whole numbers is exactly the one that a
	// literal such as 0.55 stands for.
	r.over = calls >= l.MinCalls && float64(failures)/float64(calls) >= l.FailureRate
	many := float64(suspicion.early) * float64(l.MinCalls)
	r.far = r.over && float64(calls) >= many && float64(failures)-l.FailureRate*float64(calls) >= (1-l.FailureRate)*many
	return r
}
