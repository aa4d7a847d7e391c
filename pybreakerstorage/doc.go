// Package pybreakerstorage lets a fleet of Go services share circuits with
// Python services that run pybreaker, or Infuse for Python, on Redis. It is for
// the time of a migration.
//
// A Storage is an infuse.Storage on Python's own keys. When either side opens a
// circuit, both reject; when either closes it, both let calls through.
//
// # What is kept
//
// Python's keys hold a state, a count of failures, a count of successes and the
// second of the last opening. All else is in one more key beside them, a hash
// that Python knows nothing of. So among Go processes nothing is lost: trial
// limits, generations, suspicions, windows, overrides, and numbers that count
// once are as in any other storage, and package storagetest's tests pass. Each
// write sets the hash and Python's keys at once, in one script.
//
// The hash also has what Python's keys held when it was written. What differs
// from that was written by Python: a move of Python's is taken for a move by
// hand, with a generation of its own, and a change of fail_counter for failures,
// or for a success that ended the row. A key that is gone was not Python's doing:
// it is put back.
//
// # What the two sides do not tell each other
//
//   - Python does not limit its trials, and does not know of those that run.
//   - Python knows no generations: a late result of a Python call counts.
//   - Python does not wait for a suspicion. While the Go side asks its fleet, a
//     Python failure opens the circuit, and a Python success refutes it.
//   - A Go process that met no failure reports no success, so it does not end a
//     row of Python's failures. Python's own successes do.
//   - A success of Python's that leaves fail_counter as it was cannot be seen.
//   - Failure rates and overrides are the Go side's. Python sees what comes of
//     the rates, and nothing of an override.
//   - Each side waits for its own reset timeout. What a service asked for with
//     Retry-After, and an open time that grows, only Go waits for.
//   - The Go side learns of a move by polling, so it is late by up to one and a
//     half PollIntervals.
//   - Python begins to count anew in each process that finds the circuit moved
//     by another, and so may forget failures, also those of Go.
//   - Every process of Infuse for Python closes a circuit when it first uses it.
//     The Go side follows.
//
// # Clocks
//
// Go goes by Redis's clock alone. Python goes by the clock of each process. If a
// Python process's clock is ahead of Redis's by some seconds, it tries again so
// much earlier than it should after an opening by Go; if it is behind, so much
// later. An opening by Python counts for Go from its opened_at, but never
// from later than now, and not from before the Go side's last write, where there
// is one. opened_at has whole seconds, so a wait that is counted from it may be
// short by up to a second.
package pybreakerstorage
