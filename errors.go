package infuse

import (
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/infuse-go/infuse/internal/redact"
)

// ErrOpen is what every rejection is: errors.Is(err, ErrOpen).
var ErrOpen = errors.New("infuse: circuit open")

// OpenError is returned for a rejected call; the function did not run. While a
// circuit stays open, rejections may share one OpenError: do not change it.
//
// It wraps nothing: errors.As does not find the Cause, which belongs to an earlier
// call.
type OpenError struct {
	Circuit string
	State   State     // open, half-open while others' trials run, or closed on a ramp (Config.Ramp)
	Local   bool      // only the local circuit rejects the call
	Cause   error     // the error that opened it, as text if another process met it; nil if not known. It is not part of Error()
	By      string    // the instance that opened it, or that began the trials, or who forced it open; empty if not known
	Reason  string    // of an override
	DueAt   time.Time // when a trial or, on a ramp, every call may run, or when an override ends; zero: ready for a trial, another trial runs, or the override has no end
}

// RetryAfter returns the time until DueAt; 0 if DueAt is zero: the circuit is ready
// for a trial, another trial runs, or an override has no end.
func (e *OpenError) RetryAfter() time.Duration {
	if e.DueAt.IsZero() {
		return 0
	}
	return max(0, time.Until(e.DueAt))
}

// Error names the circuit, its state, and the reason of an override. The text is
// the same for each rejection, so that error trackers group them: RetryAfter
// returns the time, and Local and Cause are fields. Retriers match on words of a
// cause.
func (e *OpenError) Error() string {
	switch {
	case e.Reason != "":
		return fmt.Sprintf("infuse: circuit %q is forced %v: %q", e.Circuit, e.State, e.Reason)
	case e.State == StateClosed:
		return fmt.Sprintf("infuse: circuit %q is on its ramp: it lets only some calls run", e.Circuit)
	}
	return fmt.Sprintf("infuse: circuit %q is %v", e.Circuit, e.State)
}

// Is makes errors.Is(err, ErrOpen) true.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// RetryableError is false, for the AWS SDK for Go.
func (e *OpenError) RetryableError() bool { return false }

// NonRetriable marks the error for the Azure SDK for Go.
func (e *OpenError) NonRetriable() {}

// Retryable reports whether a retry policy may try again after err: false for
// nil and for a rejection, also a wrapped one, and true for any other error.
func Retryable(err error) bool { return err != nil && !errors.Is(err, ErrOpen) }

// isRejectionBy reports whether err comes from a rejection by the circuit itself.
func isRejectionBy(circuit string, err error) (is bool) {
	switch err.(type) {
	case *OpenError, interface{ Unwrap() error }, interface{ Unwrap() []error }, interface{ As(any) bool }:
	default:
		return false // errors.As would come to the same, at ten times the price
	}
	defer func() { _ = recover() }() // the Unwrap of a typed nil may panic
	var open *OpenError
	return errors.As(err, &open) && open != nil && open.Circuit == circuit
}

// cause is what a rejection may carry around of an error without carrying along
// the request or the response that the error came with.
type cause struct {
	text  string // all of it
	short string // of its root: as records have it
	root  error  // the root itself where that cannot keep anything alive; else nil
}

func (c *cause) Error() string { return c.text }
func (c *cause) Unwrap() error { return c.root }

// keptCause is what is kept of the error of a failed call. Making it calls the
// error's methods; using it calls no user code.
type keptCause struct {
	err   error  // what a rejection carries
	short string // the text, as records have it
}

func (c *keptCause) known() bool { return c.err != nil }

// keepCause makes what may be kept of an error. A method of the error that panics is
// contained; one that ends the goroutine ends it.
func keepCause(err error) (c keptCause) {
	if err == nil {
		return keptCause{}
	}
	defer func() {
		if recover() != nil {
			c = keptCause{errUnreadable, errUnreadable.Error()}
		}
	}()
	c.err = causeOf(err)
	c.short = textOf(c.err)
	return c
}

