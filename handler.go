package infuse

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
)

// Handler returns an http.Handler for a func that may fail. If the error is or wraps
// an *OpenError, the response is 503 with a Retry-After. For any other error, onError
// is called; if onError is nil, the response is 500.
//
//	mux.Handle("/orders", infuse.Handler(func(w http.ResponseWriter, r *http.Request) error {
//		stock, err := inventory.Stock(r.Context())
//		if err != nil {
//			return err
//		}
//		return json.NewEncoder(w).Encode(stock)
//	}, nil))
//
// If the func has begun a response, nothing is added to it. onError is then still
// called, with the writer of that response.
func Handler(serve func(http.ResponseWriter, *http.Request) error, onError func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answering{ResponseWriter: w}
		err := serve(a.writer(), r)
		var rejected *OpenError
		switch {
		case err == nil:
		case errors.As(err, &rejected):
			if !a.begun {
				RespondUnavailable(w, err)
			}
		case onError != nil:
			onError(a.writer(), r, err)
		case !a.begun:
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		}
	})
}

// RespondUnavailable responds with 503 and a Retry-After if err is or wraps an
// *OpenError, and reports whether it did. Call it before a response has begun, for
// example in the ErrorHandler of an httputil.ReverseProxy.
func RespondUnavailable(w http.ResponseWriter, err error) bool {
	var rejected *OpenError
	if !errors.As(err, &rejected) {
		return false
	}
	w.Header().Set("Retry-After", retryAfterHeader(rejected))
	http.Error(w, unavailableText[:len(unavailableText)-1], http.StatusServiceUnavailable)
	return true
}

// answering records whether a response has begun. It is an http.Flusher and an
// http.Hijacker only if the original is; http.ResponseController unwraps it for the
// other methods of the original.
type answering struct {
	http.ResponseWriter
	begun bool
}

// writer returns the ResponseWriter for a handler.
func (a *answering) writer() http.ResponseWriter {
	_, flushes := a.ResponseWriter.(http.Flusher)
	_, hijacks := a.ResponseWriter.(http.Hijacker)
	switch {
	case flushes && hijacks:
		return struct {
			*answering
			http.Flusher
			http.Hijacker
		}{a, flusher{a}, hijacker{a}}
	case flushes:
		return struct {
			*answering
			http.Flusher
		}{a, flusher{a}}
	case hijacks:
		return struct {
			*answering
			http.Hijacker
		}{a, hijacker{a}}
	}
	return a
}

func (a *answering) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		a.begun = true
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answering) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// ReadFrom keeps sendfile, if the original has it.
func (a *answering) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(a.ResponseWriter, r)
	a.begun = a.begun || n > 0
	return n, err
}

// FlushError is what http.ResponseController calls.
func (a *answering) FlushError() error {
	err := http.NewResponseController(a.ResponseWriter).Flush()
	a.begun = a.begun || !errors.Is(err, http.ErrNotSupported)
	return err
}

func (a *answering) Unwrap() http.ResponseWriter { return a.ResponseWriter }

type flusher struct{ a *answering }

func (f flusher) Flush() { _ = f.a.FlushError() }

type hijacker struct{ a *answering }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.a.ResponseWriter).Hijack()
	h.a.begun = h.a.begun || err == nil
	return conn, rw, err
}
