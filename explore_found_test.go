package infuse

import (
	"testing"
	"time"
)

// TestPathsThatTheExplorerFound replays what was wrong once: after a path, the
// process that it is about and all others must heal, and reject a dead service.
func TestPathsThatTheExplorerFound(t *testing.T) {
	for _, found := range []struct{ what, kind, path string }{
		{"the state of a circuit changes without a wake-up, when its witness may try again", "witness-211-crash", "b crash; b start; b call; time; b failure"},
		{"and while a trial runs", "open-211-cut", "time; a wakes; a call; time; a call; a request; a answer; a goes on; a failure; a request lost; @1100ms; @2200ms; @3200ms"},
		{"a detached process rejects on, though its last call succeeded", "two-211-cut", "time; time; a wakes; time; b failure; time; b request; b push; b answer late; b link down; b unanswered; a push; b answer; a success; b success"},
		{"also if the shared circuit was dismissed meanwhile", "two-211-cut", "time; time; a success; time; time; a call; b failure; time; b request; b push; a request late; a link down; a goes on; a unanswered; b answer late; b link down; b unanswered; a push; a request; a push; b push; a answer; b answer; b success"},
		{"a process that was detached forgets that its local circuit is half-open", "open-211-cut", "time; a wakes; time; time; a call; b wakes; time; a request late; a request; a push; a unanswered; a answer; a goes on; a failure"},
		{"a process that restarts and succeeds once confirms its own failure rate", "rate-mixed", "a crash; a start; a call; a success; a call; a failure; a call; a failure; time; a wakes; a request; a answer; @350ms"},
	} {
		t.Run(found.what, func(t *testing.T) {
			for _, k := range kinds() {
				if k.name == found.kind {
					k.replay(t, found.path)
					return
				}
			}
			t.Fatalf("there is no kind %q", found.kind)
		})
	}
}

func (k *kind) replay(t *testing.T, path string) {
	s := &search{kind: k, found: make(map[string]int), healed: make(map[uint64]time.Duration), nodes: make([]node, 1), t: t}
	s.root = k.world(t)
	w, problem := s.root.run(path)
	if problem != nil {
		t.Fatal(problem)
	}
	s.heals(w, 0)
	if k.dies > 0 {
		s.dies(w, 0)
	}
}
