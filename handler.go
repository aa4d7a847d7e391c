package infuse

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
)

// Handler returns an http.Handler for a func that may fail. If its error is,
// or wraps, the *OpenError of a circuit that it depends on, the answer is 503
// with a Retry-After. For any other error onError is called; if that is nil,
// the answer is a bare 500.
//
//	mux.Handle("/orders", infuse.Handler(func(w http.ResponseWriter, r *http.Request) error {
//		stock, err := inventory.Stock(r.Context())
//		if err != nil {
//			return err
//		}
//		return json.NewEncoder(w).Encode(stock)
//	}, nil))
//
// Where the func has begun an answer itself, nothing is added to it; onError
// is called all the same, with a writer that has begun.
func Handler(serve func(http.ResponseWriter, *http.Request) error, onError func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answering{ResponseWriter: w}
		err := serve(a, r)
		var rejected *OpenError
		switch {
		case err == nil:
		case errors.As(err, &rejected):
			if !a.begun {
				RespondUnavailable(w, err)
			}
		case onError != nil:
			onError(a, r, err)
		case !a.begun:
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		}
	})
}

// RespondUnavailable answers with 503 and a Retry-After, if err is or wraps an
// *OpenError, and returns whether it did. It is for a handler that has not
// begun its answer, or for the ErrorHandler of an httputil.ReverseProxy.
func RespondUnavailable(w http.ResponseWriter, err error) bool {
	var rejected *OpenError
	if !errors.As(err, &rejected) {
		return false
	}
	w.Header().Set("Retry-After", retryAfterHeader(rejected))
	http.Error(w, unavailableText[:len(unavailableText)-1], http.StatusServiceUnavailable)
	return true
}

// answering notes whether an answer has begun. What else the ResponseWriter
// can do is there through http.ResponseController.
type answering struct {
	http.ResponseWriter
	begun bool
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

// ReadFrom keeps the fast way from a file to the network, where it was there.
func (a *answering) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(a.ResponseWriter, r)
	a.begun = a.begun || n > 0
	return n, err
}

// Flush implements http.Flusher, for those who do not use FlushError.
func (a *answering) Flush() { _ = a.FlushError() }

func (a *answering) FlushError() error {
	a.begun = true
	return http.NewResponseController(a.ResponseWriter).Flush()
}

func (a *answering) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	a.begun = a.begun || err == nil
	return conn, rw, err
}

func (a *answering) Unwrap() http.ResponseWriter { return a.ResponseWriter }
