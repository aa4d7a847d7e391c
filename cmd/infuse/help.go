package main

// This file contains the help texts.

import (
	"fmt"
	"strings"
)

func overview() string {
	var b strings.Builder
	b.WriteString(overviewHead)
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-15s  %s\n", c.name, c.summary)
	}
	b.WriteString(overviewTail)
	return b.String()
}

const overviewHead = `infuse inspects and controls the circuits that a fleet shares through Redis.

Usage: infuse -redis URL [flags] COMMAND [arguments]

Commands:
`

const overviewTail = `  help             show help for a command: infuse help COMMAND

Common flags, before or after the command:
  -redis URL      Redis URL. Default INFUSE_REDIS
  -prefix TEXT    key prefix of the fleet. Default INFUSE_PREFIX, or infuse:
  -cluster        Redis is a Cluster. Default: infuse checks the server
  -tls-ca FILE    certificates of the CA that signed the server certificate, in
                  PEM form. Default: the CAs of the system
  -tls-cert FILE  client certificate, in PEM form
  -tls-key FILE   key of the client certificate, in PEM form
  -json           print JSON
  -timeout TIME   longest wait for Redis. Default 5s

Environment: INFUSE_REDIS and INFUSE_PREFIX as above. INFUSE_REDIS_PASSWORD is
used if the URL has no password. Pass no password as an argument: other users
of the machine can see arguments. No error shows any part of the URL's password.

URLs:
  redis://user:password@host:6379/0                     a single server
  rediss://host:6379                                    with TLS; each -tls flag
                                                        also enables TLS
  redis://host:26379?master_name=main&addr=host2:26379  Sentinels. The user and
      password of the URL are those of the Sentinels; add username=...&password=...
      for Redis, or set INFUSE_REDIS_PASSWORD
  redis://host:6379?addr=host2:6379                     a Cluster
  unix:///run/redis.sock                                a socket
In a user name or password, write special characters as %XX: @ is %40, / is %2F.

Exit codes: 0 success, 1 error or not found, 2 usage error.

Examples:
  export INFUSE_REDIS=redis://redis.internal:6379
  infuse list
  infuse show inventory.internal
  infuse watch
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse remove-override inventory.internal
  infuse set-state inventory.internal closed
  infuse plan -calls 100 -processes 20 -errors 0.01
  infuse serve
`

const circuitFields = `
With -json a circuit is an object. Times are in RFC 3339 form. Empty fields are
left out, except those marked with *.
  circuit*          its name
  on_record*        whether Redis has a record of it
  state*            closed, open, half-open or unreadable; under an override, the
                    forced state
  underlying_state  the state under an override
  suspect           true: the threshold was reached, and the outcome is being
                    confirmed; calls run
  since             when the state began; under an override, the underlying state
  due               when an open circuit becomes ready for a trial
  failures*         consecutive failures; while open, those that opened it
  trials*           trial calls in progress
  by                the instance that reported the last failure, or that set the
                    state
  cause             the error that opened the circuit last
  override          state*, by*, reason*, until (missing: until it is removed)
  error             why the record, or the history, cannot be read
`

const eventFields = `
With -json an event is an object. Fields marked with * are always present.
  at*         time of the event, in RFC 3339 form
  circuit*    name of the circuit
  what*       transition; set-state, override or remove-override for manual changes;
              override-expired (only watch reports it)
  from*, to*  state before and after; equal if it did not change
  by          the instance or the person that caused the event
  cause       the error that opened the circuit
  override    the override after the event, as in infuse help show
`

const nameHelp = `
A name with spaces, quotes or unprintable characters is shown as a Go string. It can
be passed in that form: infuse show '"a name\n"'.
`

