package prominfuse

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Circuits come and go with the names that a Group is asked for: what was
// counted of them must go, too.
func TestTransitionsKeepNoBreakerAlive(t *testing.T) {
	counted := new(Transitions)
	group, err := infuse.NewGroup(infuse.Config{MaxCircuits: 1, Listeners: []*infuse.Listener{counted.Listener()}})
	require.NoError(t, err)
	defer group.Stop()
	for _, name := range []string{"a", "b", "c", "d"} {
		b, err := group.Breaker(name)
		require.NoError(t, err)
		require.NoError(t, b.Move(t.Context(), infuse.StateOpen))
		require.NoError(t, b.Move(t.Context(), infuse.StateClosed)) // no timer holds it
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		counted.mu.Lock()
		defer counted.mu.Unlock()
		return len(counted.counts) == 1
	}, 10*time.Second, 10*time.Millisecond)
	runtime.KeepAlive(group)
}
