package infuse

import (
	"context"
	"log/slog"
	"time"
)

// Listener has callbacks for the events of a breaker. Every func is optional, and
// is called without any lock held: it may use the breaker. A panic is recovered
// and logged with slog.Error; the call goes on.
//
// BeforeCall, Success, Failure, Ignored, Rejected and WouldReject are called by the
// goroutine that makes the call, and cost every call; a breaker without them
// keeps its full speed. The others are called in order, by one goroutine at a
// time. All should be quick.
//
// StateChange is called on changes only: a breaker that is made while its circuit
// is open begins open, without a call. Stats, and metrics that read it, have the
// state from the start. For a response, Failure gets an error whose text is the
// status; Transport.Classify has the response itself.
//
// Set the funcs before a breaker is made with it, and not after. One Listener
// may serve many breakers, whose calls then run its funcs concurrently.
type Listener struct {
	BeforeCall func(ctx context.Context, b *Breaker)                 // a call was admitted, and is about to run
	Success    func(ctx context.Context, b *Breaker)                 // it counted as a success
	Failure    func(ctx context.Context, b *Breaker, err error)      // it counted as a failure
	Ignored    func(ctx context.Context, b *Breaker, err error)      // it was not counted. Every BeforeCall is followed by one of these three, once the call, the body or the permit has ended
	Rejected   func(ctx context.Context, b *Breaker, err *OpenError) // a call was rejected, and did not run

	WouldReject func(ctx context.Context, b *Breaker, err *OpenError) // a call runs only because of Config.DryRun. It is called in place of BeforeCall; the call is not counted, and none of the above follows

	StateChange func(b *Breaker, t Transition) // the local or the shared circuit has changed, whichever process caused it
	Warning     func(b *Breaker, err error)    // a probable misconfiguration, or a record that cannot be read; called once

	// The storage became unavailable, and is available again after a time: once for
	// each outage, however many breakers the Listener serves. If the first error says
	// no more than that there was no answer in time, StorageUnavailable waits for a
	// better reason, for 3 seconds at most. StorageAvailable waits until a change is
	// stored, or for a second without a refused one (10 s after a refused one). Neither
	// is called after the last breaker of the storage has stopped.
	StorageUnavailable func(err error)
	StorageAvailable   func(unavailable time.Duration)
}

// Transition is a state change of one circuit, the local or the shared one. What
// Breaker.State returns depends on both, and on the last call of this process: it
// may stay closed when the shared circuit opens. Fields may be added.
type Transition struct {
	From, To State
	Local    bool   // of the local circuit; otherwise of the shared one
	Origin   string // the instance that caused it: Config.Instance if it was this process; empty if not known
	Cause    string // the error that opened the circuit; empty otherwise
	At       time.Time
}

// LogListener logs state changes, and storage outages and recoveries, to the
// logger, by default slog.Default(). Calls are not logged.
func LogListener(logger *slog.Logger) *Listener {
	if logger == nil {
		logger = slog.Default()
	}
	return &Listener{
		StateChange: func(b *Breaker, t Transition) {
			level := slog.LevelInfo
			if t.To == StateOpen {
				level = slog.LevelWarn
			}
			logger.Log(context.Background(), level, "circuit state changed", "circuit", b.Name(),
				"from", t.From.String(), "to", t.To.String(), "local", t.Local, "origin", t.Origin, "cause", t.Cause)
		},
		StorageUnavailable: func(err error) { logger.Warn("storage unavailable, using local circuits", "error", err) },
		StorageAvailable: func(unavailable time.Duration) {
			logger.Info("storage available, using shared circuits", "unavailable", unavailable)
		},
		Warning: func(b *Breaker, err error) {
			logger.Warn("circuit warning", "circuit", b.Name(), "error", err)
		},
	}
}

// event is delivered to listeners in order.
type event func(l *Listener, b *Breaker)

func stateChanged(t Transition) event {
	return func(l *Listener, b *Breaker) {
		if l.StateChange != nil {
			l.StateChange(b, t)
		}
	}
}

func warning(err error) event {
	return func(l *Listener, b *Breaker) {
		if l.Warning != nil {
			l.Warning(b, err)
		}
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

func (s *settings) tellWouldReject(ctx context.Context, b *Breaker, err *OpenError) {
	for _, l := range s.Listeners {
		if l.WouldReject != nil {
			protected(func() { l.WouldReject(ctx, b, err) })
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
		case r.outcome != OutcomeSuccess && r.outcome != OutcomeFailure && l.Ignored != nil:
			protected(func() { l.Ignored(ctx, b, r.err) })
		}
	}
}

// protected runs a listener. Its panic must not affect the call.
func protected(tell func()) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("infuse: a listener panicked", "panic", r)
		}
	}()
	tell()
}
