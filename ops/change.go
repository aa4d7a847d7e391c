package ops

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// This file is what an operator may change: what is asked, and how it is done.

const (
	mostBody  = 16 << 10
	maxPerson = 100 // bytes of a name
	maxReason = 200 // and of a reason, as in infuse.Override
)

// change is what somebody wants done.
type change struct {
	Circuit string
	Do      string // a key of deeds
	For     string // of an override: a duration, or nothing: until it is cleared
	Reason  string
	Person  string

	length time.Duration
}

// deed is a change that can be chosen.
type deed struct {
	Words   string // after "to"
	Effect  string
	Holds   bool         // it is an override
	Clears  bool         // or ends one
	to      infuse.State // else it is a move
	holding infuse.State
}

var deeds = map[string]deed{
	"hold-open":   {Words: "hold it open", Effect: "Every process rejects every call.", Holds: true, holding: infuse.StateOpen},
	"hold-closed": {Words: "hold it closed", Effect: "Every process lets every call run, however sick the service is.", Holds: true, holding: infuse.StateClosed},
	"clear":       {Words: "clear its override", Effect: "The circuit goes by what its calls come to.", Clears: true},
	"closed":      {Words: "move it to closed", Effect: "Every process forgets the failures, and lets calls run.", to: infuse.StateClosed},
	"half-open":   {Words: "move it to half-open", Effect: "The next call is a trial.", to: infuse.StateHalfOpen},
	"open":        {Words: "move it to open", Effect: "Every process rejects calls for a minute. Then one may be a trial.", to: infuse.StateOpen},
}

// Deed is what there is to do.
func (c *change) Deed() deed { return deeds[c.Do] }

// Until says how long an override holds.
func (c *change) Until() string {
	if c.For == "" {
		return "until somebody clears it"
	}
	return "for " + c.For
}

var lengths = map[string]time.Duration{
	"": 0, "15 minutes": 15 * time.Minute, "1 hour": time.Hour, "4 hours": 4 * time.Hour, "12 hours": 12 * time.Hour, "24 hours": 24 * time.Hour,
}

// change answers a POST. What is not confirmed is asked back first.
func (h *handler) change(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		http.Error(w, "A change is a POST.", http.StatusMethodNotAllowed)
		return
	}
	person, ok := h.person(r)
	if !ok {
		http.Error(w, "You may not change circuits.", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, mostBody)
	c, err := parseChange(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.Person = person
	if r.PostForm.Get("confirm") != "yes" {
		render(w, http.StatusOK, "confirm", page{Title: h.Title, Query: query{Circuit: c.Circuit}, Ask: c, Person: person})
		return
	}
	h.carryOut(w, r, c)
}

func (h *handler) carryOut(w http.ResponseWriter, r *http.Request, c *change) {
	err := h.do(r.Context(), c)
	level := h.Logger.InfoContext
	if err != nil {
		level = h.Logger.ErrorContext
	}
	level(r.Context(), "infuse: a circuit was changed by hand", "circuit", c.Circuit, "change", c.Do, "for", c.For, "by", c.Person, "reason", c.Reason, "error", err)
	if h.board.storage != nil {
		h.board.detail(c.Circuit).fresh(r.Context(), 0)
	}
	switch {
	case errors.Is(err, errNoCircuit):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		render(w, http.StatusServiceUnavailable, "failed", page{Title: h.Title, Query: query{Circuit: c.Circuit}, Ask: c, Failed: clip(err.Error(), maxError)})
	case wantsJSON(r):
		writeJSON(w, map[string]string{"circuit": c.Circuit, "done": c.Do, "by": c.Person})
	default:
		w.Header().Set("Location", "./"+link(c.Circuit))
		w.WriteHeader(http.StatusSeeOther)
	}
}

// parseChange reads a form. The circuit is in the URL: a browser would alter the
// line breaks of a name in a form.
func parseChange(r *http.Request) (*change, error) {
	if err := r.ParseForm(); err != nil {
		return nil, fmt.Errorf("the form cannot be read: %w", err)
	}
	c := &change{Circuit: r.URL.Query().Get("circuit"), Do: r.PostForm.Get("do"), For: r.PostForm.Get("for"), Reason: strings.TrimSpace(r.PostForm.Get("reason"))}
	if err := infuse.CheckName(c.Circuit); err != nil {
		return nil, err
	}
	length, known := lengths[c.For]
	c.length = length
	switch _, ok := deeds[c.Do]; {
	case !ok:
		return nil, fmt.Errorf("what to do is %.40q: must be hold-open, hold-closed, clear, closed, half-open or open", c.Do)
	case !known:
		return nil, fmt.Errorf("for how long is %.40q: must be 15 minutes, 1 hour, 4 hours, 12 hours or 24 hours, or empty", c.For)
	case c.Reason == "":
		return nil, errors.New("a reason is needed: others will read it at night")
	case len(c.Reason) > maxReason:
		return nil, fmt.Errorf("the reason has %d bytes: at most %d are kept", len(c.Reason), maxReason)
	}
	return c, nil
}

var errNoCircuit = errors.New("this process has no such circuit, and there is no storage")

// do makes the change. An override is made through the breaker of this process
// where it has one: it holds here even while the storage is away. Anything else
// is made through a breaker of its own, for the one change. In a Group that would
// displace another at Config.MaxCircuits, and go on watching. And what moves a
// circuit is on record under the name of the breaker's Instance: the person's.
func (h *handler) do(ctx context.Context, c *change) error {
	breaker := h.board.own()[c.Circuit]
	if h.Storage == nil && breaker == nil {
		return errNoCircuit
	}
	if breaker == nil || h.Storage != nil && !c.Deed().Holds && !c.Deed().Clears {
		made, err := infuse.New(c.Circuit, infuse.Config{Storage: h.Storage, Instance: c.signed(), StorageTimeout: lookTime})
		if err != nil {
			return err
		}
		defer made.Stop()
		breaker = made
	}
	switch d := c.Deed(); {
	case d.Holds:
		return breaker.Override(ctx, infuse.Override{State: d.holding, By: c.Person, Reason: c.Reason, Until: c.until()})
	case d.Clears:
		return breaker.ClearOverride(ctx, c.signed())
	default:
		return breaker.SetState(ctx, d.to)
	}
}

// signed is who did it and why, where a record has no place for the reason.
func (c *change) signed() string {
	return clip(c.Person+": "+c.Reason, maxReason)
}

func (c *change) until() time.Time {
	if c.length == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.length)
}
