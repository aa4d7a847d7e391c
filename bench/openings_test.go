package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

func TestAFleetOfProcessesRejectsWhenTheServiceIsUnhealthy(t *testing.T) {
	redistest.Require(t)
	w := weather{Rate: 50, Onset: 200 * time.Millisecond, For: 1500 * time.Millisecond, Seed: 1}
	found, err := liveInProcesses(infuseFleet, 4, w)
	require.NoError(t, err)
	require.Len(t, found, 2)
	ours, local := found[0], found[1]
	require.InDelta(t, 300, ours.calls(), 120)
	require.InDelta(t, ours.calls(), local.calls(), 10)
	require.EqualValues(t, 1, ours.OpenedByAll)
	require.Positive(t, ours.RejectedByAll)
	require.EqualValues(t, 4, local.OpenedAlone)
	require.EqualValues(t, 4*fewFailures, local.Unhealthy)

	found, err = liveInProcesses(gobreakerFleet, 4, w)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Positive(t, found[0].OpenedByAll)
	require.Positive(t, found[0].RejectedByAll)
}

func TestAnOutageThatGoesOnIsNoTimeToOpen(t *testing.T) {
	require.Equal(t, []string{"50.0", "7.00"}, reach{50 * time.Millisecond, 7}.cells(2*time.Second))
	require.Equal(t, []string{"longer than 2s", "7.00"}, reach{1900 * time.Millisecond, 7}.cells(2*time.Second))
}

// The pictures are the same for the same figures, and have what is to be read.
func TestPlotsAreDrawnFromTheFigures(t *testing.T) {
	r := &report{sizes: full}
	for _, n := range []int{10, 10_000} {
		r.simulatedOutages = append(r.simulatedOutages, opening{members: n, ours: reach{last: 51 * time.Millisecond}, shared: reach{last: time.Second}})
		r.simulated = append(r.simulated, besides{
			members: n, weather: weather{Rate: 20, Errors: full.errors[len(full.errors)-1], For: time.Hour},
			ours: tally{Ran: 720_000, OpenedAlone: 7}, shared: tally{Ran: 720_000, OpenedByAll: 7}, locals: tally{Ran: 720_000},
		})
	}
	var before []byte
	for range 2 {
		dir := t.TempDir()
		require.NoError(t, r.plots(dir))
		svg, err := os.ReadFile(filepath.Join(dir, falseOpeningsPlot))
		require.NoError(t, err)
		for _, text := range []string{"processes", "openings an hour in which calls run", "10,000", "Infuse (shared openings: 0)", gobreakerFleet.name} {
			require.True(t, strings.Contains(string(svg), ">"+text+"<"), text)
		}
		require.False(t, strings.Contains(string(svg), "NaN"))
		require.False(t, strings.Contains(string(svg), localFleet.name), "it has no opening")
		if before != nil {
			require.True(t, bytes.Equal(before, svg))
		}
		before = svg
		require.FileExists(t, filepath.Join(dir, timeToOpenPlot))
	}
}

func TestWhatOthersDoBetterIsSaid(t *testing.T) {
	var r report
	r.compare("this", number, 5, figure{"one", 6}, figure{"another", 5})
	require.Empty(t, r.losses)
	r.compare("that", number, 5, figure{"one", 6}, figure{"another", 4}, figure{"a third", 0.5})
	require.Equal(t, [][]string{{"that", "5.00", "another 4.00, a third 0.50"}}, r.losses)
	require.Contains(t, r.text(), "| that | 5.00 | another 4.00, a third 0.50 |")
}
