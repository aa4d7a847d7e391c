package ops

// This file contains the snapshot that all viewers share, and the selection of a query
// from it. A circuit that did not change is rendered once for all viewers: one more
// viewer costs a comparison of pointers.

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

const pageAge = 100 * time.Millisecond // page requests within this time share a snapshot

// rank orders circuits, the most urgent first.
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

// facts are all that a page shows of a circuit, except its history. A circuit has changed
// if its facts differ.
type facts struct {
	rank         rank
	listed       bool         // false: known only because its page was opened
	state        infuse.State // the worse of local and shared
	processState infuse.State // what calls of this process get
	localOnly    bool         // only the local circuit is not closed
	problem      string       // why its record is unreadable
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

// named is the name of a circuit, with values derived from it.
type named struct{ name, lower, id string }

// item is a circuit as of a snapshot. It does not change.
type item struct {
	named   *named
	facts   facts
	changed uint64 // the number of the first snapshot with these facts
	history []event
	detail  bool // the page shows the history

	html  lazy[template.HTML]
	frame lazy[[]byte] // the row of a frame, as JSON
	json  lazy[[]byte]
}

// lazy is a value that is computed on first use.
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
	names  []*named // sorted; shared with earlier snapshots of the same names
	bySlot []*item  // in the order of names
	items  []*item  // listed circuits, the most urgent first
	slots  []int32  // index in names of each item
	was    []int32  // index of each item in the previous snapshot; -1: new
	counts [ranks]int
	more   bool
	read   uint64 // number of histories read so far
	err    string // why the storage is unavailable
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
	own := b.breakers()
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

// namesAfter returns all names, sorted. It returns before itself if they are the same.
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

// same reports whether a and b are the same slice.
func same(a, b []*named) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

func find(names []*named, name string) int {
	i, ok := slices.BinarySearchFunc(names, name, func(n *named, name string) int { return strings.Compare(n.name, name) })
	if !ok {
		return -1
	}
	return i
}

// finder returns a function that finds the item of a name in s.
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

// order sorts the items by rank. Within a rank they are already sorted by name.
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
	position := make([]int32, len(before.names)) // 1 + index in before.items, by slot; 0: none
	for i, slot := range before.slots {
		position[slot] = int32(i) + 1
	}
	for i, slot := range s.slots {
		if !sameNames {
			slot = int32(find(before.names, s.items[i].named.name))
		}
		if slot >= 0 {
			s.was[i] = position[slot] - 1
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
	// While the storage is unavailable, records may be out of date, and this process
	// uses its local circuits.
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

// setLocal sets the facts of this process's breaker.
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

// failures returns the larger number of consecutive failures, local or shared.
func (f *facts) failures() int { return max(f.local.failures, f.shared.failures) }

func sharedOf(r *infuse.Record) blockFacts {
	f := blockFacts{exists: true, state: r.State, failures: r.Failures, by: r.By, cause: r.Cause, suspect: r.Suspect(), trials: len(r.Trials)}
	since := r.Since
	if r.State != infuse.StateClosed { // an opening by calls keeps the generation
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

// seconds rounds a time to seconds, because each read translates it to the local clock
// with a different error. It returns 0 for the zero time.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Round(time.Second).Unix()
}

// effective returns the forced state, or the state if there is no override.
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

	names []*named // of match
	match []bool   // whether the filter matches, by slot
	rows  []*item  // matching the filter; reused
	at    []int32  // index of each row in the items of the snapshot
}

// selection returns the circuits that the query selects, the most urgent first, and the
// report on them. The rows are valid until the next selection.
func (v *view) selection(s *snapshot) ([]*item, *report) {
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
	if d.base != base || d.builtVersion != d.version {
		d.base, d.builtVersion = base, d.version
		d.row = &item{named: base.named, facts: base.facts, detail: true}
		d.row.history = eventsOf(d.events)
	}
	return d.row
}

var errLate = errors.New("the storage did not reply in time")
