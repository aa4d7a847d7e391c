package infuse

import (
	"context"
	"slices"
	"sync"
	"time"
)

// MemoryStorage keeps circuits in the memory of this process: for a service
// that is one process, and for unit tests. The zero value is ready to use.
// Breakers that are given the same MemoryStorage share their circuits by name.
// Nothing in it ever waits, and it starts no goroutine.
//
// It is the reference that other storages are compared with.
type MemoryStorage struct {
	mu       sync.Mutex
	start    time.Time
	circuits map[string]*memoryCircuit
	sweepAt  int // the number of circuits at which the outlived ones are looked for
}

// memoryCircuit is a record and those who watch it. Its fields are guarded by
// MemoryStorage.mu.
type memoryCircuit struct {
	record   Record
	outlived time.Time // from then on, the record may go if nobody watches it
	watchers []*memoryWatcher
	untold   []Record // what the watchers are yet to hear, oldest first
	telling  bool     // somebody is telling them
}

type memoryWatcher struct{ fn func(Record) }

// NewMemoryStorage returns an empty storage.
func NewMemoryStorage() *MemoryStorage { return &MemoryStorage{} }

// Load implements Storage. It fails for a name that CheckName refuses, only.
func (s *MemoryStorage) Load(_ context.Context, circuit string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.circuits[circuit]; c != nil {
		return c.record.clone(), nil
	}
	return Record{}, CheckName(circuit)
}

// Apply implements Storage. It fails for a name that CheckName refuses, only.
// The watchers hear of a transition before Apply returns, unless another call
// of Apply is telling them already.
func (s *MemoryStorage) Apply(_ context.Context, circuit string, change Change) (Record, Verdict, error) {
	if err := CheckName(circuit); err != nil {
		return Record{}, VerdictRefused, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	c := s.circuit(circuit)
	record, verdict := c.record.Apply(change, now)
	if verdict != VerdictRefused {
		c.record = record.clone() // its trials may be the sender's
		c.outlived = record.outlived(now)
		if verdict == VerdictMoved && len(c.watchers) > 0 {
			c.untold = append(c.untold, c.record)
		}
	}
	s.tidy(circuit, c, now)
	s.tell(c)
	return record.clone(), verdict, nil
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
		for i, other := range c.watchers {
			if other == w {
				// A new slice: tell may be going over the old one.
				c.watchers = append(append([]*memoryWatcher(nil), c.watchers[:i]...), c.watchers[i+1:]...)
				s.tidy(circuit, c, s.now())
				return
			}
		}
	}
}

// tell hands the untold records to the watchers, without the lock but in
// order: one caller at a time does it for all. It is called and returns with
// the lock held.
func (s *MemoryStorage) tell(c *memoryCircuit) {
	if c.telling {
		return
	}
	c.telling = true
	defer func() { c.telling = false }()
	for len(c.untold) > 0 {
		record, watchers := c.untold[0], c.watchers
		c.untold = c.untold[1:]
		s.withoutLock(func() {
			for _, w := range watchers {
				w.fn(record.clone())
			}
		})
	}
}

// withoutLock gives the lock back while f runs, and also where f ends the
// goroutine.
func (s *MemoryStorage) withoutLock(f func()) {
	s.mu.Unlock()
	defer s.mu.Lock()
	f()
}

// clone returns a record that shares nothing with r.
func (r Record) clone() Record {
	r.Trials, r.Tokens = slices.Clone(r.Trials), slices.Clone(r.Tokens)
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
// number of circuits has doubled, all that nobody has watched or changed for long.
func (s *MemoryStorage) tidy(name string, c *memoryCircuit, now time.Time) {
	idle := func(c *memoryCircuit) bool { return len(c.watchers) == 0 && !now.Before(c.outlived) }
	if idle(c) {
		delete(s.circuits, name)
	}
	if len(s.circuits) < max(s.sweepAt, 1024) {
		return
	}
	for name, c := range s.circuits {
		if idle(c) {
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
