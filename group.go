package infuse

import (
	"errors"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
)

// Group keeps breakers by name, made on first use: for a client of many
// services. All methods are safe for concurrent use.
//
// A Group keeps Config.MaxCircuits breakers. Above that it evicts one, whatever
// its state: the least recently used. Names that a client chooses, such as the
// hosts of its webhooks, cannot evict the circuits of your own services:
//
//   - Circuits with settings of their own (see NewGroupFunc) and circuits under an
//     override are only evicted by others with settings of their own. If they fill
//     the Group, it keeps one breaker more, for all other names.
//   - Among the others, newcomers evict newcomers. Up to three quarters of
//     MaxCircuits are for established circuits: those that were used again
//     after a quarter of MaxCircuits other uses. One that is not used during the
//     next 8 × MaxCircuits uses is a newcomer again.
//
// An evicted breaker is not stopped: if it is still in use, it goes on watching
// its circuit. A later breaker of the same name loads the record that the storage
// still holds. Without a storage it begins anew.
//
// Making a breaker costs what New costs: with a Storage, one read that the call
// waits for, and a watch. So MaxCircuits should be above the number of services
// that are in use: beyond it many calls cost a read.
type Group struct {
	config   func(circuit string) Config // that of NewGroupFunc; nil: all breakers have the group's settings
	stranger atomic.Pointer[Config]      // what config returns for a name that nobody has; nil if it was not asked
	clock    atomic.Int64                // counts uses

	mu       sync.RWMutex
	settings *settings // of the group: MaxCircuits, and the Storage where the settings of a circuit have none
	link     *link     // to that storage
	breakers map[string]*groupEntry
	kinds    []*settings         // of circuits, from config: those that are equal share one
	warned   map[string]struct{} // the names whose settings were reported as invalid
	stopped  bool
}

// maxKinds bounds the settings that a Group compares new ones with.
const maxKinds = 16

// groupEntry is a breaker, or one that is being made.
type groupEntry struct {
	name     string
	breaker  atomic.Pointer[Breaker]
	making   atomic.Pointer[making] // nil once the breaker is there
	born     int64                  // by Group.clock
	used     atomic.Int64
	gone     atomic.Bool // the group has forgotten it
	portless bool        // as the name of a host: it is the same for every scheme
	named    bool        // it has settings of its own; Group.mu
}

// making is what those wait for who want a breaker that is being made.
type making struct {
	over chan struct{} // closed when it is made, or could not be
	err  error         // why it could not
}

// wait returns the breaker when it is made.
func (e *groupEntry) wait() (*Breaker, error) {
	if m := e.making.Load(); m != nil {
		if <-m.over; m.err != nil {
			return nil, m.err
		}
	}
	return e.breaker.Load(), nil
}

var errGroupStopped = errors.New("infuse: the group is stopped")

// NewGroup returns an empty group, all of whose breakers have the same
// settings. It does no I/O. The error names what is wrong with a field of the
// Config.
func NewGroup(cfg Config) (*Group, error) {
	return newGroup(cfg)
}

// NewGroupFunc returns an empty group with settings by name. config is called
// for each breaker that is made, and must be safe for concurrent use. If it
// returns an invalid Config, Group.Breaker returns the error, a Transport sends
// the request unprotected, and Listener.Warning is called once for that name.
//
// config is called with the empty name first, for what is the group's:
// MaxCircuits, and the Storage of circuits whose Config has none. It is also
// called with a name that no circuit can have, "\x00": a circuit whose Config
// differs from that one has settings of its own, and other names cannot evict it.
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
	s.shareView()
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
	return e.wait()
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
		return e.wait()
	}
	var refused *invalidSettings
	defer func() { g.warn(name, refused) }() // last, because a listener may use the group

	m := e.making.Load()
	m.err = fmt.Errorf("infuse: the breaker of %q could not be made", name) // if making it panics
	defer func() {
		if m.err != nil {
			g.mu.Lock()
			delete(g.breakers, name)
			g.mu.Unlock()
		}
		close(m.over)
	}()
	before := g.shared()
	s, l, named, invalid := g.settingsOf(name)
	if invalid != nil {
		refused, m.err = invalid, invalid
		return nil, invalid
	}
	g.makeRoom(e, named)
	b := newBreaker(name, s, l)
	m.err = nil
	e.breaker.Store(b)
	e.making.Store(nil)
	if g.shared() != before { // Configure did not find it
		_, _ = g.configure(b)
	}
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

// settingsOf returns the settings of one circuit, its link, and whether it has
// settings of its own.
func (g *Group) settingsOf(name string) (s *settings, l *link, named bool, invalid *invalidSettings) {
	shared := g.shared()
	if g.config == nil {
		return shared, g.link, false, nil
	}
	cfg := g.config(name)
	s, err := newSettings(cfg)
	if err != nil {
		return nil, nil, false, &invalidSettings{name, cfg.Listeners, err}
	}
	if l = g.link; s.Storage == nil || s.keep(shared.Storage) == nil {
		s.Storage = shared.Storage
	} else {
		l = linkTo(s.Storage)
	}
	return g.unified(s), l, g.isNamed(cfg), nil
}

// unified returns settings of another circuit, if there are any that are equal.
func (g *Group) unified(s *settings) *settings {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, kind := range g.kinds {
		if s.equal(kind) {
			return kind
		}
	}
	s.shareView()
	if len(g.kinds) < maxKinds {
		g.kinds = append(g.kinds, s)
	} else {
		g.kinds[g.clock.Load()%maxKinds] = s
	}
	return s
}

