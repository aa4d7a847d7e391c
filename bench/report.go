package main

import (
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// report is a section of RESULTS.md.
type report struct {
	sizes  sizes
	dir    string // of the file
	title  string
	intro  string
	tables []table
	losses [][]string // where others have the lower figure

	// Drawn.
	simulated                     []besides
	realOutages, simulatedOutages []opening
}

type table struct {
	title, text string
	picture     string // a file; may be empty
	head        []string
	rows        [][]string
}

// text is the section as RESULTS.md has it.
func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n", r.title)
	if r.intro != "" {
		fmt.Fprintf(&b, "\n%s\n", r.intro)
	}
	tables := r.tables
	if len(r.losses) > 0 {
		tables = append(tables, table{title: r.title + ": where others need less", head: []string{"", "Infuse", "others"}, rows: r.losses})
	}
	for _, t := range tables {
		b.WriteString("\n")
		t.write(&b)
	}
	return b.String()
}

// figure is one that was found, and of what.
type figure struct {
	name  string
	value float64
}

// compare notes who has a lower figure than Infuse.
func (r *report) compare(what string, print func(float64) string, ours float64, others ...figure) {
	var better []string
	for _, other := range others {
		if other.value < ours {
			better = append(better, other.name+" "+print(other.value))
		}
	}
	if better != nil {
		r.losses = append(r.losses, []string{what, print(ours), strings.Join(better, ", ")})
	}
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
	t.rows = append(t.rows, []string{infuseName, "this tree", fmt.Sprintf("opens at %d consecutive failures, for an hour, like all others that can", fewFailures)})
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

// count prints a number of events; of none, the upper 95 % bound of its mean.
func count(n float64) string {
	if n == 0 {
		return "0 (< 3)"
	}
	return number(n)
}

// shareOf prints the share of calls that something happened to.
func shareOf(n, calls int64) string {
	if n == 0 && calls > 0 {
		return "0 % (< " + percent(3/float64(calls)) + ")"
	}
	return percent(float64(n) / float64(max(1, calls)))
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
