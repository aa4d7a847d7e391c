package infuse

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// This file encodes records and events. Bytes that are read are untrusted: everything
// is bounded.

// Processes of different versions share a circuit. A record has the schema of its
// writer, and the oldest schema whose readers understand it.
const (
	recordSchema   = 4
	recordReadable = 4
	evidenceSchema = 4 // the first schema with evidence
)

// Bounds of a record that is read.
const (
	maxRecordLength = 256 << 10
	maxGeneration   = 1 << 52
	forever         = 1 << 52 // milliseconds
)

// encodedRecord is a record as JSON. Times are whole milliseconds from or before the
// time of writing, so the bytes need no clock.
type encodedRecord struct {
	Schema   int `json:"v"`
	Readable int `json:"readable"`

	State      State  `json:"state"`
	Generation int64  `json:"gen"`
	Since      int64  `json:"since,omitempty"`
	Opened     int64  `json:"opened,omitempty"`
	Manual     int64  `json:"moved,omitempty"`
	Failures   int    `json:"failures,omitempty"`
	Successes  int    `json:"successes,omitempty"`
	DueAt      *int64 `json:"due,omitempty"`

	SuspectAt   *int64 `json:"suspect,omitempty"` // ago
	Threshold   int    `json:"threshold,omitempty"`
	Score       int    `json:"score,omitempty"`
	Rated       bool   `json:"rated,omitempty"`
	Witness     string `json:"witness,omitempty"`
	RetryAt     *int64 `json:"retry,omitempty"`
	RetryAfter  bool   `json:"asked,omitempty"`
	DismissedAt *int64 `json:"dismissed,omitempty"` // ago

	Width        int64      `json:"width,omitempty"`  // of the buckets
	Window       [][3]int64 `json:"window,omitempty"` // of each bucket: ago, calls, failures
	OpenDuration int64      `json:"opentime,omitempty"`
	ClosedAt     *int64     `json:"closed,omitempty"` // ago

	Override *encodedOverride `json:"override,omitempty"`

	By          string          `json:"by,omitempty"`
	Cause       string          `json:"cause,omitempty"`
	Trials      []encodedTrial  `json:"trials,omitempty"`
	LastNumbers []encodedNumber `json:"heard,omitempty"`
}

type encodedOverride struct {
	State  State  `json:"state"`
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
	Left   *int64 `json:"left,omitempty"`
}

// encodeOverride returns an override with an end that the caller has encoded.
func encodeOverride(o *Override, ends *int64) *encodedOverride {
	return &encodedOverride{o.State, clip(o.By, maxTextLength), clip(o.Reason, maxTextLength), ends}
}

func (e *encodedOverride) until(end time.Time) *Override {
	return &Override{e.State, e.By, e.Reason, end}
}

type encodedTrial struct {
	ID    string `json:"id"`
	Ago   int64  `json:"ago"`
	Left  int64  `json:"left"`
	Stale bool   `json:"stale,omitempty"`
}

type encodedNumber struct {
	Source string `json:"s"`
	Number uint64 `json:"n"`
}

// AppendRecord is for authors of a Storage. It appends the record to b, in the form
// that ParseRecord reads. A storage keeps these bytes, not the fields of a Record, so
// fields of newer versions survive. now is the time of writing, on the clock of the
// record's times.
func AppendRecord(b []byte, r Record, now time.Time) []byte {
	left := func(t time.Time) *int64 {
		if t.IsZero() {
			return nil
		}
		ms := milliseconds(t.Sub(now)) // negative in the past
		return &ms
	}
	ago := func(t time.Time) *int64 {
		if t.IsZero() {
			return nil
		}
		ms := max(0, now.Sub(t).Milliseconds())
		return &ms
	}
	e := encodedRecord{
		Schema: recordSchema, Readable: recordReadable,
		State: r.State, Generation: r.Generation, Since: r.Since, Opened: r.Opened, Manual: r.Manual,
		Failures: r.Failures, Successes: r.Successes, DueAt: left(r.DueAt),
		SuspectAt: ago(r.SuspectAt), Threshold: r.Threshold, Score: r.Score, Rated: r.Rated, Witness: r.Witness,
		RetryAt: left(r.RetryAt), RetryAfter: r.RetryAfter, DismissedAt: ago(r.DismissedAt),
		OpenDuration: milliseconds(r.OpenDuration), ClosedAt: ago(r.ClosedAt),
		By: clip(r.By, maxTextLength), Cause: clip(r.Cause, maxTextLength),
	}
	if o := r.Override; o != nil {
		e.Override = encodeOverride(o, left(o.Until))
	}
	for _, b := range r.Window.Buckets {
		e.Width = milliseconds(r.Window.Width)
		e.Window = append(e.Window, [3]int64{*ago(b.Start), int64(b.Calls), int64(b.Failures)})
	}
	for _, t := range r.Trials {
		trial := encodedTrial{ID: t.ID, Left: milliseconds(max(0, t.Deadline.Sub(now))), Stale: t.Stale}
		if began := ago(t.Started); began != nil { // zero in records of older versions
			trial.Ago = *began
		}
		e.Trials = append(e.Trials, trial)
	}
	for _, h := range r.lastNumbers {
		e.LastNumbers = append(e.LastNumbers, encodedNumber{h.source, h.number})
	}
	text, err := json.Marshal(e)
	if err != nil { // impossible: all fields are numbers, strings or slices of them
		panic(err)
	}
	return append(b, text...)
}

