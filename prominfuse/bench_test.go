package prominfuse_test

// This file contains the benchmarks.

import (
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

func logListener() *infuse.Listener {
	return infuse.LogListener(slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// BenchmarkCall measures a call in a closed circuit.
func BenchmarkCall(b *testing.B) {
	b.Run("bare", func(b *testing.B) { benchmarkCall(b, infuse.Config{}, nil) })
	b.Run("CountCalls", func(b *testing.B) { benchmarkCall(b, infuse.Config{CountCalls: true}, nil) })
	b.Run("LogListener", func(b *testing.B) {
		benchmarkCall(b, infuse.Config{Listeners: []*infuse.Listener{logListener()}}, nil)
	})
	counted := new(prominfuse.Transitions)
	cfg := infuse.Config{CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}}
	b.Run("registered", func(b *testing.B) {
		benchmarkCall(b, cfg, func(group *infuse.Group) (stop func()) {
			register(b, group, counted)
			return func() {}
		})
	})
	b.Run("scraped every 100 ms", func(b *testing.B) {
		benchmarkCall(b, cfg, func(group *infuse.Group) (stop func()) {
			registry := register(b, group, counted)
			return every(100*time.Millisecond, func() { _, _ = registry.Gather() })
		})
	})
}

func benchmarkCall(b *testing.B, cfg infuse.Config, watch func(*infuse.Group) (stop func())) {
	group := newGroup(b, cfg)
	breaker := breakerOf(b, group, "prices")
	if watch != nil {
		defer watch(group)()
	}
	ctx := b.Context()
	b.ReportAllocs()
	ran := uint64(0)
	for b.Loop() {
		if err := breaker.Call(ctx, succeeds); err != nil {
			b.Fatal(err)
		}
		ran++
	}
	if cfg.CountCalls {
		require.Equal(b, ran, breaker.Stats().Calls.Success)
	}
}

func register(tb testing.TB, group *infuse.Group, counted *prominfuse.Transitions) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	require.NoError(tb, registry.Register(prominfuse.NewCollector(group, prominfuse.WithTransitions(counted))))
	return registry
}

// every calls fn repeatedly until stop returns.
func every(interval time.Duration, fn func()) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				fn()
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// BenchmarkGather measures a scrape without its text.
func BenchmarkGather(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d circuits", n), func(b *testing.B) {
			counted := new(prominfuse.Transitions)
			group := newGroup(b, infuse.Config{CountCalls: true, Listeners: []*infuse.Listener{counted.Listener()}})
			for i := range n {
				require.NoError(b, breakerOf(b, group, fmt.Sprint(i)).Call(b.Context(), succeeds))
			}
			registry := register(b, group, counted)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := registry.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
