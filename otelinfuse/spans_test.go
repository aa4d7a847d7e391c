package otelinfuse_test

// This file tests the attributes of spans.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
)

func newTracer() (*tracetest.SpanRecorder, *trace.TracerProvider) {
	recorder := tracetest.NewSpanRecorder()
	return recorder, trace.NewTracerProvider(trace.WithSpanProcessor(recorder))
}

func attributesOf(span trace.ReadOnlySpan) map[attribute.Key]string {
	all := make(map[attribute.Key]string)
	for _, a := range span.Attributes() {
		all[a.Key] = a.Value.String()
	}
	return all
}

// With otelhttp, the span of a rejected request has the attributes of the rejection. The
// span of a request that was sent has none.
func TestOnRejectedInsideOfOtelhttp(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	for name, next := range map[string]func(*http.Request, *infuse.OpenError) (*http.Response, error){
		"error": nil, "answer": infuse.ServiceUnavailable,
	} {
		t.Run(name, func(t *testing.T) {
			recorder, tracer := newTracer()
			group := newGroup(t, infuse.Config{})
			client := &http.Client{Transport: otelhttp.NewTransport(&infuse.Transport{
				Breakers: group, OnRejected: otelinfuse.OnRejected(next),
				Circuit: func(*http.Request) string { return "prices" },
			}, otelhttp.WithTracerProvider(tracer))}
			response, err := client.Get(server.URL)
			require.NoError(t, err)
			response.Body.Close()

			until := time.Now().Add(time.Hour).Truncate(time.Millisecond)
			forced := infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "upgrade", Until: until}
			require.NoError(t, breakerOf(t, group, "prices").Override(t.Context(), forced))
			response, err = client.Get(server.URL)
			if next == nil {
				require.ErrorIs(t, err, infuse.ErrOpen)
			} else {
				require.NoError(t, err)
				require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
				response.Body.Close()
			}

			spans := recorder.Ended()
			require.Len(t, spans, 2)
			require.NotContains(t, attributesOf(spans[0]), otelinfuse.NameKey)
			got := attributesOf(spans[1])
			require.Equal(t, "prices", got[otelinfuse.NameKey])
			require.Equal(t, "open", got[otelinfuse.StateKey])
			require.Equal(t, "false", got[otelinfuse.LocalKey])
			require.Equal(t, "rejected", got[otelinfuse.OutcomeKey])
			require.Equal(t, "ann", got[otelinfuse.RejectedByKey])
			require.Equal(t, "upgrade", got[otelinfuse.RejectedReasonKey])
			due, err := time.Parse(time.RFC3339Nano, got[otelinfuse.RejectedDueKey])
			require.NoError(t, err)
			require.WithinDuration(t, until, due, time.Second)
			require.Equal(t, codes.Error, spans[1].Status().Code, "set by otelhttp")
		})
	}
}

func TestRejected(t *testing.T) {
	recorder, provider := newTracer()
	tracer := provider.Tracer("test")
	rejected := &infuse.OpenError{Circuit: "prices\xff", State: infuse.StateHalfOpen, Local: true, By: "\xff", Reason: strings.Repeat("ä", 1000)}
	for _, err := range []error{rejected, fmt.Errorf("stock: %w", rejected), errors.New("failing"), nil} {
		ctx, span := tracer.Start(t.Context(), "call")
		require.Equal(t, errors.Is(err, infuse.ErrOpen), otelinfuse.Rejected(ctx, err))
		span.End()
	}
	spans := recorder.Ended()
	for _, span := range spans[:2] {
		require.Equal(t, map[attribute.Key]string{
			otelinfuse.OutcomeKey: "rejected", otelinfuse.NameKey: `"prices\xff"`, otelinfuse.StateKey: "half_open",
			otelinfuse.LocalKey: "true", otelinfuse.RejectedByKey: "?", otelinfuse.RejectedReasonKey: strings.Repeat("ä", 100),
		}, attributesOf(span))
		require.Equal(t, codes.Unset, span.Status().Code)
	}
	for _, span := range spans[2:] {
		require.Empty(t, span.Attributes())
	}
	require.True(t, otelinfuse.Rejected(context.Background(), rejected), "even without a span")
}
