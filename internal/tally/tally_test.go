package tally

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A Group makes and evicts breakers by the names it is asked for: the counts of
// an evicted breaker must go, too.
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

// The two circuits of a breaker used to share a counter: an outage counted as two
// openings of one circuit.
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
