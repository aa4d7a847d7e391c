package ops

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// This file is what the handler knows of the circuits, for all viewers: what it
// has read from the storage, and how it hears more.

const (
	mostListed  = 10_000           // circuits that are read
	listEvery   = 10 * time.Second // a storage may have to go through all that it has
	listTime    = time.Second      // and is not waited for longer
	mostWatched = 1000             // and those of which transitions are heard at once
	mostDetails = 256              // histories that are kept
	readers     = 16               // requests to the storage at a time
	atMostEvery = time.Second
)

// board is what all viewers look at.
type board struct {
	group   *infuse.Group
	storage infuse.Storage
	list    flight // reads all
	stream  stream

	// What was listed last: for the reading alone.
	listing  []string
	partly   bool
	listedAt time.Time

	mu       sync.Mutex
	known    map[string]*known
	details  map[string]*detail
	more     bool  // the storage has circuits that were not read
	trouble  error // why the storage could not be read
	watching bool
	heard    func() // after news
}

// known is what the storage has told of a circuit.
type known struct {
	record  infuse.Record
	problem error     // why the record cannot be read
	told    time.Time // when it was last told
	watched func()    // ends the watch; nil: there is none
	listed  bool      // by the last reading
}

// detail is the history of one circuit.
type detail struct {
	flight flight
	events []infuse.Event
	stale  bool // the circuit has moved since
	asked  time.Time
}

func newBoard(group *infuse.Group, storage infuse.Storage) *board {
	b := &board{group: group, storage: storage, known: make(map[string]*known), details: make(map[string]*detail), heard: func() {}}
	b.list.do = b.read
	b.stream.board = b
	return b
}

// update reads what a page needs, where nothing keeps it up to date.
func (b *board) update(ctx context.Context, q query) {
	if b.storage == nil {
		return
	}
	age := atMostEvery
	if b.stream.running() {
		age = time.Hour // it reads by itself
	}
	if q.Circuit != "" {
		b.detail(q.Circuit).fresh(ctx, atMostEvery)
	}
	b.list.fresh(ctx, age)
}

// detail returns how the history of a circuit is read.
func (b *board) detail(circuit string) *flight {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.details[circuit]
	if d == nil {
		b.forgetDetails()
		d = &detail{}
		d.flight.do = func(ctx context.Context) { b.readDetail(ctx, circuit, d) }
		b.details[circuit] = d
	}
	d.asked = time.Now()
	return &d.flight
}

// isStale reports whether the history of a circuit is out of date.
func (b *board) isStale(circuit string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.details[circuit]
	return d == nil || d.stale
}

// forgetDetails makes room for one more, for which nobody has asked for long.
func (b *board) forgetDetails() {
	if len(b.details) < mostDetails {
		return
	}
	var oldest string
	for name, d := range b.details {
		if d.flight.idle() && (oldest == "" || d.asked.Before(b.details[oldest].asked)) {
			oldest = name
		}
	}
	delete(b.details, oldest)
}

func (b *board) readDetail(ctx context.Context, circuit string, d *detail) {
	b.mu.Lock()
	d.stale = false
	b.mu.Unlock()
	_ = b.load(ctx, circuit) // the reading of all tells of the storage's trouble
	historian, ok := b.storage.(infuse.Historian)
	if !ok {
		return
	}
	events, err := historian.History(ctx, circuit)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d.events = events[:min(len(events), infuse.MaxHistory)]
}

// read reads the records of all circuits.
func (b *board) read(ctx context.Context) {
	names, more, err := b.names(ctx)
	if err == nil {
		err = b.loadAll(ctx, names)
	}
	if ctx.Err() != nil {
		err = cmp.Or(err, errLate)
	}
	b.mu.Lock()
	b.trouble = err
	if err == nil {
		b.more = more
		b.forget(names)
	}
	b.mu.Unlock()
	if err == nil {
		b.watch(names)
	}
}

var errLate = errors.New("the storage did not answer in time")

