package main

import (
	"context"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/worker"
)

// Simulated fleets: the breakers are real, one for each process, and so is all
// of their code. Time is virtual (testing/synctest), and what they share is in
// memory.

// simulation is a fleet that is to be simulated.
type simulation struct {
	Kind    string
	Members int
	Weather weather
}

// A simulation has a process of its own, because only tests have virtual time:
// that process is a test for package testing.
const simulationJob = "simulation"

var simulationWork = worker.Of(func(s simulation) (func(time.Time) (tally, error), func(), error) {
	return func(time.Time) (t tally, err error) {
		inVirtualTime(func() { t, err = s.run() })
		return t, err
	}, func() {}, nil
})

// inVirtualTime runs f, in a process that does nothing else.
func inVirtualTime(f func()) {
	over := make(chan struct{})
	os.Args = os.Args[:1] // testing.Main would read the flags
	go testing.Main(regexp.MatchString, []testing.InternalTest{{Name: "virtual time", F: func(t *testing.T) {
		synctest.Test(t, func(*testing.T) { f() })
		close(over)
		select {} // testing.Main would end the process
	}}}, nil, nil)
	<-over
}

// oneWay is how long a message takes between a process and the storage.
const oneWay = 500 * time.Microsecond

// run has the fleet live. It must be called in virtual time.
func (s simulation) run() (tally, error) {
	w := s.Weather
	f := newSimulated(s.Kind)
	defer f.end()
	callers := make([]*caller, s.Members+1)
	for i := range callers {
		c := &caller{weather: w, kind: f.kind}
		var err error
		if c.member, err = f.join(c.settings()); err != nil {
			return tally{}, err
		}
		defer c.member.stop()
		callers[i] = c
	}
	callers, bystander := callers[:s.Members], callers[s.Members]
	begin := time.Now()
	for _, c := range callers {
		c.begin = begin
	}
	random := rand.New(rand.NewPCG(w.Seed, uint64(s.Members)))
	var waiting sync.WaitGroup
	for next := w.until(random, s.Members); next < w.For; next += w.until(random, s.Members) {
		time.Sleep(next - time.Since(begin))
		c, roll := callers[random.IntN(s.Members)], random.Float64()
		if c.member.closed == nil || c.member.closed() && !w.fails(roll, next) {
			c.call(roll)
		} else {
			waiting.Go(func() { c.call(roll) })
		}
	}
	waiting.Wait()
	var t tally
	for _, c := range callers {
		t = t.plus(c.tally())
	}
	t.told(f.kind, bystander.tally())
	return t, nil
}

// simulated is what the members of a simulated fleet share.
type simulated struct {
	kind fleetKind
	join func(fleetSettings) (member, error)
	end  func()
}

func newSimulated(kind string) simulated {
	switch kind {
	case infuseFleet.name:
		d := newDistant()
		return simulated{infuseFleet, func(s fleetSettings) (member, error) { return infuseMember(d, s) }, d.end}
	case gobreakerFleet.name:
		store := memoryStore{}
		return simulated{gobreakerFleet, func(s fleetSettings) (member, error) { return gobreakerMember(store, s) }, func() {}}
	}
	return simulated{localFleet, func(s fleetSettings) (member, error) { return localMember(s), nil }, func() {}}
}

// memoryStore is gobreaker's shared store where nothing takes time and nobody
// comes in between: calls of a simulated fleet are made one after the other.
type memoryStore map[string][]byte

func (s memoryStore) Lock(string) error                      { return nil }
func (s memoryStore) Unlock(string) error                    { return nil }
func (s memoryStore) GetData(name string) ([]byte, error)    { return s[name], nil }
func (s memoryStore) SetData(name string, data []byte) error { s[name] = data; return nil }

// distant is a storage in memory at the distance oneWay, also for its notifications. It
// knows one circuit.
type distant struct {
	memory  *infuse.MemoryStorage
	news    chan news
	unwatch func()

	mu       sync.Mutex
	watchers []func(infuse.Record)
}

type news struct {
	record infuse.Record
	at     time.Time
}

func newDistant() *distant {
	d := &distant{memory: infuse.NewMemoryStorage(), news: make(chan news, 1000)}
	d.unwatch = d.memory.Watch(sharedName, func(r infuse.Record) { d.news <- news{r, time.Now().Add(oneWay)} })
	go func() {
		for n := range d.news {
			time.Sleep(time.Until(n.at))
			d.tell(n.record)
		}
	}()
	return d
}

func (d *distant) end() {
	d.unwatch()
	close(d.news)
}

func (d *distant) tell(r infuse.Record) {
	d.mu.Lock()
	all := d.watchers
	d.mu.Unlock()
	for _, fn := range all {
		own := r
		own.Trials, own.Window.Buckets = slices.Clone(r.Trials), slices.Clone(r.Window.Buckets)
		fn(own)
	}
}

func (d *distant) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	time.Sleep(oneWay)
	defer time.Sleep(oneWay)
	return d.memory.Load(ctx, circuit)
}

func (d *distant) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	time.Sleep(oneWay)
	defer time.Sleep(oneWay)
	return d.memory.Apply(ctx, circuit, c)
}

// Watch has no end: the fleet stops as one.
func (d *distant) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watchers = append(d.watchers, fn)
	return func() {}
}

// simulateAll runs so many simulations at a time as there are processors, each
// in a process of its own: the load of the machine does not matter to them.
func simulateAll(all []simulation) ([]tally, error) {
	tallies := make([]tally, len(all))
	err := worker.InParallel(len(all), runtime.NumCPU(), func(i int) error {
		progress("simulated: %d processes of %s, %v", all[i].Members, all[i].Kind, all[i].Weather)
		w, err := worker.Start(simulationJob, all[i])
		if err != nil {
			return err
		}
		defer w.End()
		return w.Work(time.Now(), &tallies[i])
	})
	return tallies, err
}
