// Package infuse is a circuit breaker for Go services. All processes share its
// state through Redis, and a successful call does no I/O.
//
// While a service is unhealthy, calls fail fast without being sent. After a while
// one trial call tests whether the service has recovered.
//
// Most users want a [Transport] in their http.Client:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// For other calls, make a [Breaker] and use its Call, or [Do] for a func that returns a
// value.
//
// # Local and shared circuits
//
// All processes that use the same storage make a fleet. For each service that they
// call, every process has a local circuit, and the fleet has a shared one. A call
// runs only if both allow it.
//
// The local circuit counts the calls of this process. It is an ordinary in-process
// breaker: at [Config.FailMax] consecutive failures, or at a
// [Config.FailureRate], it opens for this process. Without a [Config.Storage],
// and while the storage is unavailable, it is the only one: see [Config.StorageDown].
//
// The shared circuit counts the failures that all processes report. At FailMax or
// the rate it becomes suspect: calls still run, and every process reports its
// results. It opens if failures of more than one process confirm it
// ([Config.Suspicion]). Then it rejects the calls of each process whose own last
// call failed. So the calls of a process that reaches the service are never
// rejected because of the others. Exceptions are manual changes, overrides,
// [Config.Ramp] and [StorageDownReject].
//
// Failures, trials and transitions are reported to the storage; successes only
// while there are failures. Each process decides from the last known state, which
// is updated in the background. So a call in a closed circuit costs some
// nanoseconds, and so does a rejection. The precise rules are in
// docs/concepts.md.
//
// In one process, the states (closed, open, half-open), their defaults and the
// counting are those of pybreaker, a circuit breaker for Python:
// https://github.com/danielfm/pybreaker. The name, [Announce] and [Skip] come from
// Infuse for Python, a library that connects pybreaker with services written with
// the framework Insanic: https://github.com/crazytruth/infuse. "Infuse" in this
// documentation means this package.
//
// # For authors of a Storage
//
// Users of a breaker need none of these names, and the doc of each says so:
// [Storage], [Record] with its methods, [Change], [Calls], [Window], [Bucket],
// [Settlement], [ManualState], [Limits], [Trial], [Verdict], [AppendRecord],
// [ParseRecord], [RecordError], [CheckName], [CheckSource]. Package storagetest has
// the tests that a storage must pass.
//
// Optional methods of a storage, for pages and commands of operators: [Historian],
// [Lister], [Event], [MaxHistory].
package infuse
