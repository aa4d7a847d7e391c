package infuse

import (
	"sync"
	"sync/atomic"
)

// queue hands on what is added to it, in order and without a lock held:
// whoever finds it idle does it for all. Its zero value is ready to use.
type queue[T any] struct {
	waiting atomic.Int32 // items; so that an empty queue costs no lock

	mu      sync.Mutex
	items   []T
	held    bool // nobody is to hand on yet
	running bool
}

func (q *queue[T]) add(item T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, item)
	q.waiting.Add(1)
}

// drain calls hand with every item, unless another call of drain is at it. If
// hand ends its goroutine, the next drain goes on behind that item.
func (q *queue[T]) drain(hand func(T)) {
	if q.empty() {
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
		hand(item)
		item, some = q.next()
	}
	ended = true
}

func (q *queue[T]) begin() (item T, some bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held || q.running || len(q.items) == 0 {
		return item, false
	}
	q.running = true
	return q.take(), true
}

// next takes the oldest item; where there is none, running ends under the same
// lock, so that an item which is added after it finds the queue idle.
func (q *queue[T]) next() (item T, some bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		q.running = false
		return item, false
	}
	return q.take(), true
}

func (q *queue[T]) take() T {
	item := q.items[0]
	q.items = q.items[1:]
	q.waiting.Add(-1)
	return item
}

// hold keeps items back until release.
func (q *queue[T]) hold()    { q.mu.Lock(); q.held = true; q.mu.Unlock() }
func (q *queue[T]) release() { q.mu.Lock(); q.held = false; q.mu.Unlock() }

func (q *queue[T]) empty() bool { return q.waiting.Load() == 0 }
