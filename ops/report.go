package ops

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// This file is what a page says of the circuits, as JSON and as words.

// report is the JSON of a page. Fields may be added.
type report struct {
	Storage  string    `json:"storage"`        // "none", "ok" or "away"
	Away     string    `json:"away,omitempty"` // why
	Total    int       `json:"total"`          // circuits that are known
	More     bool      `json:"more"`           // the storage has others
	Matching int       `json:"matching"`       // those that the query is about
	LeftOut  int       `json:"leftOut"`        // of them, and not in Circuits
	Circuits []circuit `json:"circuits"`

	Time time.Time `json:"at"`

	counts [7]int // of those that match, by rank
}

// circuit is what is known of one.
type circuit struct {
	Name     string    `json:"name"`
	Link     string    `json:"link"`   // to its page, below that of all
	State    string    `json:"state"`  // the worse of the two
	Status   string    `json:"status"` // for people: the state, or what is amiss
	Here     *here     `json:"here,omitempty"`
	Fleet    *fleet    `json:"fleet,omitempty"`
	Override *override `json:"override,omitempty"`
	Problem  string    `json:"problem,omitempty"` // why its record cannot be read
	History  []event   `json:"history,omitempty"` // the newest first

	rank     int
	detailed bool // the history is wanted
}

// here is what this process knows.
type here struct {
	State    string     `json:"state"`
	Local    bool       `json:"local"` // the circuit of this process alone is not closed
	Since    *time.Time `json:"since,omitempty"`
	Failures int        `json:"failures"`
	Calls    calls      `json:"calls"`
	Away     string     `json:"away,omitempty"`
}

type calls struct {
	Success  uint64 `json:"success"`
	Failure  uint64 `json:"failure"`
	Ignored  uint64 `json:"ignored"`
	Rejected uint64 `json:"rejected"`

	WouldReject uint64 `json:"wouldReject"`
}

// fleet is what is on record; without a storage, of this process.
type fleet struct {
	State    string      `json:"state"`
	Since    *time.Time  `json:"since,omitempty"`
	Failures int         `json:"failures"`
	By       string      `json:"by,omitempty"`
	Cause    string      `json:"cause,omitempty"`
	DueAt    *time.Time  `json:"dueAt,omitempty"`
	Suspect  bool        `json:"suspect,omitempty"`
	Trials   []time.Time `json:"trials,omitempty"` // when their leases end
}

