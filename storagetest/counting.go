package storagetest

import (
	"strings"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

// testRows has what pybreaker does: failures in a row count, and a success
// ends the row, unless the limit was reached before it.
func testRows(t *testing.T, s infuse.Storage) {
	for _, test := range []struct {
		calls []string // each a change
		state infuse.State
		row   int
	}{
		{[]string{"f"}, infuse.StateClosed, 1},
		{[]string{"f", "f"}, infuse.StateClosed, 2},
		{[]string{"f", "f", "f"}, infuse.StateOpen, 3},
		{[]string{"fff"}, infuse.StateOpen, 3},
		{[]string{"ffffff"}, infuse.StateOpen, 6},
		{[]string{"f", "f", "s"}, infuse.StateClosed, 0},
		{[]string{"f", "f", "s", "f"}, infuse.StateClosed, 1},
		{[]string{"ff", "sff"}, infuse.StateClosed, 2},
		{[]string{"ff", "fs"}, infuse.StateOpen, 3},
		{[]string{"f", "fsf", "f"}, infuse.StateClosed, 2},
		{[]string{"sfff"}, infuse.StateOpen, 3},
		{[]string{"s"}, infuse.StateClosed, 0},
	} {
		c := newCircuit(t, s)
		for _, outcomes := range test.calls {
			c.calls(outcomes)
		}
		r := c.load()
		equal(t, test.state, r.State, test.calls)
		equal(t, test.row, r.Failures, test.calls)
	}
}

// suspect returns a circuit under a suspicion that does not end during a test.
func suspect(t *testing.T, s infuse.Storage) *circuit {
	t.Helper()
	c := newCircuit(t, s)
	c.limits.Suspicion = long / 4
	c.calls("ff")
	equal(t, moved, c.calls("f"), "the limit is reached")
	return c
}

func testSuspicion(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	began := c.load()
	same(t, c.seen, began)
	equal(t, infuse.StateClosed, began.State)
	equal(t, 3, began.Balance)
	equal(t, "it failed", began.Cause)
	about(t, time.Now(), began.SuspectAt)
	about(t, time.Now().Add(c.limits.Suspicion), began.OpensAt)
	about(t, time.Now().Add(long), began.DueAt, "due is counted from the limit")

	equal(t, applied, c.calls("f"))
	equal(t, 4, c.load().Balance)
	equal(t, applied, c.calls("fff"))
	equal(t, 7, c.load().Balance)
	equal(t, applied, c.calls("s"))
	equal(t, 3, c.load().Balance)
	equal(t, began.Generation, c.load().Generation)
	equal(t, moved, c.calls("fsf"), "an order does not matter")
	equal(t, 1, c.load().Balance)
	about(t, c.load().DueAt, c.load().OpensAt, "time alone does not open what successes outweigh")

	change := calls("f")
	change.OpenFor = 3 * long
	equal(t, moved, c.apply(change), "all are to hear of the longer open time")
	about(t, time.Now().Add(3*long), c.load().DueAt, "a failure may prolong the open time")
	equal(t, 2, c.load().Balance)
}

func testRefutation(t *testing.T, s infuse.Storage) {
	c := suspect(t, s)
	suspected := c.seen
	equal(t, moved, c.calls("s"))
	r := c.load()
	same(t, c.seen, r)
	equal(t, infuse.StateClosed, r.State)
	equal(t, 0, r.Failures)
	check(t, r.OpensAt.IsZero() && r.DueAt.IsZero(), "it still opens at %v", r.OpensAt)
	check(t, r.Generation > suspected.Generation+1, "its generation %d is not above the one it would have opened with", r.Generation)
	about(t, time.Now().Add(c.limits.Suspicion), r.CalmUntil)

	equal(t, applied, c.calls("ffffff"), "it is above suspicion")
	equal(t, 6, c.load().Failures)
	check(t, c.load().OpensAt.IsZero(), "it is suspect again")

	// One that has heard nothing of either: its calls still count.
	c.seen = infuse.Record{}
	equal(t, applied, c.calls("s"))
	equal(t, 0, c.load().Failures)

	// One that missed the refutation believes that the circuit has opened.
	c.seen = suspected
	c.seen.State, c.seen.Generation, c.seen.Since = infuse.StateOpen, suspected.Generation+1, suspected.Generation+1
	c.seen.OpensAt = time.Time{}
	c.apply(infuse.Change{})
	equal(t, infuse.StateClosed, c.load().State)
}

func testSuspicionEnds(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = short
	began := time.Now()
	c.calls("fff")
	suspected := c.seen
	eventually(t, "it opens", func() bool { return c.load().State == infuse.StateOpen })
	check(t, time.Since(began) >= short-coarse, "it opens after %v, not %v", time.Since(began), short)
	r := c.load()
	check(t, r.Generation > suspected.Generation, "its generation is still %d", r.Generation)
	about(t, suspected.DueAt, r.DueAt)
	c.ask("early")
	equal(t, 0, len(c.seen.Trials))
	c.calls("ssssssss")
	equal(t, infuse.StateOpen, c.load().State, "successes come too late")
}

// testLateRefutation has outcomes that were kept back until the suspicion was
// over. They count as if they had come in time, until something is asked for or
// done. A storage need not do that: it may save the opening first.
func testLateRefutation(t *testing.T, s infuse.Storage) {
	over := func() (c *circuit, suspected infuse.Record) {
		c = newCircuit(t, s)
		c.limits.Suspicion = short
		c.calls("fff")
		time.Sleep(time.Until(c.seen.OpensAt) + short)
		return c, c.seen
	}
	c, suspected := over()
	if c.calls("f") == refused {
		t.Skip("this storage makes an opening final as soon as a change meets it")
	}
	opened := c.seen.At(time.Now())
	equal(t, infuse.StateOpen, opened.State)
	about(t, suspected.DueAt, opened.DueAt)
	equal(t, moved, c.calls("s"))
	r := c.load()
	equal(t, infuse.StateClosed, r.State)
	check(t, r.OpensAt.IsZero() && r.Generation > opened.Generation, "it is %+v", r)

	c, suspected = over()
	c.override(infuse.Override{State: infuse.StateClosed})
	c.override(infuse.Override{Until: time.Now().Add(-time.Hour)})
	c.seen = suspected
	equal(t, refused, c.calls("ssssssss"), "the opening is final")
	r = c.load()
	equal(t, infuse.StateOpen, r.State)
	about(t, suspected.DueAt, r.DueAt)
}

// testSuspicionEndsEarly has a row that took a while, and so a suspicion that
// lasts for three times as long.
func testSuspicionEndsEarly(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	c.limits.Suspicion = time.Millisecond
	c.calls("f")
	time.Sleep(2 * short)
	c.calls("ff")
	check(t, time.Until(c.seen.OpensAt) > 2*short, "the suspicion lasts %v", time.Until(c.seen.OpensAt))
	equal(t, applied, c.calls(strings.Repeat("f", 8)))
	equal(t, moved, c.calls("f"), "four times the limit")
	began := time.Now()
	eventually(t, "it opens", func() bool { return c.load().State == infuse.StateOpen })
	check(t, time.Since(began) < short, "it opens after %v", time.Since(began))
}
