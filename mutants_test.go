package infuse

import (
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A mutant breaks one rule. In the function or variable called in, it replaces the only
// expression or statement with the shape of from. As in gofmt -r, identifiers of one
// letter stand for any expression, so mutants survive new names of variables and another
// layout. An empty to deletes the statement.
type mutant struct{ number, rule, in, from, to string }

// The explorer notices these.
var mutantsOfTheExplorer = []mutant{
	{"R7", "a process that does not fail is not rejected", "replica.rejectsBy", `a && (r.failing || !x.hasEvidence())`, `a`},
	{"R11", "one process supplies at most FailMax", "replica.hasSuppliedAll", `r.supplied >= r.settings.FailMax`, `false`},
	{"R12", "a process that starts takes the evidence for its own", "replica.limitEvidence", `f || r.supplied > v`, `r.supplied > v`},
	{"R25", "another process must confirm a failed trial", "Record.trialFailed", `r.State == StateHalfOpen && a && b && n.Before(r.RetryAt)`, `true`},
	{"R25", "the next trial goes to another process", "Record.excludes", `a && b && r.Witness == s && n.Before(r.RetryAt)`, `false`},
	{"R17", "a suspicion lasts at least for Suspicion", "Record.confirmed", `r.Score >= x && !n.Before(y)`, `r.Score >= x`},
	{"R17", "the circuit opens at a score of twice FailMax", "evidence", `x{a, b, c}`, `x{a, 1, c}`},
	{"R16", "successes dismiss a suspicion", "evidence", `x{a, b, c}`, `x{0, b, c}`},
	{"R28", "a successful trial closes all local circuits", "replica.receive", `m || !f && r.Since > b.Since && r.State == StateClosed`, `m`},
	{"R13", "a sequence number counts once", "Record.Apply", `r.applied(c, r.isDuplicate(c), n)`, `r.applied(c, false, n)`},
	{"R13", "an older change of the same source is a duplicate", "Record.isDuplicate", `h.number >= c.Number`, `h.number == c.Number`},
	{"R4", "outcomes of an older state are not counted", "Record.addCalls", `a || t.generation < r.Since`, `a`},
	{"R24", "MaxTrials trials run at a time", "Record.blockedUntil", `len(a) - l.MaxTrials`, `len(a) - l.MaxTrials - 1`},
	{"R26", "trials keep their slots across states", "Record.transition", `staleTrials(t)`, `nil`},
	{"R26", "a trial frees its slot when it ends", "Record.settle", `slices.Concat(r.Trials[:i], r.Trials[i+1:])`, `slices.Clone(r.Trials)`},
	{"R26", "a granted trial raises the generation", "Record.requestTrial", `r.Generation = r.nextGeneration(t, n)`, ``},
	{"R13", "a change that is timed out is sent again under its number", "replica.outgoing", `r.out.sent != nil`, `false`},
	{"R38", "at most one request is in flight", "replica.outgoing", `a || r.out.inFlight`, `a`},
	{"R27", "an unused lease is returned", "replica.settleLeases", `!a.settles(x) && b`, `false`},
	{"R43", "an older record is late", "replica.notified", `x.Generation < r.shared.Generation`, `false`},
	{"R32", "a manual change clears the local circuit", "replica.receive", `r.clearLocal()`, ``},
	{"R37", "an adopted record is dropped when the storage answers again", "replica.attach", `r.adopted = nil`, ``},
	{"R10", "an attached process wakes up to send", "replica.wakeAt", `f(r.out.delayUntil)`, ``},
	{"R38", "a detached process wakes up to try again", "replica.wakeAt", `f(r.retryAt)`, ``},
	{"R12", "a process that restarts reads the record before it reports", "replica.prepare", `r.received == 0 && a && b && c`, `false`},
	{"R12", "a process that restarts does not report failures twice", "replica.limitEvidence", `r.out.next.Calls, r.out.next.OpenFor = a, b`, ``},
	{"R15", "after the notice of a suspicion the next success is reported", "replica.noticed", `r.out.suspicion = n.generation`, ``},
	{"R22", "a failure rate is confirmed after 4 × Suspicion", "evidence", `x{a, b, c}`, `x{a, b, 0}`},
}

// Scripts notice these: faster than the explorer, or because it does not check the rule.
var mutantsOfTheScripts = []mutant{
	{"R6", "an open local circuit runs its own trials", "replica.countLocal", `a.trial != "" && r.local.trial(a.trial) >= 0`, `false`},
	{"R16", "no suspicion begins for Suspicion after a dismissal", "Record.evaluate", `r.State != StateClosed || n.Before(a)`, `r.State != StateClosed`},
	{"R18", "a local trial of a suspect circuit is a shared one", "replica.sharesTrial", `a || r.suspect() && b`, `a`},
	{"R20", "a rate needs MinCalls calls", "Window.rate", `!r.under && a >= b`, `!r.under`},
	{"R22", "a rate below FailureRate dismisses", "Record.evaluate", `r.Rated && a`, `false`},
	{"R23", "a trial waits for the open duration", "Record.blockedUntil", `u = r.dueAt(l)`, ``},
	{"R24", "SuccessThreshold trials must succeed", "Record.settle", `r.Successes >= t.limits.SuccessThreshold`, `true`},
	{"R27", "a trial that is granted too late is returned", "replica.resumed", `l.end(result{outcome: OutcomeIgnored}, n)`, ``},
	{"R29", "a Retry-After prolongs the open duration", "terms.openDuration", `cmp.Or(t.openFor, t.limits.ResetTimeout)`, `t.limits.ResetTimeout`},
	{"R30", "the open duration doubles", "Record.nextOpenDuration", `2 * x`, `x`},
	{"R33", "an override expires", "Override.isActive", `o.Until.IsZero() || n.Before(o.Until)`, `true`},
	{"R37", "a detached process adopts the record that rejected its calls", "replica.detach", `r.adopt(n)`, ``},
	{"R39", "a circuit that the storage lost is restored", "Record.restore", `s.Generation > r.Generation && a`, `false`},
	{"R40", "a clock that is set back prolongs no wait", "Record.clampTo", `e(&r.DueAt, s.DueAt)`, ``},
	{"R41", "a lease is at most as long as the process's own TrialTimeout", "Trial.deadline", `!t.Started.IsZero() && a.Before(t.Deadline)`, `false`},
	{"R37", "a success drops an adopted record", "replica.countAdopted", `!r.failing && a`, `false`},
	{"R22", "another process must confirm a failure rate", "Record.confirmed", `t.source != r.Witness`, `true`},
	{"R17", "a low FailMax of one process does not decide for another", "Record.opensAt", `max(t, l.FailMax)`, `t`},
	{"R41", "only a Retry-After makes a process wait beyond its own open duration", "Limits.longestOpen", `max(l.ResetTimeout, l.MaxResetTimeout)`, `max(l.ResetTimeout, l.MaxResetTimeout, l.MaxRetryAfter)`},
}

// TestMutants needs INFUSE_MUTANTS=1: "make mutants". INFUSE_MUTANT selects some by
// the beginning of their rule.
func TestMutants(t *testing.T) {
	if os.Getenv("INFUSE_MUTANTS") == "" {
		t.Skip("compiles the package many times: set INFUSE_MUTANTS=1")
	}
	code := parseCode(t)
	for tests, mutants := range map[string][]mutant{"TestExplore$": mutantsOfTheExplorer, "TestState$|TestReplica$": mutantsOfTheScripts} {
		for _, m := range mutants {
			if strings.HasPrefix(m.rule, os.Getenv("INFUSE_MUTANT")) {
				t.Run(m.rule, func(t *testing.T) { m.isNoticedBy(t, code, tests) })
			}
		}
	}
}

// TestMutantsHaveAPlace checks that each mutant has exactly one place in the code.
func TestMutantsHaveAPlace(t *testing.T) {
	code := parseCode(t)
	for _, m := range append(mutantsOfTheExplorer, mutantsOfTheScripts...) {
		file, text := code.mutate(t, m)
		_, err := parser.ParseFile(token.NewFileSet(), file, text, 0)
		require.NoError(t, err, m.rule)
	}
	for _, from := range []string{`r.supplied >= r.settings.MinCalls`, `a.b.c`} { // none, and two
		found := code.find(t, mutant{in: "replica.hasSuppliedAll", from: from})
		require.NotEqual(t, 1, len(found), from)
	}
}

// isNoticedBy runs the tests with the mutant in place of its file.
func (m mutant) isNoticedBy(t *testing.T, code *sourceCode, tests string) {
	file, text := code.mutate(t, m)
	here, err := filepath.Abs(file)
	require.NoError(t, err)
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, file), filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(changed, []byte(text), 0o600))
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {here: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, replace, 0o600))
	run := exec.Command("go", "test", "-vet=off", "-failfast", "-timeout", "90s", "-overlay", overlay, "-run", tests, ".")
	run.Env = append(os.Environ(), "INFUSE_MUTANTS=", "CI=")
	out, err := run.CombinedOutput()
	require.NotContains(t, string(out), "[build failed]", "%s", out)
	require.Error(t, err, "no test notices the mutant")
	for line := range strings.Lines(string(out)) {
		if _, found, is := strings.Cut(strings.TrimSpace(line), "_test.go:"); is {
			t.Log(found)
			break
		}
	}
}