// names returns the circuits that are to be read. What has no record is healthy,
// and needs no reading where the storage tells which have one.
func (b *board) names(ctx context.Context) (names []string, more bool, err error) {
	own := b.own()
	if lister, ok := b.storage.(infuse.Lister); !ok {
		return slices.Collect(maps.Keys(own)), false, nil
	} else if time.Since(b.listedAt) > listEvery {
		b.listing, b.partly, err = listed(ctx, lister)
		b.listedAt = time.Now()
	}
	names, more = b.listing, b.partly
	if err != nil && len(names)+len(own) == 0 {
		b.listedAt = time.Time{}
		return nil, false, err
	}
	if more { // this process's are never left out
		seen := make(map[string]bool)
		for _, name := range names {
			seen[name] = true
		}
		for name := range own {
			if !seen[name] {
				names = append(names, name)
			}
		}
	}
	return names, more, nil
}

// listed returns what the storage lists: partly, where that takes too long, is
// too much or fails.
func listed(ctx context.Context, lister infuse.Lister) (names []string, partly bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	seen := make(map[string]bool)
	for name, err := range lister.Circuits(ctx) {
		switch {
		case err != nil:
			return slices.Clip(names), true, err
		case infuse.CheckName(name) != nil || seen[name]:
		case len(names) == mostListed || ctx.Err() != nil:
			return slices.Clip(names), true, nil
		default:
			seen[name] = true
			names = append(names, name)
		}
	}
	return slices.Clip(names), false, nil
}

// own returns the breakers of this process by name.
func (b *board) own() map[string]*infuse.Breaker {
	own := make(map[string]*infuse.Breaker)
	if b.group != nil {
		for breaker := range b.group.All() {
			own[breaker.Name()] = breaker
		}
	}
	return own
}

