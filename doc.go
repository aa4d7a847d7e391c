// Package infuse is a circuit breaker for Go services. All processes share its
// state through Redis, and a successful call does no I/O.
//
// While a service is unhealthy, calls fail fast without being sent. After a while
// one trial call tests whether the service has recovered.
//
// Most users need only a [Transport] in their http.Client:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// For calls other than HTTP, make a [Breaker] and use its Call, or [Do] for calls
// that return a value.
//
// # Local and shared circuits
//
// All processes with the same storage are a fleet. For each service that it calls,
// a process has a local circuit, and the fleet has a shared circuit. A call runs
// only if both circuits allow it.
//
// The local circuit counts the calls of its process. It is an ordinary in-process
// breaker: at [Config.FailMax] consecutive failures, or at a [Config.FailureRate],
// it opens for this process. Without a [Config.Storage] it is the only circuit.
// While the storage is unavailable, [Config.StorageDown] decides; by default the
// local circuit does.
//
// The shared circuit counts the failures that all processes report. At FailMax or
// the rate it becomes suspect: calls still run, and every process reports its
// results. It opens if failures of more than one process confirm it
// ([Config.Suspicion]). Then it rejects the calls of each process whose own last
// call failed. So the calls of a process that reaches the service are not rejected
// because others fail. Manual changes and [Config.Ramp] apply to all processes.
//
// Failures, trials and state changes are reported to the storage; successes are
// reported only after recent failures. Each process decides from the last known
// state, which is updated in the background. So a call in a closed circuit costs
// some nanoseconds, and so does a rejection. docs/concepts.md has the precise rules.
//
// In one process, the states (closed, open, half-open), the defaults and the
// counting are those of pybreaker, a circuit breaker for Python:
// https://github.com/danielfm/pybreaker. The name, [Announce] and [Skip] come from
// Infuse for Python, a library that connects pybreaker with services written with
// the framework Insanic: https://github.com/crazytruth/infuse. "Infuse" in this
// documentation means this package.
//
// # For authors of a Storage
//
// Users of a breaker need none of these names, and the doc of each repeats that:
// [Storage], [Record] with its methods, [Change], [Calls], [Window], [Bucket],
// [Settlement], [ManualState], [Limits], [Trial], [Verdict], [AppendRecord],
// [ParseRecord], [RecordError], [CheckName], [CheckSource]. Package storagetest has
// the tests that a storage must pass. Their constants are [VerdictRefused],
// [VerdictApplied], [VerdictChanged] and [MaxNameLength].
//
// Optional methods of a storage, for ops pages and commands: [Historian], [Lister],
// [Event], [MaxHistory].
package infuse
