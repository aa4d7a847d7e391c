package infuse

import (
	"time"
	"unsafe"
)

// JumpWallClock makes it look as if the wall clock had jumped ahead by d (or
// back) since the breaker and its memory storage last looked at it: what they
// remember of it moves d into the past, and what they remember of the
// monotonic clock stays as it is.
func (b *Breaker) JumpWallClock(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	moveWall(&b.record.DueAt, -d)
	for i := range b.record.Trials {
		moveWall(&b.record.Trials[i].Deadline, -d)
	}
	v := *b.view.Load()
	moveWall(&v.rejection.dueAt, -d)
	b.view.Store(&v)
	b.rearm(b.view.Load(), b.record.DueAt)
	s := b.storage.(*MemoryStorage)
	s.mu.Lock()
	defer s.mu.Unlock()
	moveWall(&s.start, -d)
	c := s.circuits[b.name]
	moveWall(&c.record.DueAt, -d)
	moveWall(&c.outlived, -d)
}

// moveWall moves the wall clock's reading in t and not the monotonic one. A
// Time that has both holds the seconds above the nanoseconds' 30 bits.
func moveWall(t *time.Time, d time.Duration) {
	if t.IsZero() {
		return
	}
	wall := (*uint64)(unsafe.Pointer(t))
	const hasMonotonic = 1 << 63
	if *wall&hasMonotonic == 0 {
		*t = t.Add(d)
		return
	}
	*wall += uint64(int64(d/time.Second)) << 30
}

// TrialOf returns the generation that the permit's trial belongs to; ok is
// false if the permit is for a call in a closed circuit.
func TrialOf(p Permit) (generation int64, ok bool) {
	return p.ticket.admission.generation, p.ticket.admission.trial != ""
}
