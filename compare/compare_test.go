package compare_test

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

// A part of a sequence: n calls, one each step. pattern says which fail ('F'),
// again and again. The first is a step after what went before.
type part struct {
	n       int
	step    time.Duration
	pattern string
}

const hundredth = 10 * time.Millisecond // a hundred calls a second

// replay returns the numbers of the calls at which a breaker opened: from 1 on.
// Calls before the first are numbered from 0 downwards.
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
					synctest.Wait() // timers of that time go first
					number++
					b.call(p.pattern[i%len(p.pattern)] == 'F')
					synctest.Wait()
				}
			}
		}
	})
	return openings
}

// Each breaker opens at the calls that the table says, and ours where the
// reference does, give or take the calls of a bucket.
func TestEachBreakerOpensWhereTheTableSays(t *testing.T) {
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

// requireClose requires that a breaker opened as often as the reference, each
// time within the width of a bucket.
func requireClose(t *testing.T, r *row, breaker, reference []int) {
	t.Helper()
	require.Len(t, breaker, len(reference))
	for i := range reference {
		require.InDelta(t, reference[i], breaker[i], float64(preset.window/10/r.parts[0].step))
	}
}

// table is the table in the form in which README.md has it.
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

// The page has the table that the test above holds true.
func TestThePageHasTheTable(t *testing.T) {
	requirePageHas(t, "README.md", table())
}

func requirePageHas(t *testing.T, file, table string) {
	t.Helper()
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.Contains(string(page), table), "%s must have:\n%s", file, table)
}

// What the documentation says of Config.FailureRate and of Window: one begins
// with a failure, and is empty where there was none for its length.
func TestAWindowWhoseLastFailureHasLeftIsEmpty(t *testing.T) {
	for _, subject := range []int{ours, ourFleet} {
		requireClose(t, &loneFailure, replay(t, subject, &loneFailure), replay(t, theReference, &loneFailure))
	}
}
