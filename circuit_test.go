package infuse

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A probe chose a circuit that was just starting, which had no view yet, and the
// process crashed. Another heard that the link was up before it took it for down,
// and was on its own until the next outage.
func TestACircuitIsReadyWhenItJoinsItsLink(t *testing.T) {
	const patience, pace = 30 * time.Second, time.Millisecond
	s, err := newSettings(Config{Storage: NewMemoryStorage()})
	require.NoError(t, err)
	l := linkTo(s.Storage)
	b := new(Breaker)
	ready := make(chan struct{})
	l.mu.Lock() // it cannot join meanwhile
	go func() {
		defer close(ready)
		b.init("prices", s, l)
	}()
	t.Cleanup(func() {
		l.mu.Unlock()
		<-ready
		b.Stop()
	})
	require.Eventually(t, func() bool { return b.view.Load() != nil }, patience, pace, "it has a view")
	require.Eventually(t, func() bool {
		for range 20 {
			if b.mu.TryLock() {
				b.mu.Unlock()
				return false
			}
			time.Sleep(pace)
		}
		return true
	}, patience, pace, "and no news comes between that it joins and what it learns by that")
}
