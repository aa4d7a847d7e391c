package main

// This file contains events: transitions and manual changes, as JSON and as text.

import (
	"fmt"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// event is the JSON of a transition or a manual change. Fields may be added. The help
// describes them.
type event struct {
	At       time.Time `json:"at"`
	Circuit  string    `json:"circuit"`
	What     string    `json:"what"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	By       string    `json:"by,omitempty"`
	Cause    string    `json:"cause,omitempty"`
	Override *forcing  `json:"override,omitempty"`
}

// The kinds of events.
const (
	isTransition = "transition"
	isSetState   = "set-state"
	isOverride   = "override"
	isRemoval    = "remove-override"
	isExpiry     = "override-expired" // histories do not contain it
)

// eventsOf describes a history, the newest first.
func eventsOf(name string, history []infuse.Event) (all []event) {
	for i := range history {
		e := &history[i]
		var before *infuse.Event
		if i+1 < len(history) {
			before = &history[i+1]
		}
		all = append(all, event{
			At: *jsonTime(e.At), Circuit: name, What: kind(e, before), From: e.From.String(), To: e.To.String(),
			By: e.By, Cause: e.Cause, Override: forcedBy(e.Override),
		})
	}
	return all
}

// kind returns the kind of an event, given the event before it.
func kind(e, before *infuse.Event) string {
	switch {
	case !e.Manual:
		return isTransition
	case before == nil && (e.From != e.To || e.Override == nil), before != nil && activeOverride(before, e.At) == activeOverride(e, e.At):
		return isSetState
	case e.Override == nil:
		return isRemoval
	}
	return isOverride
}

// activeOverride identifies the override that is in effect at that time; empty if none.
func activeOverride(e *infuse.Event, at time.Time) string {
	o := e.Override
	if o == nil || !o.Until.IsZero() && !at.Before(o.Until) {
		return ""
	}
	until := o.Until
	if !until.IsZero() {
		until = until.Round(10 * time.Second) // differs between reads: each one translates it to the local clock
	}
	return fmt.Sprint(o.State, until.Unix(), o.By, "\x00", o.Reason)
}

// line describes an event: what happened, and by whom and why.
func (e *event) line(now time.Time) (what, why string) {
	var words []string
	add := func(word, text string) {
		if text != "" {
			words = append(words, word+" "+text)
		}
	}
	add("by", cut(plain(e.By), 60))
	switch e.What {
	case isOverride:
		add("until", e.Override.end(now))
		return "forced " + e.Override.State, strings.Join(words, " ") + ": " + cut(plain(e.Override.Reason), 200)
	case isRemoval:
		return "override removed", strings.Join(words, " ")
	case isExpiry:
		return "override expired", strings.Join(words, " ")
	case isSetState:
		return "set to " + e.To, strings.Join(words, " ")
	}
	why = strings.Join(words, " ")
	if e.Cause != "" {
		why += ": " + cut(plain(e.Cause), 200)
	}
	return e.From + " -> " + e.To, why
}

// end describes when the override ends.
func (h *forcing) end(now time.Time) string {
	if h.Until == nil {
		return "removed"
	}
	return fmt.Sprintf("%s (%s)", clock(*h.Until, now), brief(h.Until.Sub(now)))
}
