// Package results keeps RESULTS.md: a page of method, and one part for each section
// of a program, between two comments. So a section can be measured again alone.
package results

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Write replaces the part of the section in the file. The file has it already: its
// order is that of the page.
func Write(file, section, text string) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := marker(section), marker("end of "+section)
	head, rest, found := strings.Cut(string(page), begin)
	_, tail, ends := strings.Cut(rest, end)
	if !found || !ends {
		return fmt.Errorf("%s has no part between %q and %q", file, begin, end)
	}
	return os.WriteFile(file, []byte(head+begin+"\n"+strings.TrimSpace(text)+"\n"+end+tail), 0o644)
}

func marker(name string) string { return "<!-- " + name + " -->" }

// A Run is the measuring of a section.
type Run struct {
	began time.Time
	load  string
}

// Begin starts to measure.
func Begin() Run { return Run{time.Now(), load()} }

// Facts are the last line of a section: when, where and how it was measured.
func (r Run) Facts(command string) string {
	return fmt.Sprintf("_`cd bench && %s` on %s: %v, on %s, %s/%s, %d processors, %s, %s; load average %s before, %s after._",
		command, r.began.UTC().Format("2006-01-02 15:04 UTC"), time.Since(r.began).Round(time.Second),
		CPU(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), redisVersion(), r.load, load())
}

// load is that of the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(text)); len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}

// CPU is the name of the processor.
func CPU() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "an unknown processor"
}

func redisVersion() string {
	out, err := exec.Command("redis-server", "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 2 {
		return "redis-server " + strings.TrimPrefix(fields[2], "v=")
	}
	return "redis-server of an unknown version"
}

// Count prints a number of events and, if there is none, the upper 95 % bound of its
// rate: 3 for each of so many calls or hours. The unit is that of the rate.
func Count(n, among float64, unit string) string {
	switch {
	case n > 0:
		return fmt.Sprintf("%g (%s%s)", n, brief(n/among), unit)
	case among == 0:
		return "0"
	}
	return fmt.Sprintf("0 (< %s%s)", brief(3/among), unit)
}

// brief prints two digits, or all before the point.
func brief(x float64) string {
	if x >= 10 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2g", x)
}
