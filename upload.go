package infuse

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// This file finds out whether a request failed because of its own body. The
// body reports it: an error alone does not show where it came from.

// upload is the body of a request that cannot be sent twice: it has no GetBody,
// so its reader may fail or stall. It records what its own Read returned.
//
// It has no WriteTo, also if the original has one: while a WriteTo runs, waiting
// for the body cannot be told from waiting for the service. So a file is sent
// without sendfile.
type upload struct {
	original *http.Request
	request  http.Request  // the copy that Base receives
	from     io.ReadCloser // the body of the original
	timed    bool          // the time of the end is needed

	reading atomic.Bool  // a Read is pending
	late    atomic.Bool  // the deadline passed during a Read
	failed  atomic.Bool  // a Read returned an error, before Close
	closed  atomic.Bool  // Base closed the body: errors of later Reads are its own doing
	ended   atomic.Int64 // when the body ended, by monotonic; 0 before
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
		u.ended.CompareAndSwap(0, int64(monotonic()))
	}
}

// isCauseOf reports whether the request failed because of its body: its reader
// failed, or stalled until the deadline. A request that was not sent wholly says
// nothing of the service, whatever error Base makes of it.
func (u *upload) isCauseOf(err error) bool {
	switch {
	case u == nil:
		return false
	case u.failed.Load(), u.late.Load():
		return true
	}
	return u.reading.Load() && (u.isLate() || isError(err, context.DeadlineExceeded))
}
