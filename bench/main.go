// The benchmark measures Infuse beside other breakers, in turns within one
// run, and writes what it found to RESULTS.md, with pictures in plots/:
//
//	cd bench && go run .
//
// It needs a redis-server in the PATH, takes about ten minutes, and wants a
// machine that does nothing else: fleets of processes open falsely on one that
// stands still. With -quick it takes seconds and proves nothing but that it works.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/infuse-go/infuse/bench/worker"
)

// sizes are how much is measured.
type sizes struct {
	rounds int           // of everything that is compared
	batch  time.Duration // of calls that are timed together

	fleet           int
	fleetTime       time.Duration
	fleetRounds     int
	failuresEach    int   // of a fleet's member, for what is lost
	outages         []int // sizes of fleets
	trips           int
	health, failure time.Duration

	rate          float64   // calls a second of each process
	errors        []float64 // the shares of calls that fail while the service is well
	processes     []int     // in real fleets
	processTime   time.Duration
	simulated     []fleetSize
	openings      int           // rounds of an outage
	calm, watched time.Duration // before the outage, and from then on

	circuits      int // of ours in one process, and in Redis
	peersCircuits int
}

var (
	full = sizes{
		rounds: 9, batch: 60 * time.Millisecond,
		fleet: 8, fleetTime: 5 * time.Second, fleetRounds: 3, failuresEach: 50,
		outages: []int{8, 100, 1000}, trips: 11, health: 5 * time.Second, failure: 5 * time.Second,
		rate: 20, errors: []float64{0.01, 0.05, 0.1, 0.2}, processes: []int{8, 20, 50, 100}, processTime: 6 * time.Second,
		simulated: []fleetSize{{10, time.Hour}, {100, 6 * time.Minute}, {1000, 36 * time.Second}, {10_000, 5 * time.Second}},
		openings:  3, calm: 500 * time.Millisecond, watched: 2 * time.Second,
		circuits: 10_000, peersCircuits: 1000,
	}
	quick = sizes{
		rounds: 1, batch: time.Millisecond,
		fleet: 8, fleetTime: 200 * time.Millisecond, fleetRounds: 1, failuresEach: 2,
		outages: []int{8, 24}, trips: 2, health: 300 * time.Millisecond, failure: 1500 * time.Millisecond,
		rate: 20, errors: []float64{0.01, 0.1}, processes: []int{3}, processTime: 200 * time.Millisecond,
		simulated: []fleetSize{{10, 5 * time.Second}},
		openings:  1, calm: 100 * time.Millisecond, watched: 900 * time.Millisecond,
		circuits: 300, peersCircuits: 30,
	}
)

// mostTime ends a run that hangs.
const mostTime = 20 * time.Minute

// jobs are what this program is started again for.
var jobs = map[string]worker.Job{callerJob: callerWork, simulationJob: simulationWork}

func main() {
	worker.Serve(jobs)
	isQuick := flag.Bool("quick", false, "a run of seconds that proves that the benchmark works, and nothing else")
	out := flag.String("o", "RESULTS.md", "the file to write")
	flag.StringVar(&oldScript, "old-script", "", "a file with the one script of the first version, to be measured beside: git show 31ba884:circuit.lua")
	flag.Parse()
	size, command := full, "go run ."
	if *isQuick {
		size, command = quick, "go run . -quick"
	}
	if oldScript != "" {
		command += " -old-script circuit.lua"
	}
	done := make(chan error, 1)
	clean, err := ownTemp()
	if err == nil {
		go func() { done <- run(size, command, *out) }()
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

// run measures everything, and writes the report only when all of it is there.
func run(size sizes, command, out string) error {
	began := time.Now()
	r := &report{command: command, sizes: size}
	for _, section := range []func(sizes, *report) error{process, fleets, memory, bySize, telemetry, losses} {
		if err := section(size, r); err != nil {
			return err
		}
	}
	r.took = time.Since(began)
	if err := r.plots(filepath.Dir(out)); err != nil {
		return err
	}
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := r.write(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// progress says on the terminal what is being measured.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
