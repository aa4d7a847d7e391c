package infuse

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// This file tells the caller's own faults from the service's. It is asked only
// about a request that has failed.

// isCallersFault reports whether the request could not be sent, or not wholly,
// for a reason of its own.
func (e *exchange) isCallersFault(err error) bool {
	return e.admission.late || isMalformed(e.request) || isRefusedUnsent(err) || e.upload.isCauseOf(err)
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

// isRefusedUnsent reports whether net/http refused to send the request, or the
// server did not process it. These errors have no names, but stable texts.
func isRefusedUnsent(err error) (refused bool) {
	defer func() { _ = recover() }() // the methods of a typed nil may panic
	for ; err != nil && !refused; err = errors.Unwrap(err) {
		text := err.Error()
		refused = strings.HasPrefix(text, "http: ContentLength=") && strings.Contains(text, " with Body length ") ||
			strings.TrimPrefix(text, "http2: ") == "request body larger than specified content length" ||
			strings.TrimPrefix(text, "http2: ") == "request header list larger than peer's advertised limit" ||
			isOfGracefulShutdown(text)
	}
	return refused
}

// isOfGracefulShutdown reports whether the server shut its connection down and
// said that it had not processed the request (RFC 9113, 6.8). An http.Transport
// sends such a request again, unless its body cannot be sent twice.
func isOfGracefulShutdown(text string) bool {
	const shutdown = "http2: Transport received Server's graceful shutdown GOAWAY"
	return text == shutdown || strings.HasPrefix(text, "http2: Transport: cannot retry err ["+shutdown+"]")
}

// isCalledOff reports whether the caller has cancelled the request, by its
// context or by its Cancel.
//
// An http.Client with a Timeout closes the Cancel, too, at the very deadline that
// it has given the context: that is a timeout.
func isCalledOff(r *http.Request) bool {
	return isCancelled(r.Context()) || isClosed(cancelOf(r)) && !isPastDeadline(r)
}

func isPastDeadline(r *http.Request) bool {
	deadline, ok := r.Context().Deadline()
	return ok && !time.Now().Before(deadline) && !isCancelled(r.Context())
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
