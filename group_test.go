package infuse

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Circuits of a Group share the settings that are equal, but no func with other
// variables.
func TestCircuitsShareEqualSettings(t *testing.T) {
	healthy := func(context.Context, error) Outcome { return OutcomeSuccess }
	outcomes := map[string]Outcome{"failure": OutcomeFailure, "ignored": OutcomeIgnored}
	listener, storage := &Listener{}, NewMemoryStorage()
	resetTimeout := time.Second
	group, err := NewGroupFunc(func(circuit string) Config {
		cfg := Config{ResetTimeout: resetTimeout, Classify: healthy, Listeners: []*Listener{listener}}
		switch circuit {
		case "failure", "ignored":
			outcome := outcomes[circuit]
			cfg.Classify = func(context.Context, error) Outcome { return outcome }
		case "excludes":
			cfg.Exclude = []func(error) bool{func(error) bool { return true }}
		case "listens":
			cfg.Listeners = []*Listener{{}}
		case "storage":
			cfg.Storage = storage
		}
		return cfg
	})
	require.NoError(t, err)
	defer group.Stop()
	all := map[string]*settings{}
	for _, name := range []string{"a", "b", "failure", "ignored", "excludes", "listens", "storage"} {
		b, err := group.Breaker(name)
		require.NoError(t, err)
		for other, s := range all {
			require.Equal(t, name == "b" && other == "a", s == b.settings(), "%s and %s", name, other)
		}
		all[name] = b.settings()
	}
	resetTimeout = time.Minute
	require.NoError(t, group.Reload())
	a, b := group.breakers["a"].breaker.Load(), group.breakers["b"].breaker.Load()
	require.Same(t, a.settings(), b.settings())
	require.Same(t, a.view.Load(), b.view.Load())
	require.Equal(t, time.Minute, a.settings().ResetTimeout)
}

// A circuit lets go of what only a failing one needs when it is healthy again.
func TestACircuitThatRecoveredKeepsNoEpisode(t *testing.T) {
	for name, storage := range map[string]Storage{"local": nil, "memory": NewMemoryStorage()} {
		b, err := New("prices", Config{Storage: storage, FailMax: 1})
		require.NoError(t, err)
		defer b.Stop()
		kept := func() (some bool) {
			b.look(func(r *replica) { some = r.episode != noEpisode })
			return some
		}
		require.False(t, kept(), name)
		require.Error(t, b.Call(t.Context(), func(context.Context) error { return errors.New("a failure") }))
		require.True(t, kept(), name)
		require.NoError(t, b.SetState(t.Context(), StateClosed))
		require.NoError(t, b.Call(t.Context(), func(context.Context) error { return nil }))
		require.Eventually(t, func() bool { return !kept() }, 10*time.Second, time.Millisecond, name)
	}
}
