// Agree measures real processes of the operating system, with one Redis client and
// one storage each, on a redis-server that it starts itself: calls of healthy
// processes that are rejected beside an unhealthy one, calls of an outage, faults of
// Redis and of processes, failure rates, and a ramp. It writes the tables into
// RESULTS.md:
//
//	cd bench && go run ./agree
//
// It takes a quarter of an hour. It fails if a healthy call is rejected or a circuit
// opens without an outage, beside an unhealthy process or in a fault; if an outage of
// 100 % costs more calls than promised, or more than local breakers need and one call
// or burst of each process (with a FailureRate, also the calls of a bucket); and if a
// ramp lets more calls run than its share. Fleets of a thousand are simulated, by the
// tests of the root module.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/infuse-go/infuse/bench/results"
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
	flag.DurationVar(&o.length, "for", 150*time.Second, "how long each fleet runs beside an unhealthy process, in faults, and with a failure rate")
	flag.IntVar(&o.rounds, "rounds", 5, "of each outage")
	flag.StringVar(&o.only, "only", "", "one section: unhealthy, outages, faults, rates or ramp")
	out := flag.String("o", "RESULTS.md", "the file whose sections are written")
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
	wrong := 0
	for _, s := range []struct {
		name string
		run  func(io.Writer) (int, error)
	}{
		{"unhealthy", func(w io.Writer) (int, error) { return unhealthyTable(w, o.length, o.seed) }},
		{"outages", func(w io.Writer) (int, error) { return outageTable(w, o.rounds, o.seed) }},
		{"faults", func(w io.Writer) (int, error) { return faultTable(w, o.length, o.seed) }},
		{"rates", func(w io.Writer) (int, error) { return 0, rateTable(w, o.length, o.seed) }},
		{"ramp", func(w io.Writer) (int, error) { return rampTable(w, o.seed) }},
	} {
		if o.only != "" && o.only != s.name {
			continue
		}
		var b strings.Builder
		began := results.Begin()
		n, err := s.run(&b)
		if err != nil {
			return err
		}
		wrong += n
		command := strings.Join(append([]string{"go run ./agree -only", s.name}, others(os.Args[1:])...), " ")
		if err := results.Write(out, s.name, b.String()+"\n"+began.Facts(command)); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d values are wrong", wrong)
	}
	return nil
}

// others returns the flags that are not of which section or file.
func others(args []string) (kept []string) {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] != "-only" && args[i] != "-o" {
			kept = append(kept, args[i], args[i+1])
		}
	}
	return kept
}

func table(w io.Writer, head []string, rows [][]string) {
	fmt.Fprintf(w, "| %s |\n| --- %s|\n", strings.Join(head, " | "), strings.Repeat("| --: ", len(head)-1))
	for _, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}