// configure changes the settings of a breaker to those that it would be made with
// now.
func (g *Group) configure(b *Breaker) (named bool, err error) {
	if g.config == nil {
		b.configured(g.shared())
		return false, nil
	}
	cfg := g.config(b.Name())
	s, err := newSettings(cfg)
	if err == nil {
		err = s.keep(b.settings().Storage)
	}
	if err != nil {
		return false, &invalidSettings{b.Name(), cfg.Listeners, err}
	}
	b.configured(g.unified(s))
	return g.isNamed(cfg), nil
}

// invalidSettings are settings for which no breaker can be made.
type invalidSettings struct {
	circuit   string
	listeners []*Listener
	err       error
}

func (e *invalidSettings) Error() string {
	return fmt.Sprintf("infuse: the settings of circuit %q: %v", e.circuit, e.err)
}

func (e *invalidSettings) Unwrap() error { return e.err }

// warn reports invalid settings to the listeners of the circuit, or else to
// those of the group: once for each name, because requests go unprotected then.
func (g *Group) warn(name string, invalid *invalidSettings) {
	if invalid == nil {
		return
	}
	g.mu.Lock()
	_, warned := g.warned[name]
	if warned = warned || len(g.warned) >= g.settings.MaxCircuits; !warned {
		if g.warned == nil {
			g.warned = make(map[string]struct{})
		}
		g.warned[name] = struct{}{}
	}
	s := *g.settings
	g.mu.Unlock()
	if warned {
		return
	}
	listeners := invalid.listeners
	if len(listeners) == 0 {
		listeners = s.Listeners
	}
	s.Storage = nil
	b := newBreaker(name, &s, nil) // in place of the one that could not be made
	for _, l := range listeners {
		if l != nil && l.Warning != nil {
			protected(func() { l.Warning(b, invalid) })
		}
	}
}

// nobody is a name that no circuit can have.
const nobody = "\x00"

// isNamed reports whether a circuit has settings of its own: others than those
// for a name that nobody has.
func (g *Group) isNamed(cfg Config) bool {
	stranger := g.stranger.Load()
	if stranger == nil {
		stranger = new(Config)
		func() {
			defer func() { _ = recover() }() // a func that refuses unknown names
			*stranger = g.config(nobody)
		}()
		g.stranger.Store(stranger)
	}
	cfg.MaxCircuits = stranger.MaxCircuits // the group's
	return !sameConfig(reflect.ValueOf(cfg), reflect.ValueOf(*stranger))
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
	e = &groupEntry{name: name, portless: !strings.Contains(name, ":"), born: g.clock.Add(1)}
	e.making.Store(&making{over: make(chan struct{})})
	e.used.Store(e.born)
	g.breakers[name] = e
	return e, true, nil
}

// makeRoom evicts breakers for a new one. Those that are being made stay.
func (g *Group) makeRoom(e *groupEntry, named bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e.named = named
	for len(g.breakers) > g.settings.MaxCircuits {
		victim := g.victim(named)
		if victim == nil {
			return
		}
		victim.gone.Store(true)
		delete(g.breakers, victim.name)
	}
}

// victim returns the breaker to evict: nil if there is none. g.mu is held.
func (g *Group) victim(forNamed bool) *groupEntry {
	var named, established, newcomer *groupEntry // the least recently used of each kind
	others := 0                                  // the established ones
	now, most := g.clock.Load(), g.settings.MaxCircuits
	for _, e := range g.breakers {
		oldest := &newcomer
		switch b := e.breaker.Load(); {
		case b == nil:
			continue
		case e.named, b.view.Load().forced:
			oldest = &named
		case e.isEstablished(now, int64(most)):
			oldest = &established
			others++
		}
		if *oldest == nil || e.used.Load() < (*oldest).used.Load() {
			*oldest = e
		}
	}
	switch {
	case newcomer != nil && others <= most/4*3:
		return newcomer
	case established != nil:
		return established
	case newcomer != nil:
		return newcomer
	case forNamed:
		return named
	}
	return nil
}

// isEstablished reports whether a breaker was used again after a quarter of most
// other uses, and is still in use.
func (e *groupEntry) isEstablished(now, most int64) bool {
	used := e.used.Load()
	return used-e.born > most/4 && now-used <= 8*most
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
		s.shareView()
		g.settings, g.kinds, g.warned = s, nil, nil
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	g.stranger.Store(nil)
	var invalid []error
	for b := range g.All() {
		named, err := g.configure(b)
		if err != nil {
			invalid = append(invalid, err)
			continue
		}
		g.mu.Lock()
		if e := g.breakers[b.Name()]; e != nil && e.breaker.Load() == b {
			e.named = named
		}
		g.mu.Unlock()
	}
	return errors.Join(invalid...)
}

// Reload asks the func of NewGroupFunc again, for the group and for each of its
// breakers, and applies the settings as Configure does. It does no I/O. For a group
// of NewGroup it returns an error: use Configure.
func (g *Group) Reload() error {
	if g.config == nil {
		return errors.New("infuse: Group.Reload: the group has no func to ask, use Configure")
	}
	return g.Configure(g.config(""))
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

// Instance returns Config.Instance of the group, or its default. A group made by
// NewGroupFunc has that of the Config for the empty name.
func (g *Group) Instance() string { return g.shared().Instance }
