package infuse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// This file calls the code of a storage, except Watch (link.watch). That code may
// panic, end the goroutine, hang, or call a breaker: it never runs under a lock, and
// its results are converted to plain data.

// requestTime bounds a request, which continues without its callers: a client may need
// this time to connect.
const requestTime = 5 * time.Second

// answer is the answer of a storage.
type answer struct {
	record  Record
	verdict Verdict // of a change
	err     error   // a *storageError, or one of this package
}

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

// An announcer is a storage that can say what has changed before the record is read.
// announced returns whether it is to be read.
type announcer interface {
	announces() Storage
	watchAnnounced(circuit string, fn func(Record), announced func(notice) (reads bool)) (stop func())
}

const (
	linkSlots = 64          // requests at a time: the most that a storage that hangs can hold
	slotHeld  = time.Minute // after this time a request that never returns loses its slot
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

// ask sends a change to the storage, or a read if the change has no number, and passes
// the answer to done. A panic, or the end of the goroutine, becomes an error.
func ask(s Storage, circuit string, q *Change, done func(answer)) {
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
	go ask(s, circuit, &Change{}, func(a answer) {
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
