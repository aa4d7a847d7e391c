package tally

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// The counts of a breaker end when a Group evicts it.
func TestTransitionsKeepNoBreakerAlive(t *testing.T) {
	c := new(Transitions)
	group, err := infuse.NewGroup(infuse.Config{MaxCircuits: 1, Listeners: []*infuse.Listener{c.Listener()}})
	require.NoError(t, err)
	defer group.Stop()
	for _, name := range []string{"a", "b", "c", "d"} {
		b, err := group.Breaker(name)
		require.NoError(t, err)
		c.count(b, infuse.Transition{To: infuse.StateOpen})
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.counts) == 1
	}, 10*time.Second, 10*time.Millisecond)
	runtime.KeepAlive(group)
}

// The local and the shared circuit have separate counters. With one counter, an outage
// counted as two openings.
func TestTransitionsCountEachStateOfEachCircuit(t *testing.T) {
	c := new(Transitions)
	listener := c.Listener()
	a, err := infuse.New("a", infuse.Config{})
	require.NoError(t, err)
	defer a.Stop()
	other, err := infuse.New("other", infuse.Config{})
	require.NoError(t, err)
	defer other.Stop()
	for _, to := range []infuse.State{infuse.StateOpen, infuse.StateHalfOpen, infuse.StateOpen, infuse.State(9)} {
		listener.StateChange(a, infuse.Transition{To: to})
	}
	listener.StateChange(a, infuse.Transition{To: infuse.StateOpen, Local: true})
	want := Counts{}
	want.Shared[infuse.StateOpen], want.Shared[infuse.StateHalfOpen], want.Local[infuse.StateOpen] = 2, 1, 1
	require.Equal(t, want, c.Of(a))
	require.Zero(t, c.Of(other))
}
