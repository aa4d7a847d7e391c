// Package otelinfuse exports metrics of the circuits of a process to OpenTelemetry, and
// sets attributes on the spans of rejected calls. The metrics are read at each
// collection, so calls cost no more than with infuse.Config.CountCalls alone. It is a
// separate module, so that other users do not depend on the API.
//
// README.md lists the metrics and the attributes.
package otelinfuse