func (b *board) loadAll(ctx context.Context, names []string) error {
	next := make(chan string)
	failed := make(chan error, readers)
	var all sync.WaitGroup
	for range min(readers, len(names)) {
		all.Go(func() {
			for name := range next {
				if err := b.load(ctx, name); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	err := hand(ctx, next, failed, names)
	close(next)
	all.Wait()
	close(failed)
	return cmp.Or(err, <-failed)
}

// hand hands out the names, until a reader has failed.
func hand(ctx context.Context, next chan<- string, failed <-chan error, names []string) error {
	for _, name := range names {
		select {
		case next <- name:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// load reads a record. The error is the storage's, not that of one record.
func (b *board) load(ctx context.Context, circuit string) error {
	began := time.Now()
	record, err := b.storage.Load(ctx, circuit)
	var problem *infuse.RecordError
	if err != nil && !errors.As(err, &problem) {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.know(circuit)
	if k.told.After(began) && k.record.Generation > record.Generation {
		return nil // news has come meanwhile
	}
	k.record, k.problem, k.told = record, nil, time.Now()
	if problem != nil {
		k.problem = problem
	}
	return nil
}

func (b *board) know(circuit string) *known {
	k := b.known[circuit]
	if k == nil {
		k = &known{}
		b.known[circuit] = k
	}
	return k
}

// forget drops the circuits that have no record any more.
func (b *board) forget(names []string) {
	for _, k := range b.known {
		k.listed = false
	}
	for _, name := range names {
		b.know(name).listed = true
	}
	for name, k := range b.known {
		if k.listed || b.details[name] != nil {
			continue
		}
		if k.watched != nil {
			k.record, k.problem = infuse.Record{}, nil // it may have one again
			continue
		}
		delete(b.known, name)
	}
}

// watch has the storage tell of transitions, while somebody looks: of this
// process's circuits, of which its breakers are told anyhow, and of others. A
// storage is never called with the lock held: it may tell within the call.
func (b *board) watch(names []string) {
	for _, name := range b.unwatched(names) {
		stop := b.storage.Watch(name, func(r infuse.Record) { b.hear(name, r) })
		b.mu.Lock()
		k := b.know(name)
		kept := b.watching && k.watched == nil
		if kept {
			k.watched = stop
		}
		b.mu.Unlock()
		if !kept {
			stop()
		}
	}
}

// unwatched returns the circuits that are to be watched and are not.
func (b *board) unwatched(names []string) (add []string) {
	own := b.own()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.watching {
		return nil
	}
	room := mostWatched
	for _, k := range b.known {
		if k.watched != nil {
			room--
		}
	}
	consider := func(name string) {
		if k := b.known[name]; len(add) < room && (k == nil || k.watched == nil) {
			add = append(add, name)
		}
	}
	for name := range own {
		consider(name)
	}
	for _, name := range names {
		if own[name] == nil {
			consider(name)
		}
	}
	return add
}

func (b *board) hear(circuit string, r infuse.Record) {
	b.mu.Lock()
	if k := b.known[circuit]; k != nil && b.watching {
		k.record, k.problem, k.told = r, nil, time.Now()
	}
	if d := b.details[circuit]; d != nil {
		d.stale = true
	}
	heard := b.heard
	b.mu.Unlock()
	heard()
}

// look has the board hear of transitions, from its next reading on.
func (b *board) look(heard func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watching, b.heard = true, heard
}

// lookAway ends all watches.
func (b *board) lookAway() {
	b.mu.Lock()
	var stops []func()
	for _, k := range b.known {
		if k.watched != nil {
			stops = append(stops, k.watched)
			k.watched = nil
		}
	}
	b.watching, b.heard = false, func() {}
	b.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

// entry is a circuit among others.
type entry struct {
	name    string
	breaker *infuse.Breaker // of this process; nil: it has none
	stats   infuse.Stats
	record  *infuse.Record // the fleet's, as it is now; nil: none was read
	problem error
	listed  bool         // it is not only known because somebody asked for it
	state   infuse.State // the worse of the two
	rank    int          // the sick ones have the lowest
}

// snapshot is all that there is to say at a time.
type snapshot struct {
	entries []entry // the sick ones first
	more    bool
	away    error
}

func (b *board) snapshot() *snapshot {
	now := time.Now()
	own := b.own()
	late := b.list.isLate()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &snapshot{more: b.more, away: b.trouble}
	if late {
		s.away = errLate
	}
	for name, breaker := range own {
		e := b.entry(name, breaker, now)
		s.away = cmp.Or(s.away, e.stats.StorageErr)
		s.entries = append(s.entries, e)
	}
	for name := range b.known {
		if own[name] == nil {
			s.entries = append(s.entries, b.entry(name, nil, now))
		}
	}
	slices.SortFunc(s.entries, func(a, b entry) int { return cmp.Or(a.rank-b.rank, strings.Compare(a.name, b.name)) })
	return s
}

// matching returns the circuits that a query is about.
func (s *snapshot) matching(q query) (all []*entry) {
	filter := strings.ToLower(q.Filter)
	for i := range s.entries {
		e := &s.entries[i]
		if q.Circuit == e.name || q.Circuit == "" && e.listed && strings.Contains(strings.ToLower(e.name), filter) {
			all = append(all, e)
		}
	}
	return all
}

func (b *board) entry(name string, breaker *infuse.Breaker, now time.Time) entry {
	e := entry{name: name, breaker: breaker, listed: breaker != nil}
	if breaker != nil {
		e.stats = breaker.Stats()
	}
	if k := b.known[name]; k != nil {
		record := k.record.At(now)
		e.record, e.problem, e.listed = &record, k.problem, e.listed || k.listed
	}
	if b.storage == nil && breaker != nil {
		if record, err := breaker.Record(context.Background()); err == nil { // no I/O
			e.record = &record
		}
	}
	e.judge()
	return e
}

// judge says how sick the circuit is.
func (e *entry) judge() {
	e.state = e.stats.State
	// While the storage is away, what was read is old, and the process goes by
	// what it knows itself.
	if e.record != nil && (e.breaker == nil || e.stats.StorageErr == nil) {
		e.state = worse(e.state, effective(e.record))
	}
	switch {
	case e.state == infuse.StateOpen:
		e.rank = 0
	case e.state == infuse.StateHalfOpen:
		e.rank = 1
	case e.problem != nil:
		e.rank = 2
	case e.override() != nil:
		e.rank = 3
	case e.record != nil && e.record.Suspect():
		e.rank = 4
	case tally.Failures(e.stats) > 0 || e.record != nil && e.record.Failures > 0:
		e.rank = 5
	default:
		e.rank = 6
	}
}

// effective is the state by which calls are let in.
func effective(r *infuse.Record) infuse.State {
	if r.Override != nil {
		return r.Override.State
	}
	return r.State
}

func worse(a, b infuse.State) infuse.State {
	if a == infuse.StateOpen || b == infuse.StateOpen {
		return infuse.StateOpen
	}
	return max(a, b)
}

func (e *entry) override() *infuse.Override {
	if e.record != nil && e.record.Override != nil {
		return e.record.Override
	}
	return e.stats.Override
}
