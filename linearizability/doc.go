// Package linearizability checks that circuits are one thing however many
// processes use them: with Strict, on a healthy Redis, every history of
// concurrent calls is one that a single Record could have had, one change
// after the other. It is a module of its own, so that nobody else needs the
// checker.
package linearizability
