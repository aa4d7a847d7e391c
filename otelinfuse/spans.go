package otelinfuse

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
	NameKey    = attribute.Key("infuse.circuit.name")  // the circuit's name: valid UTF-8, and bounded
	StateKey   = attribute.Key("infuse.circuit.state") // closed, open or half_open
	LocalKey   = attribute.Key("infuse.circuit.local") // whether it is the circuit of this process alone
	OutcomeKey = attribute.Key("infuse.call.outcome")  // success, failure, ignored or rejected

	RejectedByKey     = attribute.Key("infuse.rejection.by")     // the instance that opened the circuit, or who holds it; where that is known
	RejectedReasonKey = attribute.Key("infuse.rejection.reason") // of an override
	RejectedDueKey    = attribute.Key("infuse.rejection.due_at") // when a trial may run, in RFC 3339; where that is known
)

// states are the values of StateKey.
var states = [...]string{infuse.StateClosed: "closed", infuse.StateOpen: "open", infuse.StateHalfOpen: "half_open"}

// OnRejected is an infuse.Transport's OnRejected: it tells the span of the
// request's context of the rejection, and then does what next does. With nil it
// returns the *OpenError, as a Transport does by itself.
//
// What starts the span must be outside of the Transport:
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

// Rejected tells the span of ctx if err is or wraps an *infuse.OpenError, and
// returns whether it is. It sets attributes, and leaves the span's status and
// end to who started it. A span has the attributes of its last rejection.
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

// Attributes returns what a span or a log may say of a rejection. Not all of
// them are fit for a metric: a reason is free text.
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

// text returns what an exporter can send: one string that is no UTF-8 costs a
// whole batch. What comes from a record was written by another.
func text(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "?") }

const maxText = 200
