// Package browsertest opens the ops page of a running fleet in a browser.
package browsertest

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// This file is what a person does with the page, and what they see there.

const patience = 30 * time.Second

// need skips the test where a program is missing; with CI=true it fails it.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			return
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", names[0])
	}
	t.Skipf("%s is not installed: skipped", names[0])
}

// browser is one page. A complaint of the browser fails the test. Start it after the
// members: it then stops before them, and does not complain that they close its
// connections.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	need(t, "chromium", "google-chrome")
	// Without a sandbox, as CI runs as root; it opens no page but the test's own.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true), chromedp.WSURLReadTimeout(patience))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t, ctx}
	require.NoError(t, chromedp.Do(ctx)) // starts it: it lives as long as the context of the first call
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the script fails: %v", e.ExceptionDetails)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError && !strings.HasSuffix(e.Entry.URL, "/favicon.ico") {
				t.Errorf("the browser complains: %s %s", e.Entry.Text, e.Entry.URL)
			}
		}
	}))
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%v\nthe page says:\n%s", err, b.text())
	}
}

func result[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	require.NoError(b.t, err)
	return value
}

// text is what the page says: empty while it loads.
func (b *browser) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
	return text
}

// sees waits until the page says all this, without a reload.
func (b *browser) sees(wants ...string) {
	b.t.Helper()
	for _, want := range wants {
		require.Eventually(b.t, func() bool { return strings.Contains(b.text(), want) }, patience, 50*time.Millisecond, "%q; the page says:\n%s", want, b.text())
	}
}

func (b *browser) opens(m *member, path string) {
	b.t.Helper()
	b.do(chromedp.Navigate("http://" + m.address + "/infuse/" + path))
}

// changes fills in the form of a circuit's page and confirms it.
func (b *browser) changes(what, reason string) {
	b.t.Helper()
	b.do(
		chromedp.SendKeys(chromedp.CSS("#reason"), reason),
		chromedp.Click(chromedp.CSS(`.controls button[value="`+what+`"]`)),
		chromedp.WaitVisible(chromedp.CSS(".confirm .sure")),
	)
	b.sees(reason)
}

func (b *browser) confirms() {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(".confirm .sure")), chromedp.WaitVisible(chromedp.CSS(".controls")))
}

// looks takes the page's picture in all four ways, and has axe judge them.
func (b *browser) looks(name string) {
	b.t.Helper()
	for size, width := range map[string]int64{"desktop": 1280, "phone": 390} {
		for _, scheme := range []string{"light", "dark"} {
			b.do(chromedp.EmulateViewport(width, 844), prefers(scheme))
			// The picture is of what was laid out last.
			laidOut := fmt.Sprintf("new Promise(done => requestAnimationFrame(() => setTimeout(() => done(innerWidth === %d), 50)))", width)
			require.Eventually(b.t, func() bool { return result(b, chromedp.Evaluate[bool](laidOut, chromedp.EvalAwaitPromise)) }, patience, 10*time.Millisecond)
			file := filepath.Join(screenshots(b.t), fmt.Sprintf("%s-%s-%s.png", name, size, scheme))
			require.NoError(b.t, os.WriteFile(file, result(b, chromedp.FullScreenshot(100)), 0o600))
			b.fits(name + " " + size)
			b.isAccessible(name + " " + size + " " + scheme)
		}
	}
}

func prefers(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features})
		return err
	})
}

// fits checks that nothing has to be scrolled to the side.
func (b *browser) fits(what string) {
	b.t.Helper()
	require.True(b.t, result(b, chromedp.Evaluate[bool]("document.documentElement.scrollWidth <= innerWidth")), "%s is wider than the screen", what)
}

// screenshots is where they go: SCREENSHOTS, if it is set.
func screenshots(t *testing.T) string {
	dir := cmp.Or(os.Getenv("SCREENSHOTS"), t.TempDir())
	require.NoError(t, os.MkdirAll(dir, 0o700))
	return dir
}

type finding struct {
	ID     string                  `json:"id"`
	Impact string                  `json:"impact"`
	Help   string                  `json:"help"`
	Nodes  []struct{ HTML string } `json:"nodes"`
}

// isAccessible runs axe-core on the page.
func (b *browser) isAccessible(what string) {
	b.t.Helper()
	script := axe(b.t)
	if script == "" {
		return
	}
	b.do(chromedp.Evaluate[chromedp.Void](script))
	findings := result(b, chromedp.Evaluate[[]finding]("axe.run().then(results => results.violations)", chromedp.EvalAwaitPromise))
	for _, f := range findings {
		if f.Impact == "serious" || f.Impact == "critical" {
			b.t.Errorf("%s: axe finds %s (%s): %s %v", what, f.ID, f.Impact, f.Help, f.Nodes)
		} else {
			b.t.Logf("%s: axe remarks %s (%s): %s %v", what, f.ID, f.Impact, f.Help, f.Nodes)
		}
	}
}

const axeVersion = "axe-core@4.14.1"

var axeScript *string

// axe returns the script of axe-core, from npm. It is empty where there is no
// npm, outside CI.
func axe(t *testing.T) string {
	t.Helper()
	if axeScript == nil {
		script, err := fetchAxe(t)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		if err != nil {
			t.Logf("axe-core cannot be had, the page is not judged: %v", err)
		}
		axeScript = &script
	}
	return *axeScript
}