// ParseRecord is for authors of a Storage. It reads the bytes of AppendRecord. An
// error's text is a RecordError's Reason. written is the time of writing on the reader's clock:
// a storage keeps its own time of writing beside the bytes, and subtracts their age
// from the reader's present time.
func ParseRecord(b []byte, written time.Time) (Record, error) {
	if len(b) > maxRecordLength {
		return Record{}, fmt.Errorf("has %d bytes", len(b))
	}
	var e encodedRecord
	if err := json.Unmarshal(b, &e); err != nil {
		return Record{}, fmt.Errorf("is not JSON of a record: %w", err)
	}
	if e.Readable > recordSchema {
		return Record{}, fmt.Errorf("has schema %d, which needs readers of %d, newer than %d", e.Schema, e.Readable, recordSchema)
	}
	if err := e.check(written); err != nil {
		return Record{}, err
	}
	after := func(ms *int64) time.Time {
		if ms == nil {
			return time.Time{}
		}
		return written.Add(boundedWait(*ms))
	}
	before := func(ms *int64) time.Time {
		if ms == nil {
			return time.Time{}
		}
		return written.Add(-boundedWait(*ms))
	}
	r := Record{
		State: e.State, Generation: e.Generation, Since: e.Since, Opened: e.Opened, Manual: e.Manual,
		Failures: e.Failures, Successes: e.Successes, DueAt: after(e.DueAt),
		SuspectAt: before(e.SuspectAt), Threshold: e.Threshold, Score: e.Score, Rated: e.Rated, Witness: e.Witness,
		RetryAt: after(e.RetryAt), RetryAfter: e.RetryAfter, DismissedAt: before(e.DismissedAt),
		OpenDuration: boundedWait(e.OpenDuration), ClosedAt: before(e.ClosedAt),
		By: e.By, Cause: e.Cause,
	}
	if e.Schema < evidenceSchema {
		r.upgrade()
	}
	if o := e.Override; o != nil {
		r.Override = o.until(after(o.Left))
	}
	for _, b := range e.Window {
		ago := b[0]
		r.Window.Width = boundedWait(e.Width)
		r.Window.Buckets = append(r.Window.Buckets, Bucket{before(&ago), int(b[1]), int(b[2])})
	}
	for _, t := range e.Trials {
		r.Trials = append(r.Trials, Trial{t.ID, before(&t.Ago), after(&t.Left), t.Stale})
	}
	for _, h := range e.LastNumbers {
		r.lastNumbers = append(r.lastNumbers, lastNumber{h.Source, h.Number})
	}
	return r, nil
}

// upgrade completes a record of an older version. Its suspicions opened by time, and
// its openings applied to all processes; openings by calls now apply to processes
// whose last call failed.
func (r *Record) upgrade() {
	r.SuspectAt, r.Rated = time.Time{}, false
	if r.State != StateClosed && r.Manual < r.Since {
		r.addEvidence(&Limits{FailMax: max(1, r.Failures)})
	}
}

