package main

// This file tests the command serve.

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

const patience = 30 * time.Second

var serving = regexp.MustCompile(`^serving (http://\S+) \((.+)\)\n$`)

// serves runs infuse serve until the test ends, and returns its address.
func (d *cli) serves(args ...string) (address, access string, stop func() int) {
	d.t.Helper()
	var stdout, stderr output
	ctx, cancel := context.WithCancel(d.t.Context())
	code := make(chan int, 1)
	go func() {
		code <- d.run(ctx, append(append(d.args[:len(d.args):len(d.args)], "serve", "-listen", "127.0.0.1:0"), args...), &stdout, &stderr)
	}()
	require.Eventually(d.t, func() bool { return stdout.String() != "" }, patience, 5*time.Millisecond, "%s", stderr.String())
	m := serving.FindStringSubmatch(stdout.String())
	require.NotNil(d.t, m, stdout.String())
	stopped := false
	stop = func() int {
		cancel()
		stopped = true
		return <-code
	}
	d.t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	return m[1], m[2], stop
}

func fetched(t *testing.T, address string) string {
	t.Helper()
	response, err := http.Get(address)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, string(text))
	return string(text)
}

func TestServe(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, d *cli) {
		d.open("prices", "503 Service Unavailable")
		address, access, stop := d.serves()
		require.Equal(t, "read-only", access)
		require.True(t, strings.HasPrefix(address, "http://127.0.0.1:"))
		text := fetched(t, address)
		require.Contains(t, text, "503 Service Unavailable")
		require.Contains(t, text, "Circuits of infuse:")
		require.NotContains(t, text, "Local circuit")
		require.Contains(t, fetched(t, address+"?circuit=prices"), "This page is read-only.")
		require.Equal(t, http.StatusForbidden, d.forces(address, nil))

		// An open page does not delay the end.
		response, err := http.Get(address + "events")
		require.NoError(t, err)
		defer response.Body.Close()
		began := time.Now()
		require.Zero(t, stop())
		require.Less(t, time.Since(began), stopTime)
		_, err = http.Get(address)
		require.Error(t, err)
	})
}

// forces posts the form of a page, and returns the status.
func (d *cli) forces(address string, change func(*http.Request)) int {
	d.t.Helper()
	form := url.Values{"do": {"force-open"}, "for": {"1 hour"}, "reason": {"migration"}, "confirm": {"yes"}}
	r, err := http.NewRequest(http.MethodPost, address+"change?circuit=prices", strings.NewReader(form.Encode()))
	require.NoError(d.t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if change != nil {
		change(r)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r)
	require.NoError(d.t, err)
	defer response.Body.Close()
	return response.StatusCode
}

// Only a user whom a trusted proxy passes may change a circuit.
func TestServeWithUsers(t *testing.T) {
	t.Parallel()
	override := func(d *cli) *infuse.Override {
		record, err := d.storage.Load(t.Context(), "prices")
		require.NoError(t, err)
		return record.Override
	}
	d := memoryCLI(t)
	untrusted, _, _ := d.serves("-user-header", "X-Forwarded-User", "-proxies", "10.0.0.4")
	trusted, access, _ := d.serves("-user-header", "X-Forwarded-User", "-hosts", "ops.example.com", "-origins", "https://ops.example.com")
	require.Equal(t, "users in X-Forwarded-User may make changes", access)
	as := func(names ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["X-Forwarded-User"] = names }
	}
	for name, status := range map[string]int{
		"untrusted proxy": d.forces(untrusted, as("ann")),
		"no user":         d.forces(trusted, nil),
		"empty user":      d.forces(trusted, as(" ")),
		"two users":       d.forces(trusted, as("mallory", "ann")),
		"other host":      d.forces(trusted, func(r *http.Request) { as("ann")(r); r.Host = "evil.example" }),
		"other origin":    d.forces(trusted, func(r *http.Request) { as("ann")(r); r.Header.Set("Origin", "https://evil.example") }),
	} {
		require.Equal(t, http.StatusForbidden, status, name)
		require.Nil(t, override(d), name)
	}
	require.Equal(t, http.StatusSeeOther, d.forces(trusted, func(r *http.Request) {
		as("ann\u202e")(r)
		r.Header.Set("Origin", "https://ops.example.com")
	}))
	require.Equal(t, "migration", override(d).Reason)
	require.Contains(t, override(d).By, "ann")
}

func TestServeRejectsInvalidFlags(t *testing.T) {
	t.Parallel()
	d := cliAt(t, "redis://127.0.0.1:1")
	for want, args := range map[string][]string{
		`invalid -listen "8080"`:         {"-listen", "8080"},
		`invalid host "https://a"`:       {"-hosts", "localhost,https://a"},
		`invalid origin "a.example"`:     {"-origins", "a.example"},
		`invalid -proxies "x"`:           {"-proxies", "10.0.0.0/8,x"},
		`invalid -user-header "X User"`:  {"-user-header", "X User"},
		`usage: infuse serve`:            {"now"},
		`-user-header requires -proxies`: {"-user-header", "X-User", "-proxies", ""},
	} {
		out, errs, code := d.exec(append([]string{"serve"}, args...)...)
		require.Equal(t, exitUsage, code, "%v: %s", args, errs)
		require.Contains(t, errs, want)
		require.Empty(t, out)
	}
	_, errs, code := memoryCLI(t).exec("serve", "-listen", "256.0.0.1:1")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "256.0.0.1")
	_, errs, code = d.exec("serve")
	require.Equal(t, exitFailed, code, "Redis is not reachable")
	require.Contains(t, errs, "connection refused")
}

// The examples of the help serve the page; the port is replaced.
func TestServeExamples(t *testing.T) {
	t.Parallel()
	n := 0
	for _, m := range example.FindAllStringSubmatch(serveHelp, -1) {
		args := words(m[1])
		require.Equal(t, "serve", args[0])
		address, _, stop := memoryCLI(t).serves(args[1:]...)
		fetched(t, address)
		require.Zero(t, stop())
		n++
	}
	require.Equal(t, 2, n)
}

// The program ends with exit code 0 on SIGTERM and on SIGINT.
func TestServeEndsOnSignals(t *testing.T) {
	t.Parallel()
	d := redisCLI(t)
	binary := filepath.Join(t.TempDir(), "infuse")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		c := exec.Command(binary, append(d.args, "serve", "-listen", "127.0.0.1:0")...)
		stdout, err := c.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, c.Start())
		line, err := bufio.NewReader(stdout).ReadString('\n')
		require.NoError(t, err)
		address := serving.FindStringSubmatch(line)[1]
		response, err := http.Get(address + "events")
		require.NoError(t, err)
		require.NoError(t, c.Process.Signal(signal))
		_, err = io.ReadAll(response.Body)
		require.NoError(t, err, "the stream ends without an error")
		require.NoError(t, response.Body.Close())
		require.NoError(t, c.Wait())
	}
}
