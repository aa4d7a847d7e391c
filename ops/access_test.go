package ops_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
)

// This file tests which requests are answered, by host, origin and client; and options.

// DNS rebinding: a hostile site points its own name at the address of the page. A
// browser then treats the script of that site and the page as one origin.
func TestDNSRebinding(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	h := ops.Handler(ops.Options{Storage: storage, Authorize: asAlice, Hosts: []string{"OPS.example.com.", "shop_1"}, Logger: slog.New(slog.DiscardHandler)})
	request := func(method, host, path, form string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, "http://"+host+path, strings.NewReader(form))
		r.Host = host
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", "http://"+host)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for _, host := range []string{"evil.example:8080", "evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "ops.example.com.evil.example", "127.1", "0x7f000001"} {
		for _, path := range []string{"/", "/circuits.json", "/events", "/ops.js", "/change?circuit=prices"} {
			w := request(http.MethodGet, host, path, "")
			require.Equal(t, http.StatusForbidden, w.Code, host+path)
			require.Contains(t, w.Body.String(), "ops.Options.Hosts")
			require.Contains(t, w.Body.String(), strings.TrimSuffix(host, ":8080"))
		}
		require.Equal(t, http.StatusForbidden, request(http.MethodPost, host, "/change?circuit=prices", forceOpen).Code, host)
		record, err := storage.Load(t.Context(), "prices")
		require.NoError(t, err)
		require.Nil(t, record.Override)
	}
	for _, host := range []string{"localhost", "localhost:8080", "LOCALHOST.", "shop.localhost:80", "127.0.0.1:8080", "10.1.2.3", "[::1]:8080", "[::1]", "[fe80::1%25eth0]:80", "ops.example.com", "Ops.Example.Com:8443", "shop_1:80"} {
		require.Equal(t, http.StatusOK, request(http.MethodGet, host, "/", "").Code, host)
		require.Equal(t, http.StatusSeeOther, request(http.MethodPost, host, "/change?circuit=prices", forceOpen).Code, host)
	}
	r := newRequest(http.MethodGet, "/", nil)
	r.Host = ""
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	require.Equal(t, http.StatusForbidden, w.Code)
}

// A proxy on plain HTTP that rewrites the Host header: a browser sends no
// Sec-Fetch-Site, and an Origin that differs from the Host.
func TestProxyThatRewritesTheHost(t *testing.T) {
	for trusted, want := range map[string]int{"": http.StatusForbidden, "http://ops.example.com": http.StatusSeeOther} {
		storage := infuse.NewMemoryStorage()
		o := ops.Options{Storage: storage, Authorize: asAlice}
		if trusted != "" {
			o.TrustedOrigins = []string{trusted}
		}
		backend, err := url.Parse(serve(t, o))
		require.NoError(t, err)
		backend.Path = ""
		proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backend) }}) // this also sets Host
		t.Cleanup(proxy.Close)
		request := newPost(t, proxy.URL+"/infuse/change?circuit=prices", forceOpen)
		request.Host = "ops.example.com"
		request.Header.Set("Origin", "http://ops.example.com")
		response := send(t, request)
		require.Equal(t, want, response.StatusCode)
		if trusted == "" {
			var text bytes.Buffer
			_, _ = text.ReadFrom(response.Body)
			require.Contains(t, text.String(), "ops.Options.TrustedOrigins")
		}
		request.Header.Set("Origin", "http://evil.example")
		request = request.Clone(t.Context())
		request.Body = http.NoBody
		require.Equal(t, http.StatusForbidden, send(t, request).StatusCode)
	}
}

