package infuse

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// This file decides what an HTTP exchange says of the service. Three things
// belong in it: how headers and errors are classified, how a body ends, and how
// long a Retry-After keeps the circuit open. Sending is in roundtripper.go.

// DefaultClassify is the Classify of a Transport that has none. A Classify that
// wants to change a part of it may call it for the rest.
//
// A 5xx is a failure, and any other response is a success. An error is ignored
// if the caller has cancelled the request's context: ctx.Err() is
// context.Canceled, whatever the cause. Any other error is a failure. That
// includes the end of the caller's own deadline, or of http.Client.Timeout,
// because a server that stalls looks the same. This is a Classify for a caller
// whose deadlines a healthy service may miss:
//
//	Classify: func(r *http.Request, resp *http.Response, err error) infuse.Outcome {
//		if err != nil && r.Context().Err() != nil {
//			return infuse.OutcomeIgnored
//		}
//		return infuse.DefaultClassify(r, resp, err)
//	}
//
// An error of the caller's own request body is a failure, too: it looks like any
// other. A Classify that knows the error can ignore it.
func DefaultClassify(r *http.Request, response *http.Response, err error) Outcome {
	return classifyHTTP(r, response, err, isServerError)
}

// FailAlsoOn returns a Transport's Classify for which these statuses are
// failures besides those of DefaultClassify: FailAlsoOn(429), say.
func FailAlsoOn(statuses ...int) func(*http.Request, *http.Response, error) Outcome {
	statuses = slices.Clone(statuses)
	return func(r *http.Request, response *http.Response, err error) Outcome {
		return classifyHTTP(r, response, err, func(status int) bool {
			return isServerError(status) || slices.Contains(statuses, status)
		})
	}
}

// FailOnlyOn returns a Transport's Classify for which these statuses are
// failures in place of every 5xx: FailOnlyOn(502, 503, 504), say. Without
// statuses only errors are failures. Errors are classified as by
// DefaultClassify.
func FailOnlyOn(statuses ...int) func(*http.Request, *http.Response, error) Outcome {
	statuses = slices.Clone(statuses)
	return func(r *http.Request, response *http.Response, err error) Outcome {
		return classifyHTTP(r, response, err, func(status int) bool {
			return slices.Contains(statuses, status)
		})
	}
}

func classifyHTTP(r *http.Request, response *http.Response, err error, fails func(status int) bool) Outcome {
	switch {
	case err != nil && isCancelled(r.Context()):
		return OutcomeIgnored
	case err != nil || fails(response.StatusCode):
		return OutcomeFailure
	}
	return OutcomeSuccess
}

func isServerError(status int) bool { return status >= 500 && status <= 599 }

// classify decides on an exchange. It is called with a response, with an error,
// or with both if the body of the response has failed.
func (e *exchange) classify(response *http.Response, err error) Outcome {
	switch {
	case err != nil && isRejectionBy(e.breaker.Name(), err):
		return OutcomeIgnored
	case response == nil && isMalformed(e.request):
		return OutcomeIgnored
	case e.transport.Classify != nil:
		return e.transport.Classify(e.request, response, err)
	case err != nil:
		return e.admission.view.settings.classify(e.request.Context(), e.breaker.Name(), err)
	}
	return DefaultClassify(e.request, response, nil)
}

// isMalformed reports whether an http.Transport refuses the request before it
// sends anything. It is called only for a request that has failed.
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

// The end of a body.

// body is the body of a response whose headers were no failure. It settles the
// exchange when it ends. It holds no resources: one that is never closed is
// garbage like any other.
type body struct {
	exchange
	response   *http.Response
	from       io.ReadCloser
	afterTrial bool // the trial ended at the headers, so that only a failure counts
	ended      atomic.Bool
}

// bodyWriterTo is a body whose original has WriteTo. io.Copy then needs no
// buffer.
type bodyWriterTo struct {
	body
	to destination
}

// watch has the exchange settled when the response's body ends. It reports
// whether there is such a body. A body that can be written to is a connection
// that was handed over, as after a 101. What becomes of that says nothing of
// the exchange.
func (e *exchange) watch(response *http.Response, afterTrial bool) bool {
	from := response.Body
	if e.isEmpty(response) || response.StatusCode == http.StatusSwitchingProtocols {
		return false
	}
	if _, writable := from.(io.Writer); writable {
		return false
	}
	if _, ok := from.(io.WriterTo); ok {
		response.Body = &bodyWriterTo{body: body{exchange: *e, response: response, from: from, afterTrial: afterTrial}}
	} else {
		response.Body = &body{exchange: *e, response: response, from: from, afterTrial: afterTrial}
	}
	return true
}