type override struct {
	State  string     `json:"state"`
	By     string     `json:"by"`
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

type event struct {
	At       time.Time `json:"at"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	ByHand   bool      `json:"byHand"`
	By       string    `json:"by"`
	Cause    string    `json:"cause,omitempty"`
	Override *override `json:"override,omitempty"`
}

// report returns what a page says.
func (b *board) report(s *snapshot, q query) *report {
	matching := s.matching(q)
	r := &report{Time: time.Now(), Storage: "ok", More: s.more, Matching: len(matching), LeftOut: max(0, len(matching)-q.Limit), Circuits: []circuit{}}
	switch {
	case b.storage == nil:
		r.Storage = "none"
	case s.away != nil:
		r.Storage, r.Away = "away", clip(s.away.Error(), maxError)
	}
	for i := range s.entries {
		if s.entries[i].listed {
			r.Total++
		}
	}
	for i, e := range matching {
		r.counts[e.rank]++
		if i < q.Limit {
			r.Circuits = append(r.Circuits, e.describe())
		}
	}
	if q.Circuit != "" && len(r.Circuits) == 1 {
		r.Circuits[0].detailed = true
		r.Circuits[0].History = b.history(q.Circuit)
	}
	return r
}

func (b *board) history(circuit string) (all []event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.details[circuit]; d != nil {
		for _, e := range d.events {
			all = append(all, event{*at(e.At), e.From.String(), e.To.String(), e.ByHand, e.By, e.Cause, overrideOf(e.Override)})
		}
	}
	return all
}

func (e *entry) describe() circuit {
	c := circuit{Name: e.name, Link: link(e.name), State: e.state.String(), Override: overrideOf(e.override()), rank: e.rank}
	if e.problem != nil {
		c.Problem = clip(e.problem.Error(), maxError)
	}
	if e.breaker != nil {
		s := e.stats
		c.Here = &here{State: s.State.String(), Local: tally.OnlyLocal(s), Since: at(tally.Since(s)), Failures: tally.Failures(s), Calls: calls(s.Calls)}
		if s.StorageErr != nil {
			c.Here.Away = clip(s.StorageErr.Error(), maxError)
		}
	}
	if e.record != nil && e.problem == nil {
		c.Fleet = fleetOf(e.record)
	}
	c.Status = e.status()
	return c
}

func (e *entry) status() string {
	o := e.override()
	switch {
	case o != nil && o.State == e.state:
		return "held " + e.state.String()
	case e.state == infuse.StateOpen && tally.OnlyLocal(e.stats):
		return "open here"
	case e.state != infuse.StateClosed:
		return e.state.String()
	case e.problem != nil:
		return "unreadable"
	case e.rank == 4:
		return "suspect"
	case e.rank == 5:
		return "failing"
	}
	return "closed"
}

func fleetOf(r *infuse.Record) *fleet {
	f := &fleet{State: r.State.String(), Failures: r.Failures, By: r.By, Cause: r.Cause}
	since := r.Since
	if r.State != infuse.StateClosed { // evidence opens it without a new state for the calls that run
		since = max(since, r.Opened)
	}
	if since > 0 {
		f.Since = at(time.UnixMilli(since)) // a generation is at least the time
	}
	if r.State == infuse.StateOpen {
		f.DueAt = at(r.DueAt)
	}
	f.Suspect = r.Suspect()
	for _, t := range r.Trials {
		f.Trials = append(f.Trials, t.Deadline)
	}
	return f
}

func overrideOf(o *infuse.Override) *override {
	if o == nil {
		return nil
	}
	return &override{o.State.String(), o.By, o.Reason, at(o.Until)}
}

// at rounds a time, so that two readings of it are alike: a storage translates
// from its clock to this one each time.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Round(time.Second)
	return &t
}

// Summary says how many there are of each kind.
func (r *report) Summary() string {
	var parts []string
	for rank, what := range [...]string{"open", "half-open", "unreadable", "held", "suspect", "failing", "closed"} {
		if n := r.counts[rank]; n > 0 {
			parts = append(parts, fmt.Sprint(n, " ", what))
		}
	}
	if len(parts) == 0 {
		return "No circuits."
	}
	return strings.Join(parts, ", ") + "."
}

// Class is how a circuit looks.
func (c *circuit) Class() string {
	return [...]string{"open", "half", "open", "held", "half", "failing", "closed"}[c.rank]
}

// Detailed tells whether the history is to be shown.
func (c *circuit) Detailed() bool { return c.detailed }

// Failures are those in a row: of this process or, if those are more, on record.
func (c *circuit) Failures() (n int) {
	if c.Here != nil {
		n = c.Here.Failures
	}
	if c.Fleet != nil {
		n = max(n, c.Fleet.Failures)
	}
	return n
}

// Counted tells whether there are counters.
func (h *here) Counted() bool { return h.Calls != calls{} }

// row is a circuit as HTML.
type row struct {
	ID   string        `json:"id"`
	HTML template.HTML `json:"html"`
}

func rows(r *report) (all []row) {
	for i := range r.Circuits {
		all = append(all, rowOf(&r.Circuits[i]))
	}
	return all
}

func rowOf(c *circuit) row {
	var text bytes.Buffer
	if err := templates.ExecuteTemplate(&text, "circuit", c); err != nil {
		return row{rowID(c.Name), template.HTML(template.HTMLEscapeString(err.Error()))}
	}
	return row{rowID(c.Name), template.HTML(text.String())} // escaped by the template
}

// rowID names an element: no two circuits have the same, whatever their names.
func rowID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "c" + hex.EncodeToString(sum[:12])
}

func link(name string) string { return "?circuit=" + url.QueryEscape(name) }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

const maxError = 300

// clip cuts a text at so many bytes, and not within a letter.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// plain shows what cannot be seen, or would change how the rest is seen: line
// breaks, marks of direction, bytes that are no text.
func plain(text string) string {
	var shown strings.Builder
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&shown, `\x%02x`, text[0])
		case strconv.IsPrint(r):
			shown.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			shown.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return shown.String()
}
