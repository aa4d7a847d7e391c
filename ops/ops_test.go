package ops_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/ops"
)

// This file contains the helpers of the tests, and tests the content of the page.

const (
	patience = 30 * time.Second
	pace     = 5 * time.Millisecond
)

var errUnhealthy = errors.New("connection refused")

func fails(context.Context) error    { return errUnhealthy }
func succeeds(context.Context) error { return nil }

func groupOn(t testing.TB, storage infuse.Storage) *infuse.Group {
	t.Helper()
	g, err := infuse.NewGroup(infuse.Config{Storage: storage, CountCalls: true, StorageTimeout: patience})
	require.NoError(t, err)
	t.Cleanup(g.Stop)
	return g
}

func breaker(t testing.TB, g *infuse.Group, name string) *infuse.Breaker {
	t.Helper()
	b, err := g.Breaker(name)
	require.NoError(t, err)
	return b
}

// open opens the shared circuit: the calls of b and of another process fail.
func open(t testing.TB, storage infuse.Storage, b *infuse.Breaker) {
	t.Helper()
	other := breakertest.Start(t, b.Name(), infuse.Config{Storage: storage, StorageTimeout: patience})
	for b.State() != infuse.StateOpen {
		_ = b.Call(context.Background(), fails)
	}
	time.Sleep(breakertest.Suspicion)
	for breakertest.RecordOf(t, b).State != infuse.StateOpen {
		require.ErrorIs(t, other.Call(context.Background(), fails), errUnhealthy)
	}
}

// asAlice authorizes all requests, as alice.
func asAlice(*http.Request) (string, bool) { return "alice", true }

// serve mounts the page at /infuse/.
func serve(t testing.TB, o ops.Options) string {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	mux := http.NewServeMux()
	mux.Handle("/infuse/", ops.Handler(o))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL + "/infuse/"
}

// newRequest is httptest.NewRequest for an allowed host.
func newRequest(method, path string, body io.Reader) *http.Request {
	r := httptest.NewRequest(method, path, body)
	r.Host = "localhost"
	return r
}

func get(t testing.TB, address string) (*http.Response, string) {
	t.Helper()
	response, err := http.Get(address)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(text)
}

func page(t testing.TB, address string) string {
	t.Helper()
	response, text := get(t, address)
	require.Equal(t, http.StatusOK, response.StatusCode, text)
	return text
}

// report contains the fields of the JSON that the tests check.
type report struct {
	Instance, Storage, StorageErr string
	Total, Matching, LeftOut      int
	More                          bool
	Circuits                      []struct {
		Name, Link, State, Status, Problem string
		Local, Shared                      *block
		Calls                              struct{ Success, Failure, Rejected uint64 }
		Override                           *struct {
			State, By, Reason string
			Until             time.Time
		}
		History []struct{ From, To, By, Cause string }
	}
}

type block struct {
	State, By, Cause string
	Failures, Trials int
	Since, DueAt     time.Time
}

func reportAt(t testing.TB, address string) (r report) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(page(t, address)), &r))
	return r
}

// counting is a storage that counts its requests.
type counting struct {
	*infuse.MemoryStorage
	requests, watched atomic.Int64
	err               atomic.Pointer[error]
}

func newCounting() *counting { return &counting{MemoryStorage: infuse.NewMemoryStorage()} }

func (c *counting) count() error {
	c.requests.Add(1)
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *counting) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := c.count(); err != nil {
		return infuse.Record{}, err
	}
	return c.MemoryStorage.Load(ctx, circuit)
}

func (c *counting) History(ctx context.Context, circuit string) ([]infuse.Event, error) {
	if err := c.count(); err != nil {
		return nil, err
	}
	return c.MemoryStorage.History(ctx, circuit)
}

func (c *counting) Circuits(ctx context.Context) iter.Seq2[string, error] {
	if err := c.count(); err != nil {
		return func(yield func(string, error) bool) { yield("", err) }
	}
	return c.MemoryStorage.Circuits(ctx)
}

func (c *counting) Watch(circuit string, fn func(infuse.Record)) func() {
	c.watched.Add(1)
	stop := c.MemoryStorage.Watch(circuit, fn)
	return func() {
		c.watched.Add(-1)
		stop()
	}
}

