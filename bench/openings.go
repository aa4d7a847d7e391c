package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/infuse-go/infuse/bench/results"
)

// When fleets open although their service is healthy, and how soon they do when it is
// not, by their size.

// fleetSize is a size of fleets, and for how long they live at each share of
// errors.
type fleetSize struct {
	members int
	life    time.Duration
}

// beside are the kinds of fleets that are compared.
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
		outage: "Real processes, with a Redis client each, on one redis-server. gobreaker's shared mode reads the state before it waits for its lock. A call that waited writes back a state that it derived before, and so closes again what others had opened.",
	}
	for _, n := range size.processes {
		real.sizes = append(real.sizes, fleetSize{members: n})
	}
	return real, arena{
		name: "simulated processes", live: virtually, sizes: size.simulated,
		text: fmt.Sprintf("Simulated: each process has a real breaker. Time is virtual (testing/synctest), and the storage is memory, at a distance of %v one way; its notifications reach all at once. "+
			"gobreaker's lock and store take no time here, so no update is lost: a real Redis cannot do that. All three get the same calls.", oneWay),
		outage: "Simulated as above: gobreaker's lock and store take no time.",
	}
}

// bySize is the section of the fleets by their size.
func bySize(size sizes, r *report) (err error) {
	r.title = "False openings, and the time to open, by the size of the fleet"
	r.intro = fmt.Sprintf("Each process makes %g calls a second, at random times (Poisson). A call takes no time. Every breaker opens at %d consecutive failures, for a minute. Compared are:\n\n"+
		"- Infuse: the shared circuit, and the local circuit of each process. A process opens its local circuit as a local breaker does.\n"+
		"- gobreaker's shared mode: one circuit for all. N processes reach a streak by chance N times as often as one, and then it opens for all.\n"+
		"- gobreaker in each process by itself.\n\n"+
		"The first table is simulated, because real fleets would have to run for hours. How often real processes are rejected while their service is healthy: sections \"What a fleet costs Redis\" and \"One unhealthy process beside healthy ones\".", size.rate, fewFailures)
	real, simulated := arenas(size)
	if r.simulated, err = simulated.whileHealthy(size, r); err != nil {
		return err
	}
	if r.realOutages, err = real.outages(size, r); err != nil {
		return err
	}
	if r.simulatedOutages, err = simulated.outages(size, r); err != nil {
		return err
	}
	r.tables = []table{simulated.falseOpenings(r.simulated), real.timesToOpen(r.realOutages, size), simulated.timesToOpen(r.simulatedOutages, size)}
	r.tables[0].picture, r.tables[1].picture = falseOpeningsPlot, timeToOpenPlot
	return r.plots(r.dir)
}

// whileHealthy has fleets live whose service is healthy.
func (a arena) whileHealthy(size sizes, r *report) (all []besides, err error) {
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

// outages has fleets live whose service fails for all, each some times.
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
		r.compare("Calls that reach a failing service, "+where, number,
			o.ours.calls, figure{gobreakerFleet.name, o.shared.calls}, figure{localFleet.name, o.locals.calls})
		r.compare("Until the last call that reaches a failing service, "+where+", ms", number,
			o.ours.ms(), figure{gobreakerFleet.name, o.shared.ms()}, figure{localFleet.name, o.locals.ms()})
		all = append(all, o)
	}
	return all, nil
}

// really has each fleet live in processes of their own, in turns.
func really(all []besides) error {
	for i := range all {
		b := &all[i]
		progress("%d processes, %v", b.members, b.weather)
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
		title: "A healthy service: " + a.name,
		text:  a.text + " Openings of the shared circuit are those of the fleet; openings of local circuits are those of all its processes. The bound of a zero is 3/hours of the circuits, or 3/calls.",
		head: []string{a.name, "errors", "for", infuseName + ": shared openings", "local openings", "rejected",
			"gobreaker, shared: openings", "rejected", "gobreaker, local: openings", "rejected"},
	}
	for _, b := range found {
		hours := b.weather.For.Hours()
		openings := func(n int64, circuits int) string {
			return results.Count(float64(n), hours*float64(circuits), " an hour")
		}
		rejected := func(t tally) string { return shareOf(t.RejectedAlone+t.RejectedByAll, t.calls()) }
		t.rows = append(t.rows, []string{
			whole(int64(b.members)), fmt.Sprintf("%g %%", 100*b.weather.Errors), b.weather.For.String(),
			openings(b.ours.OpenedByAll, 1), openings(b.ours.OpenedAlone, b.members), rejected(b.ours),
			openings(b.shared.OpenedByAll, 1), rejected(b.shared), openings(b.locals.OpenedAlone, b.members), rejected(b.locals),
		})
	}
	return t
}

// opening is how a fleet of that size met an outage, in the median of some.
type opening struct {
	members              int
	ours, shared, locals reach
}

// reach is how long calls reached the failing service, and how many.
type reach struct {
	last  time.Duration
	calls float64
}

// reached takes the median of some outages.
func reached(rounds []besides, of func(besides) tally) reach {
	return reach{
		last:  time.Duration(medianOf(rounds, func(b besides) float64 { return float64(of(b).Last) })),
		calls: medianOf(rounds, func(b besides) float64 { return float64(of(b).Unhealthy) }),
	}
}

func (r reach) ms() float64 { return 1000 * r.last.Seconds() }

// cells tell of calls that still reach the service towards the end.
func (r reach) cells(watched time.Duration) []string {
	took := number(r.ms())
	if r.last > watched*3/4 {
		took = "longer than " + watched.String()
	}
	return []string{took, number(r.calls)}
}

func (a arena) timesToOpen(all []opening, size sizes) table {
	t := table{
		title: "An outage: " + a.name,
		text: fmt.Sprintf("All calls fail from an instant on: the time until the last call that reached the service, in ms, and how many did; medians of %d rounds, each of %v. "+
			"Infuse confirms for 50 ms before it opens for all (Config.Suspicion). %s", size.openings, size.watched, a.outage),
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
