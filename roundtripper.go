package infuse

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/hostname"
)

// Transport is an http.RoundTripper that fails a request to an unhealthy service before
// it is sent. The zero value is ready to use: it sends by http.DefaultTransport, and has
// one local circuit for each host:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// Set the fields before the first request, and do not copy a Transport after that. It is
// safe for concurrent use.
//
// A transport error, a 5xx and a truncated response are failures; see DefaultClassify.
// The result of a request is counted once: at the headers if they show a failure, or
// else when the body ends, by EOF, an error or Close. A body that is never closed has no
// effect on the circuit. A trial always ends at the headers, so that a long download
// does not delay recovery. If its body is truncated later, that is a failure in the
// circuit that the trial closed.
//
// A response is established when data still arrives 2 s after it began, and a stream of
// events with its first data. It is then a success, however it ends, because a server
// or proxy that restarts also truncates streams. Streams of events are those of the
// types text/event-stream, application/x-ndjson, application/jsonl,
// application/json-seq, application/stream+json, application/vnd.amazon.eventstream,
// multipart/mixed and multipart/x-mixed-replace, and Kubernetes watches.
//
// A response that is truncated before it is established is a failure, unless it may be a
// stream without data so far: then it is ignored. Such streams are those of events, of
// gRPC and of Connect, and a response without a length that lasted 2 s and was not ended
// by a timeout. A connection that is handed over, by a 101 or a CONNECT, is a success at
// its headers.
//
// If a 503 or 429 with a Retry-After opens the circuit, the circuit stays open at least
// that long, for all processes, up to Config.MaxRetryAfter.
//
// A request bypasses the breakers if its circuit's name is empty or longer than
// MaxNameLength, if the Group is stopped, or if the Group's settings for that name are
// invalid, which Listener.Warning reports once.
type Transport struct {
	// Base sends the requests. Default http.DefaultTransport, or net/http's original one
	// if http.DefaultTransport is set to a Transport without Base.
	//
	// Base receives the request itself if that has no body, or a GetBody. Otherwise it
	// receives a shallow copy, whose body records how its Read ended. It also receives
	// a copy if it is an http.DefaultTransport that the program replaced.
	Base http.RoundTripper

	// Breakers has the circuits. Default a private Group with the zero Config.
	Breakers *Group

	// Circuit names the circuit of a request. Default is the host of an http or https
	// URL, with the port if that is not the scheme's default. The name is normalized:
	// lower case, without a final dot, and Punycode ("xn--") for international names.
	// So http and https share a circuit unless the URL has another port. Names should
	// be few, and strangers should not choose them.
	//
	// Set Circuit if one host means several services, for example if Base dials two
	// unix sockets that both have the URL http://localhost. Otherwise they share a
	// circuit, and the unhealthy service blocks the healthy one.
	Circuit func(*http.Request) string

	// Classify decides the outcome of a request. By default an error is classified as
	// by Breaker.Call, with the Config of Breakers, and a response as by
	// DefaultClassify.
	//
	// Classify is called with a response or an error, and with both if the body of a
	// response is truncated. It is called again at the end of a body with a trailer, or
	// with a status in its last frame as gRPC-Web and Connect have it: response.Trailer
	// has the status then. GRPCStatus reads it.
	//
	// Classify is not called for these errors, which are ignored: a rejection by the
	// same circuit; a truncated stream; http.ErrSkipAltProtocol; an HTTP/2 server that
	// shut down without processing the request (RFC 9113, 6.8); and faults of the
	// request. These are a malformed request, a context whose deadline had passed
	// before, a body of another length than ContentLength, headers above the limit of an
	// HTTP/2 peer, and a body without GetBody whose Read failed before Base closed it or
	// was pending when the deadline passed.
	Classify func(*http.Request, *http.Response, error) Outcome

	// OnRejected returns the response to a rejected request, whose body has been
	// closed. By default the *OpenError is returned. See also ServiceUnavailable.
	OnRejected func(*http.Request, *OpenError) (*http.Response, error)

	making sync.Once
	own    *Group                     // in place of Breakers
	last   atomic.Pointer[groupEntry] // the circuit of the last request
}

// RoundTrip implements http.RoundTripper. Its error is that of Base, or an *OpenError if
// the request was not sent.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	b := t.breaker(r)
	if b == nil {
		return t.sender().RoundTrip(r)
	}
	var e exchange // a literal would be built apart and copied
	e.transport, e.breaker, e.request = t, b, r
	if rejected := b.enter(r.Context(), &e.admission); rejected != nil {
		return t.reject(r, rejected)
	}
	if e.admission.dry {
		return t.sender().RoundTrip(r)
	}
	return e.run()
}

// Unwrap returns the RoundTripper that sends the requests.
func (t *Transport) Unwrap() http.RoundTripper { return t.base() }

// CloseIdleConnections calls that method of Base, if Base has it. http.Client calls it.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

type skipKey struct{}

// Skip returns a context whose requests bypass the breakers of every Transport: they are
// always sent, and not counted. Use it for health checks, for example.
func Skip(ctx context.Context) context.Context {
	return context.WithValue(ctx, skipKey{}, true)
}

// netTransport is the original http.DefaultTransport of net/http.
var netTransport = http.DefaultTransport

// base returns the RoundTripper that sends the requests.
func (t *Transport) base() http.RoundTripper {
	switch {
	case t.Base != nil:
		return t.Base
	case leadsBack(http.DefaultTransport):
		return netTransport
	}
	return http.DefaultTransport
}

// leadsBack reports whether rt is, or unwraps to, a Transport that would send by
// http.DefaultTransport in turn.
func leadsBack(rt http.RoundTripper) bool {
	for rt != netTransport {
		if t, ok := rt.(*Transport); ok && t.Base == nil {
			return true
		}
		wrapper, ok := rt.(interface{ Unwrap() http.RoundTripper })
		if !ok {
			return false
		}
		rt = wrapper.Unwrap()
	}
	return false
}

// sentByKey is the key of the Transport that has sent a request.
type sentByKey struct{}

// sender returns the Base, or what takes its place.
func (t *Transport) sender() http.RoundTripper {
	if t.Base == nil {
		return (*withoutBase)(t)
	}
	return t.Base
}

// withoutBase sends the requests of a Transport that has no Base. An
// http.DefaultTransport of the program's own may lead back to this Transport
// without an Unwrap: the request's context then shows it.
type withoutBase Transport

func (w *withoutBase) RoundTrip(r *http.Request) (*http.Response, error) {
	t := (*Transport)(w)
	base := t.base()
	switch {
	case base == netTransport:
		return base.RoundTrip(r)
	case t.isSent(r):
		return netTransport.RoundTrip(r)
	}
	marked := r.WithContext(context.WithValue(r.Context(), sentByKey{}, t))
	response, err := base.RoundTrip(marked)
	if response != nil && response.Request == marked {
		response.Request = r
	}
	return response, err
}

// isSent reports whether the Transport, which has no Base, has sent the request
// already.
func (t *Transport) isSent(r *http.Request) bool {
	return http.DefaultTransport != netTransport && r.Context().Value(sentByKey{}) == t
}

// breaker returns the breaker of the request's circuit; nil if the request
// goes past it.
func (t *Transport) breaker(r *http.Request) *Breaker {
	if r.URL == nil || r.Context().Value(skipKey{}) != nil || t.Base == nil && t.isSent(r) {
		return nil
	}
	b, err := t.breakers().again(&t.last, t.circuit(r))
	if err != nil {
		return nil
	}
	return b
}

func (t *Transport) breakers() *Group {
	if t.Breakers != nil {
		return t.Breakers
	}
	t.making.Do(func() { t.own, _ = NewGroup(Config{}) }) // the zero Config is valid
	return t.own
}

func (t *Transport) circuit(r *http.Request) string {
	switch {
	case t.Circuit != nil:
		return t.Circuit(r)
	case !isHTTP(r.URL):
		return "" // Base alone knows what it is
	}
	if last := t.last.Load(); last != nil && last.portless && last.name == r.URL.Host {
		return last.name
	}
	return hostname.Of(r.URL)
}

func (t *Transport) reject(r *http.Request, rejected *OpenError) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	if t.OnRejected == nil {
		return nil, rejected
	}
	response, err := eitherOr(t.OnRejected(r, rejected))
	if err == errNeither {
		err = rejected
	}
	return response, err
}

// exchange is an admitted request and its response.
type exchange struct {
	transport *Transport
	breaker   *Breaker
	admission admission
	request   *http.Request
	upload    *upload // the body of the request that was sent, if it cannot be sent twice; nil otherwise
}

func (e *exchange) run() (*http.Response, error) {
	var response *http.Response
	returned := false
	defer func() {
		if !returned {
			if response != nil && response.Body != nil { // Classify panicked
				_ = response.Body.Close()
			}
			e.breaker.unwound(e.request.Context(), &e.admission, recover())
		}
	}()
	var err error
	sent := e.request
	if isUpload(sent) {
		sent = e.asUpload()
	}
	response, err = eitherOr(e.transport.sender().RoundTrip(sent))
	if e.upload != nil {
		e.upload.returned(response, &e.admission)
	}
	outcome := e.classify(response, err)
	returned = true
	switch {
	case outcome == OutcomeIgnored && err != nil && isCalledOff(e.request) && e.admission.isSlow():
		slow := e.admission.slowResult()
		e.settle(&slow) // Breaker.settle does not know Request.Cancel
		return response, err
	case outcome != OutcomeSuccess || err != nil:
		var r result
		e.headersResult(&r, outcome, response, err)
		e.settle(&r)
		return response, err
	case e.admission.isSlow():
		slow := e.admission.slowResult()
		e.settle(&slow)
		return response, nil
	}
	e.admission.began = 0 // the body may take its time
	if e.admission.trial != "" {
		e.settle(new(result))
		e.watchAfterTrial(response)
	} else if !e.watch(response, false) {
		e.settle(new(result))
	}
	return response, nil
}

