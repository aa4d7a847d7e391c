// Package plan has what a member of a fleet is given, and what it returns.
package plan

import "time"

// Plan is what a process does: Phases one after the other, in circuits of their own.
type Plan struct {
	Gobreaker bool // its shared mode, in place of Infuse
	FailMax   int
	Process   uint64
	Rate      float64 // calls a second
	Circuits  []Circuit
	Phases    []Phase
}

// Circuit is one that the fleet shares, on a Redis of its own.
type Circuit struct {
	Addr   string
	Errors float64 // the share of calls that fail
}

// Phase is a time in which calls are made in one circuit.
type Phase struct {
	Circuit    int
	Start, End time.Duration
	Seed       uint64 // of the times and outcomes of the calls
}

// Tally is what became of the calls of a phase.
type Tally struct{ Ran, Rejected, Broke int64 }
