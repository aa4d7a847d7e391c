package otelinfuse

// This file contains the metrics and their options.

import (
	"context"
	"errors"
	"iter"
	"runtime/debug"
	"slices"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// ScopeName is the instrumentation scope of the metrics.
const ScopeName = "github.com/infuse-go/infuse/otelinfuse"

// Source returns the circuits to export: an *infuse.Group, or Breakers. All is called
// once for each collection. Collections may be concurrent.
type Source interface {
	All() iter.Seq[*infuse.Breaker]
}

// Breakers is a Source of breakers that are in no Group.
type Breakers []*infuse.Breaker

// All implements Source.
func (b Breakers) All() iter.Seq[*infuse.Breaker] { return slices.Values(b) }

// Option is an option of Register.
type Option func(*metrics)

// WithMeterProvider sets the MeterProvider. Default: the global one.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(m *metrics) { m.provider = p }
}

// WithTransitions adds infuse.circuit.transitions, as counted by t.
func WithTransitions(t *Transitions) Option {
	return func(m *metrics) { m.transitions = t }
}

// WithAttributes adds attributes to every metric. Use it to distinguish Groups that may
// have circuits of the same name.
func WithAttributes(attributes ...attribute.KeyValue) Option {
	return func(m *metrics) { m.common = slices.Concat(m.common, attributes) }
}

// WithMaxCircuits limits the number of circuits that have metrics. Default 300, also if
// n is not positive. If the Source has more circuits, those that are not closed or that
// have an override come first, then those with failures, then the others by name.
// infuse.circuit.count counts all circuits, and infuse.circuit.omitted those without
// metrics. An SDK also limits the number of data points: it adds up all data points
// above its limit, without their attributes.
func WithMaxCircuits(n int) Option {
	return func(m *metrics) {
		if n > 0 {
			m.maxCircuits = n
		}
	}
}

// Register exports the circuits of source until unregister is called. It reads source at
// each collection, so circuits that a Group has evicted have no metrics any more.
// Collecting does no I/O. Register returns an error if the MeterProvider returns one, or
// if source is nil. It panics if source is a nil *infuse.Group.
func Register(source Source, options ...Option) (unregister func() error, err error) {
	if source == nil {
		return nil, errors.New("otelinfuse: Register: source is nil")
	}
	source.All() // panic for a nil Group now, not at a collection
	m := &metrics{source: source, maxCircuits: tally.MaxCircuits}
	for _, option := range options {
		option(m)
	}
	if m.provider == nil {
		m.provider = otel.GetMeterProvider()
	}
	registration, err := m.register(m.provider.Meter(ScopeName, metric.WithInstrumentationVersion(version())))
	if err != nil {
		return nil, err
	}
	return registration.Unregister, nil
}

// metrics are the instruments of one Source.
type metrics struct {
	source      Source
	provider    metric.MeterProvider
	transitions *Transitions
	common      []attribute.KeyValue
	maxCircuits int

	count, omitted, status, readyForTrial, localOnly, overridden, dryRun, storageUnavailable metric.Int64ObservableUpDownCounter

	failures    metric.Int64ObservableGauge
	timeInState metric.Float64ObservableGauge

	calls, transitionCount metric.Int64ObservableCounter
}

