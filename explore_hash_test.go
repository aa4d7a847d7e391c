package infuse

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Two worlds are the same if all their futures are the same. So a time is encoded by its
// distance from now, if it still matters; a generation by its order and small distances,
// because code only compares and increments generations; numbers and IDs by their
// distance from the last one. Processes are sorted: names do not matter.

type encoder struct {
	w     *world
	bytes []byte
	gens  []int // the positions of generations, whose ranks are filled in at the end
	rank  [3]int
	order [3]int
	past  time.Duration // the longest time for which a past event matters
}

func (e *encoder) byte(n byte)   { e.bytes = append(e.bytes, n) }
func (e *encoder) int(n int64)   { e.bytes = binary.AppendVarint(e.bytes, n) }
func (e *encoder) uint(n uint64) { e.bytes = binary.AppendUvarint(e.bytes, n) }

func (e *encoder) bool(all ...bool) {
	n := byte(0)
	for _, b := range all {
		if n <<= 1; b {
			n |= 1
		}
	}
	e.byte(n)
}

func (e *encoder) generations(all ...int64) {
	for _, g := range all {
		if g < 1<<40 {
			e.byte(0)
			e.int(g)
			continue
		}
		e.byte(1)
		e.gens = append(e.gens, len(e.bytes))
		e.bytes = binary.BigEndian.AppendUint64(e.bytes, uint64(g))
	}
}

func (e *encoder) time(t, now time.Time, past time.Duration) {
	if t.IsZero() {
		e.byte(0)
		return
	}
	e.byte(1)
	e.int(int64(max(t.Sub(now), -past)))
}

// source encodes a process, and whether the source is its present one.
func (e *encoder) source(s string) (current *process) {
	if s == "" {
		e.byte(9)
		return nil
	}
	p := int(s[0] - 'a')
	e.byte(byte(e.rank[p]))
	pr := e.w.procs[p]
	n, _ := strconv.Atoi(s[1:])
	e.int(int64(pr.incarnation - n))
	if n == pr.incarnation && !pr.dead {
		return pr
	}
	return nil
}

func (e *encoder) id(id string) {
	source, number, _ := strings.Cut(id, ".")
	pr := e.source(source)
	n, _ := strconv.ParseUint(number, 36, 64)
	if pr != nil {
		n = pr.replica.ids - n
	}
	e.uint(n)
}

func (e *encoder) number(source string, n uint64) {
	if pr := e.source(source); pr != nil {
		n = pr.replica.changes - n
	}
	e.uint(n)
}

func (e *encoder) window(w *Window, now time.Time) {
	for _, b := range w.Buckets {
		e.time(b.Start, now, e.past)
		e.int(int64(b.Calls))
		e.int(int64(b.Failures))
	}
	e.byte(250)
}

func (e *encoder) record(r *Record, now time.Time) {
	s := e.w.kind.settings
	e.generations(r.Generation, r.Since, r.Opened, r.Manual)
	e.bytes = append(e.bytes, byte(r.State), byte(r.Failures), byte(r.Successes), byte(r.Threshold), byte(r.Score))
	e.bool(r.Rated, r.RetryAfter, r.Override != nil)
	e.time(r.DueAt, now, 1)
	e.time(r.SuspectAt, now, e.past)
	e.time(r.DismissedAt, now, s.Suspicion+1)
	if e.source(r.Witness); r.Witness != "" {
		e.time(r.RetryAt, now, 1)
	}
	if s.MaxResetTimeout > 0 || s.Ramp > 0 {
		e.int(int64(r.OpenDuration))
		e.time(r.ClosedAt, now, time.Hour)
	}
	for _, t := range r.Trials {
		e.id(t.ID)
		e.time(t.Started, now, s.TrialTimeout)
		e.time(t.Deadline, now, 1)
		e.bool(t.Stale)
	}
	e.byte(251)
	if o := r.Override; o != nil {
		e.byte(byte(o.State))
		e.time(o.Until, now, 1)
	}
	e.window(&r.Window, now)
	e.lastNumbers(r.lastNumbers)
}

func (e *encoder) lastNumbers(all []lastNumber) {
	for p := range e.w.procs {
		for _, h := range all {
			if int(h.source[0]-'a') == e.order[p] {
				e.number(h.source, h.number)
			}
		}
	}
	e.byte(252)
}

func (e *encoder) change(c *Change, now time.Time) {
	if c.Number == 0 && c.Source == "" {
		e.byte(0)
	} else {
		e.byte(1)
		e.number(c.Source, c.Number)
		e.record(&c.Seen, now)
	}
	for _, s := range c.Settled {
		e.id(s.ID)
		e.byte(byte(s.Outcome))
	}
	e.bytes = append(e.bytes, 253, byte(c.Calls.Failures), byte(c.Calls.Successes), byte(c.Calls.Lead), byte(c.Calls.Streak))
	e.window(&Window{Buckets: c.Counted}, now)
	e.int(int64(c.OpenFor))
	e.bool(c.Manual != nil, c.Override != nil, c.RequestTrial != "")
	if c.Manual != nil {
		e.byte(byte(c.Manual.To))
	}
	if c.Override != nil {
		e.byte(byte(c.Override.State))
		e.time(c.Override.Until, now, 1)
	}
	if c.RequestTrial != "" {
		e.id(c.RequestTrial)
	}
}

