package infuse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// This file calls the code of a storage, and bounds these calls. The code may panic, end
// the goroutine, hang, or call a breaker: it never runs under a lock, and its results are
// converted to plain data.

// requestTime is the timeout of a request, which continues without its callers: a client
// may need this time to connect.
const requestTime = 5 * time.Second

// answer is the answer of a storage to a request.
type answer struct {
	record  Record
	verdict Verdict // of a change
	err     error   // a *storageError, or one of this package
}

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

// announcer is a storage that sends a notice of a change before it reads the record.
// announced reports whether the storage must read it.
type announcer interface {
	announces() Storage
	watchAnnounced(circuit string, fn func(Record), announced func(notice) (reads bool)) (stop func())
}

// watch calls Watch, or watchAnnounced if the storage has it. A panic continues.
func watch(s Storage, circuit string, fn func(Record), announced func(n notice) (reads bool)) (stop func()) {
	if a, ok := s.(announcer); ok && a.announces() == s { // or it is embedded in another storage, which has its own Watch
		return a.watchAnnounced(circuit, fn, announced)
	}
	return s.Watch(circuit, fn)
}

const (
	linkSlots = 64          // requests at a time: the maximum that a hanging storage can block
	slotHeld  = time.Minute // after this time a hanging request loses its slot
)

// slots is a semaphore: it has one element for each request that has a slot.
type slots chan struct{}

// take waits for a slot until down is closed. Call free when the request has ended.
func (s slots) take(down <-chan struct{}) (free func(), taken bool) {
	select {
	case s <- struct{}{}:
	case <-down:
		return nil, false
	}
	release := sync.OnceFunc(func() { <-s })
	held := time.AfterFunc(slotHeld, release)
	return func() {
		held.Stop()
		release()
	}, true
}

// callStorage sends a change to the storage, or a read if the change has no number, and
// passes the answer to done. A panic, or the end of the goroutine, becomes an error.
func callStorage(s Storage, circuit string, q *Change, done func(answer)) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	a := answer{err: errors.New("infuse: the storage ended the goroutine")}
	defer func() { done(a) }()
	var got answer
	if err := withoutPanic(func() {
		if q.Number == 0 {
			got.record, got.err = s.Load(ctx, circuit)
		} else {
			got.record, got.verdict, got.err = s.Apply(ctx, circuit, *q)
		}
	}); err != nil {
		got = answer{err: err}
	} else if got.err != nil {
		got.err = newStorageError(got.err, ctx.Err() != nil)
	}
	a = got
}

// tryRead reads the record of a circuit, and waits for it no longer than timeout. It
// calls done with the answer, also a late one.
func tryRead(s Storage, circuit string, timeout time.Duration, done func(answer)) error {
	answered := make(chan error, 1)
	go callStorage(s, circuit, &Change{}, func(a answer) {
		done(a)
		answered <- a.err
	})
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case err := <-answered:
		return err
	case <-late.C:
		return errStorageTimeout
	}
}

// readsAtOnce is the maximum number of concurrent reads of one circuit. A read starts
// when the one before has ended, or after this fraction of linkTimeout: a caller that
// just missed a read of a slow storage need not wait for two reads.
const readsAtOnce = 10

// sharedRead is one read of a record, for all callers that requested a read before it
// started. The lock of the link guards it.
type sharedRead struct {
	callers int  // that wait for it
	started bool // the request was made
	over    bool // it has ended
	ended   chan struct{}
	answer  answer // set before ended is closed
}

// end passes the answer to the callers. A late answer is dropped.
func (r *sharedRead) end(a answer) {
	if !r.over {
		r.over, r.answer = true, a
		close(r.ended)
	}
}

// withoutPanic converts a panic of a storage to an error.
func withoutPanic(call func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("infuse: the storage panicked: %v", r)
		}
	}()
	call()
	return nil
}

func newStorageError(err error, late bool) error {
	e := &storageError{}
	if panicked := withoutPanic(func() {
		e.text = presentable(err.Error(), maxCauseLength)
		var unreadable *RecordError
		e.ofRecord = errors.As(err, &unreadable)
		e.ofTime = late && errors.Is(err, context.DeadlineExceeded)
		e.err = err
	}); panicked != nil {
		e.text = fmt.Sprintf("infuse: the storage failed with a %T, whose methods panic", err)
	}
	return e
}

// explains reports whether the storage failed with more than a timeout.
func explains(err error) bool {
	e, ok := err.(*storageError)
	return isStorageError(err) && err != errStorageTimeout && !(ok && e.ofTime)
}

// waiters wait until the storage has acknowledged their sequence numbers, or is
// unavailable. The numbers ascend.
type waiters []waiter

type waiter struct {
	number uint64
	done   chan struct{}
}

// add returns a channel that is closed when the number is acknowledged.
func (w *waiters) add(number uint64) <-chan struct{} {
	done := make(chan struct{})
	*w = append(*w, waiter{number, done})
	return done
}

// release closes the channels up to the acknowledged number. It returns nil if none is
// left.
func (w *waiters) release(acknowledged uint64) *waiters {
	n := 0
	for w != nil && n < len(*w) && (*w)[n].number <= acknowledged {
		close((*w)[n].done)
		n++
	}
	if w == nil || n == len(*w) {
		return nil
	}
	*w = (*w)[n:]
	return w
}
