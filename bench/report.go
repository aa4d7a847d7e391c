package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// report is RESULTS.md: sections of tables.
type report struct {
	command  string
	sizes    sizes
	took     time.Duration
	sections []section
	losses   [][]string // rows of section 6

	// What is drawn.
	simulated                     []besides
	realOutages, simulatedOutages []opening
}

type section struct {
	title, text string
	tables      []table
}

type table struct {
	title, text string
	picture     string // a file; may be empty
	head        []string
	rows        [][]string
}

func (r *report) add(s section) { r.sections = append(r.sections, s) }

func (r *report) write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Measured beside the others, in one run\n\n")
	fmt.Fprintf(&b, "Written by `cd bench && %s` in %v: %s, %s/%s, %d of %d processors, %s, %s. ",
		r.command, r.took.Round(time.Second), cpu(), runtime.GOOS, runtime.GOARCH,
		runtime.GOMAXPROCS(0), runtime.NumCPU(), runtime.Version(), redisVersion())
	fmt.Fprintf(&b, "All took turns; figures are medians of %d rounds, where nothing else is said.\n\n", r.sizes.rounds)
	modules().write(&b)
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n## %s\n", s.title)
		if s.text != "" {
			fmt.Fprintf(&b, "\n%s\n", s.text)
		}
		for _, t := range s.tables {
			b.WriteString("\n")
			t.write(&b)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t table) write(b *strings.Builder) {
	if t.title != "" {
		fmt.Fprintf(b, "### %s\n\n", t.title)
	}
	if t.text != "" {
		fmt.Fprintf(b, "%s\n\n", t.text)
	}
	if t.picture != "" {
		fmt.Fprintf(b, "![%s](%s)\n\n", t.title, t.picture)
	}
	rule := make([]string, len(t.head))
	for i := range rule {
		rule[i] = "---"
		if cell := t.rows[0][i]; cell != "" && cell[0] >= '0' && cell[0] <= '9' {
			rule[i] = "--:"
		}
	}
	for _, row := range append([][]string{t.head, rule}, t.rows...) {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
}

// modules are the versions of all that is measured, from the build itself.
func modules() table {
	versions := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			versions[m.Path] = m.Version
		}
	}
	t := table{head: []string{"what", "version", "how it is set"}}
	t.rows = append(t.rows, []string{infuseName, "this tree", fmt.Sprintf("opens at %d failures in a row, for an hour; so do all others where they can", fewFailures)})
	seen := map[string]bool{"": true}
	for _, s := range append(subjects(nil), webSubjects()...) {
		if seen[s.module] {
			continue
		}
		seen[s.module] = true
		t.rows = append(t.rows, []string{strings.TrimPrefix(s.module, "github.com/"), versions[s.module], s.set})
	}
	for _, m := range []string{"github.com/redis/go-redis/v9", "github.com/go-redsync/redsync/v4"} {
		t.rows = append(t.rows, []string{strings.TrimPrefix(m, "github.com/"), versions[m], ""})
	}
	return t
}

func cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "a processor that does not say its name"
}

func redisVersion() string {
	out, err := exec.Command("redis-server", "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 2 {
		return "redis-server " + strings.TrimPrefix(fields[2], "v=")
	}
	return "redis-server of an unknown version"
}

// number prints three digits that matter.
func number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return whole(int64(math.Round(x)))
}

// whole prints a number that is counted, not measured.
func whole(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// percent prints a share: two digits that matter, where it is small.
func percent(share float64) string {
	switch x := 100 * share; {
	case x == 0:
		return "0 %"
	case x < 0.095:
		return fmt.Sprintf("%.2g %%", x)
	case x < 9.95:
		return fmt.Sprintf("%.1f %%", x)
	default:
		return fmt.Sprintf("%.0f %%", x)
	}
}

func milliseconds(d time.Duration) string { return number(d.Seconds() * 1000) }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func medianOf[T any](of []T, value func(T) float64) float64 {
	values := make([]float64, len(of))
	for i, x := range of {
		values[i] = value(x)
	}
	return median(values)
}
