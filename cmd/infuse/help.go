package main

import (
	"fmt"
	"strings"
)

func overview() string {
	var b strings.Builder
	b.WriteString(overviewHead)
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-15s  %s\n", c.name, c.does)
	}
	b.WriteString(overviewTail)
	return b.String()
}

const overviewHead = `infuse inspects and controls the circuits that a fleet shares through Redis.

Usage: infuse -redis URL [flags] COMMAND [arguments]

Commands:
`

const overviewTail = `  help             describe a command: infuse help COMMAND

Common flags, before or after the command:
  -redis URL      the URL of Redis. Default INFUSE_REDIS
  -prefix TEXT    the prefix of the fleet's keys. Default INFUSE_PREFIX, or infuse:
  -cluster        Redis is a Cluster. Default: infuse checks the server
  -tls-ca FILE    the certificates of the CA that signed Redis's, in PEM form.
                  Default those of the system
  -tls-cert FILE  the client certificate, in PEM form
  -tls-key FILE   the key of the client certificate, in PEM form
  -json           print JSON, for programs
  -timeout TIME   the longest wait for Redis. Default 5s

Environment: INFUSE_REDIS and INFUSE_PREFIX as above. INFUSE_REDIS_PASSWORD is
used if the URL has no password. Pass no password as an argument: other users
of the machine can see arguments. No error shows any part of the URL's password.

URLs:
  redis://user:password@host:6379/0                     a server
  rediss://host:6379                                    with TLS; each -tls flag
                                                        turns it on, too
  redis://host:26379?master_name=main&addr=host2:26379  Sentinels. The user and
      password of the URL are those of the Sentinels; add username=...&password=...
      for Redis, or set INFUSE_REDIS_PASSWORD
  redis://host:6379?addr=host2:6379                     a Cluster
  unix:///run/redis.sock                                a socket
In a user name or password, write special characters as %XX: @ is %40, / is %2F.

Exit codes: 0 done, 1 failed or not found, 2 the arguments are wrong.

Examples:
  export INFUSE_REDIS=redis://redis.internal:6379
  infuse list
  infuse show inventory.internal
  infuse watch
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse remove-override inventory.internal
  infuse set-state inventory.internal closed
  infuse plan -calls 100 -processes 20 -errors 0.01
`

const circuitFields = `
With -json a circuit is an object. Times are in RFC 3339 form. Empty fields are
left out, except those marked with *.
  circuit*          its name
  on_record*        whether it has a record
  state*            what calls meet: closed, open, half-open or unreadable
  underlying_state  the state under an override
  suspect           true: the threshold was reached, and the outcome is being
                    confirmed; calls run
  since             when the state began (under an override, the underlying one)
  due               when a trial may run, if it is open (under an override, too)
  failures*         consecutive failures; after an opening, as many as it took
  trials*           how many run now
  by                the instance that reported the last failure, or that set the
                    state
  cause             of the last opening
  override          state*, by*, reason*, until (missing: until it is removed)
  error             why the record, or the history, cannot be read
`

const eventFields = `
With -json an event is an object. Fields marked with * are always there.
  at*         when, in RFC 3339 form
  circuit*    its name
  what*       transition; manual: set-state, override, remove-override; and
              override-expired (in watch, not in a history)
  from*, to*  the states; equal if the state did not change
  by          the instance or the person that caused it
  cause       of an opening
  override    the override from then on, as in infuse help show
`

const nameHelp = `
A name with spaces, quotes or characters that cannot be printed is shown as a Go
string, and may be passed so: infuse show '"a name\n"'.
`

const listHelp = `A circuit has a record while it is unhealthy, and for about an hour after that. A
circuit without a record is closed. Local circuits, each of one process, are not
listed.

Columns: STATE, what calls meet; SINCE, when it began; TRIAL IN, the time until a
trial may run; BY, who reported the last failure or set the state; CAUSE, what
opened it; OVERRIDE, the state that is forced, by whom, until when and why. Under
an override, SINCE and TRIAL IN are of the underlying state. Long texts are cut,
except with -json.

If nothing is found with the prefix, no process uses it, and there are circuits
with other prefixes, list names these prefixes and exits with 1.

Examples:
  infuse list
  infuse -prefix orders-prod: list
  infuse list -json | jq -r '.[] | select(.state == "open") | .circuit'
` + circuitFields + "With -json the list is an array of circuits.\n" + nameHelp

