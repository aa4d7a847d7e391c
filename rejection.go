package infuse

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// This file turns rejections into HTTP responses, for clients and for handlers.

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
