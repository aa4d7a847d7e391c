package fleettest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Every fault that befalls a Redis befalls a real one here, while two processes
// of a fleet (clients, storages and breakers of their own) call without a
// pause. Whatever happens, no call ends wrongly or waits longer than it may,
// and soon after the fault the two are one fleet again.

const (
	faultPoll    = 500 * time.Millisecond
	faultTimeout = time.Second            // longer than the machine's pauses, which would be outages too
	faultMargin  = 400 * time.Millisecond // for a machine that has other things to do
)

// traffic is two processes that call three circuits each:
//   - busy: the service fails now and then, but never for long. Every call runs.
//   - held: was opened manually, and is not due. Every call is rejected.
//   - failing: the service fails half of the time. A call runs or is rejected.
type traffic struct {
	t     *testing.T
	fleet [2]*process
	down  atomic.Bool // the service of the failing circuit
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu    sync.Mutex
	calls int
	worst time.Duration // extra wait
	where string        // the circuit at which that was
	stall time.Duration // the longest that the machine kept a goroutine waiting
	wrong []string
}

type process struct {
	storage                     *infuse.RedisStorage
	busy, held, failing, signal *infuse.Breaker // signal is called by nobody
	edges                       map[*infuse.Breaker]*edges
	startedWithin               time.Duration // the longest that New took
}

// startTraffic starts two processes that each use one of the clients.
func startTraffic(t *testing.T, clients ...redis.UniversalClient) *traffic {
	t.Helper()
	tr := &traffic{t: t}
	for i := range tr.fleet {
		tr.fleet[i] = startProcess(t, clients[i])
	}
	require.Eventually(t, func() bool { return tr.openHeld() == nil }, patience, pace)
	tr.start()
	return tr
}

func startProcess(t *testing.T, client redis.UniversalClient) *process {
	t.Helper()
	p := &process{
		storage: infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: faultPoll}),
		edges:   make(map[*infuse.Breaker]*edges),
	}
	t.Cleanup(func() { _ = p.storage.Close() }) // whose error is that Redis still hangs
	start := func(name string, cfg infuse.Config) *infuse.Breaker {
		heard := &edges{}
		cfg.Storage, cfg.StorageTimeout = p.storage, faultTimeout
		cfg.Listeners = []*infuse.Listener{heard.Listener(), {StorageUnavailable: func(err error) {
			t.Log(time.Now().Format("05.000"), name, "storage unavailable:", err)
		}}}
		began := time.Now()
		b := startBreaker(t, name, cfg)
		p.startedWithin = max(p.startedWithin, time.Since(began))
		p.edges[b] = heard
		return b
	}
	p.busy = start("busy", infuse.Config{FailMax: 1 << 20})
	p.held = start("held", infuse.Config{ResetTimeout: time.Hour})
	p.failing = start("failing", infuse.Config{FailMax: 3, ResetTimeout: 50 * time.Millisecond, TrialTimeout: time.Second})
	p.signal = start("signal", infuse.Config{ResetTimeout: time.Hour})
	return p
}

// openHeld opens what is to be held. While Redis is unavailable each process can do
// that only for itself.
func (tr *traffic) openHeld() error {
	var failed error
	for _, p := range tr.fleet {
		failed = errors.Join(failed, p.held.SetState(context.Background(), infuse.StateOpen))
	}
	return failed
}

