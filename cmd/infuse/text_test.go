package main

// This file tests texts: names, durations, times, URLs and histories.

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

var hostile = []string{
	"\x1b[2J\x1b]0;title\a", "a\nb", "a\tb", "a\r", "\u009b31m", "\u202eabc", "\x7f", "\xff\xfe", "a b", `"`, `"a"`, "'", "<script>", "-json", "--", strings.Repeat("x", 256),
	"\u2028", "\U000e0001", "日本",
}

func TestHostileNames(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, d *cli) {
		for _, name := range hostile {
			d.open(name, "cause "+name)
		}
		out := d.mustRun("list")
		requireHarmless(t, out)
		require.Equal(t, len(hostile)+1, strings.Count(out, "\n"), out)
		for _, line := range strings.Split(out, "\n") {
			require.Less(t, len([]rune(line)), 200)
		}
		for _, args := range [][]string{{"list", "-json"}, {"-json", "list"}} {
			out = d.mustRun(args...)
			requireHarmless(t, out)
			var all []circuit
			require.NoError(t, json.Unmarshal([]byte(out), &all))
			require.Len(t, all, len(hostile))
		}
		for _, name := range hostile {
			// The name itself, and the name as it is shown.
			for _, given := range []string{name, quoted(name)} {
				if name == `"a"` && given == name {
					continue // the argument a is this name, quoted
				}
				out := d.mustRun("show", "--", given)
				requireHarmless(t, out)
				require.Regexp(t, `(?m)^state +open`, out, "%q", given)
				requireHarmless(t, d.mustRun("show", "-json", "--", given))
			}
			requireHarmless(t, d.mustRun("override", "-force", "-by", name[:min(len(name), 200)], "-until", "1h", "-reason", "because of "+name[:min(len(name), 180)], "--", name, "closed"))
			requireHarmless(t, d.mustRun("remove-override", "-by", name[:min(len(name), 200)], "--", name))
			requireHarmless(t, d.mustRun("set-state", "-by", name[:min(len(name), 200)], "--", name, "open"))
			requireHarmless(t, d.mustRun("show", "--", name))
		}
		_, errs, code := d.exec("show\x1b[2J")
		require.Equal(t, exitUsage, code)
		requireHarmless(t, errs)
	})
}

func TestQuoted(t *testing.T) {
	for _, name := range append(hostile, "prices.internal:8080", "/a/b?c#d") {
		require.Equal(t, name, unquoted(quoted(name)))
		requireHarmless(t, quoted(name))
	}
	require.Equal(t, "prices.internal:8080", quoted("prices.internal:8080"))
	require.Equal(t, `"x`, unquoted(`"x`))
}

func TestCut(t *testing.T) {
	require.Equal(t, "abc", cut("abc", 3))
	require.Equal(t, "ab…", cut("abcd", 3))
	require.Equal(t, "日本…", cut("日本日本", 3))
	require.Equal(t, "", cut("", 3))
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1234 * time.Millisecond: "1.2s", 47*time.Second + 600*time.Millisecond: "48s", 10*time.Minute + 30*time.Second: "10m30s", 10 * time.Minute: "10m",
		2 * time.Hour: "2h", 70 * time.Minute: "1h10m", 2*time.Hour - time.Second: "2h", time.Minute - time.Millisecond: "1m", time.Hour - time.Millisecond: "1h", 10*time.Second - time.Millisecond: "10s", 10*time.Hour + 5*time.Minute: "10h5m", 75 * time.Hour: "3d3h", 240 * time.Hour: "10d",
	} {
		require.Equal(t, want, brief(d))
	}
}

// The text of a circuit that was ready for a trial was "a trial may run in ready".
func TestNextTrial(t *testing.T) {
	now := time.Now()
	require.Empty(t, (&circuit{}).nextTrial(now))
	require.Equal(t, ", ready for a trial", (&circuit{Due: &now}).nextTrial(now))
	require.Equal(t, ", next trial in 2m", (&circuit{Due: &now}).nextTrial(now.Add(-2*time.Minute)))
}

func TestParseUntil(t *testing.T) {
	now := time.Date(2026, 3, 4, 22, 30, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2h": now.Add(2 * time.Hour), "1h30m": now.Add(90 * time.Minute), "removed": {},
		"23:15": time.Date(2026, 3, 4, 23, 15, 0, 0, time.UTC), "06:00": time.Date(2026, 3, 5, 6, 0, 0, 0, time.UTC), "22:30": time.Date(2026, 3, 5, 22, 30, 0, 0, time.UTC),
		"2026-03-05T01:00:00+02:00": time.Date(2026, 3, 4, 23, 0, 0, 0, time.UTC),
	} {
		until, err := parseUntil(text, now)
		require.NoError(t, err)
		require.True(t, want.Equal(until), "%s is %v", text, until)
	}
	for _, text := range []string{"", "0s", "-1h", "9000h", "2026-03-04T22:29:59Z", "tomorrow", "25:00"} {
		_, err := parseUntil(text, now)
		var usage *usageError
		require.True(t, errors.As(err, &usage), text)
	}
}

func TestConnect(t *testing.T) {
	for url, want := range map[string]any{
		"redis://127.0.0.1:6379/2": &redis.Client{}, "127.0.0.1:6379": &redis.Client{}, "unix:///run/redis.sock?db=1": &redis.Client{}, "rediss://u:p@x": &redis.Client{},
		"redis://x:1?addr=y:2": &redis.ClusterClient{}, "redis://x:26379?master_name=main&addr=y:26379": &redis.Client{},
	} {
		client, err := connect(&options{redis: url, timeout: time.Second})
		require.NoError(t, err, url)
		require.IsType(t, want, client, url)
		require.NoError(t, client.Close())
	}
	client, err := connect(&options{redis: "redis://x:1", cluster: true, timeout: time.Second})
	require.NoError(t, err)
	require.IsType(t, &redis.ClusterClient{}, client)
	require.NoError(t, client.Close())
}

func TestUnprinted(t *testing.T) {
	start := time.Now()
	at := func(s int, from, to infuse.State) infuse.Event {
		return infuse.Event{At: start.Add(time.Duration(s) * time.Second), From: from, To: to}
	}
	opened, tried, closed := at(10, infuse.StateClosed, infuse.StateOpen), at(20, infuse.StateOpen, infuse.StateHalfOpen), at(21, infuse.StateHalfOpen, infuse.StateClosed)
	old := at(-5, infuse.StateHalfOpen, infuse.StateClosed)
	history := func(newest ...infuse.Event) []infuse.Event { return newest }
	shifted := opened
	shifted.At = shifted.At.Add(30 * time.Millisecond)

	require.Equal(t, 0, unprinted(nil, nil, start))
	require.Equal(t, 0, unprinted(history(old), nil, start))
	require.Equal(t, 1, unprinted(history(opened, old), nil, start))
	require.Equal(t, 0, unprinted(history(shifted, old), history(opened, old), start), "the time of another read")
	require.Equal(t, 2, unprinted(history(closed, tried, shifted, old), history(opened, old), start))
	require.Equal(t, 2, unprinted(history(closed, tried), history(opened, old), start), "the storage has lost printed events")
	require.Equal(t, 0, unprinted(nil, history(opened), start))
	require.Equal(t, 1, unprinted(history(opened), history(old), start), "nothing in common")
}