func fetchAxe(t *testing.T) (string, error) {
	dir := t.TempDir()
	command := exec.CommandContext(t.Context(), "npm", "pack", "--silent", axeVersion)
	command.Dir = dir
	name, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("npm pack %s: %w", axeVersion, err)
	}
	file, err := os.Open(filepath.Join(dir, strings.TrimSpace(string(name))))
	if err != nil {
		return "", err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return "", err
	}
	return fileIn(tar.NewReader(unzipped), "package/axe.min.js")
}

func fileIn(archive *tar.Reader, name string) (string, error) {
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%s is not in the package", name)
		}
		if err != nil {
			return "", err
		}
		if header.Name == name {
			text, err := io.ReadAll(archive)
			return string(text), err
		}
	}
}

// An operator sees a circuit open, forces it open, and removes the override again:
// all in one browser, while three processes call.
func TestAnOutage(t *testing.T) {
	server := redistest.Start(t)
	var fleet []*member
	for i := range 3 {
		fleet = append(fleet, startMember(t, fmt.Sprintf("shop-%d", i+1), server.Addr()))
	}
	b := startBrowser(t)
	page, other := fleet[0], fleet[2]
	for _, m := range fleet {
		for _, circuit := range []string{"payments.example", "stock.example", "mail.example:587", "search.example", "prices.example"} {
			require.Equal(t, "well", m.call(t, circuit, ""))
		}
	}
	page.call(t, "mail.example:587", "421 try later")

	b.opens(page, "")
	b.sees("1 failing, 4 closed.", "Live", "Answered by shop-1")
	for range 6 {
		for _, circuit := range []string{"payments.example", "prices.example"} {
			fleet[1].call(t, circuit, "dial tcp 10.0.0.7:443: connect: connection refused")
			fleet[2].call(t, circuit, "dial tcp 10.0.0.7:443: connect: connection refused")
		}
		time.Sleep(50 * time.Millisecond) // Suspicion: the fifth round comes later than that
	}
	for range 5 { // one process alone: suspect, and open for itself
		page.call(t, "search.example", "504 Gateway Timeout")
	}
	b.sees("2 open", "1 failing, 1 closed.", "connection refused", "open (local circuit)", "All processes report their results", "runs calls: its last call did not fail")
	before := other.call(t, "payments.example", "")
	require.Contains(t, before, "open")
	require.NotContains(t, before, "Alice")
	b.looks("outage")
	b.opens(fleet[1], "")
	b.sees("1 suspect", "Answered by shop-2")
	b.opens(page, "")

	b.opens(page, "?circuit=payments.example")
	b.sees("payments.example", "Live", "closed → open")
	b.looks("circuit")
	b.changes("force-open", "the provider is migrating, ticket 4711")
	b.sees("Force open?", "All processes reject all calls.")
	b.looks("confirm")
	b.confirms()
	b.sees("forced open by Alice: the provider is migrating, ticket 4711")
	require.Eventually(t, func() bool {
		rejected := other.call(t, "payments.example", "")
		return rejected != before && strings.Contains(rejected, "Alice") && strings.Contains(rejected, "ticket 4711")
	}, patience, 20*time.Millisecond)
	b.looks("forced-open")

	b.changes("remove", "the migration is over")
	b.confirms()
	b.sees("open")
	b.changes("set-half-open", "try it")
	b.confirms()
	require.Eventually(t, func() bool { return other.call(t, "payments.example", "") == "well" }, patience, 20*time.Millisecond)
	b.sees("closed")
	b.opens(page, "?q=nothing")
	b.sees("No circuit matches (5 in total).")

	b.opens(page, "")
	b.sees("Live")
	server.Kill()
	b.sees("Redis is unavailable. Shared state below may be out of date.")
	b.looks("redis-unavailable")
}

// Names and causes that would do something in a page do nothing: the browser
// itself says so.
func TestHostileNamesInABrowser(t *testing.T) {
	server := redistest.Start(t)
	m := startMember(t, "shop-1", server.Addr())
	b := startBrowser(t)
	hostile := `<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>`
	for range 6 {
		m.call(t, hostile, hostile)
	}
	m.call(t, "right\u202eto\nleft", "")
	b.opens(m, "")
	b.sees("Live", "1 open, 1 closed.", hostile, `right\u202eto\nleft`)
	b.opens(m, "?circuit="+url.QueryEscape(hostile))
	b.sees("Live", hostile)
	require.NotEqual(t, "pwned", result(b, chromedp.Title()))
	b.looks("hostile")
}

// A process in a dry run shows how many calls it would have rejected.
func TestADryRunInABrowser(t *testing.T) {
	server := redistest.Start(t)
	m := startMember(t, "dry-run-1", server.Addr())
	b := startBrowser(t)
	for range 25 {
		require.Equal(t, "connection refused", m.call(t, "payments.example", "connection refused"), "every call runs")
	}
	b.opens(m, "?circuit=payments.example")
	b.sees("Live", "dry-run-1", "20")
	require.Contains(t, strings.ToLower(b.text()), "dry run")
	b.looks("dry-run")
}
