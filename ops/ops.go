// Package ops is the ops page: a web page, and the same data as JSON, that shows
// the circuits of a fleet live, unhealthy ones first, and changes them.
package ops

// This file contains the handler: its options, its paths and its security headers.

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/infuse-go/infuse"
)

// Options are the settings of a Handler. Set Group, Storage or both. If both are set,
// they must have the same storage.
type Options struct {
	// Group contains the circuits of this process. Default nil: only shared circuits
	// are shown.
	Group *infuse.Group

	// Storage is the storage of the shared circuits. Default nil: only the local
	// circuits of this process are shown. If it is an infuse.Lister, the page lists
	// all circuits that have a record, otherwise those of the Group. If it is an
	// infuse.Historian, the page shows the last transitions.
	Storage infuse.Storage

	// Authorize returns the name of the person who makes a request, and whether
	// this person may change circuits. Default nil: the page is read-only. At most
	// 100 bytes of the name are recorded. Authorize is also called for each page,
	// to decide whether to show the controls. It does not restrict reading: to do
	// that, wrap the handler.
	Authorize func(*http.Request) (name string, ok bool)

	// Hosts are the host names under which the page is opened, without scheme and
	// port, such as "ops.example.com". Requests for any other name are rejected
	// with status 403. Names of the loopback interface (localhost, *.localhost)
	// and IP addresses are always allowed. Default none.
	//
	// The check prevents DNS rebinding, in which a hostile site points its own name
	// at the address of this page, and a browser then treats both as one site.
	// Behind a proxy that rewrites the Host header, list the name that it sends.
	Hosts []string

	// TrustedOrigins are the origins, beside that of the request itself, from whose
	// pages circuits may be changed: scheme, host and port if any, such as
	// "https://ops.example.com". Default none. Set it behind a proxy that rewrites
	// the Host header: the origin that a browser sends then differs from the Host,
	// and over plain HTTP browsers send nothing else.
	TrustedOrigins []string

	// Client returns an identifier of the client that makes a request. At most 1,000
	// streams keep open pages up to date. If all are in use, a stream of a new client
	// replaces one of the client that has the most. Default nil, or if it returns "":
	// the remote IP address (for IPv6 the /64 network).
	//
	// Behind a proxy all requests have the address of the proxy, and count as one
	// client: one viewer can then use all streams. To prevent that, return an
	// identifier that the proxy sends, such as the name of the user. A page without a
	// stream still works: it does not update itself, and tries again every 30 seconds.
	Client func(*http.Request) string

	// Instance is the name of this process on the page. Default: Config.Instance of
	// the Group; without a Group, the host name and the process id.
	Instance string

	// Title is the heading of the page. Default "Circuits".
	Title string

	// Logger logs each change: circuit, change, person and reason. Default
	// slog.Default().
	Logger *slog.Logger
}

// Handler returns the ops page. Mount it at a path that ends in a slash, with or
// without http.StripPrefix:
//
//	mux.Handle("/infuse/", ops.Handler(ops.Options{Group: group, Storage: storage}))
//
// If the options are invalid, Handler logs the error, and answers all requests with
// status 500 and the error. It does not panic.
//
// A request with Accept: application/json, or for the path circuits.json, is answered
// with JSON. Page and JSON take ?q= to filter by name, ?limit= for more than 200
// circuits (at most 1,000), and ?circuit= for one circuit with its history.
//
// Server-sent events keep an open page up to date. All viewers share one reader and
// one snapshot of the circuits, whatever their queries. The reader lists the circuits
// every 10 seconds, for at most 1 second. It reads the records of at most 10,000 of
// them every 5 seconds, and watches the first 1,000 for transitions. It stops with the
// last viewer. Without a running reader, a page request reads the storage itself, at
// most once a second. A stream ends with the context of its request, with
// http.Server.Shutdown, or after 5 minutes; the browser then reconnects.
//
// A change applies to the whole fleet. It is a POST from the same origin, with a
// reason, by a person whom Options.Authorize allows to change circuits.
func Handler(o Options) http.Handler {
	o.Title = cmp.Or(o.Title, "Circuits")
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	hosts, origins, err := o.validate()
	if err != nil {
		o.Logger.Error("ops page disabled: invalid options", "error", err)
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			secure(w.Header())
			http.Error(w, err.Error(), http.StatusInternalServerError)
		})
	}
	if o.Instance == "" {
		o.Instance = instanceOf(o.Group)
	}
	h := &handler{Options: o, hosts: hosts, board: newBoard(o.Group, o.Storage, o.Instance)}
	h.changes = origins.Handler(http.HandlerFunc(h.change))
	return h
}

// Validate returns an error that names each invalid field. Handler calls it.
func (o Options) Validate() error {
	_, _, err := o.validate()
	return err
}

func (o *Options) validate() (hosts, *http.CrossOriginProtection, error) {
	allowed, err := newHosts(o.Hosts)
	if o.Group == nil && o.Storage == nil {
		err = errors.Join(errors.New("ops: Options has neither a Group nor a Storage: set at least one"), err)
	}
	origins := http.NewCrossOriginProtection()
	for _, origin := range o.TrustedOrigins {
		if bad := origins.AddTrustedOrigin(origin); bad != nil {
			err = errors.Join(err, fmt.Errorf("ops: Options.TrustedOrigins: %w", bad))
		}
	}
	origins.SetDenyHandler(http.HandlerFunc(denied))
	return allowed, origins, err
}

