package main

// This file contains the text of a plan.

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// print writes the plan as text.
func (e *estimate) print(w io.Writer, p *planInput) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	row := func(name, number, text string) { fmt.Fprintf(t, "%s\t%s\t%s\n", name, number, text) }

	fmt.Fprintf(t, "Processes %d, calls/s per process %s, baseline error rate %s %%.\n", p.processes, figure(p.calls), figure(100*p.errors))
	fmt.Fprintf(t, "FailMax %s, FailureRate %s, ResetTimeout %s, Suspicion %s, PollInterval %s.\n\n",
		orOff(float64(p.failMax)), p.rateText(), brief(p.resetTimeout), p.suspicion, p.pollInterval)

	row("FALSE OPENINGS", "PER HOUR", "")
	row("local circuit of one process", figure(e.LocalPerHour), often(e.LocalPerHour))
	row("local circuits of all processes", figure(e.AllLocalPerHour), often(e.AllLocalPerHour))
	row("shared circuit suspect (calls run)", figure(e.SuspectPerHour), often(e.SuspectPerHour))
	row("shared circuit open, at most", figure(e.SharedPerHour), often(e.SharedPerHour))
	row("", "", "")
	row("OUTAGE (every call fails)", "CALLS", "")
	if e.OutageCalls == nil {
		row("until all processes reject", "all", "these settings never detect an outage")
	} else {
		row("until all processes reject", figure(math.Ceil(*e.OutageCalls)), "after "+short(*e.OutageSeconds))
	}
	if e.OutageCallsLocal != nil {
		row("until then without a storage", figure(math.Ceil(*e.OutageCallsLocal)), "")
	}
	if e.OutageCalls != nil {
		row("then trials, at most", "2", "every "+brief(p.resetTimeout))
	}
	row("", "", "")
	name := "REDIS"
	if p.circuits > 1 {
		name = fmt.Sprintf("REDIS (%d circuits)", p.circuits)
	}
	row(name, "COMMANDS/S", "")
	row("no errors", figure(e.Healthy), "")
	row("baseline errors", figure(e.Baseline), "")
	if e.OutageCalls != nil {
		row("outage, while open", figure(e.Outage), "and "+figure(math.Ceil(e.OpeningBurst))+" commands when it opens")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, note := range e.notes(p) {
		b.WriteString("\n" + note + "\n")
	}
	for line := range strings.Lines(b.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// short formats seconds with two significant digits.
func short(s float64) string {
	if s < 60 {
		return figure(s) + " s"
	}
	return brief(time.Duration(min(s, 1e9) * float64(time.Second)))
}

func (p *planInput) rateText() string {
	if p.failureRate == 0 {
		return "off"
	}
	return fmt.Sprintf("%s (of %d calls or more in %s)", figure(p.failureRate), p.minCalls, brief(p.window))
}

// notes returns warnings about the settings.
func (e *estimate) notes(p *planInput) (all []string) {
	inWindow := func(calls float64) string { return figure(math.Floor(calls * p.window.Seconds())) }
	if p.failureRate > 0 && !e.LocalRateWorks {
		all = append(all, fmt.Sprintf("The local FailureRate has no effect: a window has %s calls, and MinCalls is %d.", inWindow(p.calls), p.minCalls))
	}
	if p.failureRate > 0 && p.processes > 1 && !e.RateWorks {
		all = append(all, fmt.Sprintf("The shared FailureRate has no effect: a window has %s calls, and MinCalls is %d.", inWindow(p.calls*float64(p.processes)), p.minCalls))
	}
	if p.failureRate > 0 && p.errors >= p.failureRate {
		all = append(all, "The baseline error rate is not below FailureRate.")
	}
	if p.processes == 1 {
		all = append(all, "A single process never opens the shared circuit, only its local circuit.")
	}
	return all
}

func orOff(n float64) string {
	if n == 0 {
		return "off"
	}
	return figure(n)
}

// figure formats a number with two significant digits, without an exponent.
func figure(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 1e-6:
		return "< 0.000001"
	case x >= 10 && x < 1e15:
		return thousands(strconv.FormatFloat(math.Round(x), 'f', -1, 64))
	}
	short, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 2, 64), 64)
	return strconv.FormatFloat(short, 'f', -1, 64)
}

func thousands(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// often describes a rate per hour in words.
func often(perHour float64) string {
	const year = 24 * 365.25
	switch {
	case perHour == 0:
		return "never"
	case perHour < 1/(1000*year):
		return "less than once in 1,000 years"
	case perHour < 1/year:
		return "once in " + figure(1/perHour/year) + " years"
	case perHour < 1.0/48:
		return "once in " + figure(1/perHour/24) + " days"
	case perHour < 1:
		return "once in " + figure(1/perHour) + " hours"
	case perHour < 60:
		return "once in " + figure(60/perHour) + " minutes"
	}
	return "once in " + figure(3600/perHour) + " seconds"
}
