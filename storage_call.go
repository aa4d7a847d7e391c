package infuse

import (
	"context"
	"errors"
	"fmt"
	"reflect"
)

// This file has the calls of a storage's own code, except Watch (link.watch). Such
// code may panic, end the goroutine, hang, or call a breaker: it never runs under a
// lock, and its results become plain data.

// answer is the answer of a storage.
type answer struct {
	record  Record
	verdict Verdict // of a change
	err     error   // a *storageError, or one of this package
}

var errStorageTimeout = errors.New("infuse: the storage did not answer within Config.StorageTimeout")

// ask has the storage make a change, or read if the change has no number, and
// passes the answer on. A storage that panics, or that ends its goroutine, is one
// that fails.
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

// storageError is an error of a storage, with all that circuits ask of it. The
// methods of the error itself are not ours: they may panic, hang, or call a breaker.
//
// It has no Unwrap, so that nobody finds the error itself under a lock.
type storageError struct {
	text     string
	err      error // nil if its methods panic
	ofRecord bool  // of the record of one circuit
	ofTime   bool  // it says no more than that requestTime is over
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

// isTrouble reports whether an error is the storage's, and not that of one
// circuit's record. It calls no method of the error.
func isTrouble(err error) bool {
	switch e := err.(type) {
	case nil, *RecordError:
		return false
	case *storageError:
		return !e.ofRecord
	}
	return true
}

// explains reports whether an error says more than that there was no answer in
// time.
func explains(err error) bool {
	e, ok := err.(*storageError)
	return isTrouble(err) && err != errStorageTimeout && !(ok && e.ofTime)
}

// withoutPanic calls code of a storage. A panic becomes an error.
func withoutPanic(call func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("infuse: the storage panicked: %v", r)
		}
	}()
	call()
	return nil
}

// isNil reports whether s is nil or holds a nil pointer, which has no methods to call.
func isNil(s Storage) bool {
	switch v := reflect.ValueOf(s); v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Chan, reflect.Func, reflect.Map, reflect.Pointer, reflect.Slice:
		return v.IsNil()
	}
	return false
}
