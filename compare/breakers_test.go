package compare_test

// This file contains the breakers, and how they are started.

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// settings are the common settings of all breakers.
type settings struct {
	rate     float64
	window   time.Duration
	minCalls int
	openTime time.Duration
}

// preset is the default settings of a sequence.
var preset = settings{rate: 0.5, window: 10 * time.Second, minCalls: 20, openTime: time.Minute}

// breaker is a breaker under test.
type breaker struct {
	call func(fails bool) // runs a call, or rejects it
	stop func()
}

// subjects are the breakers, in the order of the table's columns. They call opened when
// they open.
var subjects = []struct {
	name  string
	start func(t *testing.T, s settings, opened func()) breaker
}{
	{"Infuse", startInfuse(func() infuse.Storage { return nil })},
	{"Infuse, a fleet of one", startInfuse(func() infuse.Storage { return infuse.NewMemoryStorage() })},
	{"the reference", startReference},
	{"failsafe-go", startFailsafe},
	{"gobreaker", startGobreaker},
}

const (
	ours = iota
	ourFleet
	theReference
	failsafe
	gobreakers
	columns
)

var errUnhealthy = errors.New("unhealthy")

func outcome(fails bool) error {
	if fails {
		return errUnhealthy
	}
	return nil
}

func (s settings) config(storage infuse.Storage) infuse.Config {
	return infuse.Config{FailureRate: s.rate, Window: s.window, MinCalls: s.minCalls, ResetTimeout: s.openTime, Storage: storage}
}

func startInfuse(storage func() infuse.Storage) func(*testing.T, settings, func()) breaker {
	return func(t *testing.T, s settings, opened func()) breaker {
		cfg := s.config(storage())
		cfg.Listeners = []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, tr infuse.Transition) {
			if tr.To == infuse.StateOpen {
				opened()
			}
		}}}
		b, err := infuse.New("service", cfg)
		require.NoError(t, err)
		ctx := context.Background()
		return breaker{
			call: func(fails bool) { _ = b.Call(ctx, func(context.Context) error { return outcome(fails) }) },
			stop: b.Stop,
		}
	}
}

func startFailsafe(_ *testing.T, s settings, opened func()) breaker {
	b := circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(s.rate, uint(s.minCalls), s.window).
		WithDelay(s.openTime).
		WithSuccessThreshold(1).
		OnOpen(func(circuitbreaker.StateChangedEvent) { opened() }).
		Build()
	return breaker{
		call: func(fails bool) {
			switch {
			case !b.TryAcquirePermit():
			case fails:
				b.RecordFailure()
			default:
				b.RecordSuccess()
			}
		},
		stop: func() {},
	}
}

func startGobreaker(_ *testing.T, s settings, opened func()) breaker {
	b := gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Interval: s.window, BucketPeriod: s.window / 10, Timeout: s.openTime,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return int(c.Requests) >= s.minCalls && float64(c.TotalFailures)/float64(c.Requests) >= s.rate
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				opened()
			}
		},
	})
	return breaker{
		call: func(fails bool) { _, _ = b.Execute(func() (any, error) { return nil, outcome(fails) }) },
		stop: func() {},
	}
}
