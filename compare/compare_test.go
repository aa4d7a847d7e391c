package compare_test

// This file replays the sequences, and checks the table of README.md.

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// part is a part of a sequence: n calls, one per step. The pattern, repeated, determines
// which of them fail ('F'). The first call is one step after the part before.
type part struct {
	n       int
	step    time.Duration
	pattern string
}

const hundredth = 10 * time.Millisecond // 100 calls a second

// replay returns the numbers of the calls at which a breaker opened. The calls of before
// have numbers up to 0, the others start at 1.
func replay(t *testing.T, subject int, r *row) (openings []int) {
	s := preset
	if r.openTime > 0 {
		s.openTime = r.openTime
	}
	synctest.Test(t, func(t *testing.T) {
		number := 0
		for _, p := range r.before {
			number -= p.n
		}
		b := subjects[subject].start(t, s, func() { openings = append(openings, number) })
		defer b.stop()
		for _, parts := range [][]part{r.before, r.parts} {
			for _, p := range parts {
				for i := range p.n {
					time.Sleep(p.step)
					synctest.Wait() // timers of the same time run first
					number++
					b.call(p.pattern[i%len(p.pattern)] == 'F')
					synctest.Wait()
				}
			}
		}
	})
	return openings
}

// Each breaker opens at the calls in the table. Infuse opens where the reference does, up
// to the width of a bucket.
func TestBreakersOpenAsInTheTable(t *testing.T) {
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			for i := range columns {
				assert.Equal(t, r.opens[i], replay(t, i, &r), subjects[i].name)
			}
			requireClose(t, &r, r.opens[ours], r.opens[theReference])
			requireClose(t, &r, r.opens[ourFleet], r.opens[theReference])
		})
	}
}

// requireClose checks that a breaker opened as often as the reference, each time within
// the width of a bucket.
func requireClose(t *testing.T, r *row, breaker, reference []int) {
	t.Helper()
	require.Len(t, breaker, len(reference))
	for i := range reference {
		require.InDelta(t, reference[i], breaker[i], float64(preset.window/10/r.parts[0].step))
	}
}

// table returns the table of README.md.
func table() string {
	var b strings.Builder
	b.WriteString("| calls |")
	for _, s := range subjects {
		b.WriteString(" " + s.name + " |")
	}
	b.WriteString(" why |\n|---|" + strings.Repeat("--:|", columns) + "---|\n")
	for _, r := range rows {
		b.WriteString("| " + r.name + " |")
		for _, openings := range r.opens {
			b.WriteString(" " + cell(openings) + " |")
		}
		b.WriteString(" " + r.why + " |\n")
	}
	return b.String()
}

func cell(openings []int) string {
	if openings == nil {
		return "never"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(openings), " ", ", "), "[]")
}

// README.md contains the table that TestBreakersOpenAsInTheTable checks.
func TestTableOfBreakers(t *testing.T) {
	requirePageHas(t, "README.md", table())
}

func requirePageHas(t *testing.T, file, table string) {
	t.Helper()
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.Contains(string(page), table), "%s must contain:\n%s", file, table)
}

// A window starts with a failure, and is empty if there was no failure for its length, as
// the documentation of Config.Window states.
func TestWindowWithoutFailuresIsEmpty(t *testing.T) {
	for _, subject := range []int{ours, ourFleet} {
		requireClose(t, &loneFailure, replay(t, subject, &loneFailure), replay(t, theReference, &loneFailure))
	}
}