// sourceCode is the code of the package without tests.
type sourceCode struct {
	set   *token.FileSet
	texts map[string]string
	decls map[string]ast.Node // functions, methods as Type.name, and variables
}

func parseCode(t *testing.T) *sourceCode {
	t.Helper()
	code := &sourceCode{token.NewFileSet(), make(map[string]string), make(map[string]ast.Node)}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		parsed, err := parser.ParseFile(code.set, file, text, parser.SkipObjectResolution)
		require.NoError(t, err)
		code.texts[file] = string(text)
		for _, d := range parsed.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				code.decls[receiver(d)+d.Name.Name] = d
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, is := spec.(*ast.ValueSpec); is {
						code.decls[v.Names[0].Name] = v
					}
				}
			}
		}
	}
	return code
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	of := d.Recv.List[0].Type
	if pointer, is := of.(*ast.StarExpr); is {
		of = pointer.X
	}
	name, _ := of.(*ast.Ident)
	return name.Name + "."
}

// place is a node with the shape, and the expressions of its letters.
type place struct {
	node    ast.Node
	letters map[string]ast.Node
}

func (code *sourceCode) find(t *testing.T, m mutant) (found []place) {
	t.Helper()
	within := code.decls[m.in]
	require.NotNil(t, within, "%s: unknown function or variable %s", m.rule, m.in)
	shape := shapeOf(t, m.from)
	ast.Inspect(within, func(n ast.Node) bool {
		if n != nil {
			if letters := make(map[string]ast.Node); matches(reflect.ValueOf(shape), reflect.ValueOf(n), letters) {
				found = append(found, place{n, letters})
			}
		}
		return true
	})
	return found
}

