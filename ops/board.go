package ops

// This file contains the data that all viewers share: records that were read from the
// storage, and notifications of transitions.

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/infuse-go/infuse"
)

const (
	maxListed    = 10_000           // circuits whose records are read
	listEvery    = 10 * time.Second // a storage may have to scan all its keys
	listTime     = time.Second      // the longest wait for a list
	maxWatched   = 1000             // circuits that are watched for transitions
	maxDetails   = 256              // cached histories
	readers      = 16               // concurrent requests to the storage
	minReadAge   = time.Second      // page requests read no more often
	historyEvery = time.Minute      // a history is read again, even without a transition
)

// board is the data of all viewers.
type board struct {
	group    *infuse.Group
	storage  infuse.Storage
	instance string // this process
	list     flight // reads all records
	stream   stream
	taken    taken

	// The last list; only the reader uses it.
	listing  []string
	partial  bool
	listedAt time.Time

	mu        sync.Mutex
	known     map[string]*entry
	details   map[string]*detail
	histories uint64 // number of histories read so far
	more      bool   // the storage has circuits that are not listed
	err       error  // why the storage could not be read
	watching  bool
	notify    func() // called after each notification of the storage
}

// entry is the record of a circuit, as last received from the storage.
type entry struct {
	record   infuse.Record
	problem  error // why the record is unreadable
	received time.Time
	watched  func() // ends the watch; nil: not watched
	listed   bool   // by the last read
}

// detail is the history of one circuit.
type detail struct {
	flight flight
	events []infuse.Event
	stale  bool      // a transition was received after the history was read
	stamp  stamp     // of the record for which the history was read
	readAt time.Time // zero: the history was never read
	used   time.Time

	version      uint64 // raised with events
	row          *item  // built from base and builtVersion
	base         *item
	builtVersion uint64
}

func newBoard(group *infuse.Group, storage infuse.Storage, instance string) *board {
	b := &board{group: group, storage: storage, instance: instance, known: make(map[string]*entry), details: make(map[string]*detail), notify: func() {}}
	b.list.do = b.read
	b.stream.board = b
	return b
}

// stamp identifies the last event of a record. Each event changes it.
type stamp struct {
	state         infuse.State
	opened, moved int64
	override      overrideFacts
}

func stampOf(r *infuse.Record) stamp {
	return stamp{r.State, r.Opened, r.Manual, overrideOf(r.Override)}
}

// update reads the records for a page, unless the stream keeps them up to date.
func (b *board) update(ctx context.Context, q query) {
	if b.storage == nil {
		return
	}
	age := minReadAge
	if b.stream.running() {
		age = time.Hour // the stream reads the records
	}
	if q.Circuit != "" {
		b.detail(q.Circuit).refresh(ctx, minReadAge)
	}
	b.list.refresh(ctx, age)
}

// detail returns the flight that reads the history of the circuit.
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
	d.used = time.Now()
	return &d.flight
}

// isStale reports whether the history of a circuit is out of date.
func (b *board) isStale(circuit string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.details[circuit]
	if d == nil || d.stale || time.Since(d.readAt) > historyEvery {
		return true
	}
	k := b.known[circuit]
	return k != nil && k.problem == nil && d.stamp != stampOf(&k.record)
}

// forgetDetails evicts the least recently used detail if there are too many.
func (b *board) forgetDetails() {
	if len(b.details) < maxDetails {
		return
	}
	var oldest string
	for name, d := range b.details {
		if d.flight.idle() && (oldest == "" || d.used.Before(b.details[oldest].used)) {
			oldest = name
		}
	}
	delete(b.details, oldest)
}

func (b *board) readDetail(ctx context.Context, circuit string, d *detail) {
	defer b.taken.outdate()
	b.mu.Lock()
	d.stale = false
	b.mu.Unlock()
	if b.load(ctx, circuit) != nil {
		return // read reports the error
	}
	historian, ok := b.storage.(infuse.Historian)
	b.mu.Lock()
	before := stampOf(&b.entry(circuit).record)
	if !ok {
		d.stamp, d.readAt = before, time.Now()
	}
	b.mu.Unlock()
	if !ok {
		return
	}
	events, err := historian.History(ctx, circuit)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		d.stale = true
		return
	}
	d.events, d.stamp, d.readAt = events[:min(len(events), infuse.MaxHistory)], before, time.Now()
	d.version++
	b.histories++
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
	defer b.taken.outdate()
	b.mu.Lock()
	b.err = err
	if err == nil {
		b.more = more
		b.forget(names)
	}
	b.mu.Unlock()
	if err == nil {
		b.watch(names)
	}
}

