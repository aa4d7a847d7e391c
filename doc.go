// Package infuse is a circuit breaker whose state many processes share, at the
// price of a local one.
//
// When a service is sick, calls to it fail before they are sent, in every
// process of the fleet, and one careful trial finds out when it is well again.
// The state machine is pybreaker's (closed, open, half-open); it is kept in a
// [Storage]: memory for one process and for unit tests, Redis for a fleet.
//
// Most users want a [Transport] in their http.Client:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// Everything else is a [Breaker] and its Call, or [Do] for calls with a value.
//
// A storage hears only what matters: failures, trials and transitions. Every
// breaker decides from its own view of the circuit, which others' transitions
// reach by push. A call in a healthy circuit costs some nanoseconds and no
// I/O; so does a rejected one. While the storage is away, the breaker goes on
// by itself: see [Config.Fallback].
package infuse
