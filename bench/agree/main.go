// Agree shows what a fleet agrees on: real processes with one Redis client and
// one storage each, on a redis-server that it starts itself. It prints tables of
// calls of healthy processes that are rejected, of the calls that an outage
// costs, of faults of Redis and of processes, and of a ramp:
//
//	cd bench && go run ./agree -o AGREE.md
//
// It takes 15 minutes. It fails if a healthy call is rejected, if a circuit opens
// without an outage, if an outage of 100 % costs more calls than promised, or if
// one costs more than local breakers by more than a call or burst of each process
// (with a FailureRate, also the calls of a bucket).
// Fleets of a thousand are simulated, by the tests of the root module.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/infuse-go/infuse/bench/worker"
)

type options struct {
	length time.Duration
	rounds int
	only   string
	seed   uint64
}

func main() {
	worker.Serve(jobs)
	logging.Disable() // go-redis logs each connection that a fault costs
	var o options
	flag.DurationVar(&o.length, "for", 150*time.Second, "how long each fleet runs beside an unhealthy process, and how long faults happen")
	flag.IntVar(&o.rounds, "rounds", 7, "of each outage")
	flag.StringVar(&o.only, "only", "", "one section: unhealthy, outages, faults or ramp")
	out := flag.String("o", "", "a file to write the tables to, too")
	flag.Uint64Var(&o.seed, "seed", 1, "of the calls' times and outcomes")
	flag.Parse()
	go func() { // the redis-servers end with this process
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
		exit(fmt.Errorf("ended by %v", <-interrupted))
	}()
	exit(o.run(*out))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "agree:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (o options) run(out string) error {
	var b strings.Builder
	w := io.MultiWriter(os.Stdout, &b)
	fmt.Fprintf(w, "# What a fleet agrees on\n\nWritten by `cd bench && go run ./agree %s`: %s/%s, %d processors, %s. Each process has one Redis client and one storage, and makes calls in many circuits at once. Calls come at random times (Poisson). Settings are the defaults, except where a table names others.\n",
		strings.Join(os.Args[1:], " "), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	wrong := 0
	for _, s := range []struct {
		name string
		run  func(io.Writer) (int, error)
	}{
		{"unhealthy", func(w io.Writer) (int, error) { return unhealthyTable(w, o.length, o.seed) }},
		{"outages", func(w io.Writer) (int, error) { return outageTable(w, o.rounds, o.seed) }},
		{"faults", func(w io.Writer) (int, error) { return faultTable(w, o.length, o.seed) }},
		{"ramp", func(w io.Writer) (int, error) { return rampTable(w, o.seed) }},
	} {
		if o.only != "" && o.only != s.name {
			continue
		}
		n, err := s.run(w)
		if err != nil {
			return err
		}
		wrong += n
	}
	if out != "" {
		if err := os.WriteFile(out, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d values are wrong", wrong)
	}
	return nil
}

func table(w io.Writer, head []string, rows [][]string) {
	fmt.Fprintf(w, "| %s |\n| --- %s|\n", strings.Join(head, " | "), strings.Repeat("| --: ", len(head)-1))
	for _, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}
