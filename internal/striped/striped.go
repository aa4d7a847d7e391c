// Package striped has counters that many goroutines write at once: each goroutine
// writes one of several stripes, so processors seldom share a cache line. The zero
// values are ready to use.
package striped

import (
	"sync/atomic"
	"unsafe"
)

const (
	stripes   = 16
	cacheLine = 64 // bytes
)

// Counter is one number.
type Counter [stripes]struct {
	n atomic.Int64
	_ [cacheLine - 8]byte
}

// Add adds 1.
func (c *Counter) Add() { c[stripe()].n.Add(1) }

// Take returns the number and sets it to 0. No Add is lost.
func (c *Counter) Take() (sum int64) {
	for i := range c {
		if c[i].n.Load() != 0 {
			sum += c[i].n.Swap(0)
		}
	}
	return sum
}

// Kinds is how many numbers Counts has.
const Kinds = 5

// Counts is one number for each kind.
type Counts [stripes]struct {
	n [Kinds]atomic.Uint64
	_ [cacheLine - Kinds*8]byte
}

// Add adds 1 to the number of a kind, from 0 to Kinds-1.
func (c *Counts) Add(kind int) { c[stripe()].n[kind].Add(1) }

// Sum returns the numbers by kind. They only rise.
func (c *Counts) Sum() (sums [Kinds]uint64) {
	for i := range c {
		for kind := range sums {
			sums[kind] += c[i].n[kind].Load()
		}
	}
	return sums
}

// stripe returns the stripe of the goroutine, from the address of its stack.
// Goroutines may share a stripe, and a goroutine may change it.
func stripe() uintptr {
	var here byte
	at := uintptr(unsafe.Pointer(&here)) >> 11 // no stack is smaller
	return (at ^ at>>4 ^ at>>8) % stripes
}
