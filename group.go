package infuse

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Group keeps breakers by name, made on first use with one Config: for a
// client of many services. All methods are safe for concurrent use.
//
// It keeps at most Config.MaxCircuits breakers. At that bound the least
// recently used healthy one makes room: it is stopped, and a later breaker of
// the same name meets the record that the storage still holds. One that is not
// closed never makes room.
type Group struct {
	config *settings
	clock  atomic.Int64 // counts uses

	mu       sync.RWMutex
	breakers map[string]*groupEntry
	stopped  bool
}

type groupEntry struct {
	made    sync.Once // newBreaker does I/O, and so runs without the group's lock
	breaker atomic.Pointer[Breaker]
	used    atomic.Int64
}

// ErrGroupFull is returned by Group.Breaker when Config.MaxCircuits circuits
// are kept, and none of them is closed (or all are only being made).
var ErrGroupFull = errors.New("infuse: the group is full")

var errGroupStopped = errors.New("infuse: the group is stopped")

// NewGroup returns an empty group. The error names what is wrong with a field
// of the Config. If Config.Storage is nil, the breakers share a MemoryStorage
// of the group's own.
func NewGroup(cfg Config) (*Group, error) {
	s, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	if s.Storage == nil {
		s.Storage = NewMemoryStorage()
	}
	return &Group{config: s, breakers: make(map[string]*groupEntry)}, nil
}

// Breaker returns the breaker of that name. The first time it does what New
// does, and may wait as long; from then on it does no I/O. The error is that
// of a name that CheckName refuses, or ErrGroupFull.
func (g *Group) Breaker(name string) (*Breaker, error) {
	g.mu.RLock()
	e := g.breakers[name]
	g.mu.RUnlock()
	if e == nil {
		var err error
		if e, err = g.add(name); err != nil {
			return nil, err
		}
	}
	if now := g.clock.Load(); e.used.Load() != now {
		e.used.Store(g.clock.Add(1)) // not written while the same circuit is used again and again
	}
	made := false
	e.made.Do(func() {
		b, _ := newBreaker(name, g.config) // it fails for a bad name alone
		e.breaker.Store(b)
		made = true
	})
	b := e.breaker.Load()
	if made {
		g.begin(b)
	}
	return b, nil
}

// begin lets a new breaker's listeners be told, who may use the group again.
func (g *Group) begin(b *Breaker) {
	g.mu.RLock()
	stopped := g.stopped
	g.mu.RUnlock()
	if stopped { // while it was made
		b.Stop()
	}
	b.events.start()
	b.tell()
}

func (g *Group) add(name string) (*groupEntry, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.breakers[name]; e != nil {
		return e, nil
	}
	if g.stopped {
		return nil, errGroupStopped
	}
	if len(g.breakers) >= g.config.MaxCircuits && !g.makeRoom() {
		return nil, fmt.Errorf("%w: none of its %d circuits is closed", ErrGroupFull, len(g.breakers))
	}
	e := &groupEntry{}
	e.used.Store(g.clock.Add(1))
	g.breakers[name] = e
	return e, nil
}

// makeRoom lets go of the least recently used breaker among those that are
// closed, and rather of one without failures. g.mu is held.
func (g *Group) makeRoom() bool {
	var victim string
	var worst int64
	failing := true
	for name, e := range g.breakers {
		b := e.breaker.Load()
		if b == nil || b.State() != StateClosed {
			continue
		}
		fails, used := b.Failures() > 0, e.used.Load()
		if victim == "" || failing && !fails || failing == fails && used < worst {
			victim, worst, failing = name, used, fails
		}
	}
	if victim == "" {
		return false
	}
	go g.breakers[victim].breaker.Load().Stop()
	delete(g.breakers, victim)
	return true
}

// Stop stops all breakers of the group, as Breaker.Stop does. They still work,
// each from its own view; no more are made.
func (g *Group) Stop() {
	g.mu.Lock()
	g.stopped = true
	var all sync.WaitGroup
	for _, e := range g.breakers {
		if b := e.breaker.Load(); b != nil {
			all.Go(b.Stop)
		}
	}
	g.mu.Unlock()
	all.Wait()
}