func (m *metrics) register(meter metric.Meter) (metric.Registration, error) {
	var failed []error
	upDown := func(name, description string) metric.Int64ObservableUpDownCounter {
		i, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit("{circuit}"), metric.WithDescription(description))
		failed = append(failed, err)
		return i
	}
	counter := func(name, unit, description string) metric.Int64ObservableCounter {
		i, err := meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		failed = append(failed, err)
		return i
	}
	m.count = upDown("infuse.circuit.count", "Circuits of this process.")
	m.omitted = upDown("infuse.circuit.omitted", "Circuits of this process that have no metrics because there are more than WithMaxCircuits.")
	m.status = upDown("infuse.circuit.status", "State of the circuit for calls of this process: 1 for the current state, 0 for the others.")
	m.readyForTrial = upDown("infuse.circuit.ready_for_trial", "1 if the circuit is open or half-open and the next call becomes a trial. Remains 1 until a call is made.")
	m.localOnly = upDown("infuse.circuit.local_only", "1 if the local circuit rejects calls while the shared circuit is closed.")
	m.overridden = upDown("infuse.circuit.overridden", "1 if an override forces the circuit open or closed.")
	m.dryRun = upDown("infuse.circuit.dry_run", "1 if Config.DryRun is set: no call is rejected.")
	m.storageUnavailable = upDown("infuse.circuit.storage_unavailable", "1 if the storage is unavailable: this process uses its local circuit.")
	m.calls = counter("infuse.circuit.calls", "{call}", "Calls by outcome. Needs Config.CountCalls.")
	all := []metric.Observable{m.count, m.omitted, m.status, m.readyForTrial, m.localOnly, m.overridden, m.dryRun, m.storageUnavailable, m.calls}
	if m.transitions != nil {
		m.transitionCount = counter("infuse.circuit.transitions", "{transition}", "Transitions of the local and of the shared circuit, by the new state.")
		all = append(all, m.transitionCount)
	}
	var err error
	m.failures, err = meter.Int64ObservableGauge("infuse.circuit.consecutive_failures", metric.WithUnit("{failure}"),
		metric.WithDescription("Consecutive failures of the local or the shared circuit, whichever is more."))
	failed = append(failed, err)
	m.timeInState, err = meter.Float64ObservableGauge("infuse.circuit.time_in_state", metric.WithUnit("s"),
		metric.WithDescription("Time since this process observed the start of the current state."))
	failed = append(failed, err)
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return meter.RegisterCallback(m.observe, append(all, m.failures, m.timeInState)...)
}

func (m *metrics) observe(_ context.Context, o metric.Observer) error {
	shown, others := tally.Circuits(m.source.All(), m.maxCircuits)
	o.ObserveInt64(m.count, int64(len(shown)+others), metric.WithAttributes(m.common...))
	o.ObserveInt64(m.omitted, int64(others), metric.WithAttributes(m.common...))
	for _, c := range shown {
		m.observeCircuit(o, c)
	}
	return nil
}

func (m *metrics) observeCircuit(o metric.Observer, c tally.Circuit) {
	// The SDK keeps the slice, so each call needs a new one.
	with := func(more ...attribute.KeyValue) metric.ObserveOption {
		return metric.WithAttributeSet(attribute.NewSet(slices.Concat(m.common, []attribute.KeyValue{NameKey.String(c.Name)}, more)...))
	}
	stats, byName := c.Stats, with()
	o.ObserveInt64(m.readyForTrial, one(c.ReadyForTrial), byName)
	o.ObserveInt64(m.localOnly, one(tally.OnlyLocal(stats)), byName)
	o.ObserveInt64(m.overridden, one(stats.Override != nil), byName)
	o.ObserveInt64(m.dryRun, one(stats.DryRun), byName)
	o.ObserveInt64(m.storageUnavailable, one(stats.StorageErr != nil), byName)
	o.ObserveInt64(m.failures, int64(tally.Failures(stats)), byName)
	o.ObserveFloat64(m.timeInState, time.Since(tally.Since(stats)).Seconds(), byName)
	for i, name := range states {
		o.ObserveInt64(m.status, one(int(stats.State) == i), with(StateKey.String(name)))
	}
	if m.transitions != nil {
		n := m.transitions.counted.Of(c.Breaker)
		for i, name := range states {
			o.ObserveInt64(m.transitionCount, int64(n.Local[i]), with(LocalKey.Bool(true), StateKey.String(name)))
			o.ObserveInt64(m.transitionCount, int64(n.Shared[i]), with(LocalKey.Bool(false), StateKey.String(name)))
		}
	}
	// Zero counts mean that calls are not counted: export none rather than 0.
	if n := stats.Calls; n != (infuse.CallCounts{}) {
		o.ObserveInt64(m.calls, int64(n.Success), with(OutcomeKey.String("success")))
		o.ObserveInt64(m.calls, int64(n.Failure), with(OutcomeKey.String("failure")))
		o.ObserveInt64(m.calls, int64(n.Ignored), with(OutcomeKey.String("ignored")))
		o.ObserveInt64(m.calls, int64(n.Rejected), with(OutcomeKey.String("rejected")))
		o.ObserveInt64(m.calls, int64(n.WouldReject), with(OutcomeKey.String("would_reject")))
	}
}

func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// version returns the version of this module in the running program.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == ScopeName {
				return d.Version
			}
		}
	}
	return ""
}
