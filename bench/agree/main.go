// Agree shows what a fleet agrees on: fleets whose members have a Redis client
// and a storage of their own each, with the default settings, on a real
// redis-server that it starts itself. It prints a table with a verdict for
// each case:
//
//	cd bench && go run ./agree -for 30s -o AGREE.md
//
// It takes about ten minutes. The failure rate and the ramp have tables of their
// own, in about fifteen:
//
//	cd bench && go run ./agree -rates -o RATES.md
//
// It wants a machine that does nothing else. Fleets of a thousand are simulated,
// by the tests of the root module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/infuse-go/infuse/bench/worker"
)

type settings struct {
	usual  time.Duration // of a case
	pause  time.Duration // of Redis
	rounds int           // of an outage
	rates  bool
	only   *regexp.Regexp
	seed   uint64
}

func main() {
	worker.Serve(jobs)
	var s settings
	flag.DurationVar(&s.usual, "for", 30*time.Second, "how long each case lasts; some few calls a second take five times as long")
	flag.DurationVar(&s.pause, "pause", 0, "for how long Redis stands still three times a second, in the cases that are no outage")
	flag.IntVar(&s.rounds, "rounds", 15, "of each outage")
	flag.BoolVar(&s.rates, "rates", false, "the failure rate and the ramp, in place of the rest")
	only := flag.String("only", "", "a regular expression: the cases to run, by their names")
	out := flag.String("o", "", "a file to write the tables to, too")
	flag.Uint64Var(&s.seed, "seed", 1, "of the calls' times and outcomes")
	flag.Parse()
	var err error
	if s.only, err = regexp.Compile(*only); err != nil {
		exit(err)
	}
	go func() { // the redis-servers end with this process
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
		exit(fmt.Errorf("ended by %v", <-interrupted))
	}()
	exit(run(s, *out))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "agree:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(s settings, out string) error {
	var b strings.Builder
	w := io.MultiWriter(os.Stdout, &b)
	title := "What a fleet agrees on"
	if s.rates {
		title += ": a failure rate, and a ramp"
	}
	fmt.Fprintf(w, "# %s\n\nWritten by `cd bench && go run ./agree %s`: real Redis, %s/%s, %d processors, %s.\n",
		title, strings.Join(os.Args[1:], " "), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	fmt.Fprintf(w, "Every member has a Redis client of %d connections and a storage of its own, and %s. Calls come at random times (Poisson).\n", connections, s.rule())
	failed, err := s.tables(w)
	if err != nil {
		return err
	}
	if out != "" {
		if err := os.WriteFile(out, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d cases miss their bounds", failed)
	}
	return nil
}

func (s settings) rule() string {
	if s.rates {
		return fmt.Sprintf("a FailureRate of %g in %v, MinCalls %d where nothing else is said, and otherwise the default settings: ResetTimeout %v, Suspicion %v", half.FailureRate, window, minCalls, resetTime, suspicion)
	}
	return fmt.Sprintf("the default settings: FailMax %d, ResetTimeout %v, Suspicion %v", failMax, resetTime, suspicion)
}

func (s settings) tables(w io.Writer) (failed int, err error) {
	if s.rates {
		return rateTables(w, s)
	}
	failed, err1 := steadyTable(w, s)
	more, err2 := outageTable(w, s)
	return failed + more, errors.Join(err1, err2)
}

// steadyTable runs the cases of a fleet that is to stay closed. Those with few
// calls run all at once, beside the others, which take turns.
func steadyTable(w io.Writer, s settings) (failed int, err error) {
	var light sync.WaitGroup
	rows := make([][]string, len(steadies))
	errs := make([]error, len(steadies))
	one := func(i int) {
		c := steadies[i]
		fmt.Fprintln(os.Stderr, c.name())
		o, err := c.run(s.usual, s.pause, s.seed)
		if errs[i] = err; err == nil {
			rows[i] = c.row(o)
		}
	}
	for i, c := range steadies {
		if s.only.MatchString(c.name()) && c.isLight() {
			light.Go(func() { one(i) })
		}
	}
	for i, c := range steadies {
		if s.only.MatchString(c.name()) && !c.isLight() {
			one(i)
		}
	}
	light.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	fmt.Fprint(w, "\n## A service that is well, or ill for a part of the fleet\n\nThe fleet's circuit is to stay closed, and to be suspect at most 20 times a second. A process may open its own circuit by a row of its own.\n\n")
	return table(w, steadyHead, rows), nil
}

func outageTable(w io.Writer, s settings) (failed int, err error) {
	var rows [][]string
	for _, o := range outages {
		if !s.only.MatchString(o.name()) {
			continue
		}
		fmt.Fprintln(os.Stderr, o.name())
		rounds, c, err := o.run(s.rounds, s.seed)
		if err != nil {
			return 0, err
		}
		rows = append(rows, o.row(rounds, c))
	}
	fmt.Fprint(w, "\n## A service that falls ill for all\n\nTimes are since the limit was reached: the fifth failure in a row as the service sees it or, if that was earlier, the begin of the first suspicion. The fleet opens when a member that makes no calls rejects, which has no reason of its own; a member that calls may open its own circuit before. The bound is for the median: Suspicion and three round trips, as failing calls have them (and, for comparison, as a bystander's PING has them); at 80 % errors 500 ms; for the last of 40 breakers 100 ms.\n\n")
	return table(w, outageHead, rows), nil
}

// table prints the rows that there are, and returns how many do not pass.
func table(w io.Writer, head []string, rows [][]string) (failed int) {
	rule := strings.Repeat("| --: ", len(head)-2)
	fmt.Fprintf(w, "| %s |\n| --- %s| --- |\n", strings.Join(head, " | "), rule)
	for _, row := range rows {
		if row == nil {
			continue
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if row[len(row)-1] != "pass" {
			failed++
		}
	}
	return failed
}
