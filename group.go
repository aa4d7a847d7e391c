package infuse

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
)

// Group keeps breakers by name, made on first use: for a client of many
// services. All methods are safe for concurrent use.
//
// It keeps Config.MaxCircuits breakers. At that bound the one that is missed
// least makes room: a healthy one, the least recently used, or else one whose
// trial is due, one with failures, or the one that is due next. The group then
// forgets the breaker, but does not stop it: where it is still in use, it goes
// on hearing of its circuit. A later breaker of the same name meets the record
// that the storage still holds. Without a storage it begins anew.
//
// Making a breaker costs what New costs: with a Storage, one read that the call
// waits for, and a watch. So if more services than MaxCircuits are called in
// turn, nearly every call costs a read: MaxCircuits should be above the number
// of services that are in use.
type Group struct {
	config func(circuit string) Config
	clock  atomic.Int64 // counts uses

	mu       sync.RWMutex
	settings *settings // of the group: MaxCircuits, and the Storage where the settings of a circuit have none
	link     *link     // to that storage
	breakers map[string]*groupEntry
	stopped  bool
}

// groupEntry is a breaker, or one that is being made.
type groupEntry struct {
	name     string
	portless bool        // as the name of a host: it is the same for every scheme
	gone     atomic.Bool // the group has forgotten it
	breaker  atomic.Pointer[Breaker]
	used     atomic.Int64
	made     chan struct{} // closed when it is made, or could not be
	err      error         // why it could not
}

var errGroupStopped = errors.New("infuse: the group is stopped")

// NewGroup returns an empty group, all of whose breakers have the same
// settings. It does no I/O. The error names what is wrong with a field of the
// Config.
func NewGroup(cfg Config) (*Group, error) {
	g, err := newGroup(cfg)
	if err == nil {
		g.config = func(string) Config {
			cfg := g.shared().Config
			cfg.Storage = nil // the group's: it need not be comparable
			return cfg
		}
	}
	return g, err
}

// NewGroupFunc returns an empty group with settings by name. config is called
// for each breaker that is made, and must be safe for concurrent use; where
// what it returns is invalid, that is the error of Group.Breaker. It is called
// with the empty name first, for what is the group's: MaxCircuits, and the
// Storage of circuits whose Config has none.
func NewGroupFunc(config func(circuit string) Config) (*Group, error) {
	if config == nil {
		return nil, errors.New("infuse: NewGroupFunc: the func is nil")
	}
	g, err := newGroup(config(""))
	if err == nil {
		g.config = config
	}
	return g, err
}

func newGroup(cfg Config) (*Group, error) {
	s, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	return &Group{settings: s, link: linkTo(s.Storage), breakers: make(map[string]*groupEntry)}, nil
}

// shared returns the settings of the group.
func (g *Group) shared() *settings {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.settings
}

// Breaker returns the breaker of that name. The first time it does what New
// does, and may wait as long; from then on it does no I/O. The error is that
// of a name that CheckName refuses, or of settings that are invalid.
func (g *Group) Breaker(name string) (*Breaker, error) {
	g.mu.RLock()
	e := g.breakers[name]
	g.mu.RUnlock()
	if e == nil {
		return g.make(name)
	}
	g.use(e)
	if b := e.breaker.Load(); b != nil {
		return b, nil
	}
	<-e.made
	return e.breaker.Load(), e.err
}

// again is Breaker for a caller that asks for the same name over and over. last
// has what it was given last: as long as the group has that, too, no lock is
// taken.
func (g *Group) again(last *atomic.Pointer[groupEntry], name string) (*Breaker, error) {
	if e := last.Load(); e != nil && e.name == name && !e.gone.Load() {
		g.use(e)
		return e.breaker.Load(), nil
	}
	b, err := g.Breaker(name)
	if err == nil {
		g.mu.RLock()
		if e := g.breakers[name]; e != nil && e.breaker.Load() == b {
			last.Store(e)
		}
		g.mu.RUnlock()
	}
	return b, err
}

func (g *Group) use(e *groupEntry) {
	if now := g.clock.Load(); e.used.Load() != now {
		e.used.Store(g.clock.Add(1)) // not written while the same circuit is used again and again
	}
}