func TestInvalidOptions(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	for want, o := range map[string]ops.Options{
		"neither a Group nor a Storage":                         {},
		`ops: Options.Hosts: invalid host "https://a.example"`:  {Storage: storage, Hosts: []string{"https://a.example"}},
		`invalid host "a.example:80"`:                           {Storage: storage, Hosts: []string{"b.example", "a.example:80"}},
		`invalid host ""`:                                       {Storage: storage, Hosts: []string{""}},
		`invalid host "*.example"`:                              {Storage: storage, Hosts: []string{"*.example"}},
		`invalid host "ä.example"`:                              {Storage: storage, Hosts: []string{"ä.example"}},
		"ops: Options.TrustedOrigins: invalid origin":           {Storage: storage, TrustedOrigins: []string{"a.example"}},
		`Options.TrustedOrigins: invalid origin "https://a/b"`:  {Storage: storage, TrustedOrigins: []string{"https://a.example", "https://a/b"}},
		`Options.TrustedOrigins: invalid origin "https://a/b" `: {Hosts: []string{""}, TrustedOrigins: []string{"https://a/b"}},
	} {
		var log bytes.Buffer
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		h := ops.Handler(o)
		require.Contains(t, log.String(), `msg="ops page disabled: invalid options"`)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, newRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusInternalServerError, w.Code)
		require.Contains(t, strings.ReplaceAll(w.Body.String(), ":", ": "), strings.ReplaceAll(strings.TrimSpace(want), ":", ": "))
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	}
}

func TestPageNamesTheProcess(t *testing.T) {
	group, err := infuse.NewGroup(infuse.Config{Instance: "shop-1 <b>"})
	require.NoError(t, err)
	t.Cleanup(group.Stop)
	host, err := os.Hostname()
	require.NoError(t, err)
	process := host + ":" + strconv.Itoa(os.Getpid())
	for name, test := range map[string]struct {
		o                   ops.Options
		html, json, confirm string
	}{
		"group":   {o: ops.Options{Group: group}, html: "shop-1 &lt;b&gt;", json: "shop-1 <b>"},
		"storage": {o: ops.Options{Storage: infuse.NewMemoryStorage()}, html: process, json: process},
		"set":     {o: ops.Options{Group: group, Instance: "other"}, html: "other", json: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, test.o)
			require.Contains(t, page(t, address), "Answered by <bdi>"+test.html+"</bdi>")
			require.Contains(t, page(t, address+"?circuit=prices"), "Answered by <bdi>"+test.html+"</bdi>")
			require.Equal(t, test.json, reportAt(t, address+"circuits.json").Instance)
		})
	}
}

// watcher is a viewer with a remote address, without a connection.
type watcher struct {
	*httptest.ResponseRecorder
	cancel func()
	ended  chan struct{}
	first  chan bool // whether the first write belongs to a stream
}

func watch(h http.Handler, remote, path string, change func(*http.Request)) *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	r := newRequest(http.MethodGet, path, nil).WithContext(ctx)
	r.RemoteAddr = remote
	if change != nil {
		change(r)
	}
	w := &watcher{httptest.NewRecorder(), cancel, make(chan struct{}), make(chan bool, 1)}
	go func() {
		defer close(w.ended)
		h.ServeHTTP(w, r)
	}()
	return w
}

func (w *watcher) Write(data []byte) (int, error) {
	stream := bytes.HasPrefix(data, []byte("retry: "))
	n := len(data)
	if !stream && w.Header().Get("Content-Type") != "text/event-stream" {
		n, _ = w.ResponseRecorder.Write(data)
	}
	select {
	case w.first <- stream:
	default:
	}
	return n, nil
}

func (w *watcher) Flush() {}

// live reports whether the stream was accepted.
func (w *watcher) live() bool { return <-w.first }

