package ops

import (
	"cmp"
	"errors"
	"html/template"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
)

// This file is the snapshot that all viewers share, and the selection that a
// viewer with its query makes from it. A circuit is drawn once for all viewers, and
// again only if it has changed: a viewer more costs a comparison of pointers.

const pageAge = 100 * time.Millisecond // pages within it share a snapshot

// rank orders circuits: the most urgent first.
type rank int

const (
	rankOpen rank = iota
	rankForcedOpen
	rankReady // open, and ready for a trial
	rankHalfOpen
	rankUnreadable
	rankForcedClosed
	rankSuspect
	rankFailing
	rankClosed
	ranks
)

// facts are all that a page shows of a circuit but its history. Comparing them shows
// whether the circuit has changed.
type facts struct {
	rank         rank
	listed       bool         // not only known because somebody opened its page
	state        infuse.State // the worse of the local and the shared one
	processState infuse.State // what calls of this process meet
	localOnly    bool         // only the local circuit is not closed
	problem      string       // why its record cannot be read
	storageErr   string       // why this process uses its local circuit
	local        blockFacts
	shared       blockFacts
	calls        calls
	dryRun       bool
	override     overrideFacts
}

// blockFacts are those of the local or of the shared circuit. Times are in seconds.
type blockFacts struct {
	exists     bool
	state      infuse.State
	suspect    bool
	failures   int
	since, due int64
	by, cause  string
	trials     int
	window     window
}

type overrideFacts struct {
	exists     bool
	state      infuse.State
	by, reason string
	until      int64
}

// named is the name of a circuit, and what follows from it.
type named struct{ name, lower, id string }

// item is a circuit as it is since a snapshot.
type item struct {
	named   *named
	facts   facts
	changed uint64 // the number of that snapshot
	history []event
	detail  bool // the history is shown

	html  lazy[template.HTML]
	frame lazy[[]byte] // the row of a frame, as JSON
	json  lazy[[]byte]
}

// lazy is a value that is made on first use.
type lazy[T any] struct {
	once  sync.Once
	value T
}

func (l *lazy[T]) get(make func() T) T {
	l.once.Do(func() { l.value = make() })
	return l.value
}

// snapshot is the state of all circuits at one time. It does not change.
type snapshot struct {
	number uint64
	names  []*named // by name; shared with the snapshots before that have the same
	bySlot []*item  // as names
	items  []*item  // those that are listed, the most urgent first
	slots  []int32  // of items: their places in names
	was    []int32  // of items: their places in the items of the snapshot before; -1: none
	counts [ranks]int
	more   bool
	read   uint64 // histories so far
	err    string // why the storage cannot be read
}

// taken is the last snapshot.
type taken struct {
	mu       sync.Mutex
	last     *snapshot
	at       time.Time
	outdated atomic.Bool
}

func (t *taken) outdate() { t.outdated.Store(true) }

// snapshot returns a snapshot that is no older than age.
func (b *board) snapshot(age time.Duration) *snapshot {
	t := &b.taken
	t.mu.Lock()
	defer t.mu.Unlock()
	outdated := t.outdated.Swap(false)
	if t.last != nil && !outdated && time.Since(t.at) < age {
		return t.last
	}
	t.at = time.Now()
	t.last = b.take(cmp.Or(t.last, &snapshot{}), t.at)
	return t.last
}

// take returns the snapshot after before: before itself if nothing has changed.
func (b *board) take(before *snapshot, now time.Time) *snapshot {
	own := b.own()
	late := b.list.isLate()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &snapshot{number: before.number + 1, more: b.more, read: b.histories, names: b.namesAfter(before.names, own)}
	err := b.err
	if late {
		err = errLate
	}
	sameNames := same(s.names, before.names)
	changed := !sameNames
	s.bySlot = make([]*item, len(s.names))
	old := before.finder(sameNames)
	for slot, n := range s.names {
		f, problem := b.facts(n.name, own[n.name], now)
		err = cmp.Or(err, problem)
		it := old(slot, n)
		if it == nil || it.facts != f {
			it, changed = &item{named: n, facts: f, changed: s.number}, true
		}
		s.bySlot[slot] = it
		if f.listed {
			s.counts[f.rank]++
		}
	}
	if err != nil {
		s.err = clip(err.Error(), maxError)
	}
	if !changed && before.number > 0 && s.err == before.err && s.more == before.more && s.read == before.read {
		return before
	}
	s.order(before, sameNames)
	return s
}

