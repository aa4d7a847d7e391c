package main

// This file contains a circuit as the commands read and print it.

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
)

// circuit is the JSON of a circuit. Fields may be added. The help describes them.
type circuit struct {
	Circuit    string     `json:"circuit"`
	OnRecord   bool       `json:"on_record"`
	State      string     `json:"state"`
	Underlying string     `json:"underlying_state,omitempty"`
	Suspect    bool       `json:"suspect,omitempty"`
	Since      *time.Time `json:"since,omitempty"`
	Due        *time.Time `json:"due,omitempty"`
	Failures   int        `json:"failures"`
	Trials     int        `json:"trials"`
	By         string     `json:"by,omitempty"`
	Cause      string     `json:"cause,omitempty"`
	Override   *forcing   `json:"override,omitempty"`
	Error      string     `json:"error,omitempty"`
	History    []event    `json:"history,omitempty"`
}

// forcing is the JSON of an override.
type forcing struct {
	State  string     `json:"state"`
	By     string     `json:"by"`
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"` // nil: until it is removed
}

const unreadable = "unreadable"

// readCircuit reads the record and the history of a circuit.
func readCircuit(ctx context.Context, s store, name string) (*circuit, error) {
	r, err := s.Load(ctx, name)
	var broken *infuse.RecordError
	if errors.As(err, &broken) {
		return &circuit{Circuit: name, OnRecord: true, State: unreadable, Error: "the record " + broken.Reason}, nil
	}
	if err != nil {
		return nil, err
	}
	history, err := s.History(ctx, name)
	if ctx.Err() != nil {
		return nil, err
	}
	c := describe(name, &r, history)
	if err != nil { // permissions may forbid it
		c.Error = "the history cannot be read: " + textOf(err)
	}
	return c, nil
}

func describe(name string, r *infuse.Record, history []infuse.Event) *circuit {
	c := &circuit{
		Circuit: name, State: r.State.String(), Failures: r.Failures, Trials: len(r.Trials), By: r.By, Cause: r.Cause,
		Suspect:  r.Suspect(),
		OnRecord: r.Generation > 0 || !r.Healthy(),
		Override: forcedBy(r.Override),
		Since:    since(r, history),
		History:  eventsOf(name, history),
	}
	if r.State == infuse.StateOpen {
		c.Due = jsonTime(r.DueAt)
	}
	if c.Override != nil {
		c.State, c.Underlying = c.Override.State, c.State
	}
	return c
}

func forcedBy(o *infuse.Override) *forcing {
	if o == nil {
		return nil
	}
	return &forcing{o.State.String(), o.By, o.Reason, jsonTime(o.Until)}
}

// jsonTime returns a time rounded to milliseconds, or nil for the zero time.
func jsonTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Round(time.Millisecond).UTC()
	return &t
}

// since returns when the record's state began, according to the history or else to the
// record.
func since(r *infuse.Record, history []infuse.Event) *time.Time {
	for _, e := range history { // the newest first
		if e.From == e.To {
			continue
		}
		if e.To == r.State {
			return jsonTime(e.At)
		}
		break
	}
	if r.Since == 0 {
		return nil
	}
	return jsonTime(time.UnixMilli(r.Since))
}

// condition returns the state for people.
func (c *circuit) condition() string {
	switch {
	case c.Suspect:
		return c.State + ", suspect"
	case !c.OnRecord:
		return c.State + ", without a record"
	}
	return c.State
}

// urgency orders circuits: unhealthy ones first.
func (c *circuit) urgency() int {
	switch {
	case c.State == unreadable:
		return 0
	case c.State == infuse.StateOpen.String():
		return 1
	case c.State == infuse.StateHalfOpen.String():
		return 2
	case c.Override != nil:
		return 3
	case c.Suspect:
		return 4
	}
	return 5
}

// names returns the names of the circuits that have a record, without duplicates.
func names(ctx context.Context, s store) (all []string, err error) {
	seen := make(map[string]bool)
	for name, err := range s.Circuits(ctx) {
		if err != nil {
			return nil, err
		}
		if !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return all, nil
}

// concurrency is the number of concurrent requests.
const concurrency = 16

// each calls fn for 0 to n-1 concurrently. It stops at the first error, and returns it.
func each(n int, fn func(i int) error) error {
	var next atomic.Int64
	var first error
	var once sync.Once
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range min(n, concurrency) {
		workers.Go(func() {
			for i := int(next.Add(1) - 1); i < n && !failed.Load(); i = int(next.Add(1) - 1) {
				if err := fn(i); err != nil {
					once.Do(func() { first = err })
					failed.Store(true)
				}
			}
		})
	}
	workers.Wait()
	return first
}
