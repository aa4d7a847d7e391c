package ops

import (
	"context"
	"sync"
	"time"
)

// This file lets many readers share one request to the storage.

// lookTime is the longest that a page waits for the storage.
const lookTime = 2 * time.Second

// flight is work that runs once at a time, for all callers that need it meanwhile.
// It is canceled when the last of them has left.
type flight struct {
	do func(context.Context)

	mu   sync.Mutex
	done time.Time // when it was last completed, and not canceled
	run  *run      // nil: none
}

type run struct {
	cancel  context.CancelFunc
	waiters int
	off     bool          // canceled
	ended   chan struct{} // closed when the work has ended
	late    chan struct{} // closed when it takes longer than lookTime
}

// fresh runs the work, unless it was completed within age. It returns when the work
// ends, when ctx is done, or after lookTime. Work that ignores its context goes on
// then, and is not started again before it ends.
func (f *flight) fresh(ctx context.Context, age time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, lookTime*3/2) // the work itself is late first
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

// join returns the current run: nil if the work was completed within age.
func (f *flight) join(age time.Duration) *run {
	f.mu.Lock()
	defer f.mu.Unlock()
	if age > 0 && time.Since(f.done) < age {
		return nil
	}
	if f.run == nil {
		f.begin()
	}
	f.run.waiters++
	return f.run
}

// leave reports whether the work was canceled in time, by others than the caller.
func (f *flight) leave(r *run) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	again := r.off && !isClosed(r.late)
	if r.waiters--; r.waiters == 0 {
		r.off = true
		r.cancel()
	}
	return again
}

func (f *flight) begin() {
	r := &run{ended: make(chan struct{}), late: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	timer := time.AfterFunc(lookTime, func() {
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

// isLate reports whether the work takes longer than lookTime.
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