const listHelp = `Circuits are listed from their first failure until about an hour after they
recover. All others are closed. The local circuits of processes are not listed.

Columns:
  STATE     the state of the shared circuit, or the state that is forced
  SINCE     when that state began
  TRIAL IN  time until the circuit is ready for a trial
  BY        who reported the last failure, or set the state
  CAUSE     the error that opened the circuit
  OVERRIDE  the forced state, by whom, until when and why
Under an override, SINCE and TRIAL IN describe the underlying state. Long texts are
truncated, except with -json.

If no circuit with the prefix is found and no process uses the prefix, list names
other prefixes on this Redis and exits with 1.

Examples:
  infuse list
  infuse -prefix orders-prod: list
  infuse list -json | jq -r '.[] | select(.state == "open") | .circuit'
` + circuitFields + "With -json the list is an array of circuits.\n" + nameHelp

const showHelp = `The history has the last 50 transitions and manual changes. A circuit without a
record is closed. If it also has no history and no process subscribes to it, the
name is probably wrong: show reports "not found" and exits with 1.

Examples:
  infuse show inventory.internal
  infuse show inventory.internal -json | jq '.history[0]'
` + circuitFields + "  history           the events, newest first; see infuse help watch\n" + nameHelp

const watchHelp = `Prints events from now on: those of the named circuits, or of all circuits if no
name is given. New circuits are found while it runs. If Redis becomes unavailable,
watch reports that on stderr and continues. It stops on SIGINT and SIGTERM (with exit
code 0), and when its output is closed.

Flags:
  -interval TIME   how often to search for new circuits. Default 2s. Slower if a
                   search takes long

Examples:
  infuse watch
  infuse watch inventory.internal prices.internal
  infuse watch -json >>circuits.log
` + eventFields + nameHelp

const overrideHelp = `A circuit that is forced open runs no calls. A circuit that is forced closed runs all
calls, and still counts their outcomes. An override applies to the whole fleet, also
while Redis is unavailable, until it expires or is removed. A new override replaces
it. Rejections show the reason.

Flags:
  -reason TEXT   reason of the override; required, at most 200 bytes
  -until WHEN    expiry; required. A duration from now (2h), a time of day (17:30), a
                 full time (2026-01-02T17:30:00Z), or removed, which means no expiry
  -by TEXT       author of the override. Default user@host
  -force         also override a circuit that no process uses: one without a record, a
                 history or a subscriber. Check the name first

Examples:
  infuse override inventory.internal open -reason "database upgrade" -until 2h
  infuse override inventory.internal closed -reason "false alarm, INC-42" -until 06:00
  infuse override inventory.internal open -reason "shut down" -until removed -by ann
  infuse override new.internal open -reason "not yet" -until removed -force

With -json it prints the circuit: see infuse help show.
` + nameHelp

const removeOverrideHelp = `The circuit returns to its underlying state.

Flags:
  -by TEXT   author of the change. Default user@host

Examples:
  infuse remove-override inventory.internal
  infuse remove-override inventory.internal -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const setStateHelp = `closed resets all failures. open rejects calls until a trial, after 1 minute or the
time of -for. half-open makes the next call a trial. Afterwards calls change the state
as usual; to force a state, use override. set-state also replaces an unreadable record.

Flags:
  -for TIME   time from open until the trial. Default 1m
  -by TEXT    author of the change. Default user@host
  -force      also set the state of a circuit that no process uses: one without a
              record, a history or a subscriber. Check the name first

Examples:
  infuse set-state inventory.internal closed
  infuse set-state inventory.internal open -for 10m
  infuse set-state inventory.internal half-open -by ann

With -json it prints the circuit: see infuse help show.
` + nameHelp

const planHelp = `Estimates, for the traffic and the settings of one circuit, how often baseline
errors open it, how many calls fail in an outage, and the commands a second that
Redis runs. It connects to nothing. cmd/infuse/README.md has the formulas and
their limits.

Flags:
  -calls N              calls a second of each process. Default 10
  -processes N          number of processes. Default 10
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

const versionHelp = `Prints the version of the module, the revision and whether it had changes, if
infuse was built in a repository, and the version of Go.

Examples:
  infuse version
  infuse version -json | jq -r .version

With -json it is an object: version, revision, modified, go and platform.
Without a revision, revision is left out; modified is left out if it is false.
`