// names returns the circuits to read: those that the storage lists, or without an
// infuse.Lister those of this process.
func (b *board) names(ctx context.Context) (names []string, more bool, err error) {
	own := b.breakers()
	if lister, ok := b.storage.(infuse.Lister); !ok {
		return slices.Collect(maps.Keys(own)), false, nil
	} else if time.Since(b.listedAt) > listEvery {
		b.listing, b.partial, err = listed(ctx, lister)
		b.listedAt = time.Now()
	}
	names, more = b.listing, b.partial
	if err != nil && len(names)+len(own) == 0 {
		b.listedAt = time.Time{}
		return nil, false, err
	}
	add := b.receivedSince(b.listedAt)
	if more { // the circuits of this process are always read
		add = slices.AppendSeq(add, maps.Keys(own))
	}
	if len(add) > 0 {
		seen := make(map[string]bool)
		for _, name := range names {
			seen[name] = true
		}
		for _, name := range add {
			if !seen[name] {
				names, seen[name] = append(names, name), true
			}
		}
	}
	return names, more, nil
}

// receivedSince returns the circuits whose first record may be newer than the list of
// that time.
func (b *board) receivedSince(then time.Time) (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, k := range b.known {
		if k.received.After(then) && (k.record.Failures > 0 || stampOf(&k.record) != stamp{}) {
			names = append(names, name)
		}
	}
	return names
}

// listed returns the circuits that the storage lists. The list is partial if it takes
// too long, has too many circuits, or fails.
func listed(ctx context.Context, lister infuse.Lister) (names []string, partial bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	seen := make(map[string]bool)
	for name, err := range lister.Circuits(ctx) {
		switch {
		case err != nil:
			return slices.Clip(names), true, err
		case infuse.CheckName(name) != nil || seen[name]:
		case len(names) == maxListed || ctx.Err() != nil:
			return slices.Clip(names), true, nil
		default:
			seen[name] = true
			names = append(names, name)
		}
	}
	return slices.Clip(names), false, nil
}

// breakers returns the breakers of this process by name.
func (b *board) breakers() map[string]*infuse.Breaker {
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
	err := distribute(ctx, next, failed, names)
	close(next)
	all.Wait()
	close(failed)
	return cmp.Or(err, <-failed)
}

// distribute sends the names to the readers, until one of them fails.
func distribute(ctx context.Context, next chan<- string, failed <-chan error, names []string) error {
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

// load reads a record. It returns errors of the storage only: an unreadable record is
// not an error.
func (b *board) load(ctx context.Context, circuit string) error {
	began := time.Now()
	record, err := b.storage.Load(ctx, circuit)
	var problem *infuse.RecordError
	if err != nil && !errors.As(err, &problem) {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.entry(circuit)
	if k.received.After(began) && k.record.Generation > record.Generation {
		return nil // a newer record was received during the read
	}
	k.record, k.problem, k.received = record, nil, time.Now()
	if problem != nil {
		k.problem = problem
	}
	return nil
}

func (b *board) entry(circuit string) *entry {
	k := b.known[circuit]
	if k == nil {
		k = &entry{}
		b.known[circuit] = k
	}
	return k
}

// forget drops circuits that have no record any more.
func (b *board) forget(names []string) {
	for _, k := range b.known {
		k.listed = false
	}
	for _, name := range names {
		b.entry(name).listed = true
	}
	for name, k := range b.known {
		if k.listed || b.details[name] != nil {
			continue
		}
		if k.watched != nil {
			k.record, k.problem = infuse.Record{}, nil // it may get a record again
			continue
		}
		delete(b.known, name)
	}
}

// watch watches circuits while there are viewers, those of this process first. It calls
// the storage without the lock, because Watch may call back immediately.
func (b *board) watch(names []string) {
	for _, name := range b.unwatched(names) {
		stop := b.storage.Watch(name, func(r infuse.Record) { b.receive(name, r) })
		b.mu.Lock()
		k := b.entry(name)
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

// unwatched returns the circuits to watch that are not watched yet.
func (b *board) unwatched(names []string) (add []string) {
	own := b.breakers()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.watching {
		return nil
	}
	room := maxWatched
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

func (b *board) receive(circuit string, r infuse.Record) {
	b.mu.Lock()
	if k := b.known[circuit]; k != nil && b.watching {
		k.record, k.problem, k.received = r, nil, time.Now()
	}
	if d := b.details[circuit]; d != nil {
		d.stale = true
	}
	notify := b.notify
	b.mu.Unlock()
	b.taken.outdate()
	notify()
}

// startWatching makes the board watch circuits from its next read on.
func (b *board) startWatching(notify func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watching, b.notify = true, notify
}

// stopWatching ends all watches.
func (b *board) stopWatching() {
	b.mu.Lock()
	var stops []func()
	for _, k := range b.known {
		if k.watched != nil {
			stops = append(stops, k.watched)
			k.watched = nil
		}
	}
	b.watching, b.notify = false, func() {}
	b.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}
