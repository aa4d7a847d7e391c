package infuse

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse/internal/clock"
	"github.com/infuse-go/infuse/internal/stream"
)

// This file follows the bodies of responses. A response that ends well is a success, and
// one that is truncated is a failure. A stream is always truncated, for example when a
// server restarts: so an established response is a success from then on.

// establishedAfter is how long a response must deliver data to be established. It is
// longer than most responses take that an unhealthy service truncates, and shorter than
// the idle timeouts that truncate streams of healthy services.
const establishedAfter = 2 * time.Second

// stride is the number of reads with data for each read of the clock.
const stride = 16

// body is the body of a response whose headers showed no failure. It settles the
// exchange when it ends or is established. It holds no resources: a body that is never
// closed is collected as garbage.
type body struct {
	transport *Transport // these are the parts of the exchange that a body needs, to keep it small
	breaker   *Breaker
	request   *http.Request // as it was sent: the body of a copy is an upload
	view      *view
	admission *admission // nil if it is the view's

	response   *http.Response
	from       io.ReadCloser // a *stream.Body if the status is in its last frame
	began      time.Duration // by clock.Now: at the first data, or at the headers if the length is unknown; 0 before
	ended      atomic.Bool   // the exchange is settled
	reads      uint8         // the number of reads with data; it restarts at stride after 255
	afterTrial bool          // the trial ended at the headers, so that only a failure counts
	unwritten  bool          // WriteTo ended because its writer failed
}

// bodyWriterTo is a body whose original has WriteTo, so that io.Copy needs no buffer.
type bodyWriterTo struct {
	body
	to io.Writer
}

// watch settles the exchange when the body of the response ends. It returns false if
// there is no such body, or if it is a connection that was handed over, as after a 101:
// that connection does not belong to the exchange.
func (e *exchange) watch(response *http.Response, afterTrial bool) bool {
	from := response.Body
	if e.isEmpty(response) || response.StatusCode == http.StatusSwitchingProtocols || e.request.Method == http.MethodConnect {
		return false
	}
	if _, writable := from.(io.Writer); writable {
		return false
	}
	if e.transport.Classify != nil {
		from = stream.BodyOf(from, response)
	}
	var b *body
	if _, ok := from.(io.WriterTo); ok {
		w := new(bodyWriterTo)
		b, response.Body = &w.body, w
	} else {
		b = new(body)
		response.Body = b
	}
	b.transport, b.breaker, b.request = e.transport, e.breaker, e.sent()
	a := &e.admission
	if v := a.view; a.local != v.localSince || a.shared != v.sharedSince || a.waited != 0 {
		b.admission = &admission{view: v, local: a.local, shared: a.shared, waited: a.waited}
	}
	b.view = a.view
	b.response, b.from, b.afterTrial = response, from, afterTrial
	if !b.hasLength() {
		b.began = clock.Now()
	}
	return true
}

// hasLength reports whether the length of the body is known. If it is unknown, a Base
// may set -1 or 0.
func (b *body) hasLength() bool { return b.response.ContentLength > 0 }

// exchange returns the exchange of the body, which is no trial any more.
func (b *body) exchange() *exchange {
	a := b.view.admission()
	if b.admission != nil {
		a = *b.admission
	}
	e := &exchange{transport: b.transport, breaker: b.breaker, request: b.request, admission: a}
	if u, ok := b.request.Body.(*upload); ok && &u.request == b.request {
		e.request, e.upload = u.original, u
	}
	return e
}

// succeed settles the exchange as a success. Usually that only changes a tally.
func (b *body) succeed() {
	switch {
	case b.afterTrial:
	case b.isNews():
		b.exchange().settle(new(result))
	default:
		b.view.succeeded()
	}
}

// isNews reports whether a success changes more than a tally.
func (b *body) isNews() bool { return !b.view.fast || b.breaker.view.Load() != b.view }

// isEmpty reports whether there is nothing to read. The empty body of HTTP/2 is not
// http.NoBody.
func (e *exchange) isEmpty(response *http.Response) bool {
	return response.Body == nil || response.Body == http.NoBody ||
		response.ProtoMajor == 2 && (response.ContentLength == 0 || e.request.Method == http.MethodHead)
}

// watchAfterTrial watches the body as another call of the circuit, which the trial has
// closed.
func (e *exchange) watchAfterTrial(response *http.Response) {
	v := e.breaker.view.Load()
	if v.state != StateClosed {
		return // more trials are needed, and each ends at its own headers
	}
	e.admission = v.admission()
	e.watch(response, true)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err != nil {
		b.end(err)
	} else if n > 0 {
		b.delivers(n)
	}
	return n, err
}

// Close settles the exchange as a success: neither what the caller did not read is a
// failure of the service, nor the error of a Read that Close interrupts.
func (b *body) Close() error {
	first := b.ends()
	err := b.from.Close()
	if first {
		b.succeed()
	}
	return err
}

