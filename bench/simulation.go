package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// simulations has the tests of the root module print the tables of the simulated
// fleets: the simulator tests the state machine, which only they can reach.
func simulations(size sizes, r *report) error {
	if size.simulation == nil {
		r.title = "Simulated fleets"
		return nil
	}
	progress("simulated fleets")
	file := filepath.Join(os.TempDir(), "tables.md")
	test := exec.Command("go", append([]string{"test", "-run", "^TestFleetTables$", "-count", "1", "-timeout", "30m", ".", "-args"}, size.simulation[0]+"="+file)...)
	test.Dir = ".."
	if out, err := test.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -run TestFleetTables: %w: %s", err, out)
	}
	tables, err := os.ReadFile(file)
	r.title, r.intro = "Simulated fleets", string(tables)
	return err
}
