package infuse

import (
	"context"
	"errors"
	"fmt"
	"reflect"
)

// This file calls the code of a storage, except Watch (link.watch). That code may
// panic, end the goroutine, hang, or call a breaker: it never runs under a lock, and
// its results are converted to plain data.

// answer is the answer of a storage.
type answer struct {
	record  Record
	verdict Verdict // of a change
	err     error   // a *storageError, or one of this package
}

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

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

// storageError is an error of a storage, with all that circuits need to know of it.
// The methods of the original error are user code.
//
// It has no Unwrap: no code can reach the original error under a lock.
type storageError struct {
	text     string
	err      error // nil if its methods panic
	ofRecord bool  // a *RecordError: the record of one circuit cannot be read
	ofTime   bool  // only requestTime is over
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

func (e *storageError) Error() string        { return e.text }
func (e *storageError) Is(target error) bool { return errors.Is(e.err, target) }
func (e *storageError) As(target any) bool   { return errors.As(e.err, target) }

// isTrouble reports whether the storage failed, and not only the record of one circuit.
// It calls no method of the error.
func isTrouble(err error) bool {
	switch e := err.(type) {
	case nil, *RecordError:
		return false
	case *storageError:
		return !e.ofRecord
	}
	return true
}

// explains reports whether the storage failed with more than a timeout.
func explains(err error) bool {
	e, ok := err.(*storageError)
	return isTrouble(err) && err != errStorageTimeout && !(ok && e.ofTime)
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

// isNil reports whether s is nil or holds a nil pointer.
func isNil(s Storage) bool {
	switch v := reflect.ValueOf(s); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Chan, reflect.Func, reflect.Map, reflect.Pointer, reflect.Slice:
		return v.IsNil()
	}
	return false
}
