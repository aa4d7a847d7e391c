// The benchmark measures Infuse beside other breakers, in turns within one run, and
// writes the tables into RESULTS.md, with pictures in plots/:
//
//	cd bench && go run . -old ../../second
//
// The checkout behind -old is the version that the cost for Redis is compared with:
// git worktree add ../../second cf206a2. It may be left out.
//
// It needs a redis-server in the PATH, takes about 20 minutes, and wants a machine
// that does nothing else. -only names the sections to measure; the others stay as
// they are in RESULTS.md. With -quick it measures the calls of one process alone,
// beside eapache/go-resiliency and gobreaker, and prints that in about a minute.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/infuse-go/infuse/bench/results"
	"github.com/infuse-go/infuse/bench/worker"
)

// sizes are how much is measured.
type sizes struct {
	rounds int           // of everything that is compared
	batch  time.Duration // of calls that are timed together

	atOnce      []int // calls that fail at the same time
	fleet       int
	fleetTime   time.Duration
	fleetRounds int

	failuresEach    int   // of each process, for the failures that are lost
	outages         []int // sizes of fleets
	trips           int
	health, failure time.Duration

	costProcesses []int           // sizes of the fleets whose cost for Redis is measured
	costTimes     []time.Duration // of a phase of each
	costErrors    []float64       // shares of failing calls
	costRounds    int

	rate          float64   // calls a second of each process
	errors        []float64 // the shares of calls that fail while the service is healthy
	processes     []int     // in real fleets
	simulated     []fleetSize
	openings      int           // rounds of an outage
	calm, watched time.Duration // before the outage, and from then on

	circuits      int // of ours in one process, and in Redis
	peersCircuits int

	simulation []string // arguments of the simulation's test
}

var (
	full = sizes{
		rounds: 41, batch: 5 * time.Millisecond, // on a busy machine better than few long ones
		atOnce: []int{1, 100, 1000, 16_000},
		fleet:  8, fleetTime: 4 * time.Second, fleetRounds: 3, failuresEach: 50,
		outages: []int{8, 100, 1000}, trips: 11, health: 5 * time.Second, failure: 5 * time.Second,
		costProcesses: []int{8, 20, 100}, costTimes: []time.Duration{4 * time.Second, 3 * time.Second, 2400 * time.Millisecond},
		costErrors: []float64{0, 0.01, 0.05, 0.2, 0.5}, costRounds: 3,
		rate: 20, errors: []float64{0.01, 0.05, 0.1, 0.2}, processes: []int{8, 20, 50, 100},
		simulated: []fleetSize{{10, time.Hour}, {100, 6 * time.Minute}, {1000, 36 * time.Second}, {10_000, 5 * time.Second}},
		openings:  3, calm: 500 * time.Millisecond, watched: 2 * time.Second,
		circuits: 10_000, peersCircuits: 1000,
		simulation: []string{"-fleet.table"},
	}
	brief = sizes{ // proves that the benchmark works, and nothing else
		rounds: 1, batch: time.Millisecond,
		atOnce: []int{1, 50},
		fleet:  8, fleetTime: 200 * time.Millisecond, fleetRounds: 1, failuresEach: 2,
		outages: []int{8, 24}, trips: 2, health: 300 * time.Millisecond, failure: 1500 * time.Millisecond,
		costProcesses: []int{3}, costTimes: []time.Duration{500 * time.Millisecond}, costErrors: []float64{0, 0.5}, costRounds: 1,
		rate: 20, errors: []float64{0.01, 0.1}, processes: []int{3},
		simulated: []fleetSize{{10, 5 * time.Second}},
		openings:  1, calm: 100 * time.Millisecond, watched: 900 * time.Millisecond,
		circuits: 300, peersCircuits: 30,
	}
)

// mostTime ends a run that hangs.
const mostTime = 40 * time.Minute

// jobs are what this program is started again for.
var jobs = map[string]worker.Job{callerJob: callerWork, simulationJob: simulationWork}

// part is a section of RESULTS.md.
type part struct {
	name    string
	measure func(sizes, *report) error
}

var parts = []part{
	{"process", process}, {"http", requests}, {"at-once", atOnce}, {"telemetry", telemetry}, {"memory", memory},
	{"fleet", fleets}, {"cost", costs}, {"sizes", bySize}, {"simulation", simulations},
}

func main() {
	worker.Serve(jobs)
	isQuick := flag.Bool("quick", false, "measure the calls of one process beside eapache/go-resiliency and gobreaker, and print the table")
	out := flag.String("o", "RESULTS.md", "the file whose sections are written")
	only := flag.String("only", "", "the sections to measure, with commas between them; empty: all")
	flag.StringVar(&oldTree, "old", "", "a checkout of another version, whose cost for Redis is measured beside")
	flag.Parse()
	done := make(chan error, 1)
	clean, err := ownTemp()
	if err == nil {
		go func() {
			if *isQuick {
				done <- quick(glance, os.Stdout)
			} else {
				done <- run(full, *only, *out)
			}
		}()
		err = await(done)
		clean()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// await waits for the run, or for what ends it early. The redis-servers end
// with this process.
func await(done <-chan error) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	select {
	case err := <-done:
		return err
	case s := <-interrupted:
		return fmt.Errorf("ended by %v", s)
	case <-time.After(mostTime):
		return fmt.Errorf("not done after %v", mostTime)
	}
}

// ownTemp has all temporary files made in one directory, which clean removes.
func ownTemp() (clean func(), err error) {
	dir, err := os.MkdirTemp("", "infuse-bench-")
	if err != nil {
		return nil, err
	}
	return func() { _ = os.RemoveAll(dir) }, os.Setenv("TMPDIR", dir)
}

// run measures the sections, and writes each as soon as it is there.
func run(size sizes, only, out string) error {
	wanted := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	for _, name := range wanted {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("no section %q", name)
		}
	}
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		r := &report{sizes: size, dir: filepath.Dir(out)}
		began := results.Begin()
		if err := p.measure(size, r); err != nil {
			return fmt.Errorf("section %s: %w", p.name, err)
		}
		command := "go run . -only " + p.name
		if p.name == "cost" && oldTree != "" {
			command += " -old <checkout of cf206a2>"
		}
		if err := results.Write(out, p.name, r.text()+"\n"+began.Facts(command)); err != nil {
			return err
		}
	}
	return nil
}

// progress says on the terminal what is being measured.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
