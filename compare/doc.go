// Package compare replays the same sequences of calls against Infuse, a plain
// reference model, and two other breakers that evaluate a failure rate over a
// window of time. Its tests write down at which call each of them opens, and
// why they differ: see README.md. It is a module of its own, so that
// nobody else needs the others.
package compare
