package infuse

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A mutant breaks one rule.
type mutant struct{ rule, file, from, to string }

// The explorer notices these.
var mutantsOfTheExplorer = []mutant{
	{"a process that does not fail is not rejected", "replica.go", "return rec.State != StateClosed && (r.failing || !rec.hasEvidence())", "return rec.State != StateClosed"},
	{"one process supplies FailMax at most", "replica.go", "	return r.share >= r.settings.FailMax", "	return false"},
	{"a process that starts takes the evidence for its own", "replica.go", "level := r.shared.level() + pending; first || r.share > level", "level := r.shared.level() + pending; r.share > level"},
	{"a trial that fails is to be confirmed by another process", "state.go", "second := r.State == StateHalfOpen && r.Witness != \"\" && r.Witness != t.source && now.Before(r.RetryAt)", "second := true"},
	{"the next trial goes to another process", "state.go", "r.State == StateHalfOpen && source != \"\" && r.Witness == source && now.Before(r.RetryAt)", "false"},
	{"a suspicion lasts for Suspicion at least", "state.go", "return r.Score >= r.opensAt(t.limits) && !now.Before(r.SuspectAt.Add(t.limits.Suspicion))", "return r.Score >= r.opensAt(t.limits)"},
	{"it opens at twice FailMax", "state.go", "}{4, 2, 4}", "}{4, 1, 4}"},
	{"successes dismiss", "state.go", "}{4, 2, 4}", "}{0, 2, 4}"},
	{"a trial that succeeds closes the local circuits of all", "replica.go", "	if moved || !first && rec.Since > before.Since && rec.State == StateClosed {", "	if moved {"},
	{"a number counts once", "state.go", "r.applied(&c, r.hasHeard(&c), now)", "r.applied(&c, false, now)"},
	{"an older change of a source is a duplicate, too", "state.go", "h.number >= c.Number", "h.number == c.Number"},
	{"outcomes of an older state are not counted", "state.go", "|| t.generation < r.Since", ""},
	{"MaxTrials trials run at a time", "state.go", "over := len(taken) - l.MaxTrials; over >= 0", "over := len(taken) - l.MaxTrials - 1; over >= 0"},
	{"trials keep their slots across states", "state.go", "		Trials: staleTrials(r.Trials), OpenTime", "		OpenTime"},
	{"a trial frees its slot when it ends", "state.go", "r.Trials = slices.Concat(r.Trials[:i], r.Trials[i+1:])", "r.Trials = slices.Clone(r.Trials)"},
	{"a generation stands for one record", "state.go", "	r.Generation = r.nextGeneration(t, now)\n	r.Trials = append", "	r.Trials = append"},
	{"a change that is timed out is sent again under its number", "outbox.go", "case r.out.sent != nil:", "case false:"},
	{"one request is in flight", "outbox.go", "case !r.linked || r.out.inFlight:", "case !r.linked:"},
	{"a lease that nobody uses is returned", "replica.go", "case !r.out.sent.settles(l.id) &&", "case false &&"},
	{"an older record is late", "replica.go", "	case rec.Generation < r.shared.Generation:\n		if at", "	case rec.Generation < r.shared.Generation:\n		r.receive(rec, now)\n		if at"},
	{"a manual change clears the local circuit", "replica.go", "		r.clearLocal()\n		if r.standIn = nil; r.trouble", "		if r.standIn = nil; r.trouble"},
	{"an adopted record is dropped when the storage answers again", "replica.go", "	r.standIn = nil\n}", "}"},
	{"an attached process wakes up to send", "replica.go", "		earliest(r.out.hold)\n", ""},
	{"a detached process wakes up to try again", "replica.go", "		earliest(r.retryAt)\n", ""},
	{"a process that restarts reads the record before it reports", "outbox.go", "if r.news == 0 && r.trouble != nil", "if false && r.trouble != nil"},
	{"and does not report once more what may be on record", "replica.go", "if first && joined {", "if first && joined && false {"},
	{"a failure rate is confirmed later", "state.go", "}{4, 2, 4}", "}{4, 2, 0}"},
}

// Scripts and a test of the replica notice these: the explorer has no rule for them.
var mutantsOfTheScripts = []mutant{
	{"a success drops an adopted record", "replica.go", "case !r.failing && r.standIn.hasEvidence():", "case false:"},
	{"a failure rate is confirmed by another process", "state.go", "&& t.source != r.Witness &&", "&&"},
	{"a low FailMax of one process does not decide for another", "state.go", "threshold = max(threshold, l.FailMax)", "_ = l"},
	{"only a Retry-After makes a process wait beyond its own open duration", "state.go", "	if asked {", "	if asked || true {"},
}

// TestMutants needs INFUSE_MUTANTS=1: "make mutants". INFUSE_MUTANT selects some by
// the beginning of their rule.
func TestMutants(t *testing.T) {
	if os.Getenv("INFUSE_MUTANTS") == "" {
		t.Skip("compiles the package many times: set INFUSE_MUTANTS=1")
	}
	for tests, mutants := range map[string][]mutant{"TestExplore$": mutantsOfTheExplorer, "TestState$|TestASuccessOfADetachedProcess": mutantsOfTheScripts} {
		for _, m := range mutants {
			if strings.HasPrefix(m.rule, os.Getenv("INFUSE_MUTANT")) {
				t.Run(m.rule, func(t *testing.T) { m.isNoticedBy(t, tests) })
			}
		}
	}
}

// isNoticedBy runs the tests with the mutant in place of its file.
func (m mutant) isNoticedBy(t *testing.T, tests string) {
	text, err := os.ReadFile(m.file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), m.from), "%s has the pattern %q once", m.file, m.from)
	here, err := filepath.Abs(m.file)
	require.NoError(t, err)
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, m.file), filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(text), m.from, m.to, 1)), 0o600))
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {here: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, replace, 0o600))
	run := exec.Command("go", "test", "-vet=off", "-failfast", "-timeout", "90s", "-overlay", overlay, "-run", tests, ".")
	run.Env = append(os.Environ(), "INFUSE_MUTANTS=", "CI=")
	out, err := run.CombinedOutput()
	require.NotContains(t, string(out), "[build failed]")
	require.Error(t, err, "nothing has noticed")
	for line := range strings.Lines(string(out)) {
		if _, found, is := strings.Cut(strings.TrimSpace(line), "_test.go:"); is {
			t.Log(found)
			break
		}
	}
}