// mutate returns the file of the mutant, and its changed text.
func (code *sourceCode) mutate(t *testing.T, m mutant) (file, text string) {
	t.Helper()
	found := code.find(t, m)
	require.Len(t, found, 1, "%s: places in %s that have the shape %s", m.rule, m.in, m.from)
	at := found[0].node
	file = code.set.Position(at.Pos()).Filename
	text = code.texts[file]
	start, end := code.set.Position(at.Pos()).Offset, code.set.Position(at.End()).Offset
	to := m.to
	if expression, err := parser.ParseExpr(to); err == nil {
		for _, letter := range lettersOf(expression) { // from the last to the first
			if n := found[0].letters[letter.Name]; n != nil {
				of := text[code.set.Position(n.Pos()).Offset:code.set.Position(n.End()).Offset]
				to = to[:letter.Pos()-1] + of + to[letter.End()-1:]
			}
		}
	}
	changed := text[:start] + to + text[end:]
	formatted, err := format.Source([]byte(changed))
	require.NoError(t, err, m.rule)
	return file, string(formatted)
}

// shapeOf parses an expression or a statement.
func shapeOf(t *testing.T, text string) ast.Node {
	t.Helper()
	if expression, err := parser.ParseExpr(text); err == nil {
		return expression
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), "", "package p; func f() { "+text+" }", parser.SkipObjectResolution)
	require.NoError(t, err, text)
	return parsed.Decls[0].(*ast.FuncDecl).Body.List[0]
}

func isLetter(name string) bool { return len(name) == 1 && 'a' <= name[0] && name[0] <= 'z' }

// lettersOf returns the letters of an expression, the last first.
func lettersOf(expression ast.Expr) (letters []*ast.Ident) {
	ast.Inspect(expression, func(n ast.Node) bool {
		if name, is := n.(*ast.Ident); is && isLetter(name.Name) {
			letters = append([]*ast.Ident{name}, letters...)
		}
		return true
	})
	return letters
}

var positions = reflect.TypeFor[token.Pos]()

// matches reports whether a node has the shape. A letter is the same expression
// everywhere in it.
func matches(shape, node reflect.Value, letters map[string]ast.Node) bool {
	if shape.IsValid() && shape.CanInterface() {
		if name, is := shape.Interface().(*ast.Ident); is && name != nil && isLetter(name.Name) && letters != nil {
			expression, is := node.Interface().(ast.Expr)
			if !is {
				return false
			}
			if before := letters[name.Name]; before != nil {
				return matches(reflect.ValueOf(before), reflect.ValueOf(expression), nil)
			}
			letters[name.Name] = expression
			return true
		}
	}
	if !shape.IsValid() || !node.IsValid() {
		return shape.IsValid() == node.IsValid()
	}
	if shape.Kind() == reflect.Interface {
		shape, node = shape.Elem(), node.Elem()
		return matches(shape, node, letters)
	}
	if shape.Type() != node.Type() {
		return false
	}
	switch shape.Kind() {
	case reflect.Pointer:
		if shape.IsNil() || node.IsNil() {
			return shape.IsNil() == node.IsNil()
		}
		return matches(shape.Elem(), node.Elem(), letters)
	case reflect.Slice:
		if shape.Len() != node.Len() {
			return false
		}
		for i := range shape.Len() {
			if !matches(shape.Index(i), node.Index(i), letters) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := range shape.NumField() {
			if f := shape.Type().Field(i); f.Type != positions && f.Type != reflect.TypeFor[*ast.CommentGroup]() {
				if !matches(shape.Field(i), node.Field(i), letters) {
					return false
				}
			}
		}
		return true
	}
	return shape.Equal(node)
}
