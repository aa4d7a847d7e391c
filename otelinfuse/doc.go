// Package otelinfuse shows circuits to OpenTelemetry: metrics of those of a
// process, and attributes of the span whose call was rejected. The metrics are
// read when they are collected, so a call pays for nothing but
// infuse.Config.CountCalls. It is a module of its own, so that nobody else needs
// the API.
//
// README.md lists the metrics and the attributes.
package otelinfuse