// check rejects records that no version of this package writes (R42).
func (e *encodedRecord) check(now time.Time) error {
	switch {
	case e.Schema < 1:
		return fmt.Errorf("has schema %d", e.Schema)
	case e.State > StateHalfOpen:
		return fmt.Errorf("has the unknown state %d", e.State)
	case min(e.Generation, e.Since, e.Opened, e.Manual) < 0:
		return errors.New("has a negative generation")
	case max(e.Generation, e.Since, e.Opened, e.Manual) > min(maxGeneration, now.AddDate(100, 0, 0).UnixMilli()):
		// Generations follow the storage's clock. A forged one would be higher than
		// all later ones.
		return fmt.Errorf("has the generation %d, more than 100 years ahead", max(e.Generation, e.Since, e.Opened, e.Manual))
	case min(e.Failures, e.Successes, e.Threshold, e.Score) < 0 || max(e.Failures, e.Successes, e.Threshold, e.Score) > math.MaxInt32:
		return errors.New("has counts out of range")
	case e.Override != nil && !e.Override.until(time.Time{}).isValid():
		return errors.New("has an invalid override")
	case e.OpenDuration < 0:
		return errors.New("has a negative open duration")
	case len(e.Window) > windowBuckets || e.Window != nil && e.Width < 1:
		return errors.New("has an invalid window")
	case max(len(e.By), len(e.Cause)) > maxTextLength:
		return errors.New("has a cause or an instance of over 200 bytes")
	case len(e.Trials) > maxMaxTrials || len(e.LastNumbers) > maxSenders:
		return errors.New("has too many trials or sources")
	}
	for _, b := range e.Window {
		if b[0] < 0 || b[2] < 0 || b[2] > b[1] || b[1] > unlimited {
			return errors.New("has an invalid window")
		}
	}
	if e.Witness != "" {
		if err := CheckSource(e.Witness); err != nil {
			return fmt.Errorf("has an invalid witness: %w", err)
		}
	}
	for _, t := range e.Trials {
		if err := CheckSource(t.ID); err != nil {
			return fmt.Errorf("has an invalid trial: %w", err)
		}
	}
	for _, h := range e.LastNumbers {
		if err := CheckSource(h.Source); err != nil {
			return fmt.Errorf("has an invalid source: %w", err)
		}
	}
	return nil
}

// boundedWait bounds the waits of a record from outside.
func boundedWait(ms int64) time.Duration {
	most := maxTimeout.Milliseconds()
	return time.Duration(min(max(ms, -most), most)) * time.Millisecond
}

// encodedEvent is an Event as JSON. Times are milliseconds of Redis's clock.
type encodedEvent struct {
	At       int64            `json:"at"`
	From     State            `json:"from"`
	To       State            `json:"to"`
	Manual   bool             `json:"hand,omitempty"`
	By       string           `json:"by,omitempty"`
	Cause    string           `json:"cause,omitempty"`
	Override *encodedOverride `json:"override,omitempty"` // its Left is a point in time
}

func appendEvent(b []byte, e *Event) []byte {
	out := encodedEvent{
		At: e.At.UnixMilli(), From: e.From, To: e.To, Manual: e.Manual,
		By: clip(e.By, maxTextLength), Cause: clip(e.Cause, maxTextLength),
	}
	if o := e.Override; o != nil {
		var until *int64
		if !o.Until.IsZero() {
			ms := o.Until.UnixMilli()
			until = &ms
		}
		out.Override = encodeOverride(o, until)
	}
	text, err := json.Marshal(out)
	if err != nil { // impossible: all fields are numbers or strings
		panic(err)
	}
	return append(b, text...)
}

// maxEventLength bounds an event, which is untrusted.
const maxEventLength = 8 * maxTextLength

func parseEvent(text string) (e Event, err error) {
	var in encodedEvent
	if len(text) > maxEventLength {
		return e, fmt.Errorf("has %d bytes", len(text))
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return e, err
	}
	if in.From > StateHalfOpen || in.To > StateHalfOpen || in.At < 0 || in.At > forever || max(len(in.By), len(in.Cause)) > maxTextLength {
		return e, errors.New("has values out of range")
	}
	e = Event{At: time.UnixMilli(in.At), From: in.From, To: in.To, Manual: in.Manual, By: in.By, Cause: in.Cause}
	if o := in.Override; o != nil {
		var until time.Time
		if o.Left != nil {
			until = time.UnixMilli(*o.Left)
		}
		if e.Override = o.until(until); !e.Override.isValid() || o.Left != nil && (*o.Left < 0 || *o.Left > forever) {
			return Event{}, errors.New("has an invalid override")
		}
	}
	return e, nil
}
