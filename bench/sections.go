package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// How the sections about one process, a fleet and memory are measured, in turns.

// timed is a subject in a scenario, with what its calls cost in every round.
type timed struct {
	subject          subject
	run              *timing
	serial, parallel []cost
	rejected         float64
}

func process(size sizes, r *report) error {
	server, err := redistest.Launch()
	if err != nil {
		return err
	}
	defer server.Close()
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	defer storage.Close()
	r.title = "Calls in one process"
	r.intro = fmt.Sprintf("Wall time of a call, and what it allocates: medians of %d rounds in turns, of calls that take %v together. Parallel: %d goroutines on %d processors, wall time divided by all calls, so ideal scaling takes 1/%d of the serial time. "+
		"Ratios are to the call without a breaker (the floor) and to gobreaker; \"added\" is the time above the floor.", size.rounds, size.batch, runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0))
	r.tables = append(r.tables, modules())
	return r.scenarios("", subjects(storage), size)
}

func requests(size sizes, r *report) error {
	r.title = "HTTP requests in one process"
	r.intro = "As above, for requests through an http.RoundTripper over one that answers at once. \"gobreaker\" is a RoundTripper of a few lines around Execute."
	return r.scenarios("HTTP: ", webSubjects(), size)
}

// scenarios adds a table for each scenario.
func (r *report) scenarios(over string, subjects []subject, size sizes) error {
	var floor *timed
	for _, sc := range scenarios {
		progress("%s%s", over, sc.name)
		measured, err := sc.measure(subjects, size)
		if err != nil {
			return err
		}
		if measured[0].subject.floor {
			floor = measured[0]
		}
		r.tables = append(r.tables, tableOf(sc.title(over), measured, floor))
		r.compareTimes(sc.title(over), measured)
	}
	return nil
}

// compareTimes notes which peers take less than ours.
func (r *report) compareTimes(title string, results []*timed) {
	ours := results[slices.IndexFunc(results, func(t *timed) bool {
		return t.subject.name == infuseName || t.subject.name == transportName
	})]
	var peers []*timed
	for _, t := range results {
		if t.subject.module != "" {
			peers = append(peers, t)
		}
	}
	r.compareCosts(title, ours, peers)
}

func (r *report) compareCosts(title string, ours *timed, peers []*timed) {
	for _, mode := range []struct {
		name string
		took func(*timed) float64
	}{
		{"serial", func(t *timed) float64 { return medianOf(t.serial, nsOf) }},
		{"parallel", func(t *timed) float64 { return medianOf(t.parallel, nsOf) }},
	} {
		var others []figure
		for _, t := range peers {
			others = append(others, figure{t.subject.name, mode.took(t)})
		}
		r.compare(fmt.Sprintf("%s, %s, ns", title, mode.name), number, mode.took(ours), others...)
	}
}

func (sc scenario) title(over string) string {
	if over != "" {
		return over + sc.name
	}
	return strings.ToUpper(sc.name[:1]) + sc.name[1:]
}

// measure times all subjects in turns, round by round.
func (sc scenario) measure(all []subject, size sizes) ([]*timed, error) {
	var results []*timed
	defer func() {
		for _, t := range results {
			t.run.stop()
		}
	}()
	for _, s := range all {
		if !sc.has(s) {
			continue
		}
		run, err := sc.prepare(s)
		if err != nil {
			return nil, err
		}
		results = append(results, &timed{subject: s, run: run})
	}
	for range size.rounds {
		for _, t := range results {
			t.serial = append(t.serial, t.run.cost(t.run.serial, size.batch))
			t.parallel = append(t.parallel, t.run.cost(t.run.parallel, size.batch))
		}
	}
	for _, t := range results {
		t.rejected = t.run.rejected()
		if expected := sc.expected(); t.rejected != expected && t.subject.name != goZeroName {
			return nil, fmt.Errorf("%s, %s: rejects %.0f %% of the calls instead of %.0f %%: the figures are of something else",
				t.subject.name, sc.name, 100*t.rejected, 100*expected)
		}
	}
	return results, nil
}

// expected is the share of calls that are to be rejected.
func (sc scenario) expected() float64 {
	if sc.open {
		return 1
	}
	return 0
}

func nsOf(c cost) float64 { return c.ns }

