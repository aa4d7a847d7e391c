package ops

// This file contains the output: JSON and texts.

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/infuse-go/infuse"
)

// report is the JSON of a page, without the circuits. Fields may be added.
type report struct {
	Instance   string    `json:"instance"`             // the process that answers
	Storage    string    `json:"storage"`              // "none", "ok" or "unavailable"
	StorageErr string    `json:"storageErr,omitempty"` // why it is unavailable
	Total      int       `json:"total"`                // listed circuits
	More       bool      `json:"more"`                 // the storage has circuits that are not listed
	Matching   int       `json:"matching"`             // circuits that match the query
	LeftOut    int       `json:"leftOut"`              // matching circuits beyond the limit
	At         time.Time `json:"at"`

	counts [ranks]int // matching circuits by rank
}

// same reports whether two reports differ in nothing except the time.
func (r *report) same(other *report) bool {
	a, b := *r, *other
	a.At, b.At = time.Time{}, time.Time{}
	return a == b
}

// circuit is the JSON of a circuit.
type circuit struct {
	Name         string    `json:"name"`
	Link         string    `json:"link"`                   // to its page, relative to the page of all circuits
	State        string    `json:"state"`                  // the worse of local and shared
	ProcessState string    `json:"processState,omitempty"` // what calls of this process get
	Status       string    `json:"status"`                 // the state, or the problem, for people
	Local        *block    `json:"local,omitempty"`
	Shared       *block    `json:"shared,omitempty"`
	Calls        *calls    `json:"calls,omitempty"` // in this process
	DryRun       bool      `json:"dryRun,omitempty"`
	StorageErr   string    `json:"storageErr,omitempty"`
	Override     *override `json:"override,omitempty"`
	Problem      string    `json:"problem,omitempty"` // why its record is unreadable
	History      []event   `json:"history,omitempty"` // newest first

	item *item
}

// block is the local or the shared circuit.
type block struct {
	State    string     `json:"state"`
	Suspect  bool       `json:"suspect,omitempty"`
	Failures int        `json:"failures"` // consecutive
	Since    *time.Time `json:"since,omitempty"`
	DueAt    *time.Time `json:"dueAt,omitempty"`
	By       string     `json:"by,omitempty"`
	Cause    string     `json:"cause,omitempty"`
	Trials   int        `json:"trials,omitempty"` // in progress
	Window   *window    `json:"window,omitempty"` // of the failure rate
}

type window struct {
	Calls    int `json:"calls"`
	Failures int `json:"failures"`
}

type calls struct {
	Success  uint64 `json:"success"`
	Failure  uint64 `json:"failure"`
	Ignored  uint64 `json:"ignored"`
	Rejected uint64 `json:"rejected"`

	WouldReject uint64 `json:"wouldReject"`
}