func (e *encoder) process(pr *process) {
	now, r := e.w.now, &pr.replica
	e.bool(pr.dead, pr.failed, pr.down, pr.downPending, pr.reference.off)
	if pr.dead {
		return
	}
	e.record(&r.local, now)
	e.record(r.shared, now)
	if e.bool(r.adopted != nil); r.adopted != nil {
		e.record(r.adopted, now)
	}
	o := &r.out
	e.change(cmp.Or(o.sent, new(Change)), now)
	next := o.next.change()
	e.change(&next, now)
	e.bool(o.inFlight, r.failing, r.inherited, r.linkUp, r.stopped, r.storageErr != nil, r.received > 0)
	e.byte(byte(r.supplied))
	e.source(r.formerSource)
	e.window(&o.counted, now)
	e.time(o.delayUntil, now, 1)
	e.time(o.checkAt, now, 1)
	e.uint(r.enqueued - r.sentUpTo)
	e.uint(r.enqueued - r.acknowledged)
	for _, l := range r.leases {
		e.id(l.id)
		e.bytes = append(e.bytes, byte(l.phase), byte(l.outcome.outcome))
		e.time(l.endedAt, now, e.past)
	}
	e.byte(254)
	if r.storageErr != nil {
		e.time(r.detachedAt, now, detachedPause+1)
		e.time(r.retryAt, now, 1)
		e.byte(byte(min(r.attempts, 6)))
	}
	e.generations(r.removedOverride, r.out.suspicion)
	e.time(pr.armed, now, 1)
	if pr.down {
		e.time(pr.probeAt, now, 1)
	}
	for _, n := range pr.unanswered {
		e.uint(r.changes - n)
	}
	e.byte(254)
	for i := range pr.calls {
		c := &pr.calls[i]
		e.bool(c.waits, c.decided, c.admission.view == pr.view, c.admission.view == pr.view.twin)
		e.generations(c.admission.local, c.admission.shared)
		if c.admission.trial != "" {
			e.id(c.admission.trial)
		} else {
			e.byte(0)
		}
		e.time(c.until, now, 1)
		if c.waits && !c.decided {
			e.uint(r.enqueued - c.number)
		}
		e.bool(c.spell == pr.reference.spell)
	}
	e.byte(254)
	for _, x := range pr.waits {
		e.uint(r.enqueued - x.number)
		e.time(x.until, now, 1)
	}
	e.byte(254)
	for _, push := range pr.pushes {
		e.byte(byte(push.notice.kind))
		e.generations(push.notice.suspicion)
		e.record(push.record, now)
	}
	e.byte(byte(pr.tally))
	if e.w.faultless {
		e.bool(pr.calledAt.Equal(now))
	}
}

var hashSeed = maphash.MakeSeed()

// key returns the hash of the world. The order of like processes does not matter.
func (w *world) key(e *encoder) uint64 {
	e.w, e.past = w, max(w.kind.settings.limits.longestOpen(true), w.kind.settings.Window)+1
	n := len(w.procs)
	var order [3]int
	for p := range n {
		order[p] = p
	}
	if !w.kind.alike || n == 1 {
		return e.key(order[:n])
	}
	var marks [3]uint64
	for p, pr := range w.procs {
		marks[p] = pr.mark(w.now)
	}
	slices.SortFunc(order[:n], func(a, b int) int {
		switch {
		case marks[a] < marks[b]:
			return -1
		case marks[a] > marks[b]:
			return 1
		}
		return 0
	})
	least := e.key(order[:n])
	// Processes with the same mark are tried in every order.
	same := func(i, j int) bool { return marks[order[i]] == marks[order[j]] }
	swap := func(i, j int) {
		order[i], order[j] = order[j], order[i]
		least = min(least, e.key(order[:n]))
	}
	switch {
	case n == 2 && same(0, 1):
		swap(0, 1)
	case n == 3 && same(0, 1) && same(1, 2):
		for range 3 {
			swap(0, 1)
			swap(1, 2)
		}
	case n == 3 && same(0, 1):
		swap(0, 1)
	case n == 3 && same(1, 2):
		swap(1, 2)
	}
	return least
}

// mark returns a number that does not depend on names of processes.
func (pr *process) mark(now time.Time) uint64 {
	r := &pr.replica
	m := uint64(r.local.State)<<8 | uint64(r.shared.State)<<12 | uint64(r.supplied)<<16 | uint64(len(pr.calls))<<20 | uint64(len(pr.pushes))<<24 | uint64(len(pr.waits))<<28 |
		uint64(r.local.Failures)<<32 | uint64(r.shared.Score&15)<<36 | uint64(r.shared.Failures&15)<<40 | uint64(r.out.next.Calls.Failures&15)<<44 | uint64(r.out.next.Calls.Successes&15)<<48
	for i, b := range [...]bool{pr.dead, pr.failed, pr.down, pr.downPending, r.out.inFlight, r.failing, r.inherited, r.storageErr != nil} {
		if b {
			m |= 1 << i
		}
	}
	if !pr.armed.IsZero() {
		m ^= uint64(pr.armed.Sub(now).Milliseconds()) << 52
	}
	return m
}

