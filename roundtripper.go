package infuse

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/infuse-go/infuse/internal/hostname"
)

// Transport is an http.RoundTripper that fails a request to an unhealthy
// service before it is sent. The zero value works, for http.DefaultTransport
// and with a circuit a host in memory:
//
//	client := &http.Client{Transport: &infuse.Transport{}}
//
// Set the fields before the first request, and do not copy a Transport after
// it. It is safe for concurrent use.
//
// A transport error and a 5xx are failures, and so is a response that breaks
// off while its body is read; see DefaultClassify. The outcome of a request is
// settled once: at the headers where these tell that it failed, or else when
// the body ends, by EOF, by an error or by Close. A body that is never closed
// holds nothing back. Only the trial of a half-open circuit ends at the headers
// in any case, so that neither a long download nor a stream keeps the fleet
// waiting; if its body breaks off later, that counts as a failure of the
// circuit that it has closed.
//
// A response that has proved itself is a success from then on, and how it ends
// counts for nothing: a proxy that restarts cuts streams, too. It has proved itself
// if data still comes two seconds after it began. A stream of events has with
// its first data: by its type (text/event-stream, application/x-ndjson,
// application/jsonl, application/json-seq, application/stream+json,
// application/vnd.amazon.eventstream, multipart/mixed,
// multipart/x-mixed-replace), or as a Kubernetes watch. So
// what breaks off before is a failure, unless it may be a stream that was silent:
// one of events, of gRPC or of Connect, or a response without a length that has
// been running for two seconds and was not ended by somebody's timeout. That
// counts for nothing. A connection that is handed over, by a 101 or a CONNECT, is
// a success with its headers.
//
// If such a failure is a 503 or a 429 with a Retry-After, and opens the
// circuit, it stays open at least so long, for all processes, and at most for
// Config.MaxRetryAfter.
//
// A request goes past the breakers when its circuit has no valid name (see
// CheckName), when the Group is stopped, or when the Group's settings for that
// name are invalid, which Listener.Warning reports once.
type Transport struct {
	// Base sends the requests: http.DefaultTransport if nil, or net/http's own if
	// http.DefaultTransport leads back to a Transport.
	//
	// Base receives the very request that the Transport was given, unless that has
	// a body that cannot be sent twice: one without GetBody. Of such a request it
	// receives a shallow copy, whose body records how its own Read ended. Base also
	// receives a copy if it is an http.DefaultTransport of the program's own.
	Base http.RoundTripper

	// Breakers has the circuits: with nil, a Group of the Transport's own with
	// the zero Config.
	Breakers *Group

	// Circuit names the circuit of a request. By default it is the host of an
	// http or https URL, with the port where that is not the scheme's. However a
	// host is written, it has one name: lower case, without a dot at its end, and
	// an international name in its ASCII form ("xn--"). So http and https of a
	// host share a circuit unless the URL has a port of its own. Keep names
	// low-cardinality and out of a client's control.
	//
	// Where Base does not dial what the URL says, the host may stand for several
	// services: two unix sockets that are both called as http://localhost, say.
	// They share a circuit, and the sick one shuts out the healthy one, unless
	// Circuit tells them apart.
	Circuit func(*http.Request) string

	// Classify decides what a request says of the service. By default an error
	// is classified as by Breaker.Call, by the Config of Breakers, and a
	// response as by DefaultClassify.
	//
	// It is called with a response or with an error, and with both when the
	// body of a response that was no failure breaks off. It is called with the
	// response again at the end of a body that has a trailer, or that says in its
	// last frame how it went, as gRPC-Web and Connect do: then response.Trailer
	// has it. GRPCStatus is one that looks there.
	//
	// It is not asked about a rejection by the same circuit, nor about the cut of
	// a stream, nor about a request that could not be sent through a fault of its
	// own: these are ignored. Such a fault is what is malformed; a context whose
	// deadline had passed before; a body of another length than ContentLength
	// says; headers that an HTTP/2 peer would not take; a graceful shutdown before
	// an HTTP/2 server processed the request (RFC 9113, 6.8);
	// http.ErrSkipAltProtocol; and the request's own body, if that has no GetBody:
	// its Read returned an error before Base closed it, or was pending when the
	// deadline passed. A body with a GetBody is in memory, and cannot fail.
	Classify func(*http.Request, *http.Response, error) Outcome

	// OnRejected returns the response to a rejected request, whose body has been
	// closed. By default the *OpenError is returned. See also ServiceUnavailable.
	OnRejected func(*http.Request, *OpenError) (*http.Response, error)

	making sync.Once
	own    *Group                     // in place of Breakers
	last   atomic.Pointer[groupEntry] // the circuit of the last request
}

// RoundTrip implements http.RoundTripper. The error is Base's, or an
// *OpenError if the request was not sent.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	b := t.breaker(r)
	if b == nil {
		return t.sender().RoundTrip(r)
	}
	e := exchange{transport: t, breaker: b, request: r}
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

// CloseIdleConnections passes on what http.Client.CloseIdleConnections asks for.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

type skipKey struct{}

// Skip returns a context whose requests go past the breakers of every
// Transport: they are sent whatever the state of the circuit, and count for
// nothing. It is for a health check, say.
func Skip(ctx context.Context) context.Context {
	return context.WithValue(ctx, skipKey{}, true)
}

// netTransport is net/http's own http.DefaultTransport, whatever that is set to
// later.
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
		e.settle(e.admission.slowResult()) // Breaker.settle does not know Request.Cancel
		return response, err
	case outcome != OutcomeSuccess || err != nil:
		e.settle(e.headersResult(outcome, response, err))
		return response, err
	case e.admission.isSlow():
		e.settle(e.admission.slowResult())
		return response, nil
	}
	e.admission.began = 0 // the body may take its time
	if e.admission.trial != "" {
		e.settle(result{})
		e.watchAfterTrial(response)
	} else if !e.watch(response, false) {
		e.settle(result{})
	}
	return response, nil
}

// headersResult is the result of an exchange that ended with its headers, or
// without any.
func (e *exchange) headersResult(outcome Outcome, response *http.Response, err error) result {
	if outcome == OutcomeFailure && err == nil {
		return result{outcome: outcome, err: failureOf(response), openFor: retryAfter(response, e.admission.view.settings.MaxRetryAfter)}
	}
	return result{outcome: outcome, err: e.named(err)}
}

// named returns the error with the deadline in its text, if the deadline that
// passed is all that is behind it. An http.Transport reports an
// http.Client.Timeout as "request canceled", and a deadline with a cause of its
// own as that cause.
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

func (e *exchange) settle(r result) {
	e.breaker.settle(e.request.Context(), &e.admission, r)
}

var errNeither = errors.New("infuse: the RoundTripper returned neither a response nor an error")

// eitherOr holds others to the contract: a response or an error.
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

// statusError is how a response failed: a number, so that it keeps nothing alive.
type statusError int

func (e statusError) Error() string {
	return strings.TrimSpace(strconv.Itoa(int(e)) + " " + http.StatusText(int(e)))
}
