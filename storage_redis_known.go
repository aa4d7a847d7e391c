package infuse

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// knownRecord is a circuit's record as Redis told of it.
type knownRecord struct {
	version string // none but "0" where there is no record
	status  string // of the script that told it
	record  Record // its times are on Redis's clock
	problem error  // why it cannot be read

	told time.Time // when, on Redis's clock
	at   time.Time // and on this process's: when it was here. Zero: nothing was told yet
}

// now returns Redis's time, or somewhat less: nothing is ever due early.
func (k knownRecord) now(local time.Time) time.Time {
	if k.at.IsZero() {
		return local
	}
	return k.told.Add(local.Sub(k.at))
}

// local returns the record as it is now, with times on this process's clock.
func (k knownRecord) local() Record {
	here := time.Now()
	now := k.now(here)
	return k.record.At(now).translated(now, here)
}

// translated returns a copy of the record for another clock, which says there
// while the record's own says here.
func (r Record) translated(here, there time.Time) Record {
	r = r.clone()
	times := []*time.Time{&r.DueAt, &r.SuspectAt, &r.RetryAt, &r.DismissedAt, &r.ClosedAt}
	for i := range r.Trials {
		times = append(times, &r.Trials[i].Started, &r.Trials[i].Deadline)
	}
	r.Window.Buckets = translated(r.Window.Buckets, here, there)
	r.Override = r.Override.translated(here, there)
	for _, t := range times {
		if !t.IsZero() {
			*t = there.Add(t.Sub(here))
		}
	}
	return r
}

func (o *Override) translated(here, there time.Time) *Override {
	if o == nil || o.Until.IsZero() {
		return o
	}
	translated := *o
	translated.Until = there.Add(o.Until.Sub(here))
	return &translated
}

func translated(buckets []Bucket, here, there time.Time) []Bucket {
	buckets = slices.Clone(buckets)
	for i := range buckets {
		buckets[i].Start = there.Add(buckets[i].Start.Sub(here))
	}
	return buckets
}

// What a script did.
const (
	statusRefused = "0" // the record was not as it was seen
	statusDone    = "1"
	statusHeard   = "2" // nothing: the source's number was heard before
)

// wrongType begins Redis's error for a key that is not a hash.
const wrongType = "WRONGTYPE"

const (
	forever      = 1 << 52
	maxKnown     = 10_000
	maxNumbers   = 5 * 20 // of a message, in bytes, without what separates them
	maxWindow    = 600    // of a message, in bytes: of a width and ten buckets
	messageParts = 7
)

// parseMessage reads what swap.lua publishes.
func parseMessage(message string) (knownRecord, error) {
	if len(message) > maxRecordLength+maxNumbers+maxWindow+messageParts {
		return knownRecord{}, fmt.Errorf("has %d bytes", len(message))
	}
	parts := strings.SplitN(message, " ", messageParts)
	if len(parts) < messageParts {
		return knownRecord{}, fmt.Errorf("has %d parts", len(parts))
	}
	k := parseKnown([messageParts]string(parts), time.Now())
	return k, k.problem
}

// parseKnown reads the fields of a reply or a message: v, now, t, n, b, w, r. All
// may be a stranger's.
func parseKnown(fields [messageParts]string, at time.Time) knownRecord {
	k := knownRecord{version: fields[0], at: at, told: at}
	var numbers [messageParts - 2]int64
	for i := range numbers {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil || n < 0 || n > forever {
			k.problem = fmt.Errorf("has %.20q where a whole number belongs", fields[i])
			return k
		}
		numbers[i] = n
	}
	now, written, count := numbers[1], numbers[2], numbers[3]
	k.told = time.UnixMilli(now)
	if fields[6] != "" {
		// A clock that was set back makes no wait longer than when it began.
		k.record, k.problem = ParseRecord([]byte(fields[6]), time.UnixMilli(min(written, now)))
	}
	window, err := parseWindow(fields[5])
	k.problem = cmp.Or(k.problem, err)
	if count > math.MaxInt32 {
		k.problem = fmt.Errorf("has the count %d", count)
	}
	if k.problem != nil {
		k.record = Record{}
		return k
	}
	k.record.heard, k.record.Window = nil, window
	k.record.setLevel(int(count))
	return k
}

// formatWindow returns the window as count.lua has it.
func formatWindow(w Window) string {
	if len(w.Buckets) == 0 {
		return ""
	}
	return string(formatBuckets(strconv.AppendInt(nil, w.Width.Milliseconds(), 10), w.Buckets))
}

func formatBuckets(text []byte, buckets []Bucket) []byte {
	for _, b := range buckets {
		text = fmt.Appendf(text, ";%d,%d,%d", b.Start.UnixMilli(), b.Calls, b.Failures)
	}
	return text
}

// parseWindow reads what formatWindow or count.lua has written.
func parseWindow(text string) (w Window, err error) {
	if text == "" {
		return w, nil
	}
	problem := errors.New("has a window that cannot be")
	parts := strings.Split(text, ";")
	width, err := strconv.ParseInt(parts[0], 10, 64)
	if err != nil || width < 1 || width > maxTimeout.Milliseconds() || len(text) > maxWindow || len(parts) > 1+windowBuckets {
		return w, problem
	}
	w.Width = time.Duration(width) * time.Millisecond
	for _, part := range parts[1:] {
		var n [3]uint64 // start, calls, failures
		for i := range n {
			number, rest, more := strings.Cut(part, ",")
			if n[i], err = strconv.ParseUint(number, 10, 63); err != nil || more != (i < 2) {
				return w, problem
			}
			part = rest
		}
		if n[0] > forever || n[2] > n[1] || n[1] > unlimited {
			return w, problem
		}
		w.Buckets = append(w.Buckets, Bucket{time.UnixMilli(int64(n[0])), int(n[1]), int(n[2])})
	}
	return w, nil
}

// order is the version as a number.
func (k knownRecord) order() int64 {
	n, _ := strconv.ParseInt(k.version, 10, 64)
	return n
}

func (k knownRecord) err(circuit string) error {
	if k.problem == nil {
		return nil
	}
	return &RecordError{circuit, k.problem.Error()}
}

// roundedUp is a time in whole milliseconds as the scripts have it: zero is never.
func roundedUp(t time.Time) int64 {
	if t.IsZero() {
		return forever
	}
	return t.Add(time.Millisecond - 1).UnixMilli()
}

// knownRecords are the records that Redis told of last, by key. They may be
// old: Redis decides whether a change that was made of one is right.
type knownRecords struct {
	mu  sync.Mutex
	all map[string]knownRecord
}

func (s *knownRecords) get(key string) knownRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.all[key]; ok {
		return k
	}
	return knownRecord{version: "0"}
}

func (s *knownRecords) put(key string, k knownRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.problem != nil {
		delete(s.all, key)
		return
	}
	if s.all == nil {
		s.all = make(map[string]knownRecord)
	}
	if _, ok := s.all[key]; !ok && len(s.all) >= maxKnown {
		for any := range s.all {
			delete(s.all, any)
			break
		}
	}
	s.all[key] = k
}

// putNewer is put, unless what is known is as new.
func (s *knownRecords) putNewer(key string, k knownRecord) {
	if k.order() > s.get(key).order() {
		s.put(key, k)
	}
}
