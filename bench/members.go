package main

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/gobreakerstore"
)

// The members of fleets: one breaker each, as a process has, over what the
// fleet shares.

// A fleetKind is how a fleet protects itself. A member joins it with a Redis
// client of its own.
type fleetKind struct {
	name string
	join func(client *redis.Client, s fleetSettings) (member, error)
}

type fleetSettings struct {
	circuit      string
	failMax      int
	resetTimeout time.Duration
	opened       func(alone bool) // called when the member knows that the fleet's circuit is open, or its own alone; may be nil
}

// member is one breaker of a fleet.
type member struct {
	call     func(work func() error) error
	failures func() (int, error) // consecutive, as Redis has it
	close    func() error        // the circuit, manually
	closed   func() bool         // as the member knows it without asking; nil if it never does
	stop     func()
}

var (
	infuseFleet    = fleetKind{infuseName, joinInfuse}
	gobreakerFleet = fleetKind{"gobreaker, shared", joinGobreaker}
	localFleet     = fleetKind{"gobreaker, local", func(_ *redis.Client, s fleetSettings) (member, error) { return localMember(s), nil }}
	noFleet        = fleetKind{"no breaker", joinNothing}
)

// kindOf returns the kind of that name.
func kindOf(name string) fleetKind {
	for _, k := range []fleetKind{infuseFleet, gobreakerFleet, localFleet} {
		if k.name == name {
			return k
		}
	}
	return noFleet
}

func joinInfuse(client *redis.Client, s fleetSettings) (member, error) {
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	m, err := infuseMember(storage, s)
	stop := m.stop
	m.stop = func() {
		stop()
		_ = storage.Close()
	}
	return m, err
}

func infuseMember(storage infuse.Storage, s fleetSettings) (member, error) {
	cfg := infuse.Config{FailMax: s.failMax, ResetTimeout: s.resetTimeout, Storage: storage}
	if s.opened != nil {
		cfg.Listeners = []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
			if t.To == infuse.StateOpen {
				s.opened(t.Local)
			}
		}}}
	}
	b, err := infuse.New(s.circuit, cfg)
	if err != nil {
		return member{stop: func() {}}, err
	}
	return member{
		call: func(work func() error) error {
			return b.Call(ctx, func(context.Context) error { return work() })
		},
		failures: func() (int, error) {
			r, err := b.Record(ctx)
			return r.Failures, err
		},
		close:  func() error { return b.SetState(ctx, infuse.StateClosed) },
		closed: func() bool { return b.State() == infuse.StateClosed },
		stop:   b.Stop,
	}, nil
}

func joinGobreaker(client *redis.Client, s fleetSettings) (member, error) {
	store := gobreakerstore.New(client)
	m, err := gobreakerMember(store, s)
	m.failures = func() (int, error) { return store.Failures(s.circuit) }
	return m, err
}

// gobreakerMember is a member of a fleet in gobreaker's shared mode.
func gobreakerMember(store gobreaker.SharedDataStore, s fleetSettings) (member, error) {
	b, err := gobreaker.NewDistributedCircuitBreaker[any](store, s.gobreaker(false))
	if err != nil {
		return member{}, err
	}
	return member{
		call: func(work func() error) error {
			_, err := b.Execute(func() (any, error) { return nil, work() })
			return err
		},
		stop: func() {},
	}, nil
}

// localMember shares nothing.
func localMember(s fleetSettings) member {
	b := gobreaker.NewCircuitBreaker[any](s.gobreaker(true))
	return member{
		call: func(work func() error) error {
			_, err := b.Execute(func() (any, error) { return nil, work() })
			return err
		},
		stop: func() {},
	}
}

func (s fleetSettings) gobreaker(alone bool) gobreaker.Settings {
	return gobreaker.Settings{
		Name:        s.circuit,
		Timeout:     s.resetTimeout,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(s.failMax) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if s.opened != nil && to == gobreaker.StateOpen {
				s.opened(alone)
			}
		},
	}
}

func joinNothing(*redis.Client, fleetSettings) (member, error) {
	return member{call: func(work func() error) error { return work() }, stop: func() {}}, nil
}

// verdictOf tells what became of a call by its error: it ran, or it was
// rejected by the circuit of its process alone or by the fleet's, or neither.
func (k fleetKind) verdictOf(err error) verdict {
	var rejected *infuse.OpenError
	switch {
	case err == nil || errors.Is(err, errUnhealthy):
		return ran
	case errors.As(err, &rejected) && rejected.Local:
		return rejectedAlone
	case errors.As(err, &rejected):
		return rejectedByAll
	case !errors.Is(err, gobreaker.ErrOpenState) && !errors.Is(err, gobreaker.ErrTooManyRequests):
		return broke
	case k.name == localFleet.name:
		return rejectedAlone
	}
	return rejectedByAll
}

type verdict int

const (
	ran verdict = iota
	rejectedAlone
	rejectedByAll
	broke // it ended in another error: of the lock, or of the store
)
