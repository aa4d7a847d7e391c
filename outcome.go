package infuse

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/clock"
	"github.com/infuse-go/infuse/internal/stream"
)

// This file classifies HTTP responses and errors: whether the service failed, or its
// caller. How a body ends is in body.go.

// DefaultClassify is the default Transport.Classify. A Classify of your own may call
// it for the cases that it does not decide.
//
// A 5xx is a failure, and any other response is a success. An error is ignored if the
// caller cancelled the request: ctx.Err() is context.Canceled, or Request.Cancel is
// closed. Any other error is a failure, also the end of the caller's deadline or of
// http.Client.Timeout, because a server that stalls looks the same. (Transport.Classify
// lists the errors for which no Classify is called.) If a healthy service may miss the
// deadlines of its callers, ignore them:
//
//	Classify: func(r *http.Request, resp *http.Response, err error) infuse.Outcome {
//		if err != nil && r.Context().Err() != nil {
//			return infuse.OutcomeIgnored
//		}
//		return infuse.DefaultClassify(r, resp, err)
//	}
//
// With Config.SlowCall, a cancelled request that took longer is a failure even if
// Classify ignores it: otherwise a service that hangs until its callers give up would
// never open its circuit.
func DefaultClassify(r *http.Request, response *http.Response, err error) Outcome {
	return classifyHTTP(r, response, err, isServerError)
}

// FailOn returns a Transport.Classify for which a response is a failure if fails
// returns true for its status. Errors are classified as by DefaultClassify.
//
//	Classify: infuse.FailOn(func(status int) bool { return status == 429 || status >= 500 })
func FailOn(fails func(status int) bool) func(*http.Request, *http.Response, error) Outcome {
	return func(r *http.Request, response *http.Response, err error) Outcome {
		return classifyHTTP(r, response, err, fails)
	}
}

func classifyHTTP(r *http.Request, response *http.Response, err error, fails func(status int) bool) Outcome {
	switch {
	case err != nil && isCalledOff(r):
		return OutcomeIgnored
	case err != nil || fails(response.StatusCode):
		return OutcomeFailure
	}
	return OutcomeSuccess
}

func isServerError(status int) bool { return status >= 500 && status <= 599 }

// classify is called with a response, with an error, or with both if the body of the
// response failed.
func (e *exchange) classify(response *http.Response, err error) Outcome {
	if err == nil && e.transport.Classify == nil {
		return DefaultClassify(e.request, response, nil)
	}
	switch {
	case err != nil && isRejectionBy(e.breaker.Name(), err):
		return OutcomeIgnored
	case err != nil && isError(err, http.ErrSkipAltProtocol):
		return OutcomeIgnored // Base is registered with an http.Transport, which sends the request itself
	case response == nil && e.isCallersFault(err):
		return OutcomeIgnored
	case e.transport.Classify != nil:
		return e.transport.Classify(e.request, response, err)
	case isCalledOff(e.request):
		return OutcomeIgnored
	}
	return e.admission.view.settings.classify(e.request.Context(), e.breaker.Name(), err)
}

// GRPCStatus is a Transport.Classify for gRPC, gRPC-Web and Connect, whose failures may
// have the status 200. These codes are failures: DeadlineExceeded, ResourceExhausted,
// Internal, Unavailable and DataLoss. Canceled is ignored. Any other code is a success:
// Unknown, because an application's own errors have this code, and Unimplemented,
// because the other methods of the service may work. Errors, and responses without a
// code such as those of Connect unary calls, are classified as by DefaultClassify.
//
// To choose other codes, write a Classify that reads Grpc-Status from the Trailer or
// the Header of the response: it is there for all three protocols.
func GRPCStatus(r *http.Request, response *http.Response, err error) Outcome {
	if err == nil {
		if status, ok := stream.StatusOf(response); ok {
			return grpcOutcome(status)
		}
	}
	return DefaultClassify(r, response, err)
}

func grpcOutcome(s stream.Status) Outcome {
	switch s {
	case stream.Canceled:
		return OutcomeIgnored
	case stream.DeadlineExceeded, stream.ResourceExhausted, stream.Internal, stream.Unavailable, stream.DataLoss:
		return OutcomeFailure
	}
	return OutcomeSuccess
}

var errTrailer = errors.New("infuse: the trailer of the response reports a failure")

// failureOf returns the error of a response that is classified as a failure.
func failureOf(response *http.Response) error {
	if response.StatusCode != http.StatusOK {
		return errorOfStatus(response.StatusCode)
	}
	if status, ok := stream.StatusOf(response); ok && status != stream.OK {
		return status
	}
	if len(response.Trailer) > 0 {
		return errTrailer
	}
	return errorOfStatus(response.StatusCode)
}

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

// Retry-After.

// retryAfter returns the Retry-After of a 503 or a 429, at most most; 0 if there is
// none, or if its value is invalid. The value is bounded because it is untrusted.
func retryAfter(response *http.Response, most time.Duration) time.Duration {
	if most < 0 || response.StatusCode != http.StatusServiceUnavailable && response.StatusCode != http.StatusTooManyRequests {
		return 0
	}
	value := strings.TrimSpace(response.Header.Get("Retry-After"))
	if isDigits(value) {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(most/time.Second) {
			return most
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(sentAt(response))), most)
}

// sentAt returns when the service sent the response, by the service's own clock: a date
// in Retry-After is of that clock. Without a Date header it returns the time now.
func sentAt(response *http.Response) time.Time {
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		return date
	}
	return time.Now()
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
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