// WriteTo implements io.WriterTo. An error of the writer is no failure of the
// service.
func (b *bodyWriterTo) WriteTo(w io.Writer) (int64, error) {
	b.to, b.unwritten = w, false
	n, err := b.from.(io.WriterTo).WriteTo((*destination)(b))
	switch {
	case err == nil:
		b.end(io.EOF)
	case !b.unwritten:
		b.end(err)
	}
	return n, err
}

// destination is the writer for WriteTo of a body. It records whether that writer
// failed.
type destination bodyWriterTo

func (d *destination) Write(p []byte) (int, error) {
	n, err := d.to.Write(p)
	d.wrote(n, len(p), err)
	return n, err
}

// WriteString saves a copy if the body is a string.
func (d *destination) WriteString(s string) (int, error) {
	n, err := io.WriteString(d.to, s)
	d.wrote(n, len(s), err)
	return n, err
}

func (d *destination) wrote(written, given int, err error) {
	if err != nil || written < given {
		d.unwritten = true
	} else if given > 0 {
		d.body.delivers(given)
	}
}

// delivers records the arrival of data. If the length of the body is known, it reads
// the clock for the first data, unless the body is complete.
func (b *body) delivers(n int) {
	if b.reads++; b.reads == 0 {
		b.reads = stride
	}
	switch {
	case b.reads == 1 && b.hasLength():
		if int64(n) < b.response.ContentLength {
			b.began = clock.Now()
		}
	case b.ended.Load():
	case b.lastFrame() != nil: // the status is known
		b.end(io.EOF)
	case b.reads == 1 && b.isEventful() || b.reads%stride == 0 && b.lasts():
		b.establish()
	}
}

// hasTrailer reports whether Classify is called again at the end of the body, which
// may report a failure.
func (b *body) hasTrailer() bool {
	return b.transport.Classify != nil && (len(b.response.Trailer) > 0 || b.lastFrame() != nil)
}

// lastFrame returns the status in the last frame as a trailer; nil if it was not
// received.
func (b *body) lastFrame() http.Header {
	if f, ok := b.from.(*stream.Body); ok {
		return f.Trailer()
	}
	return nil
}

// withTrailer returns the response for Classify. The status of a last frame is in the
// trailer of a copy: the caller's response does not change.
func (b *body) withTrailer() *http.Response {
	last := b.lastFrame()
	if last == nil {
		return b.response
	}
	seen := *b.response
	seen.Trailer = last
	return &seen
}

// isEventful reports whether the body is a stream of events, in a circuit that a success
// may change.
func (b *body) isEventful() bool {
	return (b.isNews() || b.view.tallies) && stream.KindOf(b.request, b.response) == stream.Events
}

// lasts reports whether the response has been delivering for establishedAfter.
func (b *body) lasts() bool { return b.began != 0 && clock.Now()-b.began >= establishedAfter }

// establish settles the exchange as a success, however the body ends.
func (b *body) establish() {
	if b.ends() {
		b.succeed()
	}
}

// ends reports, once, that the exchange is not settled yet.
func (b *body) ends() bool { return !b.ended.Load() && b.ended.CompareAndSwap(false, true) }

// end settles the exchange by the error that ended the body, once.
func (b *body) end(err error) {
	if !b.ends() {
		return
	}
	if err == io.EOF && !b.hasTrailer() {
		b.succeed()
		return
	}
	e := b.exchange()
	returned := false
	defer func() {
		if !returned && !b.afterTrial { // Classify panicked
			e.breaker.unwound(e.request.Context(), &e.admission, recover())
		}
	}()
	r := b.verdict(e, err)
	returned = true
	switch {
	case !b.afterTrial:
		e.settle(&r)
	case r.outcome == OutcomeFailure: // it counts, but the listeners were already notified of the trial
		b.breaker.ended(&e.admission, &r)
		b.breaker.notifyListeners()
	}
}

// verdict is the result of a body that ended with err.
func (b *body) verdict(e *exchange, err error) result {
	switch {
	case err == io.EOF:
		response := b.withTrailer()
		r := result{outcome: e.classify(response, nil)}
		if r.outcome != OutcomeSuccess {
			r.err = failureOf(response)
		}
		return r
	case e.upload.isCauseOf(err), b.isCut(err):
		return result{outcome: OutcomeIgnored, err: err}
	}
	return result{outcome: e.classify(b.response, err), err: e.named(err)}
}

// isCut reports whether err is the truncation of a stream. It does not indicate an
// unhealthy service, because the service had begun the stream.
func (b *body) isCut(err error) bool {
	if b.hasLength() {
		return false // data is missing
	}
	// A stream may be silent for any time. If another response is silent until a
	// timeout, the service may have stalled.
	return stream.KindOf(b.request, b.response) != stream.None || b.lasts() && !isTimeout(b.request, err)
}

// isTimeout reports whether a deadline ended the body, and not the connection.
func isTimeout(r *http.Request, err error) bool {
	var timeout net.Error
	return r.Context().Err() != nil || isClosed(cancelOf(r)) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}
