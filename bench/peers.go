package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/afex/hystrix-go/hystrix"
	circuit "github.com/cep21/circuit/v4"
	cephystrix "github.com/cep21/circuit/v4/closers/hystrix"
	"github.com/cep21/circuit/v4/closers/simplelogic"
	eapache "github.com/eapache/go-resiliency/breaker"
	"github.com/failsafe-go/failsafe-go"
	failsafebreaker "github.com/failsafe-go/failsafe-go/circuitbreaker"
	mercari "github.com/mercari/go-circuitbreaker"
	"github.com/sony/gobreaker/v2"
	gozero "github.com/zeromicro/go-zero/core/breaker"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/stat"

	"github.com/infuse-go/infuse"
)

// A subject is a breaker to be measured, as it is set here: every one opens at
// the same number of consecutive failures where it can count so, stays open for
// the same hour, and is otherwise as its authors have it by default.
type subject struct {
	name   string
	module string // its path; empty for our own
	set    string // how it is set, where that needs a word
	start  func(failMax int) (breaker, error)
	many   func() func(failMax int) (breaker, error) // start for many circuits with the same settings; nil: start
	floor  bool                                      // no breaker at all
}

// breaker is one circuit of a subject. call returns one call of it, which runs
// the work: the same closure every time, so that what a call allocates is the
// breaker's doing.
type breaker struct {
	call func(w work) func() error
	stop func()
}

// work is what a call does, in the forms in which breakers take it.
type work struct {
	plain func() error
	ctx   func(context.Context) error
	value func() (any, error)
}

func workThat(err error) work {
	return work{
		plain: func() error { return err },
		ctx:   func(context.Context) error { return err },
		value: func() (any, error) { return nil, err },
	}
}

var (
	errUnhealthy = errors.New("unhealthy")
	healthy      = workThat(nil)
	unhealthy    = workThat(errUnhealthy)
)

// ctx is what callers have anyway: made once, so that it costs no subject anything.
var ctx = context.Background()

const openTime = time.Hour

func init() {
	// go-zero logs rejections, and how much of the machine is used.
	logx.Disable()
	stat.DisableLog()
	stat.SetReporter(nil)
}

const (
	infuseName    = "**Infuse**"
	transportName = infuseName + " Transport"
	eapacheName   = "eapache/go-resiliency"
	gobreakerName = "gobreaker"
	goZeroName    = "go-zero" // rejects at random: the one whose figures are of a mixture
)

// subjects returns all that are measured in one process, first the floor, then
// ours. Redis may be nil.
func subjects(redis infuse.Storage) []subject {
	all := []subject{
		{name: "a bare call", start: startBare, floor: true},
		{name: infuseName, set: "memory", start: startInfuse(nil), many: manyInfuse(nil)},
		{name: infuseName + ", LogListener", set: "memory", start: startInfuse(nil, infuse.LogListener(quietLogger)), many: manyInfuse(nil, infuse.LogListener(quietLogger))},
		{name: infuseName + ", Redis", set: "a real redis-server", start: startInfuse(redis), many: manyInfuse(redis)},
		{name: infuseName + ", Acquire and Done", set: "memory", start: startPermits},
		{name: eapacheName, module: "github.com/eapache/go-resiliency", start: startEapache,
			set: "counts errors within the open time, consecutive or not; when half the calls fail: a threshold that is never reached"},
		{name: "mercari", module: "github.com/mercari/go-circuitbreaker", start: startMercari,
			set: "consecutive failures, not reset by time"},
		{name: gobreakerName, module: "github.com/sony/gobreaker/v2", start: startGobreaker},
		{name: "cep21/circuit", module: "github.com/cep21/circuit/v4", start: startCep21,
			set: "consecutive failures (simplelogic), hystrix's closer; no limit of concurrent calls, no timeout"},
		{name: goZeroName, module: "github.com/zeromicro/go-zero", start: startGoZero,
			set: "nothing to set: rejects at random by the rate of failures, never all"},
		{name: "failsafe-go", module: "github.com/failsafe-go/failsafe-go", start: startFailsafe,
			set: "failures among the last as many calls"},
		{name: "hystrix-go", module: "github.com/afex/hystrix-go", start: startHystrix,
			set: "its timeout of 1 s, 1,000 calls at a time, opens at 50 % of failures (half the calls failing: at 100 %)"},
	}
	return slices.DeleteFunc(all, func(s subject) bool {
		// The race detector finds go-zero's breaker racing with itself where calls fail in parallel.
		return redis == nil && strings.HasSuffix(s.name, "Redis") || raceDetector && s.name == goZeroName
	})
}

func startBare(int) (breaker, error) {
	return breaker{
		call: func(w work) func() error { return func() error { return w.ctx(ctx) } },
		stop: func() {},
	}, nil
}

// quietLogger formats its records, and discards them.
var quietLogger = slog.New(slog.NewTextHandler(io.Discard, nil))

func startInfuse(storage infuse.Storage, listeners ...*infuse.Listener) func(int) (breaker, error) {
	return func(failMax int) (breaker, error) {
		b, err := infuse.New(newName(), infuse.Config{FailMax: failMax, ResetTimeout: openTime, Storage: storage, Listeners: listeners})
		if err != nil {
			return breaker{}, err
		}
		return breaker{
			call: func(w work) func() error { return infuseCall(b, w) },
			stop: b.Stop,
		}, nil
	}
}

// manyInfuse has the circuits made by a Group, as a client of many services does.
func manyInfuse(storage infuse.Storage, listeners ...*infuse.Listener) func() func(int) (breaker, error) {
	return func() func(int) (breaker, error) {
		var group *infuse.Group
		return func(failMax int) (_ breaker, err error) {
			if group == nil {
				group, err = infuse.NewGroup(infuse.Config{
					FailMax: failMax, ResetTimeout: openTime, Storage: storage, Listeners: listeners, MaxCircuits: 1_000_000,
				})
				if err != nil {
					return breaker{}, err
				}
			}
			b, err := group.Breaker(newName())
			if err != nil {
				return breaker{}, err
			}
			return breaker{call: func(w work) func() error { return infuseCall(b, w) }, stop: b.Stop}, nil
		}
	}
}

func infuseCall(b *infuse.Breaker, w work) func() error {
	return func() error { return b.Call(ctx, w.ctx) }
}

func startPermits(failMax int) (breaker, error) {
	b, err := infuse.New(newName(), infuse.Config{FailMax: failMax, ResetTimeout: openTime})
	if err != nil {
		return breaker{}, err
	}
	return breaker{
		call: func(w work) func() error {
			return func() error {
				p, err := b.Acquire(ctx)
				if err != nil {
					return err
				}
				err = w.plain()
				p.Done(err)
				return err
			}
		},
		stop: b.Stop,
	}, nil
}

func startEapache(failMax int) (breaker, error) {
	if failMax == manyFailures {
		failMax = math.MaxInt
	}
	b := eapache.New(failMax, 1, openTime)
	return breaker{
		call: func(w work) func() error { return func() error { return b.Run(w.plain) } },
		stop: func() {},
	}, nil
}

func startMercari(failMax int) (breaker, error) {
	b := mercari.New(
		mercari.WithTripFunc(mercari.NewTripFuncConsecutiveFailures(int64(failMax))),
		mercari.WithOpenTimeout(openTime),
		mercari.WithCounterResetInterval(-1),
	)
	return breaker{
		call: func(w work) func() error {
			return func() error {
				_, err := b.Do(ctx, w.value)
				return err
			}
		},
		stop: func() { b.SetState(mercari.StateClosed) },
	}, nil
}

func gobreakerSettings(failMax int) gobreaker.Settings {
	return gobreaker.Settings{
		Name:        newName(),
		Timeout:     openTime,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(failMax) },
	}
}

func startGobreaker(failMax int) (breaker, error) {
	return gobreakerOf(gobreakerSettings(failMax), nil), nil
}

// gobreakerOf tells what became of each call, if that is wanted.
func gobreakerOf(settings gobreaker.Settings, tell func(error)) breaker {
	b := gobreaker.NewCircuitBreaker[any](settings)
	return breaker{
		call: func(w work) func() error {
			if tell == nil {
				return func() error {
					_, err := b.Execute(w.value)
					return err
				}
			}
			return func() error {
				_, err := b.Execute(w.value)
				tell(err)
				return err
			}
		},
		stop: func() {},
	}
}

func startCep21(failMax int) (breaker, error) {
	b := circuit.NewCircuitFromConfig(newName(), circuit.Config{
		General: circuit.GeneralConfig{
			ClosedToOpenFactory: simplelogic.ConsecutiveErrOpenerFactory(simplelogic.ConfigConsecutiveErrOpener{ErrorThreshold: int64(failMax)}),
			OpenToClosedFactory: cephystrix.CloserFactory(cephystrix.ConfigureCloser{SleepWindow: openTime}),
		},
		Execution: circuit.ExecutionConfig{MaxConcurrentRequests: -1, Timeout: -1},
	})
	return breaker{
		call: func(w work) func() error {
			return func() error { return b.Run(ctx, w.ctx) }
		},
		stop: func() {},
	}, nil
}

func startGoZero(int) (breaker, error) {
	b := gozero.NewBreaker(gozero.WithName(newName()))
	return breaker{
		call: func(w work) func() error { return func() error { return b.Do(w.plain) } },
		stop: func() {},
	}, nil
}

func startFailsafe(failMax int) (breaker, error) {
	b := failsafe.With(failsafebreaker.NewBuilder[any]().
		WithFailureThreshold(uint(failMax)).
		WithDelay(openTime).
		Build())
	return breaker{
		call: func(w work) func() error { return func() error { return b.Run(w.plain) } },
		stop: func() {},
	}, nil
}

func startHystrix(failMax int) (breaker, error) {
	name := newName()
	percent := 50
	if failMax == manyFailures {
		percent = 100
	}
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{
		Timeout:                1000,
		MaxConcurrentRequests:  1000,
		RequestVolumeThreshold: failMax,
		SleepWindow:            int(openTime.Milliseconds()),
		ErrorPercentThreshold:  percent,
	})
	return breaker{
		call: func(w work) func() error {
			return func() error { return hystrix.DoC(ctx, name, w.ctx, nil) }
		},
		stop: hystrix.Flush,
	}, nil
}

// The numbers of consecutive failures that open: as pybreaker has it, and one
// that half the calls failing never reach.
const (
	fewFailures  = 5
	manyFailures = 1000
)

// trip makes calls fail until the breaker rejects. One that counts aside, or
// rejects at random, takes a while.
func trip(b breaker) error {
	call := b.call(unhealthy)
	deadline := time.Now().Add(10 * time.Second)
	for rejected := 0; rejected < 20; {
		if isRejection(call()) {
			rejected++
			continue
		}
		rejected = 0
		if time.Now().After(deadline) {
			return errors.New("does not open")
		}
	}
	return nil
}

func isRejection(err error) bool { return err != nil && err != errUnhealthy }

var names int

// newName returns a name that no circuit has had. It is not for concurrent use.
func newName() string {
	names++
	return fmt.Sprint("circuit-", names)
}
