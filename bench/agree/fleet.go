package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// fleet is real processes on a redis-server.
type fleet struct {
	server  *redistest.Server
	workers []*worker.Worker
	plans   []plan
	watched map[string]*watched // by circuit
	storage *infuse.RedisStorage
	stops   []func()
	begin   time.Time
	mu      sync.Mutex // guards workers while one crashes
}

// watched is what a bystander, who makes no calls, saw of a shared circuit.
type watched struct {
	mu         sync.Mutex
	onSuspect  func() // must not block
	suspect    bool
	suspicions int
	opened     map[int64]bool // by the generation of the opening
	state      infuse.State
	closed     []time.Time // when it closed after it had been open
}

func (w *watched) see(r infuse.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	began := r.Suspect() && !w.suspect
	if began {
		w.suspicions++
	}
	w.suspect = r.Suspect()
	if r.Opened > 0 {
		w.opened[r.Opened] = true
	}
	if r.State == infuse.StateClosed && w.state != infuse.StateClosed {
		w.closed = append(w.closed, time.Now())
	}
	w.state = r.State
	if began && w.onSuspect != nil {
		w.onSuspect()
	}
}

// notify sets what is called when the circuit becomes suspect.
func (w *watched) notify(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onSuspect = f
}

// start starts one process for each plan, and a bystander that watches all
// shared circuits.
func start(server *redistest.Server, plans []plan) (*fleet, error) {
	f := &fleet{server: server, plans: plans, watched: map[string]*watched{}}
	f.storage = infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	for _, p := range plans {
		for _, c := range p.Calls {
			if c.Kind == shared && f.watched[c.Circuit] == nil {
				w := &watched{opened: map[int64]bool{}}
				f.watched[c.Circuit] = w
				f.stops = append(f.stops, f.storage.Watch(c.Circuit, w.see))
			}
		}
	}
	f.workers = make([]*worker.Worker, len(plans))
	err := worker.InParallel(len(plans), 4, func(i int) (err error) {
		plans[i].Addr = server.Addr()
		f.workers[i], err = worker.Start(processJob, plans[i])
		return err
	})
	if err != nil {
		f.end()
	}
	return f, err
}

// live has all processes make their calls, and returns what became of them: one
// tally for each of a plan's calls. A process that crashes has none.
func (f *fleet) live(begin time.Time) ([][]tally, error) {
	f.begin = begin
	found := make([][]tally, len(f.workers))
	err := worker.InParallel(len(f.workers), len(f.workers), func(i int) error {
		if f.plans[i].Crash > 0 {
			return f.crash(i, begin)
		}
		return f.worker(i).Work(begin, &found[i])
	})
	return found, err
}

// crash kills a process again and again, and starts it anew.
func (f *fleet) crash(i int, begin time.Time) error {
	p := f.plans[i]
	for end := begin.Add(p.For); ; {
		w := f.worker(i)
		go func() { _ = w.Work(time.Now(), &[]tally{}) }()
		time.Sleep(p.Crash)
		w.Kill()
		if time.Now().After(end) {
			return nil
		}
		p.Seed += 1000
		w, err := worker.Start(processJob, p)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.workers[i] = w
		f.mu.Unlock()
	}
}

func (f *fleet) worker(i int) *worker.Worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[i]
}

// signal sends a signal to a process. If that has just crashed, its successor gets it.
func (f *fleet) signal(i int, signal os.Signal) (err error) {
	for range 100 {
		if err = f.worker(i).Signal(signal); !errors.Is(err, os.ErrProcessDone) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// end stops the bystander first: what happens when the processes end is of no interest.
func (f *fleet) end() {
	for _, stop := range f.stops {
		stop()
	}
	f.workers = slices.DeleteFunc(f.workers, func(w *worker.Worker) bool { return w == nil })
	_ = worker.InParallel(len(f.workers), len(f.workers)+1, func(i int) error {
		f.workers[i].End()
		return nil
	})
	_ = f.storage.Close()
}

// seen returns the suspicions and the openings of a circuit, after one more read.
func (f *fleet) seen(circuit string) (suspicions, openings int) {
	w := f.watched[circuit]
	if r, err := f.storage.Load(context.Background(), circuit); err == nil {
		w.see(r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.suspicions, len(w.opened)
}
