package ops

// This file contains changes: the form, its validation, and how it is applied.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

const (
	maxBody   = 16 << 10
	maxPerson = 100 // bytes
	maxReason = 200 // bytes, as in infuse.Override
)

// change is a request to change a circuit.
type change struct {
	Circuit string
	Do      string // a key of actions
	For     string // duration of an override; empty: until it is removed
	Reason  string
	Person  string

	length time.Duration
}

// action is a kind of change.
type action struct {
	Label    string // of its button
	Effect   string
	Override bool // forces a state
	Removes  bool // removes an override
	to       infuse.State
}

var actions = map[string]action{
	"force-open":    {Label: "Force open", Effect: "All processes reject all calls.", Override: true, to: infuse.StateOpen},
	"force-closed":  {Label: "Force closed", Effect: "All calls run in every process, regardless of failures.", Override: true, to: infuse.StateClosed},
	"remove":        {Label: "Remove override", Effect: "Call results change the state again.", Removes: true},
	"set-closed":    {Label: "Set to closed", Effect: "All processes reset their failures and run calls.", to: infuse.StateClosed},
	"set-half-open": {Label: "Set to half-open", Effect: "The next call is a trial.", to: infuse.StateHalfOpen},
	"set-open":      {Label: "Set to open", Effect: "All processes reject calls for 1 minute. The next call is then a trial.", to: infuse.StateOpen},
}

// Action returns the action of the change.
func (c *change) Action() action { return actions[c.Do] }

// Until describes when the override expires.
func (c *change) Until() string {
	if c.For == "" {
		return "until removed"
	}
	return c.For
}

var lengths = map[string]time.Duration{
	"": 0, "15 minutes": 15 * time.Minute, "1 hour": time.Hour, "4 hours": 4 * time.Hour, "12 hours": 12 * time.Hour, "24 hours": 24 * time.Hour,
}

// change answers a POST. It shows a change for confirmation before it applies it.
func (h *handler) change(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		http.Error(w, "Method not allowed: use POST.", http.StatusMethodNotAllowed)
		return
	}
	person, ok := h.person(r)
	if !ok {
		http.Error(w, "You have read-only access.", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	c, err := parseChange(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.Person = person
	if r.PostForm.Get("confirm") != "yes" {
		p := h.newPage(query{Circuit: c.Circuit})
		p.Change, p.Person = c, person
		h.render(w, http.StatusOK, "confirm", p)
		return
	}
	h.apply(w, r, c)
}

func (h *handler) apply(w http.ResponseWriter, r *http.Request, c *change) {
	err := h.do(r.Context(), c)
	attributes := []any{"circuit", c.Circuit, "change", c.Do, "for", c.For, "by", c.Person, "reason", c.Reason}
	if err != nil {
		h.Logger.ErrorContext(r.Context(), "circuit change failed", append(attributes, "error", err)...)
	} else {
		h.Logger.InfoContext(r.Context(), "circuit changed manually", attributes...)
	}
	if h.board.storage != nil {
		h.board.detail(c.Circuit).refresh(r.Context(), 0)
	}
	h.board.taken.outdate()
	switch {
	case errors.Is(err, errNoCircuit):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		p := h.newPage(query{Circuit: c.Circuit})
		p.Change, p.Person, p.Failure = c, c.Person, clip(err.Error(), maxError)
		h.render(w, http.StatusServiceUnavailable, "failed", p)
	case wantsJSON(r):
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(encode(map[string]string{"circuit": c.Circuit, "done": c.Do, "by": c.Person}))
	default:
		w.Header().Set("Location", "./"+link(c.Circuit))
		w.WriteHeader(http.StatusSeeOther)
	}
}

// parseChange reads a form. The circuit is in the URL, because browsers change line
// breaks in form values.
func parseChange(r *http.Request) (*change, error) {
	if err := r.ParseForm(); err != nil {
		return nil, fmt.Errorf("invalid form: %w", err)
	}
	c := &change{Circuit: r.URL.Query().Get("circuit"), Do: r.PostForm.Get("do"), For: r.PostForm.Get("for"), Reason: strings.TrimSpace(r.PostForm.Get("reason"))}
	if err := infuse.CheckName(c.Circuit); err != nil {
		return nil, err
	}
	length, known := lengths[c.For]
	c.length = length
	switch _, ok := actions[c.Do]; {
	case !ok:
		return nil, fmt.Errorf("invalid change %.40q: want force-open, force-closed, remove, set-closed, set-half-open or set-open", c.Do)
	case !known:
		return nil, fmt.Errorf("invalid duration %.40q: want 15 minutes, 1 hour, 4 hours, 12 hours, 24 hours, or nothing", c.For)
	case c.Reason == "":
		return nil, errors.New("a reason is required")
	case len(c.Reason) > maxReason:
		return nil, fmt.Errorf("reason too long: %d bytes, at most %d are allowed", len(c.Reason), maxReason)
	}
	return c, nil
}

var errNoCircuit = errors.New("no such circuit in this process, and Options.Storage is not set")

// do makes the change. If this process has a breaker of the circuit, that one sets and
// removes overrides: they then apply in this process even while the storage is
// unavailable. Any other change needs a new breaker, whose Instance is the person: the
// record contains the Instance.
func (h *handler) do(ctx context.Context, c *change) error {
	breaker := h.board.breakers()[c.Circuit]
	if h.Storage == nil && breaker == nil {
		return errNoCircuit
	}
	a := c.Action()
	if breaker == nil || h.Storage != nil && !a.Override && !a.Removes {
		made, err := infuse.New(c.Circuit, infuse.Config{Storage: h.Storage, Instance: c.author(), StorageTimeout: storageTime})
		if err != nil {
			return err
		}
		defer made.Stop()
		breaker = made
	}
	switch {
	case a.Override:
		return breaker.Override(ctx, infuse.Override{State: a.to, By: c.Person, Reason: c.Reason, Until: c.until()})
	case a.Removes:
		return breaker.ClearOverride(ctx, c.author())
	default:
		return breaker.SetState(ctx, a.to)
	}
}

// author returns person and reason, for events without a field for the reason.
func (c *change) author() string {
	return clip(c.Person+": "+c.Reason, maxReason)
}

func (c *change) until() time.Time {
	if c.length == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.length)
}
