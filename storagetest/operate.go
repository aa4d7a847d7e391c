package storagetest

// This file tests overrides, the history and the list of circuits.

import (
	"testing"
	"time"

	"github.com/infuse-go/infuse"
)

func (c *circuit) override(o infuse.Override) infuse.Verdict {
	c.Helper()
	return c.apply(infuse.Change{Override: &o})
}

func testOverride(t *testing.T, s infuse.Storage) {
	c := newCircuit(t, s)
	equal(t, applied, c.calls("ff"))
	equal(t, moved, c.override(infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "maintenance", Until: time.Now().Add(long)}))
	r := c.load()
	same(t, c.seen, r)
	check(t, r.Override != nil, "no override")
	equal(t, infuse.StateOpen, r.Override.State)
	equal(t, "ann", r.Override.By)
	equal(t, "maintenance", r.Override.Reason)
	about(t, time.Now().Add(long), r.Override.Until)
	equal(t, infuse.StateClosed, r.State, "the underlying state is unchanged")
	equal(t, 2, r.Failures)
	equal(t, moved, c.calls("f"))
	equal(t, infuse.StateOpen, c.load().State, "outcomes are counted")
	check(t, c.load().Override != nil, "a transition does not end an override")
	equal(t, refused, c.requestTrial("trial"))
	equal(t, moved, c.override(infuse.Override{Until: time.Unix(1, 0)}))
	check(t, c.load().Override == nil, "an expired override removes it")

	equal(t, moved, c.override(infuse.Override{State: infuse.StateClosed, By: "ann", Until: time.Now().Add(short)}))
	check(t, c.load().Override != nil, "no override")
	eventually(t, "the override expires", func() bool { return c.load().Override == nil })
}

func testHistory(t *testing.T, s infuse.Storage) {
	historian, ok := s.(infuse.Historian)
	if !ok {
		t.Skip("the storage has no history")
	}
	c := newCircuit(t, s)
	history := func() []infuse.Event {
		t.Helper()
		events, err := historian.History(t.Context(), c.name)
		check(t, err == nil, "%v", err)
		return events
	}
	equal(t, 0, len(history()))
	equal(t, applied, c.calls("f"))
	equal(t, 0, len(history()), "counts are not events")
	c.limits.Suspicion = short
	equal(t, moved, c.calls("ff"))
	equal(t, 0, len(history()), "a suspicion is not an event")
	time.Sleep(time.Until(c.seen.SuspectAt.Add(short + coarse)))
	equal(t, moved, c.calls("fff"))
	check(t, len(history()) == 1, "the opening is not in %v", history())
	equal(t, moved, c.setState(infuse.StateClosed))
	equal(t, moved, c.override(infuse.Override{State: infuse.StateOpen, By: "ann", Reason: "maintenance", Until: time.Now().Add(long)}))
	equal(t, moved, c.override(infuse.Override{By: "bob", Until: time.Unix(1, 0)}))
	got := history()
	equal(t, 4, len(got))
	cleared, overridden, closed, opened := got[0], got[1], got[2], got[3]
	equal(t, infuse.StateClosed, opened.From)
	equal(t, infuse.StateOpen, opened.To)
	equal(t, "failed", opened.Cause)
	equal(t, false, opened.Manual)
	equal(t, "test", opened.By)
	about(t, time.Now(), opened.At)
	equal(t, infuse.StateClosed, closed.To)
	equal(t, true, closed.Manual)
	equal(t, "ann", overridden.By)
	equal(t, "maintenance", overridden.Override.Reason)
	equal(t, infuse.StateClosed, overridden.From)
	equal(t, infuse.StateClosed, overridden.To)
	equal(t, "bob", cleared.By)
	check(t, cleared.Override == nil, "the override still applies")

	for range infuse.MaxHistory {
		c.setState(infuse.StateOpen)
		c.setState(infuse.StateClosed)
	}
	equal(t, infuse.MaxHistory, len(history()))
	equal(t, infuse.StateClosed, history()[0].To, "newest first")
}

func testCircuits(t *testing.T, s infuse.Storage) {
	lister, ok := s.(infuse.Lister)
	if !ok {
		t.Skip("the storage lists no circuits")
	}
	want := map[string]bool{}
	for _, name := range []string{unique("circuit"), unique("with / {braces} *"), unique("<script>\n\x00\xff")} {
		c := newCircuit(t, s)
		c.name = name
		c.calls("f")
		want[name] = true
	}
	found := map[string]bool{}
	for name, err := range lister.Circuits(t.Context()) {
		check(t, err == nil, "%v", err)
		found[name] = true
	}
	for name := range want {
		check(t, found[name], "%q is not among %v", name, found)
	}
	for range lister.Circuits(t.Context()) {
		break // the iterator must handle an early stop
	}
}