func denied(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "Rejected: the request comes from another origin. If a proxy rewrites the Host header, add the origin of this page, such as https://ops.example.com, to ops.Options.TrustedOrigins (or to infuse serve -origins).", http.StatusForbidden)
}

// instanceOf returns the name of this process.
func instanceOf(group *infuse.Group) string {
	if group != nil {
		return group.Instance()
	}
	host, _ := os.Hostname()
	return host + ":" + strconv.Itoa(os.Getpid())
}

type handler struct {
	Options
	hosts     hosts
	board     *board
	changes   http.Handler
	shutdowns shutdowns
}

//go:embed page.html ops.css ops.js
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"plain": plain, "iso": iso, "clock": clock, "link": link,
}).ParseFS(files, "page.html"))

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	if !h.hosts.allow(r.Host) {
		http.Error(w, fmt.Sprintf("Rejected: the host name %.300q is not allowed. Add it to ops.Options.Hosts (or to infuse serve -hosts).", nameOf(r.Host)), http.StatusForbidden)
		return
	}
	shutdown := h.shutdowns.of(r)
	switch name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; {
	case name == "change":
		h.changes.ServeHTTP(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "Method not allowed: use GET.", http.StatusMethodNotAllowed)
	case r.URL.Path == "":
		toSlash(w, r)
	case name == "" || name == "circuits.json":
		h.show(w, r, name != "")
	case name == "events":
		h.live(w, r, shutdown)
	case name == "ops.css" || name == "ops.js":
		http.ServeFileFS(w, r, files, name)
	default:
		http.NotFound(w, r)
	}
}

// secure sets headers with which a browser loads only files of the page, shows it in no
// frame and caches nothing. The referrer stays within the origin: without a referrer,
// a POST has no Origin to check.
func secure(header http.Header) {
	header.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
}

// toSlash redirects to the path with a slash, because the links of the page are
// relative.
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
	defaultLimit = 200
	maxLimit     = 1000
)

// query selects the circuits of a page: some by filter, or one by name.
type query struct {
	Filter  string
	Circuit string
	Limit   int
}

func parseQuery(r *http.Request) (query, error) {
	values := r.URL.Query()
	q := query{Filter: values.Get("q"), Circuit: values.Get("circuit"), Limit: defaultLimit}
	q.Filter = clip(q.Filter, infuse.MaxNameLength)
	if n, err := strconv.Atoi(values.Get("limit")); err == nil {
		q.Limit = min(max(n, 1), maxLimit)
	}
	if values.Has("circuit") {
		return q, infuse.CheckName(q.Circuit)
	}
	return q, nil
}

// page is the data of the page templates.
type page struct {
	Title    string
	Instance string
	Query    query
	Report   *report
	Person   string  // who may change circuits; empty: no one
	ReadOnly bool    // Options.Authorize is not set
	Change   *change // to confirm, or that failed
	Failure  string  // why it failed
}

func (h *handler) newPage(q query) page {
	return page{Title: h.Title, Instance: h.Instance, Query: q, ReadOnly: h.Authorize == nil}
}

func (h *handler) show(w http.ResponseWriter, r *http.Request, asJSON bool) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.board.update(r.Context(), q)
	v := view{query: q, board: h.board}
	rows, report := v.selection(h.board.snapshot(pageAge))
	if asJSON || wantsJSON(r) {
		w.Header().Set("Content-Type", "application/json")
		_ = buffered(w, func(w io.Writer) error { return report.writeJSON(w, rows) })
		return
	}
	p := h.newPage(q)
	p.Report = report
	p.Person, _ = h.person(r)
	head, err := execute("top", p)
	tail, err2 := execute("bottom", p)
	if err = cmp.Or(err, err2); err != nil {
		h.cannotRender(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = buffered(w, func(w io.Writer) error {
		_, err := w.Write(head)
		for _, row := range rows {
			err = cmp.Or(err, writeAll(w, `<li id="`, row.named.id, `">`, string(row.HTML()), "</li>\n"))
		}
		_, err2 := w.Write(tail)
		return cmp.Or(err, err2)
	})
}

func writeAll(w io.Writer, parts ...string) (err error) {
	for _, part := range parts {
		if _, err = io.WriteString(w, part); err != nil {
			return err
		}
	}
	return nil
}

// person returns the person who makes the request, if this person may change circuits.
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

func (h *handler) render(w http.ResponseWriter, status int, name string, p page) {
	text, err := execute(name, p)
	if err != nil {
		h.cannotRender(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

func (h *handler) cannotRender(w http.ResponseWriter, err error) {
	http.Error(w, "Could not render the page.", http.StatusInternalServerError)
	h.Logger.Error("ops page not rendered", "error", err)
}

func execute(name string, data any) ([]byte, error) {
	var text bytes.Buffer
	err := templates.ExecuteTemplate(&text, name, data)
	return text.Bytes(), err
}