func allocsOf(c cost) float64 { return c.allocs }

func tableOf(title string, results []*timed, floor *timed) table {
	peer := results[slices.IndexFunc(results, func(t *timed) bool { return t.subject.name == gobreakerName })]
	t := table{title: title, head: []string{"", "serial ns", "added", "× floor", "× gobreaker", "parallel ns", "× floor", "× gobreaker", "allocations"}}
	for _, x := range results {
		serial, parallel := medianOf(x.serial, nsOf), medianOf(x.parallel, nsOf)
		name := x.subject.name
		if share := x.rejected; share != 0 && share != 1 {
			name += fmt.Sprintf(" (rejects %.0f %%)", 100*share)
		}
		t.rows = append(t.rows, []string{
			name,
			number(serial), number(max(0, serial-medianOf(floor.serial, nsOf))), number(serial / medianOf(floor.serial, nsOf)), number(serial / medianOf(peer.serial, nsOf)),
			number(parallel), number(parallel / medianOf(floor.parallel, nsOf)), number(parallel / medianOf(peer.parallel, nsOf)),
			whole(int64(math.Round(medianOf(x.serial, allocsOf)))),
		})
	}
	return t
}

func fleets(size sizes, r *report) error {
	r.title = "A fleet on a real Redis"
	r.intro = "Breakers with a Redis client of their own each, in one process. The redis-server is started for this on a loopback port."
	for _, measure := range []func(sizes) (table, error){throughputs, lostFailures, serverLoads, spreads, outages} {
		t, err := measure(size)
		if err != nil {
			return err
		}
		r.tables = append(r.tables, t)
	}
	return nil
}

func throughputs(size sizes) (table, error) {
	kinds := []fleetKind{infuseFleet, gobreakerFleet, noFleet}
	found := make([][]throughput, len(kinds))
	for round := range size.fleetRounds {
		for i, kind := range kinds {
			progress("requests of a fleet, round %d: %s", round+1, kind.name)
			x, err := measureThroughput(kind, size.fleet, size.fleetTime)
			if err != nil {
				return table{}, err
			}
			found[i] = append(found[i], x)
		}
	}
	ideal := float64(size.fleet) / requestTime.Seconds()
	t := table{
		title: "A healthy service",
		text: fmt.Sprintf("%d breakers, each makes one request of %v at a time, for %v; medians of %d rounds in turns. Ideal: %s requests/s. A sleep of %v takes longer, as the row without a breaker shows. "+
			"Commands are all that Redis ran, also within scripts, except for the setup of connections. Errors are the sum of all rounds.",
			size.fleet, requestTime, size.fleetTime, size.fleetRounds, number(ideal), requestTime),
		head: []string{"", "requests/s", "of the ideal", "Redis commands a request", "requests that ended in an error"},
	}
	for i, kind := range kinds {
		perSecond := medianOf(found[i], func(x throughput) float64 { return x.perSecond })
		failed, calls := int64(0), int64(0)
		for _, x := range found[i] {
			failed, calls = failed+x.failed, calls+x.calls
		}
		t.rows = append(t.rows, []string{
			kind.name, number(perSecond), fmt.Sprintf("%.0f %%", 100*perSecond/ideal),
			fmt.Sprintf("%.3f", medianOf(found[i], func(x throughput) float64 { return x.commandsPerCall })),
			shareOf(failed, calls),
		})
	}
	return t, nil
}

func lostFailures(size sizes) (table, error) {
	t := table{
		title: "Failures that all report at once",
		text:  fmt.Sprintf("%d breakers, %d failing calls each, as fast as they can; at most 20 s.", size.fleet, size.failuresEach),
		head:  []string{"", "failing calls", "counted in Redis", "lost"},
	}
	for _, kind := range []fleetKind{infuseFleet, gobreakerFleet} {
		progress("failures at once: %s", kind.name)
		x, err := measureLost(kind, size.fleet, size.failuresEach)
		if err != nil {
			return table{}, err
		}
		t.rows = append(t.rows, []string{kind.name, whole(int64(x.made)), whole(int64(x.kept)), shareOf(int64(x.made-x.kept), int64(x.made))})
	}
	return t, nil
}