// isEmpty reports whether there is nothing to read. HTTP/2 has an empty body of
// its own in place of http.NoBody.
func (e *exchange) isEmpty(response *http.Response) bool {
	return response.Body == nil || response.Body == http.NoBody ||
		response.ProtoMajor == 2 && (response.ContentLength == 0 || e.request.Method == http.MethodHead)
}

// watchAfterTrial watches the body as one more call in the circuit that the
// trial has closed.
func (e *exchange) watchAfterTrial(response *http.Response) {
	v := e.breaker.view.Load()
	if v.state != StateClosed {
		return // more trials are needed, and each is judged by its own headers
	}
	e.admission = v.admission()
	e.watch(response, true)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err != nil {
		b.end(err)
	}
	return n, err
}

// Close is the caller's decision. What the caller has not read is no failure of
// the service, and neither is the error of a Read that Close interrupts.
func (b *body) Close() error {
	first := b.ended.CompareAndSwap(false, true)
	err := b.from.Close()
	if first && !b.afterTrial {
		b.succeed()
	}
	return err
}

// WriteTo implements io.WriterTo. An error of the writer is no failure of the
// service.
func (b *bodyWriterTo) WriteTo(w io.Writer) (int64, error) {
	b.to = destination{Writer: w}
	n, err := b.from.(io.WriterTo).WriteTo(&b.to)
	switch {
	case err == nil:
		b.end(io.EOF)
	case !b.to.failed:
		b.end(err)
	}
	return n, err
}

// destination remembers whether it was the writer that failed.
type destination struct {
	io.Writer
	failed bool
}

func (d *destination) Write(p []byte) (int, error) {
	n, err := d.Writer.Write(p)
	d.note(n, len(p), err)
	return n, err
}

// WriteString saves a copy if the body is a string.
func (d *destination) WriteString(s string) (int, error) {
	n, err := io.WriteString(d.Writer, s)
	d.note(n, len(s), err)
	return n, err
}

func (d *destination) note(written, given int, err error) {
	d.failed = d.failed || err != nil || written < given
}

// end settles the exchange by the error that has ended the body, once.
func (b *body) end(err error) {
	if !b.ended.CompareAndSwap(false, true) {
		return
	}
	if err == io.EOF {
		if !b.afterTrial {
			b.succeed()
		}
		return
	}
	returned := false
	defer func() {
		if !returned && !b.afterTrial { // Classify panicked
			b.breaker.unwound(b.request.Context(), b.admission, recover())
		}
	}()
	r := result{outcome: b.classify(b.response, err), err: err}
	returned = true
	switch {
	case !b.afterTrial:
		b.settle(r)
	case r.outcome == OutcomeFailure: // it counts, but the listeners have heard how the call ended
		b.breaker.ended(&b.admission, &r)
		b.breaker.tell()
	}
}

// Retry-After.

// maxRetryAfter is the longest that a Retry-After can keep a circuit open. The
// value comes from the remote service, so it is bounded.
const maxRetryAfter = time.Hour

// retryAfter returns for how long a 503 or a 429 asks not to be called: 0 if it
// does not ask, or if its value is invalid.
func retryAfter(response *http.Response) time.Duration {
	if response.StatusCode != http.StatusServiceUnavailable && response.StatusCode != http.StatusTooManyRequests {
		return 0
	}
	value := strings.TrimSpace(response.Header.Get("Retry-After"))
	if isDigits(value) {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(sentAt(response))), maxRetryAfter)
}

// sentAt returns when the service sent the response, by the service's clock: its
// dates are of that clock. A response without a Date is taken to be sent now.
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

// retryAfterHeader returns how long a rejection lasts, in whole seconds. It is
// at least 1: 0 would invite an immediate retry.
func retryAfterHeader(rejected *OpenError) string {
	left := rejected.RetryAfter()
	return strconv.FormatInt(max(1, int64((left+time.Second-1)/time.Second)), 10)
}
