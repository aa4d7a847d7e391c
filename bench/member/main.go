// Member is one process of a fleet whose cost for Redis is measured: see cost.go
// in the folder above. It is a program of its own, so that it can be built against
// another version of Infuse.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/gobreakerstore"
	"github.com/infuse-go/infuse/bench/member/plan"
	"github.com/infuse-go/infuse/bench/worker"
)

func main() {
	worker.Serve(map[string]worker.Job{"member": worker.Of(prepare)})
}

var (
	ctx        = context.Background()
	errService = errors.New("connection refused")
)

func prepare(p plan.Plan) (work func(time.Time) ([]plan.Tally, error), end func(), err error) {
	var calls []func(fails bool) error
	var stops []func()
	end = func() {
		for _, stop := range stops {
			stop()
		}
	}
	for _, c := range p.Circuits {
		client := redis.NewClient(&redis.Options{Addr: c.Addr, PoolSize: 10})
		call, stop, err := join(&p, client)
		if err != nil {
			end()
			return nil, nil, err
		}
		calls, stops = append(calls, call), append(stops, stop, func() { _ = client.Close() })
	}
	return func(begin time.Time) (found []plan.Tally, err error) {
		for _, phase := range p.Phases {
			found = append(found, live(&p, phase, begin, calls[phase.Circuit]))
		}
		return found, nil
	}, end, nil
}

// join returns a func that makes a call in the fleet's circuit.
func join(p *plan.Plan, client *redis.Client) (call func(fails bool) error, stop func(), err error) {
	work := func(fails bool) error {
		if fails {
			return errService
		}
		return nil
	}
	if p.Gobreaker {
		b, err := gobreaker.NewDistributedCircuitBreaker[any](gobreakerstore.New(client), gobreaker.Settings{
			Name: "service", Timeout: time.Minute, ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(p.FailMax) },
		})
		return func(fails bool) error {
			_, err := b.Execute(func() (any, error) { return nil, work(fails) })
			return err
		}, func() {}, err
	}
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	b, err := infuse.New("service", infuse.Config{FailMax: p.FailMax, Storage: storage})
	if err != nil {
		return nil, nil, fmt.Errorf("a member: %w", err)
	}
	return func(fails bool) error {
			return b.Call(ctx, func(context.Context) error { return work(fails) })
		}, func() {
			b.Stop()
			_ = storage.Close()
		}, nil
}

// live makes the calls of a phase, one at a time, at random times (Poisson). One that
// is due while another waits for gobreaker's lock comes after it.
func live(p *plan.Plan, phase plan.Phase, begin time.Time, call func(bool) error) (t plan.Tally) {
	random := rand.New(rand.NewPCG(phase.Seed, p.Process))
	errs := p.Circuits[phase.Circuit].Errors
	for next := phase.Start; ; {
		next += time.Duration(random.ExpFloat64() / p.Rate * float64(time.Second))
		if next >= phase.End || time.Since(begin) >= phase.End {
			time.Sleep(time.Until(begin.Add(phase.End)))
			return t
		}
		time.Sleep(time.Until(begin.Add(next)))
		err := call(random.Float64() < errs)
		switch {
		case err == nil || errors.Is(err, errService):
			t.Ran++
		case errors.Is(err, infuse.ErrOpen) || errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests):
			t.Rejected++
		default:
			t.Broke++
		}
	}
}
