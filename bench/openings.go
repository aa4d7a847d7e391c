package main

import (
	"fmt"
	"slices"
	"time"
)

// Section 4: when fleets open though their service is well, and how soon they
// do when it is not, by their size.

// fleetSize is a size of fleets, and for how long they live at each share of
// errors.
type fleetSize struct {
	members int
	life    time.Duration
}

// beside are those that are compared.
var beside = []fleetKind{infuseFleet, gobreakerFleet, localFleet}

// besides are what became of the calls of those that are compared.
type besides struct {
	members              int
	weather              weather
	ours, shared, locals tally
}

// arena is where fleets live.
type arena struct {
	name         string
	text, outage string // what is to be known of it
	sizes        []fleetSize
	live         func([]besides) error // fills in the tallies
}

func arenas(size sizes) (real, simulated arena) {
	real = arena{
		name: "processes", live: really,
		text: fmt.Sprintf("Real processes of the operating system, with a Redis client each, on one real redis-server; %v at each share of errors. "+
			"A process makes one call at a time: one that is due while another waits for gobreaker's lock comes after it, and the calls a second tell whether the fleet keeps up. "+
			"The local breaker is in the process of Infuse's, and gets the same calls.", size.processTime),
		outage: "gobreaker's shared mode reads the state before it waits for its lock. A call that waited writes back what it made of that, and so closes again what others had opened.",
	}
	for _, n := range size.processes {
		real.sizes = append(real.sizes, fleetSize{n, size.processTime})
	}
	return real, arena{
		name: "simulated processes", live: virtually, sizes: size.simulated,
		text: fmt.Sprintf("Simulated: the breakers are real, one for each process, and so is their code. Time is virtual (testing/synctest), and the storage is memory, %v away one way; its news reaches all at once. "+
			"gobreaker's lock and store take no time here, so that nothing is lost between a reading and a writing: that is more than a real Redis can give it. All get the same calls.", oneWay),
		outage: "As before, gobreaker's shared mode is here as if its lock and its store took no time.",
	}
}

// bySize is section 4.
func bySize(size sizes, r *report) error {
	s := section{
		title: "4. False openings, and the time to open, by the size of the fleet",
		text: fmt.Sprintf("Each process makes %g calls a second, at random times (Poisson). A call takes no time. Every breaker opens at %d failures in a row, for a minute. Side by side:\n\n"+
			"- Infuse: the fleet's circuit, and one of each process. A process opens its own as a local breaker does, for itself.\n"+
			"- gobreaker's shared mode: one circuit for all. N processes make a row by chance N times as often as one, and each time it opens for all.\n"+
			"- gobreaker in each process by itself.", size.rate, fewFailures),
	}
	real, simulated := arenas(size)
	health, err := real.inHealth(size, r)
	if err != nil {
		return err
	}
	if r.simulated, err = simulated.inHealth(size, r); err != nil {
		return err
	}
	if r.realOutages, err = real.outages(size, r); err != nil {
		return err
	}
	if r.simulatedOutages, err = simulated.outages(size, r); err != nil {
		return err
	}
	s.tables = []table{
		real.falseOpenings(health), redisTable(health), simulated.falseOpenings(r.simulated),
		real.timesToOpen(r.realOutages, size), simulated.timesToOpen(r.simulatedOutages, size),
	}
	s.tables[2].picture, s.tables[3].picture = falseOpeningsPlot, timeToOpenPlot
	r.add(s)
	return nil
}

// inHealth has fleets live whose service is well.
func (a arena) inHealth(size sizes, r *report) (all []besides, err error) {
	for _, n := range a.sizes {
		for _, share := range size.errors {
			all = append(all, besides{members: n.members, weather: weather{Rate: size.rate, Errors: share, For: n.life, Seed: 1}})
		}
	}
	if err := a.live(all); err != nil {
		return nil, err
	}
	for _, b := range all {
		r.compare(fmt.Sprintf("Calls to a healthy service that are rejected, %s %s, %g %% errors", whole(int64(b.members)), a.name, 100*b.weather.Errors), percent,
			b.ours.rejected(), figure{gobreakerFleet.name, b.shared.rejected()}, figure{localFleet.name, b.locals.rejected()})
	}
	return all, nil
}

// outages has fleets live whose service falls ill for all, each some times.
func (a arena) outages(size sizes, r *report) (all []opening, err error) {
	var found []besides
	for _, n := range a.sizes {
		for round := range size.openings {
			found = append(found, besides{members: n.members, weather: weather{Rate: size.rate, Onset: size.calm, For: size.calm + size.watched, Seed: uint64(round + 1)}})
		}
	}
	if err := a.live(found); err != nil {
		return nil, err
	}
	for some := range slices.Chunk(found, size.openings) {
		o := opening{
			members: some[0].members,
			ours:    reached(some, func(b besides) tally { return b.ours }),
			shared:  reached(some, func(b besides) tally { return b.shared }),
			locals:  reached(some, func(b besides) tally { return b.locals }),
		}
		where := whole(int64(o.members)) + " " + a.name
		r.compare("Calls that reach a sick service, "+where, number,
			o.ours.calls, figure{gobreakerFleet.name, o.shared.calls}, figure{localFleet.name, o.locals.calls})
		r.compare("Until the last call that reaches a sick service, "+where+", ms", number,
			o.ours.ms(), figure{gobreakerFleet.name, o.shared.ms()}, figure{localFleet.name, o.locals.ms()})
		all = append(all, o)
	}
	return all, nil
}

