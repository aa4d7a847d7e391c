// Package infuse is a circuit breaker for Go services. A fleet of processes
// shares its state through Redis, and a healthy call costs no I/O.
//
// When a service is sick, calls to it fail before they are sent. After a while
// one trial call finds out whether the service is well again.
//
// Most users want a [Transport] in their http.Client:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// Everything else is a [Breaker] and its Call, or [Do] for calls with a value.
//
// # The own circuit and the fleet's
//
// All processes that use the same storage make a fleet. For each service that
// they call, the fleet has one circuit, and every process has one of its own. A
// call must pass both.
//
// The own circuit counts the calls of this process. It is an ordinary local
// breaker: after [Config.FailMax] failures in a row, or at a
// [Config.FailureRate], it opens, for this process alone. Without a
// [Config.Storage], and while the storage is away, it is all there is: see
// [Config.Fallback].
//
// The fleet's circuit counts the failures that all processes report. When these
// reach FailMax or the rate, it becomes suspect: every process reports what it
// sees for a moment ([Config.Suspicion]), and calls still run. If more than four
// calls in five fail, or the rate is what it seemed, the circuit opens for all;
// if not, it stays closed.
//
// A storage hears of failures, trials and transitions, and of successes only
// while there are failures. Each process decides from a view of the circuit that
// it keeps up to date in the background. So a call in a healthy circuit costs
// some nanoseconds, and so does a rejected one.
//
// In one process, the states (closed, open, half-open), their defaults and the
// counting are those of pybreaker, a circuit breaker for Python:
// https://github.com/danielfm/pybreaker. The name, [Announce] and [Skip] come from
// Infuse for Python, a library that brings pybreaker to services written with the
// framework Insanic: https://github.com/crazytruth/infuse. What this documentation
// says of Infuse without more is this package.
//
// # For authors of a Storage
//
// Users of a breaker need none of these names, and the doc of each says so:
// [Storage], [Record] with its methods, [Change], [Calls], [Window], [Bucket],
// [Settlement], [Move], [Limits], [Trial], [Verdict], [AppendRecord],
// [ParseRecord], [RecordError], [CheckName], [CheckSource]. Package storagetest has
// the tests that a storage must pass.
//
// What a storage may also do is for pages and commands of operators: [Historian],
// [Lister], [Event], [MaxHistory].
package infuse
