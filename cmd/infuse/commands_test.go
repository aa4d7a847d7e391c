package main

// This file tests the commands, their exit codes and their help.

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

func TestList(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		require.Equal(t, "no circuit has a record with the prefix \"infuse:\": no recent failures, no overrides\n", d.mustRun("list"))
		var none []circuit
		d.mustDecode(&none, "list")
		require.Equal(t, []circuit{}, none, "[], and not null")

		require.NoError(t, d.breaker("healthy").SetState(t.Context(), infuse.StateClosed))
		require.NoError(t, d.breaker("forced").Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "false alarm", Until: time.Now().Add(2 * time.Hour)}))
		d.open("failing", "503 Service Unavailable")

		lines := strings.Split(strings.TrimSuffix(d.mustRun("list"), "\n"), "\n")
		require.Len(t, lines, 4)
		require.Regexp(t, `^CIRCUIT  STATE   SINCE +TRIAL IN  BY +CAUSE +OVERRIDE$`, lines[0])
		require.Regexp(t, `^failing  open    \d\d:\d\d:\d\d \([\d.m]+s\) +(\d\ds|1m) +web-1  503 Service Unavailable  -$`, lines[1])
		require.Regexp(t, `^forced   closed  - +-  +- +- +forced closed by ann until [-\d: ]+ \(2h\): false alarm$`, lines[2])
		require.Regexp(t, `^healthy  closed  [\d:]+ \([\d.m]+s\) +- +web-1  - +-$`, lines[3])

		var all []circuit
		d.mustDecode(&all, "list")
		require.Len(t, all, 3)
		failing := all[0]
		require.Equal(t, "failing", failing.Circuit)
		require.Equal(t, "open", failing.State)
		require.Equal(t, "web-1", failing.By)
		require.Equal(t, "503 Service Unavailable", failing.Cause)
		require.WithinDuration(t, time.Now(), *failing.Since, 10*time.Second)
		require.WithinDuration(t, time.Now().Add(time.Minute), *failing.Due, 10*time.Second)
		require.Equal(t, "closed", all[1].Override.State)
		require.Equal(t, "closed", all[1].Underlying)
	})
}

func TestShow(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		d.watched("prices")
		require.Equal(t, "circuit prices has no record: it is closed, and no process reported a failure recently\n", d.mustRun("show", "prices"))
		var none circuit
		d.mustDecode(&none, "show", "prices")
		require.Equal(t, circuit{Circuit: "prices", State: "closed"}, none)

		d.open("prices", "503 Service Unavailable")
		require.NoError(t, d.breaker("prices").Override(t.Context(), infuse.Override{State: infuse.StateClosed, By: "ann", Reason: "false alarm"}))
		out := d.mustRun("show", "prices")
		for _, want := range []string{
			`(?m)^circuit +prices$`,
			`(?m)^state +forced closed; the underlying state is open$`,
			`(?m)^since +\d\d:\d\d:\d\d \(`,
			`(?m)^trial +in \d`,
			`(?m)^failures +5$`,
			`(?m)^by +web-1$`,
			`(?m)^cause +503 Service Unavailable$`,
			`(?m)^override +forced closed by ann until removed: false alarm$`,
			`(?m)^  [-\d]+ [\d:.]+  forced closed +by ann until removed: false alarm\n  [-\d]+ [\d:.]+  closed -> open +by web-1: 503 Service Unavailable$`,
		} {
			require.Regexp(t, want, out)
		}
		var c circuit
		d.mustDecode(&c, "show", "prices")
		require.Equal(t, "closed", c.State)
		require.Equal(t, "open", c.Underlying)
		require.Len(t, c.History, 2)
		require.Equal(t, isOverride, c.History[0].What)
		require.Equal(t, &forcing{State: "closed", By: "ann", Reason: "false alarm"}, c.History[0].Override)
		require.Equal(t, isTransition, c.History[1].What)
		require.Equal(t, "503 Service Unavailable", c.History[1].Cause)
	})
}