// really has each fleet live in processes of their own, in turns.
func really(all []besides) error {
	for i := range all {
		b := &all[i]
		progress("4. %d processes, %v", b.members, b.weather)
		ours, err := liveInProcesses(infuseFleet, b.members, b.weather)
		if err != nil {
			return err
		}
		shared, err := liveInProcesses(gobreakerFleet, b.members, b.weather)
		if err != nil {
			return err
		}
		b.ours, b.locals, b.shared = ours[0], ours[1], shared[0]
	}
	return nil
}

// virtually simulates each fleet.
func virtually(all []besides) error {
	var runs []simulation
	for _, b := range all {
		for _, kind := range beside {
			runs = append(runs, simulation{kind.name, b.members, b.weather})
		}
	}
	tallies, err := simulateAll(runs)
	for i := range all {
		found := tallies[i*len(beside):]
		all[i].ours, all[i].shared, all[i].locals = found[0], found[1], found[2]
	}
	return err
}

func (a arena) falseOpenings(found []besides) table {
	t := table{
		title: "A service that is well: " + a.name,
		text:  a.text,
		head: []string{a.name, "errors", "for", "calls/s due", infuseName + ": calls/s", "openings for all", "of one process", "rejected",
			"gobreaker, shared: calls/s", "openings for all", "rejected", "other errors", "gobreaker, local: openings", "rejected"},
	}
	for _, b := range found {
		perSecond := func(t tally) string { return number(float64(t.calls()) / b.weather.For.Seconds()) }
		t.rows = append(t.rows, []string{
			whole(int64(b.members)), fmt.Sprintf("%g %%", 100*b.weather.Errors), b.weather.For.String(), number(b.weather.Rate * float64(b.members)),
			perSecond(b.ours), whole(b.ours.OpenedByAll), whole(b.ours.OpenedAlone), percent(b.ours.rejected()),
			perSecond(b.shared), whole(b.shared.OpenedByAll), percent(b.shared.rejected()), whole(b.shared.Broke),
			whole(b.locals.OpenedAlone), percent(b.locals.rejected()),
		})
	}
	return t
}

// redisTable tells what Redis spends on calls.
func redisTable(found []besides) table {
	t := table{
		title: "What Redis spends on 1,000 calls",
		text: "Processor time of Redis's main thread (INFO cpu), its network included, and requests, of the fleets of processes above: with the default settings, suspicions included. " +
			"gobreaker's shared mode asks for every call; Infuse tells of failures, of successes where there are failures to forget, and of all calls while the circuit is suspect. What its subscriptions cost, and what Redis spends on itself, does not depend on calls: it weighs where they are few.",
		head: []string{"processes", "errors", infuseName + ": µs", "requests", "gobreaker, shared: µs", "requests"},
	}
	for _, b := range found {
		row := []string{whole(int64(b.members)), fmt.Sprintf("%g %%", 100*b.weather.Errors)}
		for _, t := range []tally{b.ours, b.shared} {
			thousands := float64(max(1, t.calls())) / 1000
			row = append(row, number(t.Micros/thousands), number(t.Requests/thousands))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// opening is how a fleet of that size met an outage, in the median of some.
type opening struct {
	members              int
	ours, shared, locals reach
}

// reach is how long calls reached the sick service, and how many.
type reach struct {
	last  time.Duration
	calls float64
}

// reached takes the median of some outages.
func reached(rounds []besides, of func(besides) tally) reach {
	return reach{
		last:  time.Duration(medianOf(rounds, func(b besides) float64 { return float64(of(b).Last) })),
		calls: medianOf(rounds, func(b besides) float64 { return float64(of(b).Ill) }),
	}
}

func (r reach) ms() float64 { return 1000 * r.last.Seconds() }

// cells tell of calls that still reach the service towards the end.
func (r reach) cells(watched time.Duration) []string {
	took := number(r.ms())
	if r.last > watched*3/4 {
		took = "not within " + watched.String()
	}
	return []string{took, number(r.calls)}
}

func (a arena) timesToOpen(all []opening, size sizes) table {
	t := table{
		title: "An outage: " + a.name,
		text: fmt.Sprintf("All calls fail from an instant on: until the last call that reached the service, in ms, and how many did; medians of %d. %v are watched. "+
			"Infuse asks the fleet for 50 ms before it opens for all (Config.Suspicion). %s", size.openings, size.watched, a.outage),
		head: []string{a.name, infuseName + ": ms", "calls", "gobreaker, shared: ms", "calls", "gobreaker, local: ms", "calls"},
	}
	for _, o := range all {
		row := []string{whole(int64(o.members))}
		for _, r := range []reach{o.ours, o.shared, o.locals} {
			row = append(row, r.cells(size.watched)...)
		}
		t.rows = append(t.rows, row)
	}
	return t
}
