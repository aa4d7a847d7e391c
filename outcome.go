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

// This file classifies HTTP responses and errors, and reads Retry-After. How a body
// ends is in body.go, and whether the caller is at fault is in fault.go.

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

// FailAlsoOn returns a Transport.Classify for which these statuses are failures in
// addition to those of DefaultClassify, for example FailAlsoOn(429).
func FailAlsoOn(statuses ...int) func(*http.Request, *http.Response, error) Outcome {
	statuses = slices.Clone(statuses)
	return func(r *http.Request, response *http.Response, err error) Outcome {
		return classifyHTTP(r, response, err, func(status int) bool {
			return isServerError(status) || slices.Contains(statuses, status)
		})
	}
}

// FailOnlyOn returns a Transport.Classify for which only these statuses are failures,
// for example FailOnlyOn(502, 503, 504). Without statuses, only errors are failures.
// Errors are classified as by DefaultClassify.
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

// retryAfterHeader returns the time until a retry makes sense, in whole seconds. It is
// at least 1, because 0 would invite an immediate retry.
func retryAfterHeader(rejected *OpenError) string {
	left := rejected.RetryAfter()
	return strconv.FormatInt(max(1, int64((left+time.Second-1)/time.Second)), 10)
}