func spreads(size sizes) (table, error) {
	t := table{
		title: "From the last counted failure until every breaker rejects",
		text:  fmt.Sprintf("One failure of each breaker makes the circuit suspect. %v later, 5 more failures open it. The times are those of all breakers, from the last failure until the breaker rejects, of %d rounds.", 2*suspicionTime, size.trips),
		head:  []string{"breakers", "p50 ms", "p99 ms", "longest ms"},
	}
	for _, n := range size.outages {
		progress("from the last failure until %d breakers reject", n)
		x, err := measureSpread(n, size.trips)
		if err != nil {
			return table{}, err
		}
		t.rows = append(t.rows, []string{whole(int64(n)), milliseconds(x.p50), milliseconds(x.p99), milliseconds(x.max)})
	}
	return t, nil
}

func outages(size sizes) (table, error) {
	t := table{
		title: "Calls and commands of an outage",
		text: fmt.Sprintf("Every breaker makes a request of %v each %v. The service is healthy for %v, then fails all calls for %v; the circuit opens for %v at a time. "+
			"The columns count the calls that reached the service after the circuit opened and before a trial was allowed, the trials, and the open durations that ended. "+
			"Without errors a breaker costs what keeps its subscription alive: a PING after 2 s of silence, and a read about twice a minute.",
			requestTime, 10*requestTime, size.health, size.failure, outageSettings.resetTimeout),
		head: []string{"", "breakers", "calls/s", "calls after it opened", "trials", "open durations", "Redis commands/s without errors", "in the outage"},
	}
	add := func(kind fleetKind, n int) error {
		progress("an outage: %s, %d breakers", kind.name, n)
		x, err := measureOutage(kind, n, size.health, size.failure)
		if err != nil {
			return err
		}
		t.rows = append(t.rows, []string{
			kind.name, whole(int64(n)), number(x.offered), count(float64(x.stragglers)),
			count(float64(x.trials)), whole(x.due), number(x.healthy), number(x.failing),
		})
		return nil
	}
	for _, n := range size.outages {
		if err := add(infuseFleet, n); err != nil {
			return table{}, err
		}
	}
	return t, add(gobreakerFleet, size.fleet)
}

func memory(size sizes, r *report) error {
	r.title = "Memory"
	process, err := footprints(size, r)
	if err != nil {
		return err
	}
	progress("%d circuits in Redis", size.circuits)
	found, err := measureKeyspace(size.circuits)
	if err != nil {
		return err
	}
	redis := table{
		title: "In Redis",
		text:  fmt.Sprintf("%s circuits, opened and closed manually. A circuit that never failed is not in Redis. Redis forgets a closed circuit an hour after its last change.", whole(int64(size.circuits))),
		head:  []string{"", "keys", "bytes a circuit", "forgotten after"},
	}
	for _, x := range found {
		redis.rows = append(redis.rows, []string{x.what, whole(x.keys), number(x.bytes), x.life.Round(time.Second).String()})
	}
	r.tables = []table{process, redis}
	return nil
}

func footprints(size sizes, r *report) (table, error) {
	server, err := redistest.Launch()
	if err != nil {
		return table{}, err
	}
	defer server.Close()
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	defer storage.Close()
	t := table{
		title: "In a process",
		text:  "Healthy circuits, used once: the reachable heap, and stacks.",
		head:  []string{"", "circuits", "bytes a circuit", "goroutines a circuit"},
	}
	var ours float64
	var others []figure
	for _, s := range subjects(storage) {
		if s.floor || strings.HasSuffix(s.name, "Done") {
			continue
		}
		n := size.peersCircuits
		if s.module == "" {
			n = size.circuits
		}
		progress("%d circuits in one process: %s", n, s.name)
		x, err := measureFootprint(s, n)
		if err != nil {
			return table{}, err
		}
		t.rows = append(t.rows, []string{s.name, whole(int64(n)), number(x.bytes), number(math.Round(100*x.goroutines) / 100)})
		if s.module != "" {
			others = append(others, figure{s.name, x.bytes})
		} else if s.name == infuseName {
			ours = x.bytes
		}
		time.Sleep(50 * time.Millisecond) // what stops, stops
	}
	r.compare("Bytes of a circuit in a process", number, ours, others...)
	return t, nil
}