func TestPageShowsUnhealthyCircuitsFirst(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	healthy := breaker(t, local, "a-healthy")
	require.NoError(t, healthy.Call(t.Context(), succeeds))
	failing := breaker(t, local, "m-failing")
	_ = failing.Call(t.Context(), fails)
	open(t, storage, breaker(t, remote, "z-remote"))
	require.NoError(t, breaker(t, local, "forced").Override(t.Context(), infuse.Override{State: infuse.StateOpen, By: "bob", Reason: "migration"}))

	address := serve(t, ops.Options{Group: local, Storage: storage, Title: "Production"})
	text := page(t, address)
	require.Contains(t, text, "Production")
	require.Contains(t, text, "1 open, 1 forced open, 1 failing, 1 closed.")
	require.Contains(t, text, "connection refused")
	require.Contains(t, text, "forced open by <bdi>bob</bdi>: <bdi>migration</bdi>, until removed")
	at := func(name string) int { return strings.Index(text, "<bdi>"+name+"</bdi>") }
	require.Less(t, at("z-remote"), at("m-failing"))
	require.Less(t, at("m-failing"), at("a-healthy"))

	r := reportAt(t, address+"circuits.json")
	require.Equal(t, 4, r.Total)
	require.Equal(t, "ok", r.Storage)
	require.Equal(t, "forced", r.Circuits[1].Name)
	require.Equal(t, "bob", r.Circuits[1].Override.By)
	require.Equal(t, "forced open", r.Circuits[1].Status)
	require.Equal(t, "open", r.Circuits[0].State)
	require.Nil(t, r.Circuits[0].Local)
	require.WithinDuration(t, time.Now(), r.Circuits[0].Shared.Since, patience)
	require.WithinDuration(t, time.Now().Add(time.Minute), r.Circuits[0].Shared.DueAt, patience)
	require.Equal(t, 1, r.Circuits[2].Local.Failures)
	require.Equal(t, uint64(1), r.Circuits[3].Calls.Success)

	r = reportAt(t, address+"circuits.json?"+"circuit=z-remote")
	require.Len(t, r.Circuits, 1)
	require.NotEmpty(t, r.Circuits[0].History)
	require.Equal(t, "open", r.Circuits[0].History[0].To)
	require.Equal(t, "connection refused", r.Circuits[0].History[0].Cause)
	require.Contains(t, page(t, address+"?circuit=z-remote"), "closed → open")
	require.Len(t, reportAt(t, address+"circuits.json?q=FAIL").Circuits, 1)

	request, err := http.NewRequest(http.MethodGet, address, nil)
	require.NoError(t, err)
	request.Header.Set("Accept", "application/json")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, "application/json", response.Header.Get("Content-Type"))
}

// An open shared circuit rejects no calls in a process whose calls succeed.
func TestPageOfProcessThatBypassesOpenCircuit(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	own := breaker(t, local, "prices")
	open(t, storage, breaker(t, remote, "prices"))
	require.NoError(t, own.Call(t.Context(), succeeds))
	const runs = "runs calls: its last call did not fail"
	text := page(t, serve(t, ops.Options{Group: local, Storage: storage}))
	require.Contains(t, text, `<p class="badge">open</p>`)
	require.Contains(t, text, runs)
	require.NotContains(t, page(t, serve(t, ops.Options{Group: remote, Storage: storage})), runs)
	require.NotContains(t, page(t, serve(t, ops.Options{Storage: storage})), runs)
}

// A dry run is shown.
func TestPageOfDryRun(t *testing.T) {
	group, err := infuse.NewGroup(infuse.Config{DryRun: true, CountCalls: true})
	require.NoError(t, err)
	t.Cleanup(group.Stop)
	b := breaker(t, group, "prices")
	for range 8 {
		_ = b.Call(t.Context(), fails)
	}
	address := serve(t, ops.Options{Group: group})
	require.Contains(t, page(t, address), "This process rejects no calls. It would have rejected 3.")
}

func TestPageWithoutStorage(t *testing.T) {
	group := groupOn(t, nil)
	b := breaker(t, group, "prices")
	for b.State() != infuse.StateOpen {
		_ = b.Call(t.Context(), fails)
	}
	address := serve(t, ops.Options{Group: group, Authorize: asAlice})
	r := reportAt(t, address+"circuits.json")
	require.Equal(t, "none", r.Storage)
	require.Equal(t, "open", r.Circuits[0].State)
	require.Equal(t, "connection refused", r.Circuits[0].Local.Cause)
	require.Equal(t, http.StatusSeeOther, post(t, address+"change?circuit=prices", "do=set-closed&reason=fixed&confirm=yes").StatusCode)
	require.Equal(t, infuse.StateClosed, b.State())
	require.Equal(t, http.StatusNotFound, post(t, address+"change?circuit=other", "do=set-closed&reason=fixed&confirm=yes").StatusCode)
}

