package infuse

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Listener is told what happens at a breaker. Every func is optional, and is
// called without any lock held: it may use the breaker. One that panics is
// stopped there and logged with slog.Error; the call goes on.
//
// BeforeCall, Success, Failure and Rejected are called by the goroutine that
// makes the call; StateChange and StorageError in order, by one goroutine at a
// time, whichever has found out. They should be quick.
type Listener struct {
	BeforeCall   func(ctx context.Context, b *Breaker)                 // a call was admitted, and is about to run
	Success      func(ctx context.Context, b *Breaker)                 // it counted as a success
	Failure      func(ctx context.Context, b *Breaker, err error)      // it counted as a failure
	Rejected     func(ctx context.Context, b *Breaker, err *OpenError) // it was rejected, and did not run
	StateChange  func(b *Breaker, from, to State)                      // also when another process moved the circuit
	StorageError func(b *Breaker, err error)                           // once when the storage goes away; nil once when it is back
}

// LogListener logs transitions, and which circuit runs on its own and since
// when, to the logger; to slog.Default() if it is nil. Calls are not logged.
func LogListener(logger *slog.Logger) *Listener {
	if logger == nil {
		logger = slog.Default()
	}
	return &Listener{
		StateChange: func(b *Breaker, from, to State) {
			level := slog.LevelInfo
			if to == StateOpen {
				level = slog.LevelWarn
			}
			logger.Log(context.Background(), level, "circuit moved",
				"circuit", b.Name(), "from", from.String(), "to", to.String())
		},
		StorageError: func(b *Breaker, err error) {
			b.mu.Lock()
			since := b.awaySince
			b.mu.Unlock()
			if err != nil {
				logger.Warn("circuit runs on its own: its storage is away",
					"circuit", b.Name(), "since", since, "fallback", b.settings().Fallback.String(), "error", err)
				return
			}
			logger.Info("circuit is shared again: its storage is back",
				"circuit", b.Name(), "since", since, "for", time.Since(since))
		},
	}
}

func (s *settings) tellBeforeCall(ctx context.Context, b *Breaker) {
	for _, l := range s.Listeners {
		if l.BeforeCall != nil {
			protected(func() { l.BeforeCall(ctx, b) })
		}
	}
}

func (s *settings) tellRejected(ctx context.Context, b *Breaker, err *OpenError) {
	for _, l := range s.Listeners {
		if l.Rejected != nil {
			protected(func() { l.Rejected(ctx, b, err) })
		}
	}
}

func (s *settings) tellOutcome(ctx context.Context, b *Breaker, r result) {
	for _, l := range s.Listeners {
		switch {
		case r.outcome == OutcomeSuccess && l.Success != nil:
			protected(func() { l.Success(ctx, b) })
		case r.outcome == OutcomeFailure && l.Failure != nil:
			protected(func() { l.Failure(ctx, b, r.err) })
		}
	}
}

// event is something that listeners hear of in order.
type event func(l *Listener)

func stateChange(b *Breaker, from, to State) event {
	return func(l *Listener) {
		if l.StateChange != nil {
			l.StateChange(b, from, to)
		}
	}
}

func storageError(b *Breaker, err error) event {
	return func(l *Listener) {
		if l.StorageError != nil {
			l.StorageError(b, err)
		}
	}
}

// events is a queue that whoever finds it idle empties, so that listeners are
// told in order and without a lock, and may cause events themselves.
type events struct {
	mu      sync.Mutex
	queue   []event
	started bool
	telling bool
}

// start lets listeners be told. Before it, events are kept.
func (e *events) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.started = true
}

func (e *events) add(ev event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = append(e.queue, ev)
}

func (e *events) tell(listeners []*Listener) {
	if !e.begin() {
		return
	}
	ended := false
	defer func() {
		if !ended { // a listener has ended the goroutine
			e.mu.Lock()
			e.telling = false
			e.mu.Unlock()
		}
	}()
	for {
		ev := e.next()
		if ev == nil {
			ended = true
			return
		}
		for _, l := range listeners {
			protected(func() { ev(l) })
		}
	}
}

func (e *events) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.started || e.telling || len(e.queue) == 0 {
		return false
	}
	e.telling = true
	return true
}

// next takes the oldest event; when there is none, telling ends with the same
// lock, so that an event added after it finds the queue idle.
func (e *events) next() event {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		e.telling = false
		return nil
	}
	ev := e.queue[0]
	e.queue = e.queue[1:]
	return ev
}

// protected runs a listener. Its panic must change nothing for the call.
func protected(tell func()) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("infuse: a listener panicked", "panic", r)
		}
	}()
	tell()
}
