package infuse

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/infuse-go/infuse/internal/ordered"
)

// MemoryStorage keeps circuits in the memory of this process. It is for unit tests of
// a fleet, with one Breaker for each process of the fleet. A service that runs as one
// process needs no storage. The zero value is ready to use. It does no I/O and starts
// no goroutine. Other storages are tested against it.
type MemoryStorage struct {
	mu       sync.Mutex
	start    time.Time
	circuits map[string]*memoryCircuit
	sweepAt  int // the number of circuits at which idle ones are removed
}

// memoryCircuit is a record and its watchers, guarded by MemoryStorage.mu.
type memoryCircuit struct {
	watchers      []*memoryWatcher
	*memoryRecord // nil: nobody has reported anything
}

type memoryRecord struct {
	record  Record
	until   time.Time             // the record may be removed from then on, if nobody watches it
	history []Event               // the oldest first
	news    ordered.Queue[Record] // not yet sent to the watchers
}

// isIdle reports whether nobody needs the circuit any more.
func (c *memoryCircuit) isIdle(now time.Time) bool {
	return len(c.watchers) == 0 && (c.memoryRecord == nil || !now.Before(c.until))
}

type memoryWatcher struct{ fn func(Record) }

// maxUnwatched bounds the circuits that nobody watches.
const maxUnwatched = 10_000

// NewMemoryStorage returns an empty storage.
func NewMemoryStorage() *MemoryStorage { return &MemoryStorage{} }

// Load implements Storage. Its only error is that of CheckName.
func (s *MemoryStorage) Load(_ context.Context, circuit string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.circuits[circuit]; c != nil && c.memoryRecord != nil {
		return c.record.At(s.now()).clone(), nil
	}
	return Record{}, CheckName(circuit)
}

// Apply implements Storage. Its only errors are that of CheckName and that of an
// invalid change. The watchers are called before Apply returns, unless another call
// of Apply is calling them already.
func (s *MemoryStorage) Apply(_ context.Context, circuit string, change Change) (Record, Verdict, error) {
	if err := CheckName(circuit); err != nil {
		return Record{}, VerdictRefused, err
	}
	if err := change.check(); err != nil {
		return Record{}, VerdictRefused, err
	}
	record, verdict, c := s.apply(circuit, change)
	c.news.Drain(func(r Record) { s.notify(c, r) })
	return record.clone(), verdict, nil
}

func (s *MemoryStorage) apply(circuit string, change Change) (Record, Verdict, *memoryCircuit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	c := s.circuit(circuit)
	if c.memoryRecord == nil {
		c.memoryRecord = new(memoryRecord)
	}
	record, verdict := c.record.Apply(change, now)
	if verdict != VerdictRefused {
		if events := c.record.events(&record, &change, now); events != nil {
			c.history = slices.Concat(c.history, events)
			c.history = c.history[max(0, len(c.history)-MaxHistory):]
		}
		c.record = record.clone() // its slices may be the sender's
		c.until = record.keepUntil(now)
	}
	if verdict == VerdictChanged {
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
	if c == nil || c.memoryRecord == nil {
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
			if c.memoryRecord != nil && (c.record.Generation > 0 || !c.record.Healthy()) {
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

func (s *MemoryStorage) notify(c *memoryCircuit, r Record) {
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

// tidy removes the circuit if it is idle. Whenever the number of circuits has doubled,
// it removes all idle circuits, and those without watchers above maxUnwatched.
func (s *MemoryStorage) tidy(name string, c *memoryCircuit, now time.Time) {
	if c.isIdle(now) {
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
		if c.isIdle(now) || len(c.watchers) == 0 && unwatched > maxUnwatched {
			delete(s.circuits, name)
		}
	}
	s.sweepAt = 2 * len(s.circuits)
}

// now is the storage's clock: the wall clock of its first use plus the monotonic time
// since then. A jump of the wall clock has no effect.
func (s *MemoryStorage) now() time.Time {
	if s.start.IsZero() {
		s.start = time.Now()
	}
	return s.start.Add(time.Since(s.start))
}
