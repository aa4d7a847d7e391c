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

// How the three sections are measured, in turns, and told.

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
	s := section{
		title: "1. One process",
		text: fmt.Sprintf("Wall time of a call, and what it allocates. Parallel: %d goroutines on %d processors, wall time by all calls, so that what scales takes 1/%d. "+
			"The ratios are to the call without a breaker (the floor) and to gobreaker; \"added\" is what is above the floor.", runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0)),
	}
	for _, over := range []struct {
		name     string
		subjects []subject
	}{
		{"a call is ", subjects(storage)},
		{"HTTP: a request is ", webSubjects()},
	} {
		var floor *timed
		for _, sc := range scenarios {
			progress("1. %s%s", over.name, sc.name)
			results, err := sc.measure(over.subjects, size)
			if err != nil {
				return err
			}
			if results[0].subject.floor {
				floor = results[0]
			}
			s.tables = append(s.tables, tableOf(sc.title(over.name), results, floor))
			r.compareTimes(sc.title(over.name), results)
		}
	}
	r.add(s)
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
	if strings.HasPrefix(over, "HTTP") {
		return "HTTP: " + sc.name
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
	s := section{title: "2. A fleet on a real Redis"}
	for _, measure := range []func(sizes) (table, error){throughputs, lostFailures, serverTimes, serverLoads, spreads, outages} {
		t, err := measure(size)
		if err != nil {
			return err
		}
		s.tables = append(s.tables, t)
	}
	r.add(s)
	return nil
}

func throughputs(size sizes) (table, error) {
	kinds := []fleetKind{infuseFleet, gobreakerFleet, noFleet}
	found := make([][]throughput, len(kinds))
	for round := range size.fleetRounds {
		for i, kind := range kinds {
			progress("2. requests of a fleet, round %d: %s", round+1, kind.name)
			x, err := measureThroughput(kind, size.fleet, size.fleetTime)
			if err != nil {
				return table{}, err
			}
			found[i] = append(found[i], x)
		}
	}
	ideal := float64(size.fleet) / requestTime.Seconds()
	t := table{
		title: "In health",
		text: fmt.Sprintf("%d breakers with a client of their own each, one request of %v at a time, for %v; medians of %d. Ideal: %s requests/s (a sleep of %v takes longer, as the row without a breaker shows). "+
			"Commands are all that Redis ran, also within scripts, but for the setting up of connections.",
			size.fleet, requestTime, size.fleetTime, size.fleetRounds, number(ideal), requestTime),
		head: []string{"", "requests/s", "of the ideal", "Redis commands a request", "healthy calls that ended in an error"},
	}
	for i, kind := range kinds {
		perSecond := medianOf(found[i], func(x throughput) float64 { return x.perSecond })
		t.rows = append(t.rows, []string{
			kind.name, number(perSecond), fmt.Sprintf("%.0f %%", 100*perSecond/ideal),
			number(medianOf(found[i], func(x throughput) float64 { return x.commandsPerCall })),
			number(medianOf(found[i], func(x throughput) float64 { return float64(x.failed) })),
		})
	}
	return t, nil
}

func lostFailures(size sizes) (table, error) {
	t := table{
		title: "Failures that all report at once",
		text:  fmt.Sprintf("%d breakers, %d failing calls each, as fast as they can; at most 20 s.", size.fleet, size.failuresEach),
		head:  []string{"", "failing calls", "counted", "lost"},
	}
	for _, kind := range []fleetKind{infuseFleet, gobreakerFleet} {
		progress("2. failures at once: %s", kind.name)
		x, err := measureLost(kind, size.fleet, size.failuresEach)
		if err != nil {
			return table{}, err
		}
		t.rows = append(t.rows, []string{kind.name, whole(int64(x.made)), whole(int64(x.kept)), whole(int64(x.made - x.kept))})
	}
	return t, nil
}

func spreads(size sizes) (table, error) {
	t := table{
		title: "From the last counted failure until a breaker rejects",
		text:  fmt.Sprintf("Five failures of five breakers, one after the other, and then every breaker of the fleet until it rejects; %d times. The fleet is asked for 50 ms before (Config.Suspicion). All run in this one process.", size.trips),
		head:  []string{"breakers", "p50 ms", "p99 ms", "max ms"},
	}
	for _, n := range size.outages {
		progress("2. from the fifth failure until %d breakers reject", n)
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
		title: "An outage",
		text: fmt.Sprintf("Every breaker makes a request of %v each %v. After %v of health the service fails all calls for %v; the circuit opens for %v at a time. "+
			"After it opened: calls that reached the service before a trial was due, those let through as trials from then on, and how often one was due. "+
			"In health a breaker costs what keeps its subscription: a PING after a few seconds of silence, and a read about twice a minute.",
			requestTime, 10*requestTime, size.health, size.failure, outageSettings.resetTimeout),
		head: []string{"", "breakers", "calls/s offered", "calls after it opened", "trials", "were due", "Redis commands/s in health", "in the outage"},
	}
	add := func(kind fleetKind, n int) error {
		progress("2. an outage: %s, %d breakers", kind.name, n)
		x, err := measureOutage(kind, n, size.health, size.failure)
		if err != nil {
			return err
		}
		t.rows = append(t.rows, []string{
			kind.name, whole(int64(n)), number(x.offered), whole(x.stragglers),
			whole(x.trials), whole(x.due),
			number(x.healthy), number(x.failing),
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
	s := section{title: "3. Memory"}
	process, err := footprints(size, r)
	if err != nil {
		return err
	}
	progress("3. %d circuits in Redis", size.circuits)
	found, err := measureKeyspace(size.circuits)
	if err != nil {
		return err
	}
	redis := table{
		title: "In Redis",
		text:  fmt.Sprintf("%s circuits, moved by hand. A circuit that never failed is not in Redis. One that nobody changes any more is forgotten after an hour, so that a sender which was cut off still finds that it was heard.", whole(int64(size.circuits))),
		head:  []string{"", "keys", "bytes a circuit", "forgotten after"},
	}
	for _, x := range found {
		redis.rows = append(redis.rows, []string{x.what, whole(x.keys), number(x.bytes), x.life.Round(time.Second).String()})
	}
	s.tables = []table{process, redis}
	r.add(s)
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
		text:  "Healthy circuits, used once: what is reachable on the heap, and stacks.",
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
		progress("3. %d circuits in one process: %s", n, s.name)
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
