package breakertest

import (
	"context"
	"runtime"
	"sync/atomic"

	"github.com/infuse-go/infuse"
)

// Hook is user code that a library runs: what it does is set by a test.
type Hook struct {
	breaker atomic.Pointer[infuse.Breaker]
	action  atomic.Pointer[func(*infuse.Breaker)]
	runs    atomic.Bool // true while it runs: it is not re-entrant
}

// Set has the hook call a func with the breaker; nil ends that.
func (h *Hook) Set(b *infuse.Breaker, action func(*infuse.Breaker)) {
	h.breaker.Store(b)
	h.action.Store(&action)
}

// Run is called by the user code. A nil Hook does nothing.
func (h *Hook) Run() {
	if h == nil {
		return
	}
	if action := h.action.Load(); action != nil && *action != nil && h.runs.CompareAndSwap(false, true) {
		defer h.runs.Store(false)
		(*action)(h.breaker.Load())
	}
}

// HookError is an error that runs its hook in one of its methods.
type HookError struct {
	*Hook
	Method string
}

// In runs the hook if it is in this method.
func (e *HookError) In(method string) {
	if e.Method == method {
		e.Run()
	}
}

func (e *HookError) Error() string { e.In("Error"); return "unavailable" }
func (e *HookError) Unwrap() error { e.In("Unwrap"); return nil }
func (e *HookError) Is(error) bool { e.In("Is"); return false }
func (e *HookError) As(any) bool   { e.In("As"); return false }

// HookErrorMethods are the methods of a HookError.
var HookErrorMethods = []string{"Error", "Unwrap", "Is", "As"}

// TextError is an error whose only method panics on a typed nil.
type TextError struct{ text string }

func (e *TextError) Error() string { return e.text }

// Settings are the places of a Config that can run the hook, by name.
func (h *Hook) Settings() map[string]func(*infuse.Config) {
	places := map[string]func(*infuse.Config){
		"Config.Classify": func(cfg *infuse.Config) {
			cfg.Classify = func(_ context.Context, err error) infuse.Outcome {
				h.Run()
				if err != nil {
					return infuse.OutcomeFailure
				}
				return infuse.OutcomeSuccess
			}
		},
		"Config.Exclude": func(cfg *infuse.Config) {
			cfg.Exclude = []func(error) bool{func(error) bool { h.Run(); return false }}
		},
	}
	for name, listener := range map[string]*infuse.Listener{
		"BeforeCall":  {BeforeCall: func(context.Context, *infuse.Breaker) { h.Run() }},
		"Success":     {Success: func(context.Context, *infuse.Breaker) { h.Run() }},
		"Failure":     {Failure: func(context.Context, *infuse.Breaker, error) { h.Run() }},
		"Ignored":     {Ignored: func(context.Context, *infuse.Breaker, error) { h.Run() }},
		"Rejected":    {Rejected: func(context.Context, *infuse.Breaker, *infuse.OpenError) { h.Run() }},
		"StateChange": {StateChange: func(*infuse.Breaker, infuse.Transition) { h.Run() }},
	} {
		places["Listener."+name] = func(cfg *infuse.Config) { cfg.Listeners = append(cfg.Listeners, listener) }
	}
	return places
}

// HookActions are the misbehaviours of user code.
var HookActions = map[string]func(*infuse.Breaker){
	"panics":             func(*infuse.Breaker) { panic("a hook") },
	"ends the goroutine": func(*infuse.Breaker) { runtime.Goexit() },
	"calls back": func(b *infuse.Breaker) {
		if b == nil { // the breaker is created in the background
			return
		}
		_, _ = b.State(), b.Stats()
		if p, err := b.Acquire(context.Background()); err == nil {
			p.Settle(infuse.OutcomeIgnored)
		}
	},
}
