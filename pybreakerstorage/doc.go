// Package pybreakerstorage shares circuits between Go services and Python services that
// use pybreaker, or Infuse for Python, with Redis. It is for the time of a migration.
//
// A Storage is an infuse.Storage that uses Python's keys. When either side opens a
// circuit, both sides reject calls. When either side closes it, calls run on both sides.
//
// # Keys
//
// Python's keys contain the state, the numbers of failures and successes, and the second
// of the last opening. A further key, a hash that Python does not use, contains the rest
// of the record. So between Go processes a Storage keeps everything that other storages
// keep: trials, generations, suspicions, windows, overrides and sequence numbers. It
// passes the tests of package storagetest. One script writes the hash and Python's keys
// atomically.
//
// The hash also contains a copy of the values of Python's keys. If a value differs from
// the copy, Python has written it. A new state counts as a state that was set manually,
// with a new generation. A new fail_counter counts as failures, or as a success that
// ended the streak. A missing key is restored.
//
// # Limitations
//
//   - Python does not limit its trials, and ignores trials in progress.
//   - Python has no generations: late results of its calls count.
//   - Python does not wait for a confirmation. While the circuit is suspect, a Python
//     failure opens it, and a Python success dismisses the suspicion.
//   - A Go process without failures reports no successes, so it does not end a streak of
//     Python failures. Successes in Python do.
//   - A Python success that leaves fail_counter unchanged is not detected.
//   - Python does not evaluate failure rates, but follows the openings that they cause.
//     It ignores overrides.
//   - Each side uses its own reset timeout. Python ignores Retry-After and exponential
//     backoff.
//   - The Go side polls, so it detects a new state up to 1.5 × PollInterval late.
//   - A Python process that detects a state set by another process restarts its count,
//     and may forget failures, including failures in Go.
//   - Each process of Infuse for Python closes a circuit at its first use. The Go side
//     follows.
//
// # Clocks
//
// Go uses only the clock of Redis. Python uses the clock of each process. After an opening
// by Go, a Python process whose clock is ahead of Redis sends its trial too early, by the
// difference of the clocks; if its clock is behind, it sends its trial too late. Go measures the open
// duration of a Python opening from opened_at, but not from a time in the future, and not
// from before the last write by Go. opened_at has whole seconds, so the open duration may
// be up to one second too short.
package pybreakerstorage