// A client that uses all 1,000 streams does not keep other clients from getting some.
func TestOneClientCannotUseAllStreams(t *testing.T) {
	t.Parallel()
	for name, clients := range map[string]struct {
		many  func(i int) string
		other string
		key   func(*http.Request) string
		set   func(string) func(*http.Request)
	}{
		"IPv4": {many: func(i int) string { return fmt.Sprint("10.0.0.1:", 1000+i) }, other: "10.0.0.2:1000"},
		"IPv6, one network": {
			many: func(i int) string { return fmt.Sprintf("[2001:db8:0:1::%x]:1000", i+1) }, other: "[2001:db8:0:2::1]:1000",
		},
		"one proxy": {
			many: func(int) string { return "mallory" }, other: "ann",
			key: func(r *http.Request) string { return r.Header.Get("X-Forwarded-User") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := ops.Handler(ops.Options{Group: groupOn(t, nil), Client: clients.key})
			open := func(client string) *watcher {
				remote, change := client, func(*http.Request) {}
				if clients.key != nil {
					remote, change = "10.0.0.1:1000", func(r *http.Request) { r.Header.Set("X-Forwarded-User", client) }
				}
				w := watch(h, remote, "/events", change)
				t.Cleanup(func() { w.cancel(); <-w.ended })
				return w
			}
			var all []*watcher
			for i := range 1000 {
				w := open(clients.many(i))
				require.True(t, w.live())
				all = append(all, w)
			}
			refused := open(clients.many(1000))
			require.False(t, refused.live(), "the total limit holds")
			require.Equal(t, http.StatusServiceUnavailable, refused.Code)
			require.Equal(t, "30", refused.Header().Get("Retry-After"))

			for range 10 { // other clients get streams, and keep them
				require.True(t, open(clients.other).live())
			}
			for _, w := range all[:990] {
				require.False(t, closed(w.ended), "only the latest streams of the greedy client are ended")
			}
			for _, w := range all[990:] {
				<-w.ended
			}
			require.False(t, open(clients.many(1000)).live())
		})
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Two clients share the streams evenly, and do not keep replacing each other's.
func TestClientsShareTheStreams(t *testing.T) {
	t.Parallel()
	h := ops.Handler(ops.Options{Group: groupOn(t, nil)})
	count := func(client string, n int) (accepted int) {
		for range n {
			w := watch(h, client, "/events", nil)
			t.Cleanup(func() { w.cancel(); <-w.ended })
			if w.live() {
				accepted++
			}
		}
		return accepted
	}
	require.Equal(t, 1000, count("10.0.0.1:1", 1100))
	require.Equal(t, 500, count("10.0.0.2:1", 1100))
	require.Equal(t, 0, count("10.0.0.1:1", 100))
	require.Equal(t, 1, count("10.0.0.3:1", 1))
}

// Circuits that are ready for a trial are shown separately from other open circuits.
func TestOpenAndReadyForATrial(t *testing.T) {
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	apply := func(name string, reset time.Duration, failures int) {
		_, _, err := storage.Apply(t.Context(), name, infuse.Change{
			Limits: infuse.Limits{FailMax: 1, ResetTimeout: reset}, Calls: infuse.Calls{Failures: failures, Lead: failures, Streak: failures}, By: "shop-1", Cause: "refused",
		})
		require.NoError(t, err)
	}
	apply("ready", 100*time.Millisecond, 1)
	apply("open", time.Hour, 1)
	address := serve(t, ops.Options{Storage: storage})
	stream := follow(t, address+"events")
	f := stream.until(t, func(f frame) bool { return f.Summary == "1 open, 1 open and ready for a trial." })
	require.NotContains(t, f.Rows[len(f.Rows)-1].HTML, "closed")
	r := reportAt(t, address+"circuits.json")
	require.Equal(t, []string{"open", "ready"}, []string{r.Circuits[0].Name, r.Circuits[1].Name}, "open circuits come first")
	require.Equal(t, "open, ready for a trial", r.Circuits[1].Status)
	require.Equal(t, "open", r.Circuits[1].State)
	text := page(t, address)
	require.Contains(t, text, `<p class="badge">open, ready for a trial</p>`)
	require.Contains(t, text, `<dt>Next trial</dt><dd>ready since <time`)
}

// The page shows the state suspect.
func TestSuspect(t *testing.T) {
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	group := groupOn(t, storage)
	b := breaker(t, group, "prices")
	for b.State() != infuse.StateOpen {
		_ = b.Call(t.Context(), fails)
	}
	require.Eventually(t, func() bool { r, _ := storage.Load(t.Context(), "prices"); return r.Suspect() }, patience, pace)
	address := serve(t, ops.Options{Storage: storage})
	require.Equal(t, "suspect", reportAt(t, address+"circuits.json").Circuits[0].Status)
	text := page(t, address)
	require.Contains(t, text, "1 suspect.")
	require.Contains(t, text, "All processes report their results")

	own := reportAt(t, serve(t, ops.Options{Storage: storage, Group: group})+"circuits.json").Circuits[0]
	require.Equal(t, "open (local circuit)", own.Status)
	require.Equal(t, "open", own.Local.State)
	require.Equal(t, "closed", own.Shared.State)
}

func TestNoCircuitMatches(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	fill(t, storage, 12)
	require.Contains(t, page(t, serve(t, ops.Options{Storage: storage})+"?q=zzz"), "No circuit matches (12 in total).")
}
