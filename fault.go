package infuse

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
)

// This file tells the caller's own faults from the service's. It is asked only
// about a request that has failed.

// isCallersFault reports whether the request could not be sent, or not wholly,
// for a reason of its own.
func (e *exchange) isCallersFault(err error) bool {
	return e.admission.late || isMalformed(e.request) || isRefusedUnsent(err) || e.isOfRequestBody(err)
}

// isMalformed reports whether an http.Transport refuses the request before it
// sends anything.
func isMalformed(r *http.Request) bool {
	return r.Header == nil ||
		r.Method != "" && !isToken(r.Method) ||
		isHTTP(r.URL) && r.URL.Host == "" ||
		strings.ContainsFunc(r.Host, isBlankOrControl) ||
		r.ContentLength != 0 && r.Body == nil ||
		isBadHeader(r.Header) || isBadHeader(r.Trailer)
}

func isHTTP(u *url.URL) bool { return u.Scheme == "http" || u.Scheme == "https" }

func isBadHeader(h http.Header) bool {
	for name, values := range h {
		if !isToken(name) || slices.ContainsFunc(values, hasControl) {
			return true
		}
	}
	return false
}

// isToken reports whether s is a token of RFC 9110, 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

func hasControl(value string) bool {
	return strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

func isBlankOrControl(c rune) bool { return c <= ' ' || c == 0x7f }

// isRefusedUnsent reports whether net/http has refused to send what it was
// given. Its errors have no names, but their texts are stable.
func isRefusedUnsent(err error) bool {
	return isIn(err, func(err error) bool {
		text := err.Error()
		return strings.HasPrefix(text, "http: ContentLength=") && strings.Contains(text, " with Body length ") ||
			strings.TrimPrefix(text, "http2: ") == "request body larger than specified content length" ||
			strings.TrimPrefix(text, "http2: ") == "request header list larger than peer's advertised limit"
	})
}

// isOfRequestBody reports whether the error is one that reading the request's
// body has met. The body is not wrapped, because that would take a copy of the
// request. But an http.Transport hands such an error on as it is, and its own
// errors can be known: they are of the network or of a protocol.
//
// A body that can be had again (GetBody) is in memory, and does not fail.
func (e *exchange) isOfRequestBody(err error) bool {
	r := e.request
	if r.Body == nil || r.Body == http.NoBody {
		return false
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) || errors.Is(err, http.ErrBodyReadAfterClose) {
		return true // it is the body of a request to this server, which is passed on
	}
	var ofFile *fs.PathError
	base, ok := e.transport.base().(*http.Transport)
	switch {
	case !ok || r.GetBody != nil:
		return false
	case errors.As(err, &ofFile): // its cause is a number, as that of a connection's error
		return true
	case isIn(err, isOfTransport):
		return false
	case base.Proxy == nil:
		return true
	}
	proxy, err := base.Proxy(r) // an error, and what a proxy says, are handed on as well
	return err == nil && proxy == nil
}

// isOfTransport reports whether an error may come from an http.Transport, or
// from the network below it.
func isOfTransport(err error) bool {
	if _, ok := err.(net.Error); ok || err == io.EOF || err == io.ErrUnexpectedEOF || err == net.ErrClosed || err == context.Canceled {
		return true
	}
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if from := t.PkgPath(); from == "net" || strings.HasPrefix(from, "net/") || strings.HasPrefix(from, "crypto/") {
		return true
	}
	text := err.Error()
	return slices.ContainsFunc([]string{"http: ", "http2: ", "net/http: ", "tls: ", "x509: "}, func(prefix string) bool {
		return strings.HasPrefix(text, prefix)
	})
}

// isIn reports whether something holds of an error, or of one that it wraps.
func isIn(err error, holds func(error) bool) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if holds(err) {
			return true
		}
	}
	return false
}

// isCalledOff reports whether the caller has cancelled the request, by its
// context or by its Cancel.
//
// An http.Client with a Timeout closes the Cancel, too, at the very deadline that
// it has given the context: that is a timeout.
func isCalledOff(r *http.Request) bool {
	if isCancelled(r.Context()) {
		return true
	}
	if !isClosed(cancelOf(r)) {
		return false
	}
	deadline, ok := r.Context().Deadline()
	return !ok || time.Now().Before(deadline)
}

func cancelOf(r *http.Request) <-chan struct{} {
	//lint:ignore SA1019 there are clients that set it, and http.Client is one of them
	return r.Cancel
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