func (tr *traffic) start() {
	ctx, stop := context.WithCancel(context.Background())
	tr.stop = stop
	tr.t.Cleanup(func() {
		stop()
		tr.all.Wait()
	})
	for _, p := range tr.fleet {
		for worker := range 2 {
			for _, call := range []func(*process, int){tr.callBusy, tr.callHeld, tr.callFailing} {
				tr.all.Go(func() {
					for n := worker; ctx.Err() == nil; n++ {
						call(p, n)
						time.Sleep(2 * time.Millisecond)
					}
				})
			}
		}
	}
	stalled := standstill(ctx)
	tr.all.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(pace)
			tr.mu.Lock()
			tr.stall = stalled()
			tr.mu.Unlock()
		}
	})
	tr.all.Go(func() {
		for ctx.Err() == nil {
			tr.down.Store(!tr.down.Load())
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// call makes a call of which fn's error is known, and notes what it waited
// beyond fn.
func (tr *traffic) call(b *infuse.Breaker, want error) (ran bool, err error) {
	var within time.Duration
	began := time.Now()
	err = b.Call(context.Background(), func(context.Context) error {
		ran = true
		started := time.Now()
		time.Sleep(time.Millisecond)
		within = time.Since(started)
		return want
	})
	waited := time.Since(began) - within
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.calls++
	if waited > tr.worst {
		tr.worst, tr.where = waited, b.Name()
	}
	return ran, err
}

func (tr *traffic) require(right bool, format string, args ...any) {
	if right {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.wrong = append(tr.wrong, fmt.Sprintf(format, args...))
}

func (tr *traffic) callBusy(p *process, n int) {
	var want error
	if n%4 == 0 {
		want = errUnhealthy
	}
	ran, err := tr.call(p.busy, want)
	tr.require(ran && err == want, "busy: ran %v, error %v instead of %v", ran, err, want)
}

func (tr *traffic) callHeld(p *process, _ int) {
	ran, err := tr.call(p.held, nil)
	var rejection *infuse.OpenError
	tr.require(!ran && errors.As(err, &rejection), "held: ran %v, error %v", ran, err)
}

func (tr *traffic) callFailing(p *process, _ int) {
	var want error
	if tr.down.Load() {
		want = errUnhealthy
	}
	ran, err := tr.call(p.failing, want)
	var rejection *infuse.OpenError
	tr.require(ran && err == want || !ran && errors.As(err, &rejection), "failing: ran %v, error %v", ran, err)
}

// awaitOutage waits until both processes know that Redis is unavailable.
func (tr *traffic) awaitOutage() {
	tr.t.Helper()
	for _, p := range tr.fleet {
		require.Eventually(tr.t, func() bool { return p.edges[p.busy].Unavailable.Load() > 0 }, patience, pace)
	}
}

// awaitShared returns how long it takes, from when the fault is over, until the
// storage counts again for each process and each receives what the other does.
func (tr *traffic) awaitShared() time.Duration {
	tr.t.Helper()
	began := time.Now()
	from, to := tr.fleet[0], tr.fleet[1]
	for _, p := range tr.fleet {
		require.Eventually(tr.t, p.isShared, patience, pace)
	}
	for _, want := range []infuse.State{infuse.StateOpen, infuse.StateClosed} {
		require.Eventually(tr.t, func() bool { return from.signal.SetState(context.Background(), want) == nil }, patience, pace)
		eventuallyState(tr.t, want, to.signal)
		from, to = to, from
	}
	return time.Since(began)
}

// isShared reports whether the process has reported the storage as available
// as often as unavailable.
func (p *process) isShared() bool {
	for _, heard := range p.edges {
		if heard.Unavailable.Load() != heard.Available.Load() {
			return false
		}
	}
	return true
}

// requireHeld waits until the circuit that was opened before is open in Redis
// and to a process that starts now.
func (tr *traffic) requireHeld(client redis.UniversalClient) {
	tr.t.Helper()
	began := time.Now()
	defer func() { tr.t.Logf("open in Redis after %v more", time.Since(began).Round(time.Millisecond)) }()
	require.Eventually(tr.t, func() bool {
		r, err := tr.fleet[0].held.Record(context.Background())
		return err == nil && r.State == infuse.StateOpen && time.Until(r.DueAt) > 30*time.Minute
	}, patience, pace, "an open circuit is not to be lost")
	newcomer := startProcess(tr.t, client)
	eventuallyState(tr.t, infuse.StateOpen, newcomer.held)
}

// finish ends the calls, and prints and checks the figures.
func (tr *traffic) finish(shared time.Duration) {
	tr.t.Helper()
	tr.stop()
	tr.all.Wait()
	outages := int32(0)
	for _, p := range tr.fleet {
		require.Eventually(tr.t, p.isShared, patience, pace)
		for _, heard := range p.edges {
			outages = max(outages, heard.Unavailable.Load())
		}
	}
	tr.t.Logf("%d calls, worst extra wait %v (%s), ended wrongly %d, reported %d outages, shared again after %v, the machine stood still for %v",
		tr.calls, tr.worst.Round(time.Millisecond), tr.where, len(tr.wrong), outages, shared.Round(time.Millisecond), tr.stall.Round(time.Millisecond))
	require.Empty(tr.t, tr.wrong)
	require.Less(tr.t, tr.worst, faultTimeout+faultMargin+2*tr.stall)
}

// standstill measures for how long the machine keeps a goroutine waiting, until
// ctx is done: by that much more may a call have waited.
func standstill(ctx context.Context) (longest func() time.Duration) {
	var worst atomic.Int64
	go func() {
		for ctx.Err() == nil {
			began := time.Now()
			time.Sleep(pace)
			worst.Store(max(worst.Load(), int64(time.Since(began)-pace)))
		}
	}()
	return func() time.Duration { return time.Duration(worst.Load()) }
}

// endure is the whole of it for a fault that is over when during returns.
func endure(t *testing.T, clients [2]redis.UniversalClient, newcomer redis.UniversalClient, during func(tr *traffic)) *traffic {
	t.Helper()
	tr := startTraffic(t, clients[:]...)
	time.Sleep(200 * time.Millisecond) // of ordinary traffic
	during(tr)
	shared := tr.awaitShared()
	tr.requireHeld(newcomer)
	tr.finish(shared)
	return tr
}

// requireTold is for the circuits of both processes that satisfy which. Where
// the machine stood still, or Redis answered none too soon in a fault that does
// not keep it from answering, Redis was unavailable for as long, and nothing is shown.
func (tr *traffic) requireTold(times int32, which func(p *process, b *infuse.Breaker) bool) {
	tr.t.Helper()
	if tr.stall > faultTimeout/2 || times == 0 && tr.worst > faultTimeout*4/5 {
		tr.t.Log("the machine was too slow to tell an outage from itself")
		return
	}
	for _, p := range tr.fleet {
		for b, heard := range p.edges {
			if which(p, b) {
				heard.Require(tr.t, times, times)
			}
		}
	}
}

func anyCircuit(*process, *infuse.Breaker) bool { return true }