func (e *encoder) key(order []int) uint64 {
	w := e.w
	e.bytes, e.gens = e.bytes[:0], e.gens[:0]
	for i, p := range order {
		e.order[i], e.rank[p] = p, i
	}
	now := w.storageNow()
	kept := w.kept()
	e.record(&kept, now)
	e.lastNumbers(w.applied)
	e.int(int64(w.skew))
	for _, p := range order {
		e.byte(byte(w.supplied[p]))
	}
	if w.left.failover > 0 {
		e.record(&w.replaced, now)
	}
	for _, p := range order {
		e.process(w.procs[p])
	}
	messages := w.messages
	if len(messages) > 1 {
		messages = slices.Clone(messages)
		slices.SortStableFunc(messages, func(a, b message) int {
			if a.process != b.process {
				return e.rank[a.process] - e.rank[b.process]
			}
			return int(a.kind) - int(b.kind)
		})
	}
	for i := range messages {
		m := &messages[i]
		pr := w.procs[m.process]
		here := m.incarnation == pr.incarnation
		e.bytes = append(e.bytes, 20+byte(m.kind), byte(e.rank[m.process]))
		e.bool(here, m.timedOut, here && pr.replica.received == m.change.received)
		if !m.timedOut {
			e.time(m.late, w.now, 1)
		}
		if e.change(m.change.Change, w.now); m.kind == answered {
			e.record(m.record, w.now)
		}
	}
	if l := &w.left; !w.faultless {
		for _, n := range [...]int8{l.calls, l.manual, l.slow, l.tick, l.leave, l.all, l.crash, l.loseRequest, l.loseAnswer, l.losePush, l.swapPush, l.delay, l.repeat, l.outages, l.forget, l.failover, l.clock} {
			e.byte(byte(n))
		}
	}
	e.bool(w.lost, w.detached, w.manually, w.unpushed)
	if w.kind.config.FailureRate > 0 { // buckets begin at whole multiples of their width
		e.int(int64(w.now.Sub(explored) % w.kind.settings.limits.width()))
	}
	e.ranks()
	return maphash.Bytes(hashSeed, e.bytes)
}

// ranks replaces each generation by the sum of the distances up to it, each cut at a
// small bound.
func (e *encoder) ranks() {
	const short = 8
	var some [96]uint64
	all := append(some[:0], uint64(e.w.now.UnixMilli()), uint64(e.w.storageNow().UnixMilli()))
	for _, at := range e.gens {
		all = append(all, binary.BigEndian.Uint64(e.bytes[at:]))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	ranks := make([]uint64, len(all))
	for i := 1; i < len(all); i++ {
		ranks[i] = ranks[i-1] + min(all[i]-all[i-1], short)
	}
	now, _ := slices.BinarySearch(all, uint64(e.w.now.UnixMilli()))
	for _, at := range e.gens {
		i, _ := slices.BinarySearch(all, binary.BigEndian.Uint64(e.bytes[at:]))
		binary.BigEndian.PutUint64(e.bytes[at:], ranks[i]-ranks[now]+1<<32)
	}
}

// TestTheExplorerEncodesEveryField fails when a field is added: worlds that differ in a
// field that is not encoded would count as one.
func TestTheExplorerEncodesEveryField(t *testing.T) {
	for of, known := range map[reflect.Type]string{
		reflect.TypeFor[Record](): "State RetryAfter Rated Generation Since Opened Manual Failures Successes DueAt Trials SuspectAt Threshold Score Witness RetryAt DismissedAt " +
			"Window OpenDuration ClosedAt Override By Cause lastNumbers",
		reflect.TypeFor[Trial]():  "ID Started Deadline Stale",
		reflect.TypeFor[Change](): "Source Number Seen Limits By Cause Settled Calls Counted OpenFor Manual Override RequestTrial",
		reflect.TypeFor[replica](): "settings source local shared episode linked linkUp stopped failing inherited supplied " +
			"credit random ids received changes enqueued sentUpTo acknowledged",
		reflect.TypeFor[episode](): "out leases formerSource cause storageErr detachedAt retryAt attempts removedOverride adopted",
		reflect.TypeFor[draft]():   "Settled Calls OpenFor Manual Override RequestTrial",
		reflect.TypeFor[outbox]():  "sent inFlight next counted delayUntil checkAt suspicion",
		reflect.TypeFor[lease]():   "id phase outcome endedAt",
	} {
		var names []string
		for i := range of.NumField() {
			names = append(names, of.Field(i).Name)
		}
		if fields := strings.Join(names, " "); fields != known {
			t.Errorf("%v has the fields %q, but the explorer encodes %q", of, fields, known)
		}
	}
}
