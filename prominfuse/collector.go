package prominfuse

// This file contains the Collector and its options.

import (
	"iter"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// Source returns the circuits of a Collector: an *infuse.Group, or Breakers. A Collector
// calls All once for each collection. Collections may be concurrent.
type Source interface {
	All() iter.Seq[*infuse.Breaker]
}

// Breakers is a Source of breakers that are in no Group.
type Breakers []*infuse.Breaker

// All implements Source.
func (b Breakers) All() iter.Seq[*infuse.Breaker] { return slices.Values(b) }

// Option is an option of NewCollector.
type Option func(*Collector)

// WithTransitions adds infuse_circuit_transitions_total, as counted by t.
func WithTransitions(t *Transitions) Option {
	return func(c *Collector) { c.transitions = t }
}

// WithMaxCircuits limits the number of circuits that have metrics. Default 300, also if
// n is not positive. A circuit has up to 21 series. If the Source has more circuits,
// those that are not closed or that have an override come first, then those with
// failures, then the others by name. infuse_circuits counts all circuits, and
// infuse_circuits_omitted those without metrics.
func WithMaxCircuits(n int) Option {
	return func(c *Collector) {
		if n > 0 {
			c.maxCircuits = n
		}
	}
}

// Collector is a prometheus.Collector of circuits. It reads the Source at each
// collection, so circuits that a Group has evicted have no metrics any more. It does no
// I/O and returns no errors. All methods are safe for concurrent use.
type Collector struct {
	source      Source
	transitions *Transitions
	maxCircuits int
}

// NewCollector returns a Collector of the circuits of source. Register it once. Two
// Collectors in one registry need a label to distinguish them: see
// prometheus.WrapRegistererWith. NewCollector panics if source is nil.
func NewCollector(source Source, options ...Option) *Collector {
	source.All() // panic for a nil Group now, not at a scrape
	c := &Collector{source: source, maxCircuits: tally.MaxCircuits}
	for _, option := range options {
		option(c)
	}
	return c
}

var (
	circuits           = prometheus.NewDesc("infuse_circuits", "Circuits of this process.", nil, nil)
	omitted            = prometheus.NewDesc("infuse_circuits_omitted", "Circuits of this process that have no metrics because there are more than WithMaxCircuits.", nil, nil)
	state              = describe("state", "State of the circuit for calls of this process: 1 for the current state, 0 for the others.", "state")
	stateSince         = describe("state_since_timestamp_seconds", "Unix time at which this process observed the start of the current state.")
	readyForTrial      = describe("ready_for_trial", "1 if the circuit is open or half-open and the next call becomes a trial. Remains 1 until a call is made.")
	localOnly          = describe("local_only", "1 if the local circuit rejects calls while the shared circuit is closed.")
	failures           = describe("consecutive_failures", "Consecutive failures of the local or the shared circuit, whichever is more.")
	overridden         = describe("overridden", "1 if an override forces the circuit open or closed.")
	dryRun             = describe("dry_run", "1 if Config.DryRun is set: no call is rejected.")
	storageUnavailable = describe("storage_unavailable", "1 if the storage is unavailable: this process uses its local circuit.")
	calls              = describe("calls_total", "Calls by outcome. Needs Config.CountCalls.", "outcome")
	transitions        = describe("transitions_total", "Transitions of the local and of the shared circuit, by the new state.", "local", "to")
)

// states are the values of the labels state and to.
var states = [...]string{infuse.StateClosed: "closed", infuse.StateOpen: "open", infuse.StateHalfOpen: "half_open"}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("infuse_circuit_"+name, help, append([]string{"circuit"}, labels...), nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		circuits, omitted, state, stateSince, readyForTrial, localOnly, failures, overridden, dryRun, storageUnavailable, calls,
	} {
		ch <- d
	}
	if c.transitions != nil {
		ch <- transitions
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	shown, others := tally.Circuits(c.source.All(), c.maxCircuits)
	for _, circuit := range shown {
		c.collect(sink{ch, circuit.Name}, circuit)
	}
	ch <- prometheus.MustNewConstMetric(circuits, prometheus.GaugeValue, float64(len(shown)+others))
	ch <- prometheus.MustNewConstMetric(omitted, prometheus.GaugeValue, float64(others))
}

func (c *Collector) collect(s sink, circuit tally.Circuit) {
	stats := circuit.Stats
	for i, name := range states {
		s.gauge(state, one(int(stats.State) == i), name)
	}
	s.gauge(stateSince, float64(tally.Since(stats).UnixMilli())/1000)
	s.gauge(readyForTrial, one(circuit.ReadyForTrial))
	s.gauge(localOnly, one(tally.OnlyLocal(stats)))
	s.gauge(failures, float64(tally.Failures(stats)))
	s.gauge(overridden, one(stats.Override != nil))
	s.gauge(dryRun, one(stats.DryRun))
	s.gauge(storageUnavailable, one(stats.StorageErr != nil))
	// Zero counts mean that calls are not counted: export none rather than 0.
	if n := stats.Calls; n != (infuse.CallCounts{}) {
		s.counter(calls, n.Success, "success")
		s.counter(calls, n.Failure, "failure")
		s.counter(calls, n.Ignored, "ignored")
		s.counter(calls, n.Rejected, "rejected")
		s.counter(calls, n.WouldReject, "would_reject")
	}
	if c.transitions != nil {
		n := c.transitions.counted.Of(circuit.Breaker)
		for i, name := range states {
			s.counter(transitions, n.Local[i], "true", name)
			s.counter(transitions, n.Shared[i], "false", name)
		}
	}
}

// sink sends the metrics of one circuit.
type sink struct {
	ch      chan<- prometheus.Metric
	circuit string
}

func (s sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.send(d, prometheus.GaugeValue, value, labels)
}

func (s sink) counter(d *prometheus.Desc, value uint64, labels ...string) {
	s.send(d, prometheus.CounterValue, float64(value), labels)
}

func (s sink) send(d *prometheus.Desc, t prometheus.ValueType, value float64, labels []string) {
	s.ch <- prometheus.MustNewConstMetric(d, t, value, append([]string{s.circuit}, labels...)...)
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
