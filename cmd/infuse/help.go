package main

import (
	"fmt"
	"strings"
)

func overview() string {
	var b strings.Builder
	b.WriteString(overviewHead)
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-9s %s\n", c.name, c.does)
	}
	b.WriteString(overviewTail)
	return b.String()
}

const overviewHead = `infuse shows and steers the circuits that a fleet shares through Redis.

Usage: infuse -redis URL [flags] COMMAND [arguments]

Commands:
`

const overviewTail = `  help      tell more of a command: infuse help COMMAND

Common flags, before or after the command:
  -redis URL      where Redis is; INFUSE_REDIS in the environment says so, too,
                  and shows no password to those who can list processes
  -prefix TEXT    what the fleet's keys begin with: infuse: if not given
  -cluster        Redis is a Cluster, though the URL has no addr
  -json           print JSON, for programs
  -timeout TIME   how long to wait for Redis: 5s if not given

URLs:
  redis://user:password@host:6379/0                     a server; rediss:// with TLS
  redis://host:26379?master_name=main&addr=host2:26379  Sentinels
  redis://host:6379?addr=host2:6379                     a Cluster
  unix:///run/redis.sock                                a socket

Exit codes: 0 done, 1 failed, 2 the arguments are wrong.

Examples:
  export INFUSE_REDIS=redis://redis.internal:6379
  infuse list
  infuse show inventory.internal
  infuse watch
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse clear inventory.internal
  infuse move inventory.internal closed
  infuse serve
`

const circuitFields = `
With -json a circuit is an object. Times are of RFC 3339. A field that says
nothing is left out, but for those marked with *.
  circuit*    its name
  on_record*  whether it has a record
  state*      what calls meet: closed, open, half-open or unreadable
  behind      the state behind an override
  suspect     true: it opens soon, unless calls succeed
  since       when its state began (the one behind an override)
  due         when a trial may run, if it is open (behind an override, too)
  failures*   in a row; after an opening, as many as it took
  trials*     how many run now
  by          the instance that reported the last failure, or that moved it
  cause       of the last opening
  override    state*, by*, reason*, until (none: until it is cleared)
  error       why the record, or the history, cannot be read
`

const eventFields = `
With -json an event is an object.
  at*         when, by RFC 3339
  circuit*    its name
  what*       transition; by hand: move, override, clear; expiry, where the time
              of an override is over (in watch, and not in a history)
  from*, to*  the states; equal where it stayed as it was
  by          the instance or the person that caused it
  cause       of an opening
  override    what holds the circuit from then on, as in infuse help show
`

const nameHelp = `
A name with spaces, quotes or what cannot be printed is shown as a Go string,
and may be given so: infuse show '"a name\n"'.
`

const listHelp = `A circuit has a record while it is sick, and for an hour or so after that. One
without a record is closed. A circuit that only one process has opened for
itself is not listed.

Columns: STATE, what calls meet; SINCE, when it began; DUE IN, until a trial may
run; BY, who reported the last failure or moved it; CAUSE, what opened it;
OVERRIDE, what holds it, by whom, until when and why. With an override, SINCE
and DUE IN are of the circuit behind it. Long texts are cut, but not with -json.

Examples:
  infuse list
  infuse -prefix orders-prod: list
  infuse list -json | jq -r '.[] | select(.state == "open") | .circuit'
` + circuitFields + "With -json the list is an array of circuits.\n" + nameHelp

const showHelp = `The history has the last 50 transitions, moves and overrides. A circuit without
a record is closed; that is no failure.

Examples:
  infuse show inventory.internal
  infuse show inventory.internal -json | jq '.history[0]'
` + circuitFields + "  history     the events, the newest first; see infuse help watch\n" + nameHelp

const watchHelp = `It prints what happens from now on: to the named circuits or, without a name,
to all, also to those that fail for the first time. It goes on while Redis is
away, and says so on stderr. It ends on SIGINT and SIGTERM (with exit code 0),
and when nobody reads its output any more.

Flags:
  -interval TIME   how often to look for new circuits: 2s if not given. Where a
                   look takes long, it looks less often

Examples:
  infuse watch
  infuse watch inventory.internal prices.internal
  infuse watch -json >>circuits.log
` + eventFields + nameHelp

const overrideHelp = `Held open, no call runs; held closed, every call runs, and outcomes are still
counted. It holds for the whole fleet, also while Redis is away, until it is
over or cleared. Another override replaces it. Rejections show the reason.

Flags:
  -reason TEXT   why; required, at most 200 bytes
  -until WHEN    required: a duration from now (2h), a time of day (17:30), a full
                 time (2026-01-02T17:30:00Z), or cleared: until somebody clears it
  -by TEXT       who; user@host if not given

Examples:
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse override inventory.internal closed -reason "false alarm, INC-42" -until 06:00
  infuse override inventory.internal open -reason "gone for good" -until cleared -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const clearHelp = `The circuit goes on as what it is behind the override.

Flags:
  -by TEXT   who; user@host if not given

Examples:
  infuse clear inventory.internal
  infuse clear inventory.internal -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const moveHelp = `Closed forgets all failures. Open rejects calls for a minute, or as long as -for
says; then a trial runs. Half-open lets the next call be a trial. Calls decide
what comes next: to hold a circuit, use override. It also mends a record that
cannot be read.

Flags:
  -for TIME   how long open lasts until a trial may run: 1m if not given
  -by TEXT    who; user@host if not given

Examples:
  infuse move inventory.internal closed
  infuse move inventory.internal open -for 10m
  infuse move inventory.internal half-open -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp
