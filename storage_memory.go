package infuse

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/infuse-go/infuse/internal/ordered"
)

// MemoryStorage keeps circuits in the memory of this process: for unit tests
// of what a fleet does, with a Breaker for each process. (A service that is
// one process needs no storage.) The zero value is ready to use. Nothing in it
// ever waits, and it starts no goroutine.
//
// It is the reference that other storages are compared with.
type MemoryStorage struct {
	mu       sync.Mutex
	start    time.Time
	circuits map[string]*memoryCircuit
	sweepAt  int // the number of circuits at which the old ones are looked for
}

// memoryCircuit is a record and those who watch it. Its fields are guarded by
// MemoryStorage.mu.
type memoryCircuit struct {
	record   Record
	until    time.Time // from then on, the record may go if nobody watches it
	history  []Event   // the oldest first
	watchers []*memoryWatcher
	news     ordered.Queue[Record] // what the watchers are yet to hear
}

type memoryWatcher struct{ fn func(Record) }

// maxUnwatched bounds the circuits that are kept though nobody watches them.
const maxUnwatched = 10_000

// NewMemoryStorage returns an empty storage.
func NewMemoryStorage() *MemoryStorage { return &MemoryStorage{} }

// Load implements Storage. It fails for a name that CheckName refuses, only.
func (s *MemoryStorage) Load(_ context.Context, circuit string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.circuits[circuit]; c != nil {
		return c.record.At(s.now()).clone(), nil
	}
	return Record{}, CheckName(circuit)
}

// Apply implements Storage. It fails for a name that CheckName refuses, and
// for a source that CheckSource refuses, only. The watchers hear of a
// transition before Apply returns, unless another call of Apply is telling
// them already.
func (s *MemoryStorage) Apply(_ context.Context, circuit string, change Change) (Record, Verdict, error) {
	if err := CheckName(circuit); err != nil {
		return Record{}, VerdictRefused, err
	}
	if err := change.check(); err != nil {
		return Record{}, VerdictRefused, err
	}
	record, verdict, c := s.apply(circuit, change)
	c.news.Drain(func(r Record) { s.tell(c, r) })
	return record.clone(), verdict, nil
}

func (s *MemoryStorage) apply(circuit string, change Change) (Record, Verdict, *memoryCircuit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	c := s.circuit(circuit)
	record, verdict := c.record.Apply(change, now)
	if verdict != VerdictRefused {
		if events := c.record.events(&record, &change, now); events != nil {
			c.history = slices.Concat(c.history, events)
			c.history = c.history[max(0, len(c.history)-MaxHistory):]
		}
		c.record = record.clone() // its trials may be the sender's
		c.until = record.keepUntil(now)
	}
	if verdict == VerdictMoved {
		c.news.Add(c.record)
	}
	s.tidy(circuit, c, now)
	return record, verdict, c
}

// Watch implements Storage.
func (s *MemoryStorage) Watch(circuit string, fn func(Record)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.circuit(circuit)
	w := &memoryWatcher{fn}
	c.watchers = append(c.watchers, w)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.watchers = slices.DeleteFunc(slices.Clone(c.watchers), func(other *memoryWatcher) bool { return other == w })
		s.tidy(circuit, c, s.now())
	}
}

// History implements Historian.
func (s *MemoryStorage) History(_ context.Context, circuit string) ([]Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.circuits[circuit]
	if c == nil {
		return nil, CheckName(circuit)
	}
	all := slices.Clone(c.history)
	slices.Reverse(all)
	return all[:min(len(all), MaxHistory)], nil
}

// Circuits implements Lister.
func (s *MemoryStorage) Circuits(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		s.mu.Lock()
		var names []string
		for name, c := range s.circuits {
			if c.record.Generation > 0 || !c.record.Healthy() {
				names = append(names, name)
			}
		}
		s.mu.Unlock()
		for _, name := range names {
			if !yield(name, nil) {
				return
			}
		}
	}
}

func (s *MemoryStorage) tell(c *memoryCircuit, r Record) {
	s.mu.Lock()
	watchers := c.watchers
	s.mu.Unlock()
	for _, w := range watchers {
		w.fn(r.clone())
	}
}

// clone returns a record that shares nothing with r.
func (r Record) clone() Record {
	r.Trials = slices.Clone(r.Trials)
	r.Window.Buckets = slices.Clone(r.Window.Buckets)
	if r.Override != nil {
		o := *r.Override
		r.Override = &o
	}
	return r
}

func (s *MemoryStorage) circuit(name string) *memoryCircuit {
	c := s.circuits[name]
	if c == nil {
		if s.circuits == nil {
			s.circuits = make(map[string]*memoryCircuit)
		}
		c = &memoryCircuit{}
		s.circuits[name] = c
	}
	return c
}

// tidy forgets a circuit of which nothing is worth keeping and, whenever the
// number of circuits has doubled, all that nobody watches and that are old, or
// too many.
func (s *MemoryStorage) tidy(name string, c *memoryCircuit, now time.Time) {
	idle := func(c *memoryCircuit) bool { return len(c.watchers) == 0 && !now.Before(c.until) }
	if idle(c) {
		delete(s.circuits, name)
	}
	if len(s.circuits) < max(s.sweepAt, 1024) {
		return
	}
	unwatched := 0
	for name, c := range s.circuits {
		if len(c.watchers) == 0 {
			unwatched++
		}
		if idle(c) || len(c.watchers) == 0 && unwatched > maxUnwatched {
			delete(s.circuits, name)
		}
	}
	s.sweepAt = 2 * len(s.circuits)
}

// now is the storage's clock: the wall clock at its first use, and monotonic
// from there, so that a jump of the wall clock moves nothing.
func (s *MemoryStorage) now() time.Time {
	if s.start.IsZero() {
		s.start = time.Now()
	}
	return s.start.Add(time.Since(s.start))
}