func TestPageShowsThatStorageIsUnavailable(t *testing.T) {
	t.Parallel()
	storage := newCounting()
	group := groupOn(t, storage)
	open(t, storage, breaker(t, group, "prices"))
	err := errors.New("redis: <connection> refused")
	storage.err.Store(&err)
	address := serve(t, ops.Options{Group: group, Storage: storage})
	require.Contains(t, page(t, address), "redis: &lt;connection&gt; refused")
	r := reportAt(t, address+"circuits.json")
	require.Equal(t, "unavailable", r.Storage)
	require.Equal(t, "open", r.Circuits[0].State, "the state in this process")
	storage.err.Store(nil)
	require.Eventually(t, func() bool { return reportAt(t, address+"circuits.json").Storage == "ok" }, patience, 200*time.Millisecond)
}

// A storage that does not reply, and ignores the context, delays pages only for a bounded
// time. It gets no second request before the first one ends.
func TestStorageThatDoesNotReply(t *testing.T) {
	t.Parallel()
	storage := &hanging{MemoryStorage: infuse.NewMemoryStorage(), release: make(chan struct{})}
	address := serve(t, ops.Options{Storage: storage})
	began := time.Now()
	for range 3 {
		require.Contains(t, page(t, address), "Redis is unavailable")
	}
	require.Less(t, time.Since(began), patience)
	require.Equal(t, int64(1), storage.requests.Load())
	close(storage.release)
}

type hanging struct {
	*infuse.MemoryStorage
	requests atomic.Int64
	release  chan struct{}
}

func (h *hanging) Circuits(context.Context) iter.Seq2[string, error] {
	h.requests.Add(1)
	<-h.release
	return func(func(string, error) bool) {}
}

func TestPathsUnderAnyPrefix(t *testing.T) {
	h := ops.Handler(ops.Options{Group: groupOn(t, nil)})
	for path, want := range map[string]int{"/a/b/": 200, "/a/b/ops.css": 200, "/a/b/ops.js": 200, "/a/b/circuits.json": 200, "/a/b/else": 404, "/": 200} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, newRequest(http.MethodGet, path, nil))
		require.Equal(t, want, w.Code, path)
		require.NotContains(t, w.Body.String(), `href="/`)
	}
	w := httptest.NewRecorder()
	http.StripPrefix("/a/b", h).ServeHTTP(w, newRequest(http.MethodGet, "/a/b?q=x", nil))
	require.Equal(t, http.StatusTemporaryRedirect, w.Code)
	require.Equal(t, "./b/?q=x", w.Header().Get("Location"))
	w = httptest.NewRecorder()
	h.ServeHTTP(w, newRequest(http.MethodPost, "/a/b/", nil))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

func TestSecurityHeaders(t *testing.T) {
	address := serve(t, ops.Options{Group: groupOn(t, nil)})
	for _, path := range []string{"", "circuits.json", "ops.js", "ops.css", "change"} {
		response, _ := get(t, address+path)
		policy := response.Header.Get("Content-Security-Policy")
		require.Contains(t, policy, "default-src 'none'")
		require.Contains(t, policy, "frame-ancestors 'none'")
		require.NotContains(t, policy, "unsafe")
		require.Equal(t, "nosniff", response.Header.Get("X-Content-Type-Options"))
		require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	}
	text := page(t, address)
	require.NotContains(t, text, "style=")
	require.NotContains(t, text, "<style")
	require.NotRegexp(t, `<script[^>]*>[^<]`, text)
}

