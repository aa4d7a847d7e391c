// The benchmark measures Infuse beside other breakers, in turns within one
// run, and writes what it found to RESULTS.md:
//
//	cd bench && go run .
//
// It needs a redis-server in the PATH, takes a few minutes, and wants a machine
// that does nothing else. With -quick it takes seconds and proves nothing but
// that it works.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
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
	circuits        int // of ours in one process, and in Redis
	peersCircuits   int
}

var (
	full = sizes{
		rounds: 9, batch: 60 * time.Millisecond,
		fleet: 8, fleetTime: 5 * time.Second, fleetRounds: 3, failuresEach: 50,
		outages: []int{8, 100, 1000}, trips: 11, health: 5 * time.Second, failure: 5 * time.Second,
		circuits: 10_000, peersCircuits: 1000,
	}
	quick = sizes{
		rounds: 1, batch: time.Millisecond,
		fleet: 8, fleetTime: 200 * time.Millisecond, fleetRounds: 1, failuresEach: 2,
		outages: []int{8, 24}, trips: 2, health: 300 * time.Millisecond, failure: 1500 * time.Millisecond,
		circuits: 300, peersCircuits: 30,
	}
)

// mostTime ends a run that hangs.
const mostTime = 10 * time.Minute

func main() {
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
	for _, section := range []func(sizes, *report) error{process, fleets, memory} {
		if err := section(size, r); err != nil {
			return err
		}
	}
	r.took = time.Since(began)
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
