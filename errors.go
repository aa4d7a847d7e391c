package infuse

import (
	"errors"
	"fmt"
	"reflect"
	"time"
)

// ErrOpen is what every rejection is: errors.Is(err, ErrOpen).
var ErrOpen = errors.New("infuse: circuit open")

// OpenError tells that a call was rejected and ran nothing. Rejections of the
// same spell of an open circuit may share one OpenError: do not change it.
type OpenError struct {
	Circuit string
	State   State // open, or half-open while others' trials run
	Cause   error // what opened it, where this process knows; nil otherwise

	dueAt time.Time // zero: due
}

// RetryAfter returns how long it is until a trial may run: 0 when one is due,
// or when another's trial runs and so its end cannot be known.
func (e *OpenError) RetryAfter() time.Duration {
	if e.dueAt.IsZero() {
		return 0
	}
	return max(0, time.Until(e.dueAt))
}

// Error names the circuit, its state, how long until a trial, and the cause.
func (e *OpenError) Error() string {
	text := fmt.Sprintf("infuse: circuit %q is %v", e.Circuit, e.State)
	if left := e.RetryAfter(); left > 0 {
		text += fmt.Sprintf(", a trial may run in %v", left.Round(time.Millisecond))
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Is makes errors.Is(err, ErrOpen) true.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// isRejectionBy reports whether err comes from a rejection by the circuit itself.
func isRejectionBy(circuit string, err error) bool {
	var open *OpenError
	return errors.As(err, &open) && open.Circuit == circuit
}

// cause is the text of an error and, where that cannot keep anything alive,
// its root: what a rejection may carry around without carrying along the
// request or the response that the error came with.
type cause struct {
	text string
	root error
}

// cause is what a rejection may say of the failure; nil for any other result.
func (r result) cause() error {
	if r.outcome != OutcomeFailure || r.err == nil {
		return nil
	}
	return causeOf(r.err)
}

const maxCauseLength = 1024

func causeOf(err error) error {
	root := err
	for next := errors.Unwrap(root); next != nil; next = errors.Unwrap(root) {
		root = next
	}
	if !isSentinel(root) {
		root = nil
	} else if root == err {
		return err
	}
	text := err.Error()
	return &cause{text[:min(len(text), maxCauseLength)], root}
}

func (c *cause) Error() string { return c.text }
func (c *cause) Unwrap() error { return c.root }

var sentinelType = reflect.TypeOf(ErrOpen)

// isSentinel reports whether err is made by errors.New, or is a bare number
// such as syscall.ECONNREFUSED.
func isSentinel(err error) bool {
	t := reflect.TypeOf(err)
	return t == sentinelType || t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64
}

// panicError is the cause where a call has panicked.
type panicError struct{ value any }

func (e panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }
