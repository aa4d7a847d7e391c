package infuse

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// TestLongRandomWalks has everything go wrong that can, in long random sequences, and
// checks what the explorer checks. A sequence is reproduced by its seed.
func TestLongRandomWalks(t *testing.T) {
	walks := uint64(40)
	if os.Getenv("CI") != "" {
		walks = 100
	}
	for _, k := range walkKinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			k.init(t)
			for seed := range walks {
				k.walk(t, seed)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func walkKinds() (all []*kind) {
	for _, n := range [][3]int{{1, 1, 1}, {2, 1, 1}, {3, 2, 2}, {5, 1, 2}} {
		k := &kind{name: fmt.Sprintf("%d%d%d", n[0], n[1], n[2]), processes: 3, config: exploreConfig(n[0], n[1], n[2]), open: 3, outcomes: [3][]Outcome{anything, anything, anything}, roll: 0.5, dies: 1}
		k.left = faults{calls: 120, slow: 120, tick: 60, leave: 5, crash: 3, loseRequest: 4, loseAnswer: 4, losePush: 4, swapPush: 4, delay: 8, repeat: 4, away: 4, all: 12}
		all = append(all, k)
		loses := *k
		loses.name += "-loses"
		loses.left.forget, loses.left.failover, loses.left.clock, loses.clock = 2, 2, 1, -10e9
		loses.hands, loses.left.hands = append(exploredMoves(), exploredOverrides()...), 5
		all = append(all, &loses)
	}
	return all
}

// walk is one sequence: service and network are good and bad in turn.
func (k *kind) walk(t *testing.T, seed uint64) {
	roll := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(k)
	w.left = k.left
	s := &search{kind: k, root: w, found: make(map[string]int), nodes: make([]node, 1), t: t}
	var path []string
	failing := 0.1
	for step := range 400 {
		if step%60 == 0 {
			failing = [...]float64{0.02, 0.2, 0.95}[roll.IntN(3)]
		}
		all := w.actions(nil)
		if len(all) == 0 {
			break
		}
		a := all[roll.IntN(len(all))]
		if a.kind == actEnd {
			if a.outcome = OutcomeSuccess; roll.Float64() < failing {
				a.outcome = OutcomeFailure
			}
		}
		path = append(path, w.describe(a))
		next, problem := w.do(a)
		if problem != nil {
			t.Fatalf("%s, seed %d: %v after\n%s", k.name, seed, problem, strings.Join(path, "; "))
		}
		w = next
	}

	s.heals(w, 0)
	s.dies(w, 0)
	if t.Failed() {
		t.Logf("%s, seed %d, after\n%s", k.name, seed, strings.Join(path, "; "))
	}
}