type override struct {
	State  string     `json:"state"`
	By     string     `json:"by"`
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

type event struct {
	At       *time.Time `json:"at"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	Manually bool       `json:"manually"`
	By       string     `json:"by"`
	Cause    string     `json:"cause,omitempty"`
	Override *override  `json:"override,omitempty"`

	removed bool // the event removed an override
}

// Step describes the event; empty if the override describes it.
func (e event) Step() string {
	switch {
	case e.From != e.To:
		return e.From + " → " + e.To
	case e.removed:
		return "override removed"
	case e.Override != nil:
		return ""
	}
	return "set to " + e.To
}

// eventsOf returns the JSON of a history, newest first.
func eventsOf(history []infuse.Event) (all []event) {
	for i, e := range history {
		var before overrideFacts
		if i+1 < len(history) {
			before = overrideOf(history[i+1].Override)
		}
		all = append(all, event{
			timeOf(seconds(e.At)), e.From.String(), e.To.String(), e.Manual, e.By, e.Cause, overrideOf(e.Override).describe(),
			e.Manual && e.Override == nil && before.exists && (before.until == 0 || before.until > seconds(e.At)),
		})
	}
	return all
}

func (it *item) describe() *circuit {
	f := &it.facts
	c := &circuit{
		Name: it.named.name, Link: link(it.named.name), State: f.state.String(), Status: f.status(), Local: f.local.describe(), Shared: f.shared.describe(),
		StorageErr: f.storageErr, Override: f.override.describe(), Problem: f.problem, History: it.history, item: it,
	}
	if f.local.exists {
		c.ProcessState = f.processState.String()
		c.Calls, c.DryRun = &f.calls, f.dryRun
	}
	return c
}

// Rate is the failure rate in percent.
func (w *window) Rate() int { return int(math.Round(100 * float64(w.Failures) / float64(w.Calls))) }

func (f *blockFacts) describe() *block {
	if !f.exists {
		return nil
	}
	b := &block{f.state.String(), f.suspect, f.failures, timeOf(f.since), timeOf(f.due), f.by, f.cause, f.trials, nil}
	if f.window.Calls > 0 {
		b.Window = &f.window
	}
	return b
}

func (f overrideFacts) describe() *override {
	if !f.exists {
		return nil
	}
	return &override{f.state.String(), f.by, f.reason, timeOf(f.until)}
}

// status returns the text of the badge.
func (f *facts) status() string {
	switch f.rank {
	case rankOpen, rankReady, rankHalfOpen:
		status := rankNames[f.rank]
		if f.localOnly && f.shared.exists {
			status += " (local circuit)"
		}
		return status
	}
	return rankNames[f.rank]
}

var rankNames = [ranks]string{"open", "forced open", "open, ready for a trial", "half-open", "unreadable", "forced closed", "suspect", "failing", "closed"}

// HTML returns the circuit as HTML.
func (it *item) HTML() template.HTML {
	return it.html.get(func() template.HTML {
		text, err := execute("circuit", it.describe())
		if err != nil {
			return template.HTML(template.HTMLEscapeString(err.Error()))
		}
		return template.HTML(text) // escaped by the template
	})
}

// JSON returns the circuit as JSON.
func (it *item) JSON() []byte {
	return it.json.get(func() []byte { return encode(it.describe()) })
}

// row returns the JSON of the circuit in a frame.
func (it *item) row() []byte {
	return it.frame.get(func() []byte {
		return encode(struct {
			ID   string        `json:"id"`
			HTML template.HTML `json:"html"`
		}{it.named.id, it.HTML()})
	})
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		return []byte("null")
	}
	return data
}

func (r *report) writeJSON(w io.Writer, rows []*item) error {
	head := encode(r)
	return writeList(w, string(head[:len(head)-1])+`,"circuits":`, rows, (*item).JSON, "}\n")
}

// writeList writes a JSON array of each(row), between two texts.
func writeList(w io.Writer, before string, rows []*item, each func(*item) []byte, after string) error {
	_, err := io.WriteString(w, before+"[")
	for i, row := range rows {
		if i > 0 && err == nil {
			_, err = io.WriteString(w, ",")
		}
		if err == nil {
			_, err = w.Write(each(row))
		}
	}
	if err == nil {
		_, err = io.WriteString(w, "]"+after)
	}
	return err
}

var buffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 32<<10) }}

// buffered batches many small writes. It returns the error of the writer, whose client
// may have disconnected.
func buffered(w io.Writer, write func(io.Writer) error) error {
	b := buffers.Get().(*bufio.Writer)
	b.Reset(w)
	err := write(b)
	if err == nil {
		err = b.Flush()
	}
	b.Reset(nil)
	buffers.Put(b)
	return err
}

// Summary describes the number of circuits of each rank.
func (r *report) Summary() string {
	var parts []string
	for rank, n := range r.counts {
		if n > 0 {
			parts = append(parts, fmt.Sprint(n, " ", strings.ReplaceAll(rankNames[rank], ",", " and")))
		}
	}
	if len(parts) == 0 {
		return "No circuits."
	}
	return strings.Join(parts, ", ") + "."
}

// Shown is the number of circuits on the page.
func (r *report) Shown() int { return r.Matching - r.LeftOut }

// Class is the CSS class of a circuit.
func (c *circuit) Class() string {
	return [ranks]string{"open", "forced", "half", "half", "open", "forced", "half", "failing", "closed"}[c.item.facts.rank]
}

// DueAt is when the circuit is ready for a trial; nil if it is not open, or forced.
func (c *circuit) DueAt() *time.Time {
	switch {
	case c.Override != nil:
		return nil
	case c.Shared != nil && c.Shared.DueAt != nil:
		return c.Shared.DueAt
	case c.Local != nil:
		return c.Local.DueAt
	}
	return nil
}

// Cause is the cause of the shared circuit if it is not closed, otherwise of the local one.
func (c *circuit) Cause() string {
	for _, b := range []*block{c.Shared, c.Local} {
		if b != nil && b.State != infuse.StateClosed.String() {
			return b.Cause
		}
	}
	return ""
}

// Bypassed reports whether the circuit is open but this process runs calls: an open
// shared circuit rejects calls only if the last call of the process failed.
func (c *circuit) Bypassed() bool {
	return c.Local != nil && c.Override == nil && c.StorageErr == "" && c.State == infuse.StateOpen.String() && c.ProcessState == infuse.StateClosed.String()
}

// Ready reports whether the circuit is ready for a trial.
func (c *circuit) Ready() bool { return c.item.facts.rank == rankReady }

// Detailed reports whether the page shows the history.
func (c *circuit) Detailed() bool { return c.item.detail }

// Failures is the number of consecutive failures.
func (c *circuit) Failures() int { return c.item.facts.failures() }

// Counted reports whether there were any calls.
func (c *calls) Counted() bool { return *c != calls{} }

// rowID returns the ID of the element of a circuit.
func rowID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "c" + hex.EncodeToString(sum[:12])
}

func link(name string) string { return "?circuit=" + url.QueryEscape(name) }

func timeOf(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

func iso(t time.Time) string   { return t.UTC().Format(time.RFC3339) }
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

const maxError = 300

// clip truncates a text to a number of bytes, at a character boundary.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// plain escapes characters that are invisible or that change how other text is displayed:
// line breaks, direction marks, invalid UTF-8.
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