func TestOverrideAndRemove(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		b := d.watched("prices")
		out := d.mustRun("override", "prices", "open", "-reason", "database upgrade", "-until", "2h", "-by", "ann")
		require.Regexp(t, `^circuit prices: forced open by ann until [-\d: ]+ \(2h\): database upgrade\n$`, out)
		require.Eventually(t, func() bool { return b.State() == infuse.StateOpen }, patience, time.Millisecond)
		err := b.Call(t.Context(), func(context.Context) error { return nil })
		require.ErrorContains(t, err, "database upgrade")

		require.Equal(t, "circuit prices: override removed, the state is closed\n", d.mustRun("remove-override", "prices", "-by", "bob"))
		require.Eventually(t, func() bool { return b.State() == infuse.StateClosed }, patience, time.Millisecond)
		require.Equal(t, "circuit prices: no override to remove\n", d.mustRun("remove-override", "prices"))

		var c circuit
		d.mustDecode(&c, "override", "-until=removed", "prices", "-reason", "-not a flag", "closed")
		require.Equal(t, "-not a flag", c.Override.Reason)
		require.Nil(t, c.Override.Until)
		require.Equal(t, defaultAuthor(), c.Override.By)
		require.Contains(t, c.Override.By, "@")

		d.mustDecode(&c, "show", "prices")
		require.Equal(t, []string{isOverride, isRemoval, isOverride}, whats(c.History))
		require.Equal(t, "bob", c.History[1].By)
	})
}

func whats(events []event) (all []string) {
	for _, e := range events {
		all = append(all, e.What)
	}
	return all
}

func TestSetState(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		require.Equal(t, "circuit prices: set to open by ann, next trial in 10m\n", d.mustRun("set-state", "-force", "prices", "open", "-for", "10m", "-by", "ann"))
		require.Equal(t, "circuit prices: set to half-open by bob\n", d.mustRun("set-state", "prices", "half-open", "-by", "bob"))
		require.Equal(t, "circuit prices: set to closed by "+defaultAuthor()+"\n", d.mustRun("set-state", "prices", "closed"))
		require.Equal(t, "circuit prices: set to closed by "+defaultAuthor()+"\n", d.mustRun("set-state", "prices", "closed"))
		d.mustRun("override", "prices", "open", "-reason", "x", "-until", "removed", "-by", "ann")
		require.Equal(t, "circuit prices: set to half-open by ann, still forced open by ann until removed: x\n", d.mustRun("set-state", "prices", "half-open", "-by", "ann"))
		var c circuit
		d.mustDecode(&c, "show", "prices")
		require.Equal(t, []string{isSetState, isOverride, isSetState, isSetState, isSetState, isSetState}, whats(c.History))
		require.Equal(t, "ann", c.History[5].By)
		require.Equal(t, "half-open", c.Underlying)
	})
}

// A manual change does not evaluate the circuit: the settings of the command are not
// those of a service.
func TestManualChangeDoesNotEvaluate(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		b, err := infuse.New("prices", infuse.Config{Storage: d.storage, FailMax: 1000, StorageTimeout: 5 * time.Second})
		require.NoError(t, err)
		defer b.Stop()
		for range 100 {
			d.fail(b, "failing")
		}
		d.mustRun("override", "prices", "closed", "-reason", "x", "-until", "1h")
		d.mustRun("remove-override", "prices")
		r, err := b.Record(t.Context())
		require.NoError(t, err)
		require.Equal(t, 500, r.Failures)
		require.False(t, r.Suspect())
	})
}