var errUnreadable = errors.New("an error whose method panicked")

// causeOf returns what may be kept of an error.
func causeOf(err error) error {
	depth, root := rootOf(err)
	if depth == 0 && isSentinel(err) {
		return err
	}
	c := &cause{text: oneLine(textOrType(err, redact.Error), maxCauseLength), short: presentable(shortText(err, depth), maxTextLength)}
	if isSentinel(root) {
		c.root = root
	}
	return c
}

// rootOf returns how many errors are around the innermost one, and that one. The
// Unwrap of a typed nil may panic. Errors are not compared: some, as slices,
// cannot be.
func rootOf(err error) (depth int, root error) {
	root = err
	defer func() { _ = recover() }()
	for next := errors.Unwrap(root); next != nil; next = errors.Unwrap(root) {
		root, depth = next, depth+1
	}
	return depth, root
}

// shortText returns the text of the root, unless only an error around it says
// that a deadline passed: the root may be "request canceled".
func shortText(err error, depth int) (short string) {
	for ; depth > 0; err, depth = errors.Unwrap(err), depth-1 {
		if text := errorText(err); saysDeadline(text) {
			short = text
		}
	}
	root := errorText(err)
	if short == "" || saysDeadline(root) {
		return root
	}
	return short
}

func saysDeadline(text string) bool {
	return strings.Contains(text, "deadline exceeded") || strings.Contains(text, "Client.Timeout exceeded")
}

// errorText returns the text of an error, or its type if Error panics: a typed
// nil does.
func errorText(err error) string { return textOrType(err, error.Error) }

func textOrType(err error, of func(error) string) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("%T", err)
		}
	}()
	return of(err)
}

// isError is errors.Is for an error whose methods may panic.
func isError(err, target error) (is bool) {
	defer func() { _ = recover() }()
	return errors.Is(err, target)
}

const maxCauseLength = 1024

// textOf returns a cause as records have it.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	if c, ok := err.(*cause); ok {
		return c.short
	}
	return presentable(err.Error(), maxTextLength)
}

// presentable returns a text that may be shown and stored: one line, bounded,
// and without what URLs in it may have of secrets.
func presentable(text string, most int) string { return oneLine(redact.Text(text), most) }

func oneLine(text string, most int) string {
	text = clip(text, most)
	if strings.ContainsFunc(text, unicode.IsControl) {
		text = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, text)
	}
	return text
}

// clip returns the first bytes of s that are valid UTF-8, as many as are allowed.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
		for range utf8.UTFMax - 1 { // a rune that was cut
			if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
				break
			}
			s = s[:len(s)-1]
		}
	}
	return strings.ToValidUTF8(s, "?")
}

var sentinelType = reflect.TypeOf(ErrOpen)

// isSentinel reports whether err is made by errors.New, or is a bare number
// such as syscall.ECONNREFUSED.
func isSentinel(err error) bool {
	t := reflect.TypeOf(err)
	return t == sentinelType || t.Kind() >= reflect.Int && t.Kind() <= reflect.Uintptr
}

// panicError is the cause where a call has panicked.
type panicError struct{ value any }

func (e panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// Answered reports whether err is an answer of the service: neither a connection
// error nor a timeout. In Config.Exclude it makes failures of those two only. That
// fits databases: a syntax error or a violated constraint is no sign of an outage.
//
// Connection errors are those of package net, of TLS certificates, io.EOF,
// io.ErrUnexpectedEOF and driver.ErrBadConn of database/sql. A timeout is any error
// whose Timeout method returns true. A driver may have errors of its own for either:
// add them to a func of yours. A rejection by a circuit is no answer.
func Answered(err error) bool {
	var timeout interface{ Timeout() bool }
	var operation *net.OpError
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(),
		errors.As(err, &operation), errors.As(err, &name), errors.As(err, &certificate),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, driver.ErrBadConn),
		errors.Is(err, ErrOpen):
		return false
	}
	return true
}