// namesAfter returns all names in order: the slice of before if they are the same.
func (b *board) namesAfter(before []*named, own map[string]*infuse.Breaker) []*named {
	n, same := len(own), true
	had := func(name string) bool { return find(before, name) >= 0 }
	for name := range own {
		same = same && had(name)
	}
	for name := range b.known {
		if own[name] == nil {
			n++
			same = same && had(name)
		}
	}
	if same && n == len(before) {
		return before
	}
	all := make([]*named, 0, n)
	add := func(name string) {
		if i := find(before, name); i >= 0 {
			all = append(all, before[i])
		} else {
			all = append(all, &named{name, strings.ToLower(name), rowID(name)})
		}
	}
	for name := range own {
		add(name)
	}
	for name := range b.known {
		if own[name] == nil {
			add(name)
		}
	}
	slices.SortFunc(all, func(a, b *named) int { return strings.Compare(a.name, b.name) })
	return all
}

// same reports whether two slices are one.
func same(a, b []*named) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

func find(names []*named, name string) int {
	i, ok := slices.BinarySearchFunc(names, name, func(n *named, name string) int { return strings.Compare(n.name, name) })
	if !ok {
		return -1
	}
	return i
}

// finder returns how the item of a name is found in s.
func (s *snapshot) finder(sameNames bool) func(int, *named) *item {
	if sameNames {
		return func(slot int, _ *named) *item { return s.bySlot[slot] }
	}
	return func(_ int, n *named) *item {
		if i := find(s.names, n.name); i >= 0 {
			return s.bySlot[i]
		}
		return nil
	}
}

// order sorts the items by rank; within a rank they are sorted by name already.
func (s *snapshot) order(before *snapshot, sameNames bool) {
	total, next := 0, [ranks]int{}
	for r, n := range s.counts {
		next[r] = total
		total += n
	}
	s.items, s.slots, s.was = make([]*item, total), make([]int32, total), make([]int32, total)
	for slot, it := range s.bySlot {
		if it.facts.listed {
			i := next[it.facts.rank]
			next[it.facts.rank]++
			s.items[i], s.slots[i], s.was[i] = it, int32(slot), -1
		}
	}
	place := make([]int32, len(before.names)) // in the items before, by slot; 0: none
	for i, slot := range before.slots {
		place[slot] = int32(i) + 1
	}
	for i, slot := range s.slots {
		if !sameNames {
			slot = int32(find(before.names, s.items[i].named.name))
		}
		if slot >= 0 {
			s.was[i] = place[slot] - 1
		}
	}
}

// facts returns the facts of a circuit, and the storage error of its breaker.
func (b *board) facts(name string, breaker *infuse.Breaker, now time.Time) (f facts, storageErr error) {
	var record *infuse.Record
	if k := b.known[name]; k != nil {
		r := k.record.At(now)
		record, f.listed = &r, k.listed
		if k.problem != nil {
			f.problem = clip(k.problem.Error(), maxError)
		}
	}
	var due time.Time
	if breaker != nil {
		f.listed = true
		storageErr = f.setLocal(breaker, b.storage != nil, &due)
	}
	// While the storage is unavailable, the records are old, and this process uses
	// its local circuits.
	if record != nil && (breaker == nil || storageErr == nil) {
		f.localOnly = f.state != infuse.StateClosed && effective(record) == infuse.StateClosed
		f.state = worse(f.state, effective(record))
		if record.State == infuse.StateOpen {
			due = record.DueAt
		}
	}
	if record != nil && f.problem == "" {
		counted := f.shared.window
		f.shared = sharedOf(record)
		f.shared.window = counted
	}
	if record != nil && record.Override != nil {
		f.override = overrideOf(record.Override)
	}
	f.rank = f.evaluate(!due.IsZero() && !due.After(now))
	return f, storageErr
}

// setLocal sets what this process itself knows, and its due time.
func (f *facts) setLocal(breaker *infuse.Breaker, shared bool, due *time.Time) (storageErr error) {
	s := breaker.Stats()
	f.state, f.calls, f.dryRun, f.override, *due = s.State, calls(s.Calls), s.DryRun, overrideOf(s.Override), s.DueAt
	f.processState, f.local = s.State, blockOf(&s.Local)
	f.localOnly = s.Local.State != infuse.StateClosed && (s.Shared.State == infuse.StateClosed || s.StorageErr != nil)
	if shared {
		f.shared = blockOf(&s.Shared)
	}
	if s.StorageErr != nil {
		f.storageErr = clip(s.StorageErr.Error(), maxError)
	}
	return s.StorageErr
}

