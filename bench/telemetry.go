package main

import (
	"fmt"
	"math"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
	"github.com/infuse-go/infuse/prominfuse"
)

// What a call costs that is logged, or counted for metrics.

// told are subjects with and without logging and metrics, each after the bare one
// that it is compared with.
var told = [][]subject{
	{
		{name: infuseName, start: startTold(infuse.Config{}, nil)},
		{name: infuseName + ", LogListener", start: startTold(infuse.Config{Listeners: []*infuse.Listener{infuse.LogListener(quietLogger)}}, nil)},
		{name: infuseName + ", CountCalls", start: startTold(infuse.Config{CountCalls: true}, nil)},
		{name: infuseName + ", prominfuse", start: startProminfuse},
		{name: infuseName + ", otelinfuse", start: startOtelinfuse},
	},
	{
		{name: gobreakerName, module: "github.com/sony/gobreaker/v2", start: startGobreaker},
		{name: gobreakerName + ", OnStateChange logs", module: "github.com/sony/gobreaker/v2", start: startLoggedGobreaker},
		{name: gobreakerName + ", Prometheus counters", module: "github.com/sony/gobreaker/v2", start: startCountedGobreaker},
	},
}

// startTold has watch show the breaker to somebody, if it is not nil.
func startTold(cfg infuse.Config, watch func(*infuse.Breaker) (stop func(), err error)) func(int) (breaker, error) {
	return func(failMax int) (breaker, error) {
		cfg.FailMax, cfg.ResetTimeout = failMax, openTime
		b, err := infuse.New(newName(), cfg)
		if err != nil {
			return breaker{}, err
		}
		stop := b.Stop
		if watch != nil {
			unwatch, err := watch(b)
			if err != nil {
				return breaker{}, err
			}
			stop = func() {
				unwatch()
				b.Stop()
			}
		}
		return breaker{call: func(w work) func() error { return infuseCall(b, w) }, stop: stop}, nil
	}
}

func startProminfuse(failMax int) (breaker, error) {
	moves := new(prominfuse.Transitions)
	cfg := infuse.Config{CountCalls: true, Listeners: []*infuse.Listener{moves.Listener()}}
	return startTold(cfg, func(b *infuse.Breaker) (func(), error) {
		c := prominfuse.NewCollector(prominfuse.Breakers{b}, prominfuse.WithTransitions(moves))
		return func() {}, prometheus.NewRegistry().Register(c)
	})(failMax)
}

func startOtelinfuse(failMax int) (breaker, error) {
	moves := new(otelinfuse.Transitions)
	cfg := infuse.Config{CountCalls: true, Listeners: []*infuse.Listener{moves.Listener()}}
	return startTold(cfg, func(b *infuse.Breaker) (func(), error) {
		provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		_, err := otelinfuse.Register(otelinfuse.Breakers{b}, otelinfuse.WithMeterProvider(provider), otelinfuse.WithTransitions(moves))
		return func() { _ = provider.Shutdown(ctx) }, err
	})(failMax)
}

func startLoggedGobreaker(failMax int) (breaker, error) {
	settings := gobreakerSettings(failMax)
	settings.OnStateChange = func(name string, from, to gobreaker.State) {
		quietLogger.Warn("circuit breaker", "name", name, "from", from.String(), "to", to.String())
	}
	return gobreakerOf(settings, nil), nil
}

// startCountedGobreaker counts every call by its outcome.
func startCountedGobreaker(failMax int) (breaker, error) {
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "calls_total"}, []string{"outcome"})
	if err := prometheus.NewRegistry().Register(calls); err != nil {
		return breaker{}, err
	}
	success, failure, rejection := calls.WithLabelValues("success"), calls.WithLabelValues("failure"), calls.WithLabelValues("rejected")
	return gobreakerOf(gobreakerSettings(failMax), func(err error) {
		switch {
		case err == nil:
			success.Inc()
		case isRejection(err):
			rejection.Inc()
		default:
			failure.Inc()
		}
	}), nil
}

// telemetry is the section of logging and metrics.
func telemetry(size sizes, r *report) error {
	r.title = "Calls with logging and metrics"
	r.intro = fmt.Sprintf("Wall time of a call, in memory; parallel: %d goroutines. LogListener and OnStateChange log transitions, to a handler that discards them. "+
		"prominfuse and otelinfuse are registered, with CountCalls and their count of transitions; nothing scrapes meanwhile. Ratios are to the same breaker without either.", runtime.GOMAXPROCS(0))
	for _, sc := range scenarios {
		progress("with logging and metrics: %s", sc.name)
		var all []subject
		for _, family := range told {
			all = append(all, family...)
		}
		results, err := sc.measure(all, size)
		if err != nil {
			return err
		}
		r.tables = append(r.tables, toldTable(sc.title(""), results))
		ours, peers := results[:len(told[0])], results[len(told[0]):]
		r.compareCosts(sc.title("")+", with a logger", ours[1], peers[1:2])
		r.compareCosts(sc.title("")+", with metrics (prominfuse)", ours[3], peers[2:3])
	}
	return nil
}

func toldTable(title string, results []*timed) table {
	t := table{title: title, head: []string{"", "serial ns", "× bare", "parallel ns", "× bare", "allocations"}}
	for _, family := range told {
		some := results[:len(family)]
		results = results[len(family):]
		bare := some[0]
		for _, x := range some {
			serial, parallel := medianOf(x.serial, nsOf), medianOf(x.parallel, nsOf)
			t.rows = append(t.rows, []string{
				x.subject.name,
				number(serial), number(serial / medianOf(bare.serial, nsOf)),
				number(parallel), number(parallel / medianOf(bare.parallel, nsOf)),
				whole(int64(math.Round(medianOf(x.serial, allocsOf)))),
			})
		}
	}
	return t
}
