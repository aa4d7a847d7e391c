// Package ops is a page for the operators of a fleet, and the same as JSON: its
// circuits, the sick ones first, live, and the way to hold or move one.
package ops

// This file is the handler: its options, its paths, and what every answer says
// to a browser.

import (
	"bytes"
	"embed"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/infuse-go/infuse"
)

// Options are the settings of a Handler. It needs a Group or a Storage; with
// both, the Storage is the Group's.
type Options struct {
	// Group has the circuits of this process. nil: only the fleet's are shown.
	Group *infuse.Group

	// Storage has the circuits of the fleet. nil: only this process's are shown.
	// All that have a record are listed if it is an infuse.Lister, else those
	// that the Group has. The last transitions are shown if it is an
	// infuse.Historian.
	Storage infuse.Storage

	// Authorize names the person who makes a request, or says that they may
	// change nothing. nil: nobody may. The name goes on record; at most 100 bytes
	// of it are kept. It is asked for each page, too: whoever may not change a
	// circuit sees no controls. It does not protect what is shown. Who may look
	// is for a handler around this one to decide.
	Authorize func(*http.Request) (name string, ok bool)

	// Title stands above the page: "Circuits" if empty.
	Title string

	// Logger logs each change: what, who, why. slog.Default() if nil.
	Logger *slog.Logger
}

// Handler returns the page. Mount it at a path that ends in a slash, with or
// without http.StripPrefix:
//
//	mux.Handle("/infuse/", ops.Handler(ops.Options{Group: group, Storage: storage}))
//
// A request for JSON (Accept: application/json), or for circuits.json below that
// path, is answered with JSON. Both take ?q= to filter by name, ?limit= for more
// than 200 circuits (at most 1,000), and ?circuit= for one with its history.
//
// While a page is open in a browser it is kept up to date by server-sent events.
// All viewers share one reader of the storage. It lists the circuits every ten
// seconds, for one second at most, and reads the records of at most 10,000 of
// them every five. Of transitions of the first 1,000 it hears at once. It ends
// with the last viewer. A page without a viewer is read when it is asked for, at
// most once a second. A stream of events ends with its request's context, with
// http.Server.Shutdown, or after five minutes; a browser then asks again.
//
// A change holds for the whole fleet. It is a POST, from the same origin, by a
// person whom Options.Authorize names, and has a reason.
func Handler(o Options) http.Handler {
	if o.Title == "" {
		o.Title = "Circuits"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	h := &handler{Options: o, board: newBoard(o.Group, o.Storage)}
	h.changes = http.NewCrossOriginProtection().Handler(http.HandlerFunc(h.change))
	return h
}

type handler struct {
	Options
	board     *board
	changes   http.Handler
	shutdowns shutdowns
}

//go:embed page.html ops.css ops.js
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"plain": plain, "stamp": stamp, "clock": clock, "link": link,
}).ParseFS(files, "page.html"))

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	over := h.shutdowns.of(r)
	switch name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; {
	case name == "change":
		h.changes.ServeHTTP(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "This can only be read.", http.StatusMethodNotAllowed)
	case r.URL.Path == "":
		toSlash(w, r)
	case name == "" || name == "circuits.json":
		h.show(w, r, name != "")
	case name == "events":
		h.live(w, r, over)
	case name == "ops.css" || name == "ops.js":
		http.ServeFileFS(w, r, files, name)
	default:
		http.NotFound(w, r)
	}
}

// secure has a browser run and load nothing but the page's own, show it in no
// frame and keep nothing. The referrer stays within the origin, and not away: a
// POST without it has no Origin to check.
func secure(header http.Header) {
	header.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
}

// toSlash sends a browser to the path with a slash, from which the page's
// relative links lead where they should.
func toSlash(w http.ResponseWriter, r *http.Request) {
	target := "./"
	if before, _, _ := strings.Cut(r.RequestURI, "?"); strings.HasPrefix(before, "/") && before != "/" {
		target = "./" + path.Base(before) + "/"
	}
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

const (
	usualLimit = 200
	mostShown  = 1000
)

// query is what a page is about: some circuits, or one.
type query struct {
	Filter  string
	Circuit string
	Limit   int
}

func parseQuery(r *http.Request) (query, error) {
	values := r.URL.Query()
	q := query{Filter: values.Get("q"), Circuit: values.Get("circuit"), Limit: usualLimit}
	q.Filter = clip(q.Filter, infuse.MaxNameLength)
	if n, err := strconv.Atoi(values.Get("limit")); err == nil {
		q.Limit = min(max(n, 1), mostShown)
	}
	if values.Has("circuit") {
		return q, infuse.CheckName(q.Circuit)
	}
	return q, nil
}

// page is what the template of a page is given.
type page struct {
	Title  string
	Query  query
	Report *report
	Rows   []row
	Person string // who may change something; empty: nobody
	Fixed  bool   // there is no Authorize
	Ask    *change
	Failed string
}

func (h *handler) show(w http.ResponseWriter, r *http.Request, asJSON bool) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.board.update(r.Context(), q)
	report := h.board.report(h.board.snapshot(), q)
	if asJSON || wantsJSON(r) {
		writeJSON(w, report)
		return
	}
	p := page{Title: h.Title, Query: q, Report: report, Rows: rows(report)}
	p.Person, _ = h.person(r)
	p.Fixed = h.Authorize == nil
	render(w, http.StatusOK, "page", p)
}

// person returns who makes the request, where they may change something.
func (h *handler) person(r *http.Request) (string, bool) {
	if h.Authorize == nil {
		return "", false
	}
	name, ok := h.Authorize(r)
	if name = clip(name, maxPerson); !ok || name == "" {
		return "", false
	}
	return name, true
}

func wantsJSON(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html")
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader may be gone
}

func render(w http.ResponseWriter, status int, name string, data any) {
	var text bytes.Buffer
	if err := templates.ExecuteTemplate(&text, name, data); err != nil {
		http.Error(w, "The page could not be made.", http.StatusInternalServerError)
		slog.Error("infuse/ops: a page could not be made", "error", err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes())
}