func blockOf(s *infuse.CircuitStats) blockFacts {
	return blockFacts{
		exists: true, state: s.State, suspect: s.Suspect, failures: s.Failures, window: window(s.Window),
		since: seconds(s.Since), due: seconds(s.DueAt), by: s.By, cause: s.Cause,
	}
}

// evaluate returns the rank.
func (f *facts) evaluate(ready bool) rank {
	o := &f.override
	switch {
	case o.exists && o.state == infuse.StateOpen:
		return rankForcedOpen
	case f.state == infuse.StateOpen && ready && !o.exists:
		return rankReady
	case f.state == infuse.StateOpen:
		return rankOpen
	case f.state == infuse.StateHalfOpen:
		return rankHalfOpen
	case f.problem != "":
		return rankUnreadable
	case o.exists:
		return rankForcedClosed
	case f.shared.suspect:
		return rankSuspect
	case f.failures() > 0:
		return rankFailing
	}
	return rankClosed
}

// failures returns the consecutive failures of the local or of the shared circuit,
// whichever are more.
func (f *facts) failures() int { return max(f.local.failures, f.shared.failures) }

func sharedOf(r *infuse.Record) blockFacts {
	f := blockFacts{exists: true, state: r.State, failures: r.Failures, by: r.By, cause: r.Cause, suspect: r.Suspect(), trials: len(r.Trials)}
	since := r.Since
	if r.State != infuse.StateClosed { // evidence opens a circuit without a new generation for the calls that run
		since = max(since, r.Opened)
	}
	if since > 0 {
		f.since = seconds(time.UnixMilli(since)) // a generation is at least the time
	}
	if r.State == infuse.StateOpen {
		f.due = seconds(r.DueAt)
	}
	return f
}

func overrideOf(o *infuse.Override) overrideFacts {
	if o == nil {
		return overrideFacts{}
	}
	return overrideFacts{true, o.State, o.By, o.Reason, seconds(o.Until)}
}

// seconds rounds a time, so that two readings of it are equal: a storage
// translates its clock to the local one each time. 0: none.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Round(time.Second).Unix()
}

// effective returns the state by which calls are admitted.
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

// view is a viewer with a query.
type view struct {
	query
	board *board

	names []*named // for which match was made
	match []bool   // by slot
	rows  []*item  // of a filter: reused
	at    []int32  // and their places in the items of the snapshot
}

// look returns the circuits that the query selects, the most urgent first, and the
// report on them. The rows are valid until the next look.
func (v *view) look(s *snapshot) ([]*item, *report) {
	r := &report{Instance: v.board.instance, Storage: "ok", StorageErr: s.err, Total: len(s.items), More: s.more, At: time.Now()}
	switch {
	case v.board.storage == nil:
		r.Storage, r.StorageErr = "none", ""
	case s.err != "":
		r.Storage = "unavailable"
	}
	var rows []*item
	switch filter := strings.ToLower(v.Filter); {
	case v.Circuit != "":
		if i := find(s.names, v.Circuit); i >= 0 {
			rows = append(v.rows[:0], v.board.detailed(s.bySlot[i]))
			v.rows = rows
			r.counts[rows[0].facts.rank], r.Matching = 1, 1
		}
	case filter == "":
		rows, r.counts, r.Matching = s.items, s.counts, len(s.items)
	default:
		rows = v.filtered(s, filter, r)
	}
	rows = rows[:min(len(rows), v.Limit)]
	r.LeftOut = r.Matching - len(rows)
	return rows, r
}

func (v *view) filtered(s *snapshot, filter string, r *report) []*item {
	if !same(v.names, s.names) {
		v.names, v.match = s.names, make([]bool, len(s.names))
		for slot, n := range s.names {
			v.match[slot] = strings.Contains(n.lower, filter)
		}
	}
	v.rows, v.at = v.rows[:0], v.at[:0]
	for i, it := range s.items {
		if !v.match[s.slots[i]] {
			continue
		}
		r.counts[it.facts.rank]++
		r.Matching++
		if len(v.rows) < v.Limit {
			v.rows, v.at = append(v.rows, it), append(v.at, int32(i))
		}
	}
	return v.rows
}

// detailed returns the circuit with its history.
func (b *board) detailed(base *item) *item {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.details[base.named.name]
	if d == nil {
		return &item{named: base.named, facts: base.facts, detail: true}
	}
	if d.base != base || d.drawn != d.version {
		d.base, d.drawn = base, d.version
		d.row = &item{named: base.named, facts: base.facts, detail: true}
		d.row.history = eventsOf(d.events)
	}
	return d.row
}

var errLate = errors.New("the storage did not answer in time")
