package prominfuse

import (
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/tally"
)

// Source has the circuits that a Collector shows: an *infuse.Group, or Breakers.
// All is called once for each collection, and by several goroutines at once.
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

// Collector is a prometheus.Collector of circuits. It makes its metrics when
// they are collected, from what the Source has then: a circuit that a Group has
// evicted has no metrics any more. It does no I/O, and never fails a scrape. All
// methods are safe for concurrent use.
type Collector struct {
	source      Source
	transitions *Transitions
}

// NewCollector returns a Collector of these circuits. Register it once. Two
// that share a registry need a label that tells them apart: see
// prometheus.WrapRegistererWith. It panics if the source is nil.
func NewCollector(source Source, options ...Option) *Collector {
	source.All() // a nil Group is to panic here, and not at a scrape
	c := &Collector{source: source}
	for _, option := range options {
		option(c)
	}
	return c
}

var (
	circuits    = prometheus.NewDesc("infuse_circuits", "Circuits that this process keeps.", nil, nil)
	state       = describe("state", "1 for the state that the circuit is in, 0 for the others.", "state")
	stateSince  = describe("state_since_timestamp_seconds", "When this process saw the state begin, in Unix time.")
	local       = describe("local", "1 if the circuit of this process alone is not closed, while the fleet's is.")
	failures    = describe("consecutive_failures", "Failures in a row: of this process or, if those are more, of the fleet.")
	overridden  = describe("overridden", "1 if an override holds the circuit open or closed.")
	storageAway = describe("storage_away", "1 if the storage is away, so that the circuit is not shared.")
	calls       = describe("calls_total", "Calls by what became of them. Needs Config.CountCalls.", "outcome")
	transitions = describe("transitions_total", "Transitions of the local and of the shared circuit, by the state that began.", "local", "to")
)

// states are the values of the labels state and to.
var states = [...]string{infuse.StateClosed: "closed", infuse.StateOpen: "open", infuse.StateHalfOpen: "half_open"}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("infuse_circuit_"+name, help, append([]string{"circuit"}, labels...), nil)
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{circuits, state, stateSince, local, failures, overridden, storageAway, calls} {
		ch <- d
	}
	if c.transitions != nil {
		ch <- transitions
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	seen := make(map[string]bool)
	for b := range c.source.All() {
		if b == nil {
			continue
		}
		// A metric that comes twice fails the whole scrape.
		if circuit := label(b.Name()); !seen[circuit] {
			seen[circuit] = true
			c.collect(sink{ch, circuit}, b)
		}
	}
	ch <- prometheus.MustNewConstMetric(circuits, prometheus.GaugeValue, float64(len(seen)))
}

func (c *Collector) collect(s sink, b *infuse.Breaker) {
	stats := b.Stats()
	for i, name := range states {
		s.gauge(state, one(int(stats.State) == i), name)
	}
	s.gauge(stateSince, float64(tally.Since(stats).UnixMilli())/1000)
	s.gauge(local, one(tally.OnlyLocal(stats)))
	s.gauge(failures, float64(tally.Failures(stats)))
	s.gauge(overridden, one(stats.Override != nil))
	s.gauge(storageAway, one(stats.StorageErr != nil))
	// Where nothing is counted, 0 calls would be wrong.
	if n := stats.Calls; n != (infuse.CallCounts{}) {
		s.counter(calls, n.Success, "success")
		s.counter(calls, n.Failure, "failure")
		s.counter(calls, n.Ignored, "ignored")
		s.counter(calls, n.Rejected, "rejected")
		s.counter(calls, n.WouldReject, "would_reject")
	}
	if c.transitions != nil {
		n := c.transitions.counted.Of(b)
		for i, name := range states {
			s.counter(transitions, n.Local[i], "true", name)
			s.counter(transitions, n.Shared[i], "false", name)
		}
	}
}

// sink takes the metrics of one circuit.
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

// label returns a circuit's name as a label may have it. What is no UTF-8 is
// quoted, and so is what looks quoted: no two names become one.
func label(circuit string) string {
	if utf8.ValidString(circuit) && !strings.HasPrefix(circuit, `"`) {
		return circuit
	}
	return strconv.Quote(circuit)
}
