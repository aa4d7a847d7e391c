package infuse

import (
	"io"
	"net/http"
	"sync/atomic"
)

// body is the body of a response that was no failure up to its headers. It
// settles the exchange when it ends. It owns nothing that somebody must let
// go: one that is never closed is garbage like any other.
type body struct {
	exchange
	response   *http.Response
	from       io.ReadCloser
	afterTrial bool // the trial has ended at the headers: only a failure is news
	ended      atomic.Bool
}

// bodyWriterTo is a body whose original has WriteTo: io.Copy then needs no
// buffer of its own.
type bodyWriterTo struct {
	body
	to destination
}

// watch has the exchange settled when the response's body ends. It returns
// whether there is a body to end. One that can be written to is no download: a
// 101 hands over the connection, whose further fate is not the exchange's.
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

// isEmpty reports whether nothing can be read. HTTP/2 does not say so with
// http.NoBody but with an empty body of its own.
func (e *exchange) isEmpty(response *http.Response) bool {
	return response.Body == nil || response.Body == http.NoBody ||
		response.ProtoMajor == 2 && (response.ContentLength == 0 || e.request.Method == http.MethodHead)
}

// watchAfterTrial watches the body as one more call in the circuit that the
// trial has closed.
func (e *exchange) watchAfterTrial(response *http.Response) {
	v := e.breaker.view.Load()
	if v.admits != admitsAll {
		return // more trials are needed: those are judged by their own headers
	}
	e.admission = admission{view: v, generation: v.generation}
	e.watch(response, true)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err != nil {
		b.end(err)
	}
	return n, err
}

// Close is the caller's decision: what it has not read is not the service's
// failure. A Read that it interrupts is too late to say otherwise.
func (b *body) Close() error {
	first := b.ended.CompareAndSwap(false, true)
	err := b.from.Close()
	if first && !b.afterTrial {
		b.succeed()
	}
	return err
}

// WriteTo implements io.WriterTo. An error of the writer is not the service's.
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

// WriteString spares a body that is a string a copy.
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
	outcome := b.classify(b.response, err)
	if outcome != OutcomeSuccess || !b.afterTrial {
		b.settle(result{outcome: outcome, err: err})
	}
}
