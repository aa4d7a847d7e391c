//go:build unix

package breaker_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// cpuTime is what this process has used. Unlike the time on the clock, other programs add
// little to it.
func cpuTime(t *testing.T) time.Duration {
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// The cost of failures grows no faster than their number: nothing that one does
// grows with the number of the others that wait for the storage.
func TestManyFailuresAtOnceAreLinear(t *testing.T) {
	const few, many, most = 2000, 16_000, 5 // if each cost by their number, it would be 8 times
	check := func(name string, storage infuse.Storage) {
		b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 1 << 30, Storage: storage}))
		costOfEach := func(calls, rounds int) time.Duration {
			began := cpuTime(t)
			for range rounds {
				require.Equal(t, calls, failAtOnce(b, calls, fails))
			}
			return (cpuTime(t) - began) / time.Duration(calls*rounds)
		}
		ratio, all := 0.0, 0
		for range 3 {
			alone, together := costOfEach(few, many/few), costOfEach(many, 1)
			all += 2 * many
			ratio = float64(together) / float64(alone)
			t.Logf("%s: each of %d failures %v, of %d %v", name, few, alone, many, together)
			if ratio <= most {
				break
			}
		}
		require.LessOrEqual(t, ratio, float64(most), name)
		require.Equal(t, all, failuresOf(b), name)
	}
	check("no storage", nil)
	for name, storage := range storages(t) {
		check(name, storage)
	}
}