func TestUnreadableRecord(t *testing.T) {
	server := redistest.Start(t)
	d := cliAt(t, server.Addr())
	require.NoError(t, server.Client().HSet(t.Context(), "infuse:{prices}", "v", "7", "r", "\x1b[2Jgarbage").Err())
	out := d.mustRun("list")
	require.Regexp(t, `(?m)^prices +unreadable +- +- +- +the record .*-$`, out)
	requireHarmless(t, out)
	require.Regexp(t, `(?m)^error +the record `, d.mustRun("show", "prices"))
	require.Equal(t, "circuit prices: set to closed by "+defaultAuthor()+"\n", d.mustRun("set-state", "prices", "closed"))
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	d := memoryCLI(t)
	for _, wrong := range []string{
		"", "bla", "list x", "list -bla", "-bla list", "show", "show a b", "override a", "override a open", "override a open -until 1h",
		"override a open -reason x", "override a half-open -reason x -until 1h", "override a open -reason x -until yesterday",
		"override a open -reason x -until -1h", "override a open -reason x -until 2020-01-01T00:00:00Z", "override a open -reason x -until 9000h",
		"remove-override", "remove-override a b", "set-state a", "set-state a shut", "set-state a open -for 0s", "move a open", "plan x", "plan -calls 0", "plan -errors 1", "plan -fail-max -1", "plan -suspicion 1h -window 1ms", "list -timeout 0s", "list -timeout x", "watch -interval 0s", "help bla",
		"remove-override a -by " + strings.Repeat("x", 201), "show " + strings.Repeat("x", 257), "override a open -until 1h -reason " + strings.Repeat("x", 201),
	} {
		out, errs, code := d.exec(strings.Fields(wrong)...)
		require.Equal(t, exitUsage, code, wrong)
		require.Empty(t, out, wrong)
		require.Regexp(t, `^infuse: .+\n$`, errs, wrong)
	}
	_, errs, code := d.exec("show", "")
	require.Equal(t, exitUsage, code, errs)

	for _, url := range []string{"redis://user:secret@127.0.0.1:%zz", "http://secret@x", "redis://secret@x/abc", "redis://secret@x?bla=1", "secret@:x", ""} {
		var stdout, stderr output
		require.Equal(t, exitUsage, run(t.Context(), []string{"-redis", url, "list"}, &stdout, &stderr), url)
		require.NotContains(t, stderr.String(), "secret")
	}
	var stdout, stderr output
	require.Equal(t, exitFailed, run(t.Context(), []string{"-redis", "redis://127.0.0.1:1", "list"}, &stdout, &stderr))
	require.Equal(t, exitFailed, run(t.Context(), []string{"-redis", "redis://127.0.0.1:1", "watch"}, &stdout, &stderr))
	require.Equal(t, exitFailed, run(t.Context(), []string{"-redis", "redis://127.0.0.1:1", "set-state", "x", "open"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), "connection refused")
	require.Empty(t, stdout.String())
}

// If Redis does not answer, each command ends after -timeout.
func TestTimeout(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Pause()
	defer server.Resume()
	for _, args := range [][]string{{"list"}, {"show", "x"}, {"set-state", "x", "open"}, {"override", "x", "open", "-reason", "x", "-until", "1h"}, {"remove-override", "x"}} {
		var stdout, stderr output
		began := time.Now()
		code := run(t.Context(), append([]string{"-redis", server.Addr(), "-timeout", "300ms"}, args...), &stdout, &stderr)
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr.String(), "300ms", args)
		require.Less(t, time.Since(began), 10*time.Second, args) // time for a busy machine
	}
}

var example = regexp.MustCompile(`(?m)^  infuse (.*)$`)

// Each command has a help, and its examples run.
func TestHelp(t *testing.T) {
	d := memoryCLI(t)
	require.Equal(t, d.mustRun("-h"), d.mustRun("help"))
	texts := []string{d.mustRun("-h")}
	for _, c := range commands() {
		help := d.mustRun("help", c.name)
		require.Equal(t, help, d.mustRun(c.name, "-h"))
		require.Contains(t, help, "\nExamples:\n")
		require.Contains(t, texts[0], c.summary)
		texts = append(texts, help)
	}
	n := 0
	for _, m := range example.FindAllStringSubmatch(strings.Join(texts, "\n"), -1) {
		if strings.HasPrefix(m[1], "serve") {
			continue // TestServeExamples
		}
		// Fake time stands still while a command runs.
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var stdout, stderr output
			require.Zero(t, d.run(ctx, words(m[1]), &stdout, &stderr), "%s: %s", m[1], stderr.String())
		})
		n++
	}
	require.Greater(t, n, 15)
	for _, text := range texts {
		for _, line := range strings.Split(text, "\n") {
			require.LessOrEqual(t, len([]rune(line)), 88, line)
		}
	}
}

// words splits a line as a shell would, up to a pipe.
func words(line string) (all []string) {
	for _, m := range regexp.MustCompile(`"([^"]*)"|'([^']*)'|(\S+)`).FindAllStringSubmatch(line, -1) {
		if m[3] == "|" || strings.HasPrefix(m[3], ">") {
			break
		}
		all = append(all, m[1]+m[2]+m[3])
	}
	return all
}
