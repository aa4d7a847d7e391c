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

// This file tests the page as a person uses it.

const patience = 30 * time.Second

// need skips the test if a program is missing; with CI=true the test fails.
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

// browser is a browser with one page. Its errors fail the test. Start it after the members,
// so that it stops before they close its connections.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	need(t, "chromium", "google-chrome")
	// Without a sandbox, because CI runs as root; it opens only the page of the test.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true), chromedp.WSURLReadTimeout(patience))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t, ctx}
	require.NoError(t, chromedp.Do(ctx)) // starts the browser, which lives as long as this context
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the script fails: %v", e.ExceptionDetails)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError && !strings.HasSuffix(e.Entry.URL, "/favicon.ico") {
				t.Errorf("the browser reports: %s %s", e.Entry.Text, e.Entry.URL)
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
		b.t.Fatalf("%v\ntext of the page:\n%s", err, b.text())
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

// text returns the text of the page; empty while it loads.
func (b *browser) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body.innerText"))
	return text
}

// expect waits until the page contains the texts, without a reload.
func (b *browser) expect(wants ...string) {
	b.t.Helper()
	for _, want := range wants {
		require.Eventually(b.t, func() bool { return strings.Contains(b.text(), want) }, patience, 50*time.Millisecond, "%q; text of the page:\n%s", want, b.text())
	}
}

func (b *browser) open(m *member, path string) {
	b.t.Helper()
	b.do(chromedp.Navigate("http://" + m.address + "/infuse/" + path))
}

// change fills in the form of a circuit's page, and submits it.
func (b *browser) change(what, reason string) {
	b.t.Helper()
	b.do(
		chromedp.SendKeys(chromedp.CSS("#reason"), reason),
		chromedp.Click(chromedp.CSS(`.controls button[value="`+what+`"]`)),
		chromedp.WaitVisible(chromedp.CSS(".confirm .sure")),
	)
	b.expect(reason)
}

func (b *browser) confirm() {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(".confirm .sure")), chromedp.WaitVisible(chromedp.CSS(".controls")))
}

// inspect takes four screenshots of the page, and checks each with axe.
func (b *browser) inspect(name string) {
	b.t.Helper()
	for size, width := range map[string]int64{"desktop": 1280, "phone": 390} {
		for _, scheme := range []string{"light", "dark"} {
			b.do(chromedp.EmulateViewport(width, 844), prefers(scheme))
			// A screenshot shows the last layout.
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

// fits checks that the page needs no horizontal scrolling.
func (b *browser) fits(what string) {
	b.t.Helper()
	require.True(b.t, result(b, chromedp.Evaluate[bool]("document.documentElement.scrollWidth <= innerWidth")), "%s is wider than the screen", what)
}

// screenshots returns the folder of screenshots: SCREENSHOTS, if it is set.
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
			b.t.Logf("%s: axe reports %s (%s): %s %v", what, f.ID, f.Impact, f.Help, f.Nodes)
		}
	}
}

const axeVersion = "axe-core@4.14.1"

var axeScript *string

// axe returns the script of axe-core, from npm. Outside CI it is empty if npm is missing.
func axe(t *testing.T) string {
	t.Helper()
	if axeScript == nil {
		script, err := fetchAxe(t)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		if err != nil {
			t.Logf("axe-core is not available, so the page is not checked: %v", err)
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

// A person sees a circuit open, forces it open, and removes the override, in one browser,
// while three processes make calls.
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

	b.open(page, "")
	b.expect("1 failing, 4 closed.", "Live", "Answered by shop-1")
	for range 6 {
		for _, circuit := range []string{"payments.example", "prices.example"} {
			fleet[1].call(t, circuit, "dial tcp 10.0.0.7:443: connect: connection refused")
			fleet[2].call(t, circuit, "dial tcp 10.0.0.7:443: connect: connection refused")
		}
		time.Sleep(50 * time.Millisecond) // longer than Suspicion
	}
	for range 5 { // one process alone: suspect, and the local circuit opens
		page.call(t, "search.example", "504 Gateway Timeout")
	}
	b.expect("2 open", "1 failing, 1 closed.", "connection refused", "open (local circuit)", "All processes report their results", "runs calls: its last call did not fail")
	before := other.call(t, "payments.example", "")
	require.Contains(t, before, "open")
	require.NotContains(t, before, "Alice")
	b.inspect("outage")
	b.open(fleet[1], "")
	b.expect("1 suspect", "Answered by shop-2")
	b.open(page, "")

	b.open(page, "?circuit=payments.example")
	b.expect("payments.example", "Live", "closed → open")
	b.inspect("circuit")
	b.change("force-open", "the provider is migrating, ticket 4711")
	b.expect("Force open?", "All processes reject all calls.")
	b.inspect("confirm")
	b.confirm()
	b.expect("forced open by Alice: the provider is migrating, ticket 4711")
	require.Eventually(t, func() bool {
		rejected := other.call(t, "payments.example", "")
		return rejected != before && strings.Contains(rejected, "Alice") && strings.Contains(rejected, "ticket 4711")
	}, patience, 20*time.Millisecond)
	b.inspect("forced-open")

	b.change("remove", "the migration is over")
	b.confirm()
	b.expect("open")
	b.change("set-half-open", "try it")
	b.confirm()
	require.Eventually(t, func() bool { return other.call(t, "payments.example", "") == "well" }, patience, 20*time.Millisecond)
	b.expect("closed")
	b.open(page, "?q=nothing")
	b.expect("No circuit matches (5 in total).")

	b.open(page, "")
	b.expect("Live")
	server.Kill()
	b.expect("Redis is unavailable. Shared state below may be out of date.")
	b.inspect("redis-unavailable")
}

// Names and causes with markup have no effect in a browser.
func TestHostileNamesInABrowser(t *testing.T) {
	server := redistest.Start(t)
	m := startMember(t, "shop-1", server.Addr())
	b := startBrowser(t)
	hostile := `<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>`
	for range 6 {
		m.call(t, hostile, hostile)
	}
	m.call(t, "right\u202eto\nleft", "")
	b.open(m, "")
	b.expect("Live", "1 open, 1 closed.", hostile, `right\u202eto\nleft`)
	b.open(m, "?circuit="+url.QueryEscape(hostile))
	b.expect("Live", hostile)
	require.NotEqual(t, "pwned", result(b, chromedp.Title()))
	b.inspect("hostile")
}

// The page of a dry run shows how many calls would have been rejected.
func TestADryRunInABrowser(t *testing.T) {
	server := redistest.Start(t)
	m := startMember(t, "dry-run-1", server.Addr())
	b := startBrowser(t)
	for range 25 {
		require.Equal(t, "connection refused", m.call(t, "payments.example", "connection refused"), "every call runs")
	}
	b.open(m, "?circuit=payments.example")
	b.expect("Live", "dry-run-1", "20")
	require.Contains(t, strings.ToLower(b.text()), "dry run")
	b.inspect("dry-run")
}
