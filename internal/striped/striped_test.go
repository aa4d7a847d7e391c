package striped

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoCountIsLost(t *testing.T) {
	const goroutines, each = 50, 1000
	var counter Counter
	var counts Counts
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for range each {
				counter.Add()
				counts.Add(g % Kinds)
			}
		})
	}
	taken := counter.Take() // while others add
	wg.Wait()
	require.EqualValues(t, goroutines*each, taken+counter.Take())
	require.Zero(t, counter.Take())
	for kind, n := range counts.Sum() {
		require.EqualValues(t, goroutines/Kinds*each, n, "kind %d", kind)
	}
}
