package infuse

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// DefaultClassify is what a Transport's requests say of the service unless its
// Classify is set, for a Classify that wants to change a part of it. A 5xx is a
// failure and any other response a success. An error is ignored if the caller
// has cancelled the request's context (ctx.Err() is context.Canceled, whatever
// the cause) and is otherwise a failure: also where the caller's own deadline
// has passed, http.Client.Timeout among them, because a server that stalls
// looks like that. A caller with deadlines that a healthy service may miss:
//
//	Classify: func(r *http.Request, resp *http.Response, err error) infuse.Outcome {
//		if err != nil && r.Context().Err() != nil {
//			return infuse.OutcomeIgnored
//		}
//		return infuse.DefaultClassify(r, resp, err)
//	}
//
// The error may also be that of the caller's own request body, which cannot be
// told from others: a Classify that knows it can.
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
// failures in place of every 5xx: FailOnlyOn(502, 503, 504), say. With none,
// errors alone are failures. Errors are classified as by DefaultClassify.
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
	case err != nil && r.Context().Err() == context.Canceled:
		return OutcomeIgnored
	case err != nil || fails(response.StatusCode):
		return OutcomeFailure
	}
	return OutcomeSuccess
}

func isServerError(status int) bool { return status >= 500 && status <= 599 }

// classify decides on the exchange by its headers, or by the error in place of
// them or in the body after them.
func (e *exchange) classify(response *http.Response, err error) Outcome {
	switch {
	case err != nil && isRejectionBy(e.breaker.name, err):
		return OutcomeIgnored
	case response == nil && isMalformed(e.request):
		return OutcomeIgnored
	case e.transport.Classify != nil:
		return e.transport.Classify(e.request, response, err)
	case err != nil:
		return e.admission.view.settings.classify(e.request.Context(), e.breaker.name, err)
	}
	return DefaultClassify(e.request, response, nil)
}

// isMalformed reports whether an http.Transport refuses the request before it
// talks to anybody. It is asked only where a request has failed.
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
