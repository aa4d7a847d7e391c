package documents_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of docs/correctness.md anew")

// holders are those who cite a rule of docs/concepts.md: functions and files of the
// code, tests, and mutants.
type holders struct{ code, tests, mutants []string }

var (
	aRule = regexp.MustCompile(`\bR[0-9]+\b`)
	cites = regexp.MustCompile(`^(?:# )?(R[0-9]+(?:, R[0-9]+)*)\.$`) // a line of its own
)

// TestEachRuleHasATest has the table of docs/correctness.md: who carries out a rule,
// which tests hold it, and which mutants break it. With -update it is written anew:
//
//	go test ./internal/tests/documents -run TestEachRuleHasATest -update
func TestEachRuleHasATest(t *testing.T) {
	t.Parallel()
	rules := citations(t)
	concepts, err := os.ReadFile("docs/concepts.md")
	require.NoError(t, err)
	var table strings.Builder
	fmt.Fprintf(&table, "\n| rule | code | tests | mutants |\n|---|---|---|---|\n")
	for _, number := range regexp.MustCompile(`<a id="r([0-9]+)"></a>`).FindAllStringSubmatch(string(concepts), -1) {
		rule := "R" + number[1]
		h := rules[rule]
		require.NotNil(t, h, "%s is cited nowhere", rule)
		require.NotEmpty(t, h.tests, "no test holds %s: cite it in a line of its own of the test's comment", rule)
		fmt.Fprintf(&table, "| [%s](concepts.md#r%s) | %s | %s | %s |\n", rule, number[1], listOf(h.code, "`"), listOf(h.tests, "`"), listOf(h.mutants, ""))
		delete(rules, rule)
	}
	require.Empty(t, rules, "cited, and not in docs/concepts.md")

	const begin, end = "<!-- rules -->\n", "<!-- /rules -->"
	page, err := os.ReadFile("docs/correctness.md")
	require.NoError(t, err)
	before, rest, found := bytes.Cut(page, []byte(begin))
	require.True(t, found)
	_, after, found := bytes.Cut(rest, []byte(end))
	require.True(t, found)
	now := slices.Concat(before, []byte(begin+table.String()+"\n"+end), after)
	if *update {
		require.NoError(t, os.WriteFile("docs/correctness.md", now, 0o644))
		return
	}
	require.True(t, bytes.Equal(page, now), "docs/correctness.md is out of date: go test ./internal/tests/documents -run TestEachRuleHasATest -update")
}

func listOf(names []string, quote string) string {
	slices.Sort(names)
	var all []string
	for _, name := range slices.Compact(names) {
		all = append(all, quote+name+quote)
	}
	return strings.Join(all, ", ")
}

// citations returns who cites each rule.
func citations(t *testing.T) map[string]*holders {
	t.Helper()
	rules := make(map[string]*holders)
	of := func(rule string) *holders {
		if rules[rule] == nil {
			rules[rule] = new(holders)
		}
		return rules[rule]
	}
	inCode := func(text, name string) {
		for _, rule := range aRule.FindAllString(text, -1) {
			of(rule).code = append(of(rule).code, name)
		}
	}
	inTest := func(comment, name string) {
		for line := range strings.Lines(comment) {
			if found := cites.FindStringSubmatch(strings.TrimSpace(line)); found != nil {
				for _, rule := range aRule.FindAllString(found[1], -1) {
					of(rule).tests = append(of(rule).tests, name)
				}
			}
		}
	}
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != ".":
			return filepath.SkipDir
		case entry.IsDir():
			return nil
		}
		switch dir, file := filepath.Split(path); {
		case strings.HasSuffix(file, "_test.go"):
			for _, f := range functions(t, path) {
				if strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz") {
					inTest(f.Doc.Text(), f.Name.Name)
				}
			}
		case strings.HasPrefix(dir, "testdata/") && strings.HasSuffix(file, ".txt"): // scripts of a test
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			kind := filepath.Base(dir)
			inTest(string(text), "Test"+strings.ToUpper(kind[:1])+kind[1:]+"/"+strings.TrimSuffix(file, ".txt"))
		case dir == "" && strings.HasSuffix(file, ".go"):
			commentsOf(t, path, inCode)
		case strings.HasSuffix(file, ".lua"):
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			inCode(string(text), file)
		}
		return nil
	}))
	for _, m := range mutants(t) {
		of(m.rule).mutants = append(of(m.rule).mutants, m.breaks)
	}
	return rules
}

func parsed(t *testing.T, path string) (*token.FileSet, *ast.File) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	require.NoError(t, err)
	return set, file
}

func functions(t *testing.T, path string) (all []*ast.FuncDecl) {
	t.Helper()
	_, file := parsed(t, path)
	for _, d := range file.Decls {
		if f, is := d.(*ast.FuncDecl); is {
			all = append(all, f)
		}
	}
	return all
}

// commentsOf calls fn with each comment of a file, and with the name of the
// declaration that it is in or above.
func commentsOf(t *testing.T, path string, fn func(text, name string)) {
	t.Helper()
	_, file := parsed(t, path)
	for _, comment := range file.Comments {
		name := path
		for _, d := range file.Decls {
			if d.End() >= comment.End() { // the first one that does not end before it
				name = nameOf(d)
				break
			}
		}
		fn(comment.Text(), name)
	}
}

// nameOf is the name of a declaration; of a method, with its type.
func nameOf(d ast.Decl) string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			return d.Name.Name
		}
		of := d.Recv.List[0].Type
		if pointer, is := of.(*ast.StarExpr); is {
			of = pointer.X
		}
		return fmt.Sprint(of) + "." + d.Name.Name
	case *ast.GenDecl:
		switch spec := d.Specs[0].(type) {
		case *ast.TypeSpec:
			return spec.Name.Name
		case *ast.ValueSpec:
			return spec.Names[0].Name
		}
	}
	return ""
}

type mutant struct{ rule, breaks string }

// mutants returns those of mutants_test.go.
func mutants(t *testing.T) (all []mutant) {
	t.Helper()
	_, file := parsed(t, "mutants_test.go")
	ast.Inspect(file, func(n ast.Node) bool {
		literal, is := n.(*ast.CompositeLit)
		if !is || len(literal.Elts) != 5 {
			return true
		}
		var texts [2]string
		for i := range texts {
			if text, is := literal.Elts[i].(*ast.BasicLit); is && text.Kind == token.STRING {
				var err error
				texts[i], err = strconv.Unquote(text.Value)
				require.NoError(t, err)
			}
		}
		if aRule.MatchString(texts[0]) {
			all = append(all, mutant{texts[0], texts[1]})
		}
		return true
	})
	require.Greater(t, len(all), 30)
	return all
}