const showHelp = `The history has the last 50 transitions and manual changes. A circuit without a
record is closed. If it has no history either, and no process subscribes to it,
the name is probably wrong: show reports that it is not found, and exits with 1.

Examples:
  infuse show inventory.internal
  infuse show inventory.internal -json | jq '.history[0]'
` + circuitFields + "  history           the events, newest first; see infuse help watch\n" + nameHelp

const watchHelp = `Prints events from now on: of the named circuits or, without a name, of all
circuits, also of new ones. Watching continues while Redis is unavailable, which
is reported on stderr. It ends on SIGINT and SIGTERM (with exit code 0), and when
its output is closed.

Flags:
  -interval TIME   how often to look for new circuits. Default 2s. If a search
                   takes long, less often

Examples:
  infuse watch
  infuse watch inventory.internal prices.internal
  infuse watch -json >>circuits.log
` + eventFields + nameHelp

const overrideHelp = `Forced open, no call runs. Forced closed, every call runs, and outcomes are still
counted. An override applies to the whole fleet, also while Redis is unavailable,
until it expires or is removed. Another override replaces it. Rejections show the
reason.

Flags:
  -reason TEXT   why; required, at most 200 bytes
  -until WHEN    required: a duration from now (2h), a time of day (17:30), a full
                 time (2026-01-02T17:30:00Z), or removed: until somebody removes it
  -by TEXT       who. Default user@host
  -force         override a circuit that no process uses: one without a record, a
                 history and a subscriber. Check the name first

Examples:
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse override inventory.internal closed -reason "false alarm, INC-42" -until 06:00
  infuse override inventory.internal open -reason "shut down" -until removed -by ann
  infuse override new.internal open -reason "not yet" -until removed -force

With -json it prints the circuit: see infuse help show.
` + nameHelp

const removeOverrideHelp = `The circuit continues in its underlying state.

Flags:
  -by TEXT   who. Default user@host

Examples:
  infuse remove-override inventory.internal
  infuse remove-override inventory.internal -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const setStateHelp = `Closed forgets all failures. Open rejects calls for a minute, or as long as -for;
then a trial runs. Half-open makes the next call a trial. Calls decide what comes
next: to force a state, use override. It also replaces a record that cannot be
read.

Flags:
  -for TIME   how long open lasts until a trial may run. Default 1m
  -by TEXT    who. Default user@host
  -force      set the state of a circuit that no process uses: one without a
              record, a history and a subscriber. Check the name first

Examples:
  infuse set-state inventory.internal closed
  infuse set-state inventory.internal open -for 10m
  infuse set-state inventory.internal half-open -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const planHelp = `Estimates, from the traffic and the settings of one circuit, how often baseline
errors open it, what an outage costs, and how many commands a second Redis runs.
It connects to nothing. docs/policies.md has the formulas, and what they leave out.

Flags:
  -calls N              calls a second of each process. Default 10
  -processes N          processes of the fleet. Default 10
  -errors FRACTION      baseline error rate: 0.01 is 1 %. Default 0.01
  -circuits N           circuits of each process, each with these calls. Default 1
  -fail-max N           Config.FailMax. Default 5; with -failure-rate, off
  -failure-rate F       Config.FailureRate. Default 0, off
  -min-calls N          Config.MinCalls. Default 20
  -window TIME          Config.Window. Default 10s
  -reset-timeout TIME   Config.ResetTimeout. Default 1m
  -suspicion TIME       Config.Suspicion. Default 50ms
  -poll-interval TIME   RedisOptions.PollInterval. Default 2s

Examples:
  infuse plan -calls 100 -processes 20 -errors 0.01
  infuse plan -errors 0.1 -fail-max 10 -failure-rate 0.5 -min-calls 50
  infuse plan -calls 1 -processes 300 -circuits 10 -json
`
