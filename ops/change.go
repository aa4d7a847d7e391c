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

// This file is the changes: what a form may contain, and how it is carried out.

const (
	maxBody   = 16 << 10
	maxPerson = 100 // bytes
	maxReason = 200 // bytes, as in infuse.Override
)

// change is a request to change a circuit.
type change struct {
	Circuit string
	Do      string // a key of actions
	For     string // of an override: a duration; empty: until it is removed
	Reason  string
	Person  string

	length time.Duration
}

// action is a change that can be chosen.
type action struct {
	Words    string // of its button
	Effect   string
	Override bool         // it forces a state
	Removes  bool         // it removes an override
	to       infuse.State // the state that it forces or sets
}

var actions = map[string]action{
	"force-open":    {Words: "Force open", Effect: "All processes reject all calls.", Override: true, to: infuse.StateOpen},
	"force-closed":  {Words: "Force closed", Effect: "All calls run in every process, regardless of failures.", Override: true, to: infuse.StateClosed},
	"remove":        {Words: "Remove override", Effect: "The circuit reacts to call results again.", Removes: true},
	"set-closed":    {Words: "Set to closed", Effect: "All processes forget the failures and run calls.", to: infuse.StateClosed},
	"set-half-open": {Words: "Set to half-open", Effect: "The next call is a trial.", to: infuse.StateHalfOpen},
	"set-open":      {Words: "Set to open", Effect: "All processes reject calls for 1 minute. The next call is then a trial.", to: infuse.StateOpen},
}

// Action is the chosen one.
func (c *change) Action() action { return actions[c.Do] }

// Until is how long an override lasts.
func (c *change) Until() string {
	if c.For == "" {
		return "until it is removed"
	}
	return c.For
}

var lengths = map[string]time.Duration{
	"": 0, "15 minutes": 15 * time.Minute, "1 hour": time.Hour, "4 hours": 4 * time.Hour, "12 hours": 12 * time.Hour, "24 hours": 24 * time.Hour,
}

// change answers a POST. A change that is not confirmed is shown for confirmation.
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
		p.Ask, p.Person = c, person
		h.render(w, http.StatusOK, "confirm", p)
		return
	}
	h.carryOut(w, r, c)
}

func (h *handler) carryOut(w http.ResponseWriter, r *http.Request, c *change) {
	err := h.do(r.Context(), c)
	attributes := []any{"circuit", c.Circuit, "change", c.Do, "for", c.For, "by", c.Person, "reason", c.Reason}
	if err != nil {
		h.Logger.ErrorContext(r.Context(), "circuit change failed", append(attributes, "error", err)...)
	} else {
		h.Logger.InfoContext(r.Context(), "circuit changed manually", attributes...)
	}
	if h.board.storage != nil {
		h.board.detail(c.Circuit).fresh(r.Context(), 0)
	}
	h.board.taken.outdate()
	switch {
	case errors.Is(err, errNoCircuit):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		p := h.newPage(query{Circuit: c.Circuit})
		p.Ask, p.Person, p.Failed = c, c.Person, clip(err.Error(), maxError)
		h.render(w, http.StatusServiceUnavailable, "failed", p)
	case wantsJSON(r):
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(encode(map[string]string{"circuit": c.Circuit, "done": c.Do, "by": c.Person}))
	default:
		w.Header().Set("Location", "./"+link(c.Circuit))
		w.WriteHeader(http.StatusSeeOther)
	}
}

// parseChange reads a form. The circuit is in the URL, because a browser alters the
// line breaks of a name in a form.
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

var errNoCircuit = errors.New("no such circuit in this process, and no storage is set")

// do makes the change. An override is set and removed through the breaker of this
// process if there is one, and then applies here even while the storage is
// unavailable. Any other change is made through a breaker of its own: a Group could
// evict another breaker for it, and the record names the Instance of the breaker,
// which is then the person.
func (h *handler) do(ctx context.Context, c *change) error {
	breaker := h.board.own()[c.Circuit]
	if h.Storage == nil && breaker == nil {
		return errNoCircuit
	}
	a := c.Action()
	if breaker == nil || h.Storage != nil && !a.Override && !a.Removes {
		made, err := infuse.New(c.Circuit, infuse.Config{Storage: h.Storage, Instance: c.signed(), StorageTimeout: lookTime})
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
		return breaker.ClearOverride(ctx, c.signed())
	default:
		return breaker.SetState(ctx, a.to)
	}
}

// signed returns person and reason, for records without a field for the reason.
func (c *change) signed() string {
	return clip(c.Person+": "+c.Reason, maxReason)
}

func (c *change) until() time.Time {
	if c.length == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.length)
}
