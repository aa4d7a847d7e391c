package infuse

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/infuse-go/infuse/internal/ordered"
)

// Listener has callbacks for the events of breakers. Every func is optional. No lock
// is held during a call of it, so it may use the breaker. A panic is recovered and
// logged with slog.Error; the call of the service continues.
//
// BeforeCall, Success, Failure, Ignored, Rejected and WouldReject run on the goroutine
// of the call and delay it. The others run in order, one at a time. All should return
// quickly.
//
// StateChange reports changes only: for a breaker that is made while its circuit is
// open, it is not called until the state changes. Breaker.Stats has the state from
// the start. If a response counted as a failure, the error of Failure has the status
// as its text; Transport.Classify receives the response itself.
//
// Set the funcs before making a breaker with the Listener. One Listener may serve
// many breakers; its funcs are then called concurrently.
type Listener struct {
	BeforeCall func(ctx context.Context, b *Breaker)                 // a call was admitted and is about to run
	Success    func(ctx context.Context, b *Breaker)                 // the call counted as a success
	Failure    func(ctx context.Context, b *Breaker, err error)      // the call counted as a failure
	Ignored    func(ctx context.Context, b *Breaker, err error)      // the call was not counted. One of these three follows every BeforeCall, when the call, the body or the permit ends
	Rejected   func(ctx context.Context, b *Breaker, err *OpenError) // a call was rejected and did not run

	WouldReject func(ctx context.Context, b *Breaker, err *OpenError) // a call runs only because of Config.DryRun. Called in place of BeforeCall; the call is not counted, and none of the above follows

	StateChange func(b *Breaker, t Transition) // the local or the shared circuit changed state, whichever process caused it
	Warning     func(b *Breaker, err error)    // a probable misconfiguration, or a record that cannot be read; called once

	// The storage became unavailable, and is available again. Both are called once for
	// each outage, however many breakers the Listener serves. If a request timed out,
	// StorageUnavailable waits up to 3 s for a more specific error. StorageAvailable is
	// called when a change was stored, or after 1 s in which the storage refused no
	// change; after a refused change it waits for 10 s without another. Neither is
	// called after the last breaker of the storage has stopped.
	StorageUnavailable func(err error)
	StorageAvailable   func(unavailable time.Duration)
}

// Transition is a state change of one circuit, the local or the shared one. What
// Breaker.State returns depends on both circuits and on the last call of this
// process: it may stay closed when the shared circuit opens. Fields may be added.
type Transition struct {
	From, To State
	Local    bool   // the local circuit changed; otherwise the shared one
	Origin   string // the Config.Instance of the process that caused the change; empty if unknown
	Cause    string // the error that opened the circuit; empty otherwise
	At       time.Time
}

// LogListener returns a Listener that logs state changes, warnings, and outages of the
// storage. Default logger: slog.Default(). It logs no calls.
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

func notifyBeforeCall(ctx context.Context, to []*Listener, b *Breaker) {
	for _, l := range to {
		if l.BeforeCall != nil {
			protected(func() { l.BeforeCall(ctx, b) })
		}
	}
}

func notifyRejected(ctx context.Context, to []*Listener, b *Breaker, err *OpenError) {
	for _, l := range to {
		if l.Rejected != nil {
			protected(func() { l.Rejected(ctx, b, err) })
		}
	}
}

func notifyWouldReject(ctx context.Context, to []*Listener, b *Breaker, err *OpenError) {
	for _, l := range to {
		if l.WouldReject != nil {
			protected(func() { l.WouldReject(ctx, b, err) })
		}
	}
}

func notifyOutcome(ctx context.Context, to []*Listener, b *Breaker, o Outcome, err error) {
	for _, l := range to {
		switch {
		case o == OutcomeSuccess && l.Success != nil:
			protected(func() { l.Success(ctx, b) })
		case o == OutcomeFailure && l.Failure != nil:
			protected(func() { l.Failure(ctx, b, err) })
		case o != OutcomeSuccess && o != OutcomeFailure && l.Ignored != nil:
			protected(func() { l.Ignored(ctx, b, err) })
		}
	}
}

// protected runs a func of a listener. Its panic must not affect the call.
// R43.
func protected(notify func()) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("infuse: a listener panicked", "panic", r)
		}
	}()
	notify()
}

// audience notifies the listeners of all circuits of one link, in the background and
// in order, because listeners may be slow. It is over when the last circuit leaves.
type audience struct {
	events   ordered.Queue[func()]
	notified map[*Listener]bool // of the outage; used by events only
	over     atomic.Bool        // no event is delivered any more
	running  sync.WaitGroup     // used under link.mu until over is set
}

func newAudience() *audience { return &audience{notified: make(map[*Listener]bool)} }

// unavailable notifies those listeners of the circuits that were not yet notified of the
// outage.
func (a *audience) unavailable(why error, circuits []weak.Pointer[Breaker]) {
	a.add(func() {
		for _, weakly := range circuits {
			b := weakly.Value()
			if b == nil {
				continue
			}
			for _, l := range b.settings().Listeners {
				if !a.notified[l] {
					a.notified[l] = true
					if l.StorageUnavailable != nil {
						a.events.Add(func() { l.StorageUnavailable(why) })
					}
				}
			}
		}
	})
}

// available notifies the listeners that were notified of the outage.
func (a *audience) available(after time.Duration) {
	a.add(func() {
		for l := range a.notified {
			if l.StorageAvailable != nil {
				a.events.Add(func() { l.StorageAvailable(after) })
			}
		}
		clear(a.notified)
	})
}

func (a *audience) add(event func()) {
	a.events.Add(event)
	a.running.Go(func() {
		a.events.Drain(func(event func()) {
			if !a.over.Load() {
				protected(event)
			}
		})
	})
}

// wait returns when no event is being delivered, if the audience is over. A nil
// audience has no events.
func (a *audience) wait() {
	if a != nil && a.over.Load() {
		a.running.Wait()
	}
}
