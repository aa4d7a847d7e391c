package infuse

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/infuse-go/infuse/internal/stream"
)

// This file decides what an HTTP exchange says of the service: how headers and
// errors are classified, and how long a Retry-After keeps the circuit open. How
// a body ends is in body.go, and whose fault an error is in fault.go.

// DefaultClassify is the Classify of a Transport that has none. A Classify that
// wants to change a part of it may call it for the rest.
//
// A 5xx is a failure, and any other response is a success. An error is ignored
// if the caller has cancelled the request: ctx.Err() is context.Canceled,
// whatever the cause, or Request.Cancel is closed. Any other error is a failure,
// besides those about which no Classify is asked (see Transport.Classify). That
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
// With a Config.SlowCall, a cancelled request that took longer is a failure all the
// same, also if Classify ignores it: a service that hangs is seen, although its
// callers give up.
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
	case err != nil && isCalledOff(r):
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
	if err == nil && e.transport.Classify == nil {
		return DefaultClassify(e.request, response, nil)
	}
	switch {
	case err != nil && isRejectionBy(e.breaker.Name(), err):
		return OutcomeIgnored
	case err != nil && isError(err, http.ErrSkipAltProtocol):
		return OutcomeIgnored // the http.Transport that Base is registered with sends the request itself
	case response == nil && e.isCallersFault(err):
		return OutcomeIgnored
	case e.transport.Classify != nil:
		return e.transport.Classify(e.request, response, err)
	case isCalledOff(e.request):
		return OutcomeIgnored
	}
	return e.admission.view.settings.classify(e.request.Context(), e.breaker.Name(), err)
}

// GRPCStatus is a Transport's Classify for gRPC, gRPC-Web and Connect, whose
// failures may come as a 200. These codes are failures: DeadlineExceeded,
// ResourceExhausted, Internal, Unavailable and DataLoss. Canceled is ignored. Any
// other code is a success: Unknown, because an application's own errors have that
// code, and Unimplemented, because one missing method is no reason to reject calls
// of the others. A response without a code, as that of a Connect unary call, and an
// error are classified as by DefaultClassify.
//
// For other lists of codes, a Classify of your own finds the code in the Trailer
// or the Header of the response, as Grpc-Status, in all three protocols.
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
	status, ok := stream.StatusOf(response)
	switch {
	case response.StatusCode != http.StatusOK:
		return statusError(response.StatusCode)
	case ok && status != stream.OK:
		return status
	case len(response.Trailer) > 0:
		return errTrailer
	}
	return statusError(response.StatusCode)
}

// Retry-After.

// retryAfter returns for how long a 503 or a 429 asks not to be called, at most
// most: 0 if it does not ask, or if its value is invalid. The value comes from
// the remote service, so it is bounded.
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
