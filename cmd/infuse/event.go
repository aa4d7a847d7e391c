package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// event is a transition or a manual change, as show and watch print it with -json.
// Fields may be added. The names are in the help.
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

// What an event may be.
const (
	isTransition = "transition" // by calls, or by time
	isSetState   = "set-state"  // manually
	isOverride   = "override"
	isRemoval    = "remove-override"
	isExpiry     = "override-expired" // by time: watch reports it, no history has it
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
			At: *some(e.At), Circuit: name, What: kind(e, before), From: e.From.String(), To: e.To.String(),
			By: e.By, Cause: e.Cause, Override: forcedBy(e.Override),
		})
	}
	return all
}

// kind tells a new state from an override by the override before.
func kind(e, before *infuse.Event) string {
	switch {
	case !e.Manual:
		return isTransition
	case before == nil && (e.From != e.To || e.Override == nil), before != nil && holds(before, e.At) == holds(e, e.At):
		return isSetState
	case e.Override == nil:
		return isRemoval
	}
	return isOverride
}

// holds returns what identifies the override that applies after the event, if any.
func holds(e *infuse.Event, at time.Time) string {
	o := e.Override
	if o == nil || !o.Until.IsZero() && !at.Before(o.Until) {
		return ""
	}
	until := o.Until
	if !until.IsZero() {
		until = until.Round(10 * time.Second) // each read translates it to this process's clock anew
	}
	return fmt.Sprint(o.State, until.Unix(), o.By, "\x00", o.Reason)
}

// line describes an event: what, and then by whom and why.
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

// end returns until when an override applies.
func (h *forcing) end(now time.Time) string {
	if h.Until == nil {
		return "it is removed"
	}
	return fmt.Sprintf("%s (%s)", clock(*h.Until, now), brief(h.Until.Sub(now)))
}