// make makes a breaker, or waits for the one that another call is making.
func (g *Group) make(name string) (*Breaker, error) {
	e, mine, err := g.add(name)
	if err != nil {
		return nil, err
	}
	if !mine {
		<-e.made
		return e.breaker.Load(), e.err
	}
	e.err = fmt.Errorf("infuse: the breaker of %q could not be made", name) // if making it panics
	defer func() {
		if e.err != nil {
			g.mu.Lock()
			delete(g.breakers, name)
			g.mu.Unlock()
		}
		close(e.made)
	}()
	s, l, err := g.settingsOf(name)
	if err != nil {
		e.err = err
		return nil, err
	}
	b := newBreaker(name, s, l)
	e.err = nil
	e.breaker.Store(b)
	if g.isStopped() { // while it was made
		b.Stop()
	}
	defer b.start() // its listeners may use the group
	return b, nil
}

func (g *Group) isStopped() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.stopped
}

// settingsOf returns the settings of one circuit, and its link.
func (g *Group) settingsOf(name string) (*settings, *link, error) {
	s, err := newSettings(g.config(name))
	if err != nil {
		return nil, nil, fmt.Errorf("infuse: the settings of circuit %q: %w", name, err)
	}
	shared := g.shared()
	if s.Storage == nil || s.keep(shared.Storage) == nil {
		s.Storage = shared.Storage
		return s, g.link, nil
	}
	return s, linkTo(s.Storage), nil
}

func (g *Group) add(name string) (e *groupEntry, mine bool, err error) {
	if err := CheckName(name); err != nil {
		return nil, false, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.breakers[name]; e != nil {
		return e, false, nil
	}
	if g.stopped {
		return nil, false, errGroupStopped
	}
	for len(g.breakers) >= g.settings.MaxCircuits && g.makeRoom() {
	}
	e = &groupEntry{name: name, portless: !strings.Contains(name, ":"), made: make(chan struct{})}
	e.used.Store(g.clock.Add(1))
	g.breakers[name] = e
	return e, true, nil
}

// makeRoom evicts the breaker that is missed least. Those that are being made
// stay. g.mu is held.
func (g *Group) makeRoom() bool {
	var victim string
	var least worth
	for name, e := range g.breakers {
		b := e.breaker.Load()
		if b == nil {
			continue
		}
		if w := b.worth(e.used.Load()); victim == "" || w.less(least) {
			victim, least = name, w
		}
	}
	if e := g.breakers[victim]; e != nil {
		e.gone.Store(true)
		delete(g.breakers, victim)
	}
	return victim != ""
}

// worth tells how much a breaker is missed once it is evicted.
type worth struct {
	rank int   // 0 healthy, 1 due, 2 failing, 3 open, 4 held by hand
	due  int64 // of one that is open
	used int64
}

func (w worth) less(other worth) bool {
	if w.rank != other.rank {
		return w.rank < other.rank
	}
	if w.due != other.due {
		return w.due < other.due
	}
	return w.used < other.used
}

func (b *Breaker) worth(used int64) worth {
	switch v := b.view.Load(); {
	case v.forced:
		return worth{4, 0, used}
	case v.admits == admitsAll && v.quiet:
		return worth{0, 0, used}
	case v.admits == admitsAsker:
		return worth{1, 0, used}
	case v.admits == admitsAll:
		return worth{2, 0, used}
	default:
		return worth{3, v.rejection.DueAt.UnixNano(), used}
	}
}

// All returns the breakers that the group keeps when it is called, in no order.
// Iterating does not affect eviction order.
func (g *Group) All() iter.Seq[*Breaker] {
	g.mu.RLock()
	all := make([]*Breaker, 0, len(g.breakers))
	for _, e := range g.breakers {
		if b := e.breaker.Load(); b != nil {
			all = append(all, b)
		}
	}
	g.mu.RUnlock()
	return func(yield func(*Breaker) bool) {
		for _, b := range all {
			if !yield(b) {
				return
			}
		}
	}
}

// Configure changes the settings of the group and of all its breakers, as
// Breaker.Configure does; a group of NewGroupFunc has its func asked again for
// each name, and takes from cfg what is the group's. Where one circuit's
// settings are invalid, that circuit keeps what it has, and the error says so.
func (g *Group) Configure(cfg Config) error {
	s, err := newSettings(cfg)
	if err != nil {
		return err
	}
	g.mu.Lock()
	err = s.keep(g.settings.Storage)
	if err == nil {
		g.settings = s
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	var invalid []error
	for b := range g.All() {
		if err := b.Configure(g.config(b.Name())); err != nil {
			invalid = append(invalid, fmt.Errorf("infuse: the settings of circuit %q: %w", b.Name(), err))
		}
	}
	return errors.Join(invalid...)
}

// Stop stops all breakers of the group at once, and waits as Breaker.Stop does.
// They still work, each from its own view. No more are made: Breaker returns an
// error for a new name, and a Transport sends such a request unprotected.
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
