package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// TestMain makes the test's own program a process of a fleet, too.
func TestMain(m *testing.M) {
	worker.Serve(jobs)
	os.Exit(m.Run())
}

// BenchmarkCall is ours between the two that its figures are held against:
//
//	go test -run '^$' -bench Call -count 5 .
func BenchmarkCall(b *testing.B) {
	beside := []string{infuseName, infuseName + ", LogListener", eapacheName, gobreakerName}
	for _, sc := range scenarios {
		for _, s := range subjects(nil) {
			if slices.Contains(beside, s.name) {
				sc.benchmark(b, s)
			}
		}
	}
}

// BenchmarkProcess is section 1 for benchstat and the profiler; go run . takes
// all in turns instead.
func BenchmarkProcess(b *testing.B) {
	storage := newStorage(b)
	for _, sc := range scenarios {
		for _, s := range append(subjects(storage), webSubjects()...) {
			sc.benchmark(b, s)
		}
	}
}

func (sc scenario) benchmark(b *testing.B, s subject) {
	if !sc.has(s) {
		return
	}
	run, err := sc.prepare(s)
	require.NoError(b, err)
	defer run.stop()
	for name, calls := range map[string]func(int){"serial": run.serial, "parallel": run.parallel} {
		b.Run(fmt.Sprint(sc.name, "/", name, "/", strings.Trim(s.name, "*")), func(b *testing.B) {
			b.ReportAllocs()
			calls(b.N)
		})
	}
}

// A benchmark that measured something else than it says would be worse than none.
func TestEverySubjectDoesWhatItIsMeasuredFor(t *testing.T) {
	storage := newStorage(t)
	for _, sc := range scenarios {
		for _, s := range slices.Concat(subjects(storage), webSubjects(), told[0], told[1]) {
			if !sc.has(s) {
				continue
			}
			t.Run(sc.name+"/"+s.name, func(t *testing.T) {
				run, err := sc.prepare(s)
				require.NoError(t, err)
				defer run.stop()
				run.serial(100)
				run.parallel(100)
				rejected := run.rejected()
				switch {
				case s.name == goZeroName && sc.name != closedName:
					require.Positive(t, rejected) // at random
				case sc.name == openName:
					require.Equal(t, 1.0, rejected)
				default:
					require.Zero(t, rejected)
				}
			})
		}
	}
}

// The one command, in small: every section has its tables, and every table a row for
// each that is compared.
func TestABriefRunWritesEverySection(t *testing.T) {
	redistest.Start(t).Close() // skips where there is no redis-server
	page, err := os.ReadFile("RESULTS.md")
	require.NoError(t, err)
	out := filepath.Join(t.TempDir(), "RESULTS.md")
	require.NoError(t, os.WriteFile(out, page, 0o600))
	require.NoError(t, run(brief, "", out))
	written, err := os.ReadFile(out)
	require.NoError(t, err)
	report := string(written)
	for _, title := range []string{
		"## Calls in one process", "### Closed, the call succeeds", "### Open, the call is rejected", "### Closed, half the calls fail",
		"## HTTP requests in one process", "### HTTP: closed, the call succeeds", "### HTTP: open, the call is rejected", "### HTTP: closed, half the calls fail",
		"## Calls that fail at the same time", "## Calls with logging and metrics",
		"## Memory", "### In a process", "### In Redis",
		"## A fleet on a real Redis", "### A healthy service", "### Failures that all report at once",
		"### Processor time of Redis for each report", "### From the last counted failure until every breaker rejects", "### Calls and commands of an outage",
		"## What a fleet costs Redis", "### Commands for 1,000 calls", "### Processor time for 1,000 calls",
		"## False openings, and the time to open, by the size of the fleet",
		"### A healthy service: simulated processes", "### An outage: processes", "### An outage: simulated processes",
		"## Simulated fleets",
	} {
		require.Contains(t, report, title+"\n")
	}
	for _, picture := range []string{falseOpeningsPlot, timeToOpenPlot} {
		require.Contains(t, report, "("+picture+")")
		require.FileExists(t, filepath.Join(filepath.Dir(out), picture))
	}
	require.NotContains(t, report, "NaN")
	require.NotContains(t, report, "Inf ")
	for _, s := range subjects(nil)[1:] {
		require.GreaterOrEqual(t, strings.Count(report, "| "+s.name), 3, s.name)
	}
	require.ErrorContains(t, run(brief, "nothing", out), "no section")
}

// RESULTS.md reports figures, and no verdict on them.
func TestResultsHaveNoVerdict(t *testing.T) {
	page, err := os.ReadFile("RESULTS.md")
	require.NoError(t, err)
	require.NotContains(t, string(page), "FAIL")
}

func TestTheQuickTable(t *testing.T) {
	redistest.Start(t).Close() // skips where there is no redis-server
	var out strings.Builder
	require.NoError(t, quick(sizes{rounds: 1, batch: 100 * time.Microsecond}, &out))
	for _, sc := range scenarios {
		require.Equal(t, 2, strings.Count(out.String(), sc.name), "calls and requests")
	}
	for _, s := range slices.Concat(only(subjects(nil), eapacheName, gobreakerName), only(webSubjects(), gobreakerName)) {
		require.Contains(t, out.String(), strings.ReplaceAll(s.name, "*", ""))
	}
	require.NotContains(t, out.String(), "NaN")
	require.NotContains(t, out.String(), "Inf ")
}

func TestNumbersAreReadable(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.123: "0.12", 9.876: "9.88", 12.34: "12.3", 999.6: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, number(x))
	}
	require.Equal(t, 2.5, median([]float64{4, 1, 3, 2}))
	require.Equal(t, 3.0, median([]float64{5, 3, 1}))
}

func newStorage(tb testing.TB) infuse.Storage {
	storage := infuse.NewRedisStorage(redistest.Start(tb).Client(), infuse.RedisOptions{})
	tb.Cleanup(func() { _ = storage.Close() })
	return storage
}
