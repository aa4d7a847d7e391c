package otelinfuse

// This file contains the attributes, and their use on the spans of rejected calls.

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// The attributes of metrics and spans.
const (
	NameKey    = attribute.Key("infuse.circuit.name")  // name of the circuit, as valid UTF-8 of limited length
	StateKey   = attribute.Key("infuse.circuit.state") // closed, open or half_open
	LocalKey   = attribute.Key("infuse.circuit.local") // true for the local circuit, false for the shared one
	OutcomeKey = attribute.Key("infuse.call.outcome")  // success, failure, ignored, rejected or would_reject

	RejectedByKey     = attribute.Key("infuse.rejection.by")     // instance that opened the circuit, or author of the override; if known
	RejectedReasonKey = attribute.Key("infuse.rejection.reason") // reason of the override
	RejectedDueKey    = attribute.Key("infuse.rejection.due_at") // when the circuit is ready for a trial, or the override expires, in RFC 3339; if known
)

// states are the values of StateKey.
var states = [...]string{infuse.StateClosed: "closed", infuse.StateOpen: "open", infuse.StateHalfOpen: "half_open"}

// OnRejected returns a func for the field OnRejected of an infuse.Transport. The func
// sets the attributes of the rejection on the span of the request's context, and then
// calls next. If next is nil, it returns the *OpenError, like a Transport without
// OnRejected.
//
// The span must start outside of the Transport:
//
//	otelhttp.NewTransport(&infuse.Transport{OnRejected: otelinfuse.OnRejected(nil)})
func OnRejected(next func(*http.Request, *infuse.OpenError) (*http.Response, error)) func(*http.Request, *infuse.OpenError) (*http.Response, error) {
	return func(r *http.Request, rejected *infuse.OpenError) (*http.Response, error) {
		Rejected(r.Context(), rejected)
		if next == nil {
			return nil, rejected
		}
		return next(r, rejected)
	}
}

// Rejected reports whether err is or wraps an *infuse.OpenError. If so, it sets the
// attributes of the rejection on the span of ctx. It neither sets the status of the span
// nor ends it. If several calls are rejected, the span has the attributes of the last.
func Rejected(ctx context.Context, err error) bool {
	var rejected *infuse.OpenError
	if !errors.As(err, &rejected) {
		return false
	}
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(Attributes(rejected)...)
	}
	return true
}

// Attributes returns the attributes of a rejection, for a span or a log. Do not use all
// of them for a metric, because the reason is free text.
func Attributes(rejected *infuse.OpenError) []attribute.KeyValue {
	all := []attribute.KeyValue{
		OutcomeKey.String("rejected"),
		NameKey.String(tally.Name(rejected.Circuit)),
		StateKey.String(states[min(int(rejected.State), len(states)-1)]),
		LocalKey.Bool(rejected.Local),
	}
	if rejected.By != "" {
		all = append(all, RejectedByKey.String(text(rejected.By)))
	}
	if rejected.Reason != "" {
		all = append(all, RejectedReasonKey.String(text(rejected.Reason)))
	}
	if !rejected.DueAt.IsZero() {
		all = append(all, RejectedDueKey.String(rejected.DueAt.UTC().Format(time.RFC3339Nano)))
	}
	return all
}

// text returns s as valid UTF-8 of limited length: records are untrusted, and one invalid
// string makes an exporter drop a whole batch.
func text(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "?") }

const maxText = 200
