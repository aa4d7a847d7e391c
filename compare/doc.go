// Package compare replays the same sequences of calls with Infuse, with a simple reference
// model, and with two other breakers that evaluate a failure rate over a time window. Its
// tests record at which call each of them opens, and why they differ: see README.md. It is
// a separate module, so that users of Infuse do not depend on the other breakers.
package compare
