package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

// The one command, in small: every section has its tables, and every table a
// row for each that is compared.
func TestAQuickRunWritesTheReport(t *testing.T) {
	redistest.Start(t).Close() // skips where there is no redis-server
	out := filepath.Join(t.TempDir(), "RESULTS.md")
	require.NoError(t, run(quick, "go run . -quick", out))
	written, err := os.ReadFile(out)
	require.NoError(t, err)
	report := string(written)
	for _, title := range []string{
		"## 1. One process", "### Closed, the call succeeds", "### Open, the call is rejected", "### Closed, half the calls fail",
		"### HTTP: closed, the call succeeds", "### HTTP: open, the call is rejected", "### HTTP: closed, half the calls fail",
		"## 2. A fleet on a real Redis", "### In health", "### Failures that all report at once", "### Redis's own time for a counted failure",
		"### Redis's own time, its network included", "### From the last counted failure until a breaker rejects", "### An outage",
		"## 3. Memory", "### In a process", "### In Redis",
		"## 4. False openings, and the time to open, by the size of the fleet",
		"### A service that is well: processes", "### What Redis spends on 1,000 calls", "### A service that is well: simulated processes",
		"### An outage: processes", "### An outage: simulated processes",
		"## 5. With a logger, with metrics", "### Closed, the call succeeds, told", "### Open, the call is rejected, told", "### Closed, half the calls fail, told",
		"## 6. Where we lose",
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
