// Package fleettest has the tests of whole fleets on real Redis servers, and of
// what befalls them: processes that are killed, servers that are killed,
// stopped, flushed or replaced, networks that lose, delay and swallow. It uses
// the public API alone, and has no code but tests.
//
// A test of one file belongs beside that file. One that needs several
// processes, or a fault of a real server, belongs here.
//
// CI=true also runs what takes long. INFUSE_SOAK=60s sets how long the soak
// takes, and INFUSE_SOAK_SEED repeats its choices.
package fleettest