// Names and causes are untrusted. They neither become markup nor change how other text is
// displayed.
func TestHostileNamesAndCauses(t *testing.T) {
	names := []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "line\r\nbreak\u2028and\u2029more", "right\u202eto\u2066left",
		"\xff\xfe bytes", `javascript:alert(1)`, "?q=&circuit=other#x", "../../change", "{{.Person}}", "data: x\n\nevent: y", strings.Repeat("w", infuse.MaxNameLength),
	}
	storage := infuse.NewMemoryStorage()
	for _, name := range names {
		_, _, err := storage.Apply(t.Context(), name, infuse.Change{
			Limits: infuse.Limits{FailMax: 1, ResetTimeout: time.Minute}, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1},
			By: "<b>\u202ehost", Cause: "<script>alert('cause')</script>\r\n\u202e",
		})
		require.NoError(t, err)
	}
	address := serve(t, ops.Options{Storage: storage, Authorize: func(*http.Request) (string, bool) { return "<i>mallory\u202e", true }})
	harmless := func(text string) {
		t.Helper()
		for _, bad := range []string{"<script>", "<img", "<b>\\u", "<i>", "\u202e", "\u2066", "\u2028", "\xff", `href="javascript:`, "onerror=alert(1)>\""} {
			require.NotContains(t, text, bad)
		}
	}
	harmless(page(t, address))
	for _, name := range names {
		one := "?circuit=" + url.QueryEscape(name)
		harmless(page(t, address+one))
		require.Len(t, reportAt(t, address+"circuits.json"+one).Circuits, 1, "%q", name)
		require.Equal(t, http.StatusSeeOther, post(t, address+"change"+one, "do=set-closed&reason=fixed&confirm=yes").StatusCode)
		r, err := storage.Load(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, infuse.StateClosed, r.State, "the name is unchanged: %q", name)
	}
	response := post(t, address+"change?circuit="+url.QueryEscape(names[0]), "do=remove&reason=%3Cscript%3E&for=")
	text, _ := io.ReadAll(response.Body)
	require.Contains(t, string(text), "Remove override?")
	harmless(string(text))
	require.Equal(t, http.StatusBadRequest, func() int { r, _ := get(t, address+"?circuit="+strings.Repeat("x", 300)); return r.StatusCode }())
	require.Equal(t, http.StatusBadRequest, func() int { r, _ := get(t, address+"?circuit="); return r.StatusCode }())
	harmless(page(t, address+"?q="+url.QueryEscape(names[1])))

	stream := follow(t, address+"events")
	harmless(strings.ReplaceAll(stream.next(t).raw, `\u003c`, "<"))
}

func TestTenThousandCircuits(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	fill(t, storage, 12_000)
	address := serve(t, ops.Options{Storage: storage})
	text := page(t, address)
	require.Equal(t, 200, strings.Count(text, "<article"))
	require.Contains(t, text, "9800 more match")
	require.Contains(t, text, "The list is incomplete")
	require.Less(t, len(text), 400_000)
	r := reportAt(t, address+"circuits.json?limit=100000")
	require.Len(t, r.Circuits, 1000)
	require.Equal(t, 9000, r.LeftOut)
	require.True(t, r.More)
	stream := follow(t, address+"events?limit=7")
	require.Len(t, stream.until(t, func(f frame) bool { return len(f.Order) == 7 }).Rows, 7)
}

// fill opens n circuits.
func fill(t testing.TB, storage infuse.Storage, n int) {
	t.Helper()
	for i := range n {
		_, _, err := storage.Apply(t.Context(), "service-"+string(rune('a'+i%26))+"-"+time.Duration(i).String()+".internal.example:8443", infuse.Change{
			Limits: infuse.Limits{FailMax: 1, ResetTimeout: time.Minute}, Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1},
			By: "host-17:4711", Cause: "dial tcp 10.1.2.3:8443: connect: connection refused",
		})
		require.NoError(t, err)
	}
}

type frame struct {
	Full          bool
	Summary, Note string
	Order         []string
	Rows          []struct{ ID, HTML string }
	raw           string
}

type events struct {
	lines *bufio.Scanner
	close func()
}

// follow opens a stream of events.
func follow(t testing.TB, address string) *events {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{}}
	response, err := client.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	e := &events{lines: bufio.NewScanner(response.Body)}
	e.lines.Buffer(nil, 16<<20)
	e.close = func() {
		cancel()
		_ = response.Body.Close()
		client.CloseIdleConnections()
	}
	t.Cleanup(e.close)
	return e
}

func (e *events) next(t testing.TB) (f frame) {
	t.Helper()
	for e.lines.Scan() {
		if data, ok := strings.CutPrefix(e.lines.Text(), "data: "); ok {
			require.NoError(t, json.Unmarshal([]byte(data), &f))
			f.raw = data
			return f
		}
	}
	require.FailNow(t, "the stream has ended", "%v", e.lines.Err())
	return f
}

func (e *events) until(t testing.TB, enough func(frame) bool) frame {
	t.Helper()
	for {
		if f := e.next(t); enough(f) {
			return f
		}
	}
}

// settled waits until all goroutines that were not in before have ended.
func settled(t testing.TB, before map[string]string) {
	t.Helper()
	require.Empty(t, strings.Join(breakertest.LeftSince(before), "\n\n"), "goroutines have not ended")
}
