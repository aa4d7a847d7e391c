package infuse

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/clock"
)

// This file decides whether a request failed through a fault of its caller: it was
// malformed, cancelled, or its own body failed.

// isCallersFault reports whether the request itself was the reason that it was not
// sent, or not completely.
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
// server did not process it. These errors have no exported types, but stable texts.
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

// isOfGracefulShutdown reports whether the server closed its connection gracefully
// without processing the request (RFC 9113, 6.8). An http.Transport sends such a
// request again, unless its body cannot be sent twice.
func isOfGracefulShutdown(text string) bool {
	const shutdown = "http2: Transport received Server's graceful shutdown GOAWAY"
	return text == shutdown || strings.HasPrefix(text, "http2: Transport: cannot retry err ["+shutdown+"]")
}

// isCalledOff reports whether the caller cancelled the request, by its context or by
// Request.Cancel. An http.Client with a Timeout also closes Cancel, at the deadline of
// the context: that is a timeout.
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

// upload is the body of a request without GetBody. Its reader may fail or stall, and
// the error of the request alone does not show whether it did: so it records what its
// own Read returned.
//
// It never has a WriteTo: while a WriteTo runs, waiting for the body looks the same as
// waiting for the service. So a file is sent without sendfile.
type upload struct {
	original *http.Request
	request  http.Request  // the copy that Base receives
	from     io.ReadCloser // the body of the original
	timed    bool          // the time of the end is needed

	reading atomic.Bool  // a Read is pending
	late    atomic.Bool  // the deadline passed during a Read
	failed  atomic.Bool  // a Read returned an error, before Close
	closed  atomic.Bool  // Base closed the body, which causes errors of later Reads
	ended   atomic.Int64 // when the body ended, by clock.Now; 0 before
}

// isUpload reports whether the request's body cannot be sent twice.
func isUpload(r *http.Request) bool {
	return r.GetBody == nil && r.Body != nil && r.Body != http.NoBody
}

// asUpload returns the request for Base: a copy whose body is an upload.
func (e *exchange) asUpload() *http.Request {
	r := e.request
	u := &upload{original: r, request: *r, from: r.Body, timed: e.admission.began != 0}
	u.request.Body = u
	e.upload = u
	return &u.request
}

// sent returns the request that Base received.
func (e *exchange) sent() *http.Request {
	if e.upload != nil {
		return &e.upload.request
	}
	return e.request
}

// returned undoes what asUpload did, as far as the caller can see it.
func (u *upload) returned(response *http.Response, a *admission) {
	if response != nil && response.Request == &u.request {
		response.Request = u.original
	}
	if a.began != 0 {
		a.began = time.Duration(u.ended.Load()) // 0 if the response was earlier than the end of the body
	}
}

func (u *upload) Read(p []byte) (int, error) {
	inTime := !u.isLate()
	u.reading.Store(true)
	n, err := u.from.Read(p)
	if inTime && u.isLate() {
		u.late.Store(true)
	}
	u.reading.Store(false)
	if err != nil {
		if err != io.EOF && !u.closed.Load() {
			u.failed.Store(true)
		}
		u.end()
	}
	return n, err
}

func (u *upload) Close() error {
	u.closed.Store(true)
	u.end()
	return u.from.Close()
}

// isLate also compares the deadline with the clock: an http.Client whose Timeout is
// over closes the body before the context's timer fires.
func (u *upload) isLate() bool { return isLate(u.request.Context()) || isPastDeadline(&u.request) }

func (u *upload) end() {
	if u.timed {
		u.ended.CompareAndSwap(0, int64(clock.Now()))
	}
}

// isCauseOf reports whether the request failed because of its body: the reader failed,
// or stalled until the deadline. The service is not at fault then, whatever err is.
func (u *upload) isCauseOf(err error) bool {
	switch {
	case u == nil:
		return false
	case u.failed.Load(), u.late.Load():
		return true
	}
	return u.reading.Load() && (u.isLate() || isError(err, context.DeadlineExceeded))
}
