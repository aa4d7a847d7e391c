package ops

// This file contains flight, which lets concurrent readers share one request to the
// storage.

import (
	"context"
	"sync"
	"time"
)

// storageTime is the longest wait of a page for the storage.
const storageTime = 2 * time.Second

// flight runs work for all callers that wait for it, once at a time. The work is canceled
// when the last caller has left.
type flight struct {
	do func(context.Context)

	mu   sync.Mutex
	done time.Time // last completion without cancellation
	run  *run      // nil: none in progress
}

type run struct {
	cancel   context.CancelFunc
	waiters  int
	canceled bool
	ended    chan struct{} // closed when the work has ended
	late     chan struct{} // closed after storageTime
}

// refresh runs the work, unless it was completed within age. It returns when the work
// ends, when ctx is done, or after storageTime. Work that ignores its context continues,
// and does not start again before it has ended.
func (f *flight) refresh(ctx context.Context, age time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, storageTime*3/2) // longer than the work may take
	defer cancel()
	for again := true; again && ctx.Err() == nil; {
		r := f.join(age)
		if r == nil {
			return
		}
		select {
		case <-r.ended:
		case <-r.late:
		case <-ctx.Done():
		}
		again = f.leave(r)
	}
}

// join returns the current run, or nil if the work was completed within age.
func (f *flight) join(age time.Duration) *run {
	f.mu.Lock()
	defer f.mu.Unlock()
	if age > 0 && time.Since(f.done) < age {
		return nil
	}
	if f.run == nil {
		f.start()
	}
	f.run.waiters++
	return f.run
}

// leave reports whether the caller must join again: others canceled the work before it was late.
func (f *flight) leave(r *run) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	again := r.canceled && !isClosed(r.late)
	if r.waiters--; r.waiters == 0 {
		r.canceled = true
		r.cancel()
	}
	return again
}

func (f *flight) start() {
	r := &run{ended: make(chan struct{}), late: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	timer := time.AfterFunc(storageTime, func() {
		close(r.late)
		cancel()
	})
	r.cancel = cancel
	f.run = r
	go func() {
		defer close(r.ended)
		f.do(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.run = nil; ctx.Err() == nil {
			f.done = time.Now()
		}
		timer.Stop()
		cancel()
	}()
}

func (f *flight) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.run == nil
}

// isLate reports whether the current run has taken longer than storageTime.
func (f *flight) isLate() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.run != nil && isClosed(f.run.late)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
