package otelinfuse

import (
	"context"
	"errors"
	"iter"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// ScopeName is the instrumentation scope of the metrics.
const ScopeName = "github.com/infuse-go/infuse/otelinfuse"

// Source has the circuits that are shown: an *infuse.Group, or Breakers. All is
// called once for each collection, and by several goroutines at once.
type Source interface {
	All() iter.Seq[*infuse.Breaker]
}

// Breakers is a Source of breakers that are in no Group.
type Breakers []*infuse.Breaker

// All implements Source.
func (b Breakers) All() iter.Seq[*infuse.Breaker] { return slices.Values(b) }

// Option is an option of Register.
type Option func(*metrics)

// WithMeterProvider sets where the metrics go: the global MeterProvider if it
// is not used.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(m *metrics) { m.provider = p }
}

// WithTransitions adds infuse.circuit.transitions, as counted by t.
func WithTransitions(t *Transitions) Option {
	return func(m *metrics) { m.transitions = t }
}

// WithAttributes adds attributes to every metric: to tell two Groups with
// circuits of the same name apart.
func WithAttributes(attributes ...attribute.KeyValue) Option {
	return func(m *metrics) { m.common = slices.Concat(m.common, attributes) }
}

// WithMaxCircuits bounds how many circuits are shown: 300 if it is not used, or
// if n is not positive. Where there are more, those that are held or not closed
// come first, then those with failures, and then the order is that of the names;
// infuse.circuit.count still counts all. An SDK has a bound of its own, in data
// points: what is beyond that it adds up, so that no name is left.
func WithMaxCircuits(n int) Option {
	return func(m *metrics) {
		if n > 0 {
			m.most = n
		}
	}
}

// defaultMaxCircuits keeps below the 2000 data points that the SDK allows an
// instrument: the transitions of a circuit are six.
const defaultMaxCircuits = 300

// Register shows the circuits until unregister is called. They are read at each
// collection: a circuit that a Group has evicted has no metrics any more.
// Collecting does no I/O. The error is that of the MeterProvider, or of a nil
// source; a nil *infuse.Group panics.
func Register(source Source, options ...Option) (unregister func() error, err error) {
	if source == nil {
		return nil, errors.New("otelinfuse: Register: the source is nil")
	}
	source.All() // a nil Group is to panic here, and not at a collection
	m := &metrics{source: source, most: defaultMaxCircuits}
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
	most        int

	count, state, local, overridden, storageAway metric.Int64ObservableUpDownCounter
	failures                                     metric.Int64ObservableGauge
	timeInState                                  metric.Float64ObservableGauge
	calls, moves                                 metric.Int64ObservableCounter
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
	m.count = upDown("infuse.circuit.count", "Circuits that this process keeps.")
	m.state = upDown("infuse.circuit.state", "1 for the state that the circuit is in, 0 for the others.")
	m.local = upDown("infuse.circuit.local", "1 if the circuit of this process alone is not closed, while the fleet's is.")
	m.overridden = upDown("infuse.circuit.overridden", "1 if an override holds the circuit open or closed.")
	m.storageAway = upDown("infuse.circuit.storage_away", "1 if the storage is away, so that the circuit is not shared.")
	m.calls = counter("infuse.circuit.calls", "{call}", "Calls by what became of them. Needs Config.CountCalls.")
	all := []metric.Observable{m.count, m.state, m.local, m.overridden, m.storageAway, m.calls}
	if m.transitions != nil {
		m.moves = counter("infuse.circuit.transitions", "{transition}", "Transitions of the local and of the shared circuit, by the state that began.")
		all = append(all, m.moves)
	}
	var err error
	m.failures, err = meter.Int64ObservableGauge("infuse.circuit.consecutive_failures", metric.WithUnit("{failure}"),
		metric.WithDescription("Failures in a row: of this process or, if those are more, of the fleet."))
	failed = append(failed, err)
	m.timeInState, err = meter.Float64ObservableGauge("infuse.circuit.time_in_state", metric.WithUnit("s"),
		metric.WithDescription("How long ago this process saw the state begin."))
	failed = append(failed, err)
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return meter.RegisterCallback(m.observe, append(all, m.failures, m.timeInState)...)
}

func (m *metrics) observe(_ context.Context, o metric.Observer) error {
	circuits := m.circuits()
	o.ObserveInt64(m.count, int64(len(circuits)), metric.WithAttributes(m.common...))
	for _, c := range circuits[:min(len(circuits), m.most)] {
		m.observeCircuit(o, c)
	}
	return nil
}

func (m *metrics) observeCircuit(o metric.Observer, c circuit) {
	// The SDK keeps a slice that it is given: each one is made anew.
	with := func(more ...attribute.KeyValue) metric.ObserveOption {
		return metric.WithAttributeSet(attribute.NewSet(slices.Concat(m.common, []attribute.KeyValue{NameKey.String(c.name)}, more)...))
	}
	alone := with()
	o.ObserveInt64(m.local, one(tally.OnlyLocal(c.stats)), alone)
	o.ObserveInt64(m.overridden, one(c.stats.Override != nil), alone)
	o.ObserveInt64(m.storageAway, one(c.stats.StorageErr != nil), alone)
	o.ObserveInt64(m.failures, int64(tally.Failures(c.stats)), alone)
	o.ObserveFloat64(m.timeInState, time.Since(tally.Since(c.stats)).Seconds(), alone)
	for i, name := range states {
		o.ObserveInt64(m.state, one(int(c.stats.State) == i), with(StateKey.String(name)))
	}
	if m.transitions != nil {
		n := m.transitions.counted.Of(c.breaker)
		for i, name := range states {
			o.ObserveInt64(m.moves, int64(n.Local[i]), with(LocalKey.Bool(true), StateKey.String(name)))
			o.ObserveInt64(m.moves, int64(n.Shared[i]), with(LocalKey.Bool(false), StateKey.String(name)))
		}
	}
	// Where nothing is counted, 0 calls would be wrong.
	if n := c.stats.Calls; n != (infuse.CallCounts{}) {
		o.ObserveInt64(m.calls, int64(n.Success), with(OutcomeKey.String("success")))
		o.ObserveInt64(m.calls, int64(n.Failure), with(OutcomeKey.String("failure")))
		o.ObserveInt64(m.calls, int64(n.Ignored), with(OutcomeKey.String("ignored")))
		o.ObserveInt64(m.calls, int64(n.Rejected), with(OutcomeKey.String("rejected")))
		o.ObserveInt64(m.calls, int64(n.WouldReject), with(OutcomeKey.String("would_reject")))
	}
}

// circuit is what is shown of a breaker.
type circuit struct {
	breaker *infuse.Breaker
	name    string
	stats   infuse.Stats
}

// circuits returns what the source has: the first of each name. Where not all
// are shown, the first ones matter most.
func (m *metrics) circuits() (all []circuit) {
	seen := make(map[string]bool)
	for b := range m.source.All() {
		if b == nil {
			continue
		}
		if name := nameOf(b.Name()); !seen[name] {
			seen[name] = true
			all = append(all, circuit{b, name, b.Stats()})
		}
	}
	if len(all) > m.most {
		slices.SortFunc(all, func(a, b circuit) int {
			if d := b.weight() - a.weight(); d != 0 {
				return d
			}
			return strings.Compare(a.name, b.name)
		})
	}
	return all
}

// weight is how much a circuit matters to who looks.
func (c circuit) weight() int {
	switch s := c.stats; {
	case s.State != infuse.StateClosed || s.Override != nil:
		return 2
	case tally.Failures(s) > 0:
		return 1
	}
	return 0
}

func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// version returns the version of this module in the program that runs.
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
