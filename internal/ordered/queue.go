// Package ordered delivers events in order, without a held lock and without a goroutine.
package ordered

import (
	"sync"
	"sync/atomic"
)

// Queue delivers its items in the order of Add. A caller of Drain delivers for all
// callers, unless another caller is already delivering. The zero value is ready to
// use, and all methods are safe for concurrent use.
type Queue[T any] struct {
	waiting atomic.Int32 // number of items: an empty queue needs no lock
	held    bool         // mu guards this field and those below
	running bool

	mu    sync.Mutex
	items []T
}

// Add appends an item.
func (q *Queue[T]) Add(item T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, item)
	q.waiting.Add(1)
}

// Drain calls deliver with every item, unless another call of Drain is running. If
// deliver ends its goroutine, the next Drain continues after that item.
func (q *Queue[T]) Drain(deliver func(T)) {
	if q.Empty() {
		return
	}
	item, some := q.begin()
	if !some {
		return
	}
	ended := false
	defer func() {
		if !ended {
			q.mu.Lock()
			q.running = false
			q.mu.Unlock()
		}
	}()
	for some {
		deliver(item)
		item, some = q.next()
	}
	ended = true
}

func (q *Queue[T]) begin() (item T, some bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held || q.running || len(q.items) == 0 {
		return item, false
	}
	q.running = true
	return q.take(), true
}

// next takes the oldest item. If there is none, running ends under the same lock: an
// item that is added later finds the queue idle.
func (q *Queue[T]) next() (item T, some bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		q.running = false
		return item, false
	}
	return q.take(), true
}

func (q *Queue[T]) take() T {
	item := q.items[0]
	if q.items = q.items[1:]; len(q.items) == 0 {
		q.items = nil // free the array, and the last item
	}
	q.waiting.Add(-1)
	return item
}

// Hold delays all items until Release.
func (q *Queue[T]) Hold() { q.hold(true) }

// Release ends Hold. The next Drain delivers the items.
func (q *Queue[T]) Release() { q.hold(false) }

func (q *Queue[T]) hold(held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = held
}

// Empty reports whether no item waits for delivery. An item that is being delivered does
// not count.
func (q *Queue[T]) Empty() bool { return q.waiting.Load() == 0 }