// headersResult sets the result of an exchange that ended at its headers, or before.
func (e *exchange) headersResult(r *result, outcome Outcome, response *http.Response, err error) {
	if r.outcome = outcome; outcome == OutcomeFailure && err == nil {
		r.err, r.openFor = failureOf(response), retryAfter(response, e.admission.view.settings.MaxRetryAfter)
	} else {
		r.err = e.named(err)
	}
}

// named returns the error with the deadline in its text, if the deadline caused it. An
// http.Transport reports an http.Client.Timeout as "request canceled", and a deadline
// with a custom cause as that cause.
func (e *exchange) named(err error) error {
	if err == nil || !isPastDeadline(e.request) {
		return err
	}
	text := errorText(err)
	if isDeadlineText(text) || !strings.Contains(text, "request canceled") && !isError(err, context.Cause(e.request.Context())) {
		return err
	}
	return deadlineError{err}
}

// deadlineError is the error of a request whose deadline passed.
type deadlineError struct{ error }

func (e deadlineError) Error() string { return "context deadline exceeded: " + errorText(e.error) }
func (e deadlineError) Unwrap() error { return e.error }

func (e *exchange) settle(r *result) {
	e.breaker.settle(e.request.Context(), &e.admission, r)
}

var errNeither = errors.New("infuse: the RoundTripper returned neither a response nor an error")

// eitherOr enforces the contract of a RoundTripper: a response or an error.
func eitherOr(response *http.Response, err error) (*http.Response, error) {
	switch {
	case err != nil && response != nil:
		if response.Body != nil {
			_ = response.Body.Close()
		}
		return nil, err
	case err == nil && response == nil:
		return nil, errNeither
	}
	return response, err
}

// statusError is the error of a failed response. It is a number, so that it keeps
// nothing alive.
type statusError int

func (e statusError) Error() string {
	return strings.TrimSpace(strconv.Itoa(int(e)) + " " + http.StatusText(int(e)))
}

// serverErrors are the errors of the statuses from 500 to 599: made once, because
// a number in an interface is allocated.
var serverErrors = func() (errs [100]error) {
	for i := range errs {
		errs[i] = statusError(500 + i)
	}
	return errs
}()

func errorOfStatus(status int) error {
	if isServerError(status) {
		return serverErrors[status-500]
	}
	return statusError(status)
}

// Rejections as HTTP responses, for clients and for handlers.

// ServiceUnavailable is a Transport.OnRejected. It returns a 503 with a Retry-After,
// for a server that passes the response on, such as a reverse proxy. Do not use it with
// clients that wait for a Retry-After, because they wait until the circuit's open
// duration ends: go-retryablehttp and the clients of Vault that use it, resty v3, the
// Azure SDK, and client-go of Kubernetes.
func ServiceUnavailable(r *http.Request, rejected *OpenError) (*http.Response, error) {
	const status = http.StatusServiceUnavailable
	response := &http.Response{
		Status:        strconv.Itoa(status) + " " + http.StatusText(status),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        make(http.Header),
		Body:          http.NoBody,
		ContentLength: int64(len(unavailableText)),
		Request:       r,
	}
	response.Header.Set("Content-Type", "text/plain; charset=utf-8")
	response.Header.Set("Content-Length", strconv.Itoa(len(unavailableText)))
	response.Header.Set("Retry-After", retryAfterHeader(rejected))
	if r.Method != http.MethodHead {
		response.Body = io.NopCloser(strings.NewReader(unavailableText))
	}
	return response, nil
}

// unavailableText does not name the circuit, because the client may be a stranger.
const unavailableText = "Service Unavailable: the circuit is open\n"

// RespondUnavailable responds with 503 and a Retry-After if err is or wraps an
// *OpenError, and reports whether it did. Call it before a response has begun, for
// example in the ErrorHandler of an httputil.ReverseProxy.
func RespondUnavailable(w http.ResponseWriter, err error) bool {
	var rejected *OpenError
	if !errors.As(err, &rejected) {
		return false
	}
	w.Header().Set("Retry-After", retryAfterHeader(rejected))
	http.Error(w, strings.TrimSpace(unavailableText), http.StatusServiceUnavailable)
	return true
}

// retryAfterHeader returns the time until a retry makes sense, in whole seconds. It is
// at least 1, because 0 would invite an immediate retry.
func retryAfterHeader(rejected *OpenError) string {
	left := rejected.RetryAfter()
	return strconv.FormatInt(max(1, int64((left+time.Second-1)/time.Second)), 10)
}
