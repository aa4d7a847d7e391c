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

// Group makes breakers by name on first use, and keeps them. All methods are safe for
// concurrent use.
//
// A Group keeps Config.MaxCircuits breakers. Above that it evicts the least recently
// used one, whatever its state. Names that strangers choose, such as the hosts of
// webhooks, cannot evict the circuits of your own services:
//
//   - Circuits with settings of their own (see NewGroupFunc) and circuits with an
//     override are only evicted by others with settings of their own. If they fill
//     the Group, it keeps one more breaker: the newest of all other names.
//   - The others are new or established. A circuit is established if it is used
//     again after MaxCircuits/4 uses of other circuits, until it is not used during
//     8 × MaxCircuits uses. New circuits evict new ones; established circuits are
//     evicted only above three quarters of MaxCircuits, or if there is no new one.
//
// An evicted breaker is not stopped, because it may still be in use. A later breaker of
// the same name loads the record from the storage; without a storage it starts closed.
//
// With a Storage, the call that makes a breaker waits for one read. So set MaxCircuits
// above the number of services in use: otherwise many calls wait for a read.
type Group struct {
	config   func(circuit string) Config // that of NewGroupFunc; nil: all breakers have the group's settings
	stranger atomic.Pointer[Config]      // the result of config for an unknown name; nil before its first use
	clock    atomic.Int64                // counts uses

	mu       sync.RWMutex
	settings *settings // of the group: MaxCircuits, and the Storage of circuits whose settings have none
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
	gone     atomic.Bool // evicted
	portless bool        // the name is that of a host for every scheme
	named    bool        // it has settings of its own; guarded by Group.mu
}

// making is a breaker that is being made, for the callers that wait for it.
type making struct {
	over chan struct{} // closed when it is made, or failed
	err  error         // why it failed
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

// NewGroup returns an empty group whose breakers all have the same settings. It does
// no I/O. The error names each invalid field of the Config.
func NewGroup(cfg Config) (*Group, error) {
	return newGroup(cfg)
}

// NewGroupFunc returns an empty group whose breakers have the settings that config
// returns for their names. config is called for each breaker that is made, and must be
// safe for concurrent use. If it returns an invalid Config, Group.Breaker returns the
// error, a Transport sends the request unprotected, and Listener.Warning is called once
// for that name.
//
// config is first called with an empty name: this Config has MaxCircuits, and the
// Storage of circuits whose own Config has none. config is also called with "\x00", an
// impossible name: a circuit whose Config differs from that one has settings of its
// own, and cannot be evicted by circuits that have none.
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

// Breaker returns the breaker of that name. The first call for a name makes it, and may
// wait for the storage as New does; later calls do no I/O. It returns an error for an
// invalid name, invalid settings, or a stopped group.
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

// again is Breaker for a caller that uses the same name repeatedly. last is the entry
// of its last use: while the group keeps that entry, again takes no lock.
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
		e.used.Store(g.clock.Add(1)) // no write while one circuit is used repeatedly
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
	defer func() { g.warn(name, refused) }() // deferred, because a listener may use the group

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
	if g.shared() != before { // Configure ran meanwhile
		_, _ = g.configure(b)
	}
	if g.isStopped() { // Stop ran meanwhile
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

// unified returns the equal settings of another circuit, or s itself.
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

// configure applies the current settings of the group to a breaker.
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

// invalidSettings is the error of settings that no breaker can have.
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
	b := newBreaker(name, &s, nil) // for the listeners
	for _, l := range listeners {
		if l != nil && l.Warning != nil {
			protected(func() { l.Warning(b, invalid) })
		}
	}
}

// nobody is a name that no circuit can have.
const nobody = "\x00"

// isNamed reports whether a circuit has settings of its own: they differ from those of
// an impossible name.
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

// makeRoom evicts breakers for a new one. It keeps those that are being made.
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

// All returns the breakers of the group at the time of the call, in no particular
// order. It does not count as use.
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
// Breaker.Configure does. A group of NewGroupFunc calls its func again for each
// breaker, and takes only MaxCircuits and the Storage from cfg. A circuit whose new
// settings are invalid keeps its settings, and is named in the error.
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

// Reload calls the func of NewGroupFunc again for the group and for each of its
// breakers, and applies the settings as Configure does. It does no I/O. A group of
// NewGroup has no func: Reload returns an error.
func (g *Group) Reload() error {
	if g.config == nil {
		return errors.New("infuse: Group.Reload: the group has no func, use Configure")
	}
	return g.Configure(g.config(""))
}

// Stop stops all breakers of the group concurrently, and waits as Breaker.Stop does.
// Stopped breakers still work, with their local circuits. The group makes no more
// breakers: Breaker returns an error for a new name, and a Transport sends a request to
// a new host unprotected.
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

// Instance returns the Config.Instance of the group, or its default. For NewGroupFunc it
// is that of the Config for the empty name.
func (g *Group) Instance() string { return g.shared().Instance }
