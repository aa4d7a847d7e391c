package infuse

import (
	"sync/atomic"
	"unsafe"
)

// striped is a counter that many goroutines add to at once: each adds to one of
// several stripes, so that processors seldom share one.
type striped [16]struct {
	n atomic.Int64
	_ [64 - 8]byte // a cache line
}

// add adds one.
func (s *striped) add() { s[stripe()].n.Add(1) }

// stripe tells goroutines apart by where their stacks are. It is only a hint.
func stripe() uintptr {
	var here byte
	at := uintptr(unsafe.Pointer(&here)) >> 11 // no stack is smaller
	return (at ^ at>>4 ^ at>>8) % uintptr(len(striped{}))
}

// take returns what was added, and begins anew.
func (s *striped) take() (sum int64) {
	for i := range s {
		if s[i].n.Load() != 0 {
			sum += s[i].n.Swap(0)
		}
	}
	return sum
}

// callCounts counts calls by what became of them, in stripes like striped.
type callCounts [len(striped{})]struct {
	n [5]atomic.Uint64 // by Outcome, and those below
	_ [64 - 5*8]byte
}

const (
	rejectedCalls    = 3
	wouldRejectCalls = 4
)

func (c *callCounts) add(what int) { c[stripe()].n[what].Add(1) }

func (c *callCounts) sum() (sums [5]uint64) {
	for i := range c {
		for what := range sums {
			sums[what] += c[i].n[what].Load()
		}
	}
	return sums
}
