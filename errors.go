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

// ErrOpen matches every rejection: errors.Is(err, ErrOpen) is true for an *OpenError.
var ErrOpen = errors.New("infuse: circuit open")

// OpenError is returned for a rejected call; the function did not run. While a
// circuit stays open, rejections may share one OpenError: do not change it.
//
// It does not wrap its Cause, because that error belongs to an earlier call.
type OpenError struct {
	Circuit string
	State   State     // open; half-open while other trial calls run; or closed during a ramp (Config.Ramp)
	Local   bool      // only the local circuit rejects the call
	Cause   error     // the error that opened the circuit; only its text if it occurred in another process; nil if unknown. Error does not contain it
	By      string    // the instance that opened the circuit or began the trials, or who forced it open; empty if unknown
	Reason  string    // of an override
	DueAt   time.Time // when the next trial call may run, the ramp ends, or the override ends. Zero if a trial may run now or is running, or if the override has no end
}

// RetryAfter returns the time until DueAt; 0 if DueAt is zero or in the past.
func (e *OpenError) RetryAfter() time.Duration {
	if e.DueAt.IsZero() {
		return 0
	}
	return max(0, time.Until(e.DueAt))
}

// Error names the circuit, its state, and the reason of an override. The text is
// the same for each rejection, because error trackers group by text. It contains
// no Cause, because some retry policies search the text for words such as "timeout".
func (e *OpenError) Error() string {
	switch {
	case e.Reason != "":
		return fmt.Sprintf("infuse: circuit %q is forced %v: %q", e.Circuit, e.State, e.Reason)
	case e.State == StateClosed:
		return fmt.Sprintf("infuse: circuit %q is recovering: only some calls run until its ramp ends", e.Circuit)
	}
	return fmt.Sprintf("infuse: circuit %q is %v", e.Circuit, e.State)
}

// Is makes errors.Is(err, ErrOpen) true.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// RetryableError is false, for the AWS SDK for Go.
func (e *OpenError) RetryableError() bool { return false }

// NonRetriable marks the error for the Azure SDK for Go.
func (e *OpenError) NonRetriable() {}

// isRejectionBy reports whether err comes from a rejection by the circuit itself.
func isRejectionBy(circuit string, err error) (is bool) {
	switch err.(type) {
	case *OpenError, interface{ Unwrap() error }, interface{ Unwrap() []error }, interface{ As(any) bool }:
	default:
		return false // errors.As returns the same, and takes ten times as long
	}
	defer func() { _ = recover() }() // the Unwrap of a typed nil may panic
	var open *OpenError
	return errors.As(err, &open) && open != nil && open.Circuit == circuit
}

// cause replaces the error of a failed call in rejections. It does not keep the
// request or the response alive that the error may refer to.
type cause struct {
	text  string // of the whole chain
	short string // of the root: the text for records
	root  error  // the root if it refers to nothing; otherwise nil
}

func (c *cause) Error() string { return c.text }
func (c *cause) Unwrap() error { return c.root }

// keptCause is the error of a failed call in the form for rejections and for
// records. keepCause calls the error's methods; using a keptCause calls no user code.
type keptCause struct {
	err   error  // for rejections
	short string // for records
}

func (c *keptCause) known() bool { return c.err != nil }

// keepCause contains a panic of the error's methods. A method that ends the goroutine
// ends it.
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

// causeOf returns err itself if it refers to nothing, or else a *cause.
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

// rootOf returns the innermost error of the chain, and the number of errors around
// it. The Unwrap of a typed nil may panic. Errors are not compared: some types are
// not comparable.
func rootOf(err error) (depth int, root error) {
	root = err
	defer func() { _ = recover() }()
	for next := errors.Unwrap(root); next != nil; next = errors.Unwrap(root) {
		root, depth = next, depth+1
	}
	return depth, root
}

// shortText returns the text of the root, unless only an error around it reports that
// a deadline passed: the root may be "request canceled".
func shortText(err error, depth int) (short string) {
	for ; depth > 0; err, depth = errors.Unwrap(err), depth-1 {
		if text := errorText(err); isDeadlineText(text) {
			short = text
		}
	}
	root := errorText(err)
	if short == "" || isDeadlineText(root) {
		return root
	}
	return short
}

func isDeadlineText(text string) bool {
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

// textOf returns the text of a cause for records.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	if c, ok := err.(*cause); ok {
		return c.short
	}
	return presentable(err.Error(), maxTextLength)
}

// presentable returns the text on one line, bounded, and without the credentials,
// queries and fragments of URLs.
// R42.
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

// clip returns at most the first most bytes of s, as valid UTF-8.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
		for range utf8.UTFMax - 1 { // a rune may be truncated
			if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
				break
			}
			s = s[:len(s)-1]
		}
	}
	return strings.ToValidUTF8(s, "?")
}

var sentinelType = reflect.TypeOf(ErrOpen)

// isSentinel reports whether err was made by errors.New, or is a number such as
// syscall.ECONNREFUSED.
func isSentinel(err error) bool {
	t := reflect.TypeOf(err)
	return t == sentinelType || t.Kind() >= reflect.Int && t.Kind() <= reflect.Uintptr
}

// panicError is the cause of a call that panicked.
type panicError struct{ value any }

func (e panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// Answered reports whether err shows that the service answered: it is neither a
// connection error, a timeout, nor a rejection by a circuit. In Config.Exclude it
// leaves connection errors and timeouts as the only failures. This suits databases: a
// syntax error or a violated constraint does not indicate an outage.
//
// Connection errors are those of package net, of TLS certificates, io.EOF,
// io.ErrUnexpectedEOF and driver.ErrBadConn of database/sql. A timeout is an error
// whose Timeout method returns true. If a driver has other errors for these, wrap
// Answered in a func that checks them too.
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

// slowError is the cause of a call that took longer than this duration.
type slowError time.Duration

func (e slowError) Error() string { return fmt.Sprintf("slower than %v", time.Duration(e)) }
