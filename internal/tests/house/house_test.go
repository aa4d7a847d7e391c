// Package house tests the shape of the project: its files, the references between
// them, and how many names it exports.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../../.."

// layers are the source files of the root, from the top down: a file refers to those
// after it.
var layers = []string{
	"doc.go",
	"roundtripper.go", "body.go", "outcome.go",
	"group.go", "permit.go", "manual.go", "breaker.go", "circuit.go", "link.go",
	"storage_redis.go", "storage_redis_read.go", "storage_memory.go", "storage_call.go",
	"view.go", "outbox.go", "replica.go", "codec.go",
	"config.go", "storage.go", "listener.go", "errors.go", "state.go", "window.go",
}

// upwards are the references that run upwards, with the reason.
var upwards = map[string]string{
	"circuit.go breaker.go":      "circuit.go has the methods of Breaker that hold its lock",
	"link.go breaker.go":         "a link keeps the breakers that use it",
	"listener.go breaker.go":     "the funcs of a Listener receive the Breaker",
	"link.go circuit.go":         "answers come up as inputs of the circuits",
	"replica.go outbox.go":       "the outbox is a part of the replica",
	"config.go view.go":          "healthy circuits with the same settings share one view",
	"replica.go view.go":         "an admission has the view that admitted the call",
	"body.go roundtripper.go":    "body.go and outcome.go have the parts of an exchange",
	"outcome.go roundtripper.go": "the same",
}

func TestReferencesRunDownwards(t *testing.T) {
	files := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range layers {
		f, err := parser.ParseFile(files, filepath.Join(root, name), nil, 0)
		require.NoError(t, err)
		parsed = append(parsed, f)
	}
	// Other packages are not compiled: their names are unknown, which does not matter.
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	config := types.Config{Importer: empty{}, Error: func(error) {}}
	pkg, _ := config.Check("infuse", files, parsed, info)
	fileOf := func(p token.Pos) string { return filepath.Base(files.Position(p).Filename) }
	edges := make(map[[2]string]string)
	for used, o := range info.Uses {
		if o.Pkg() == pkg && isNamed(o, pkg) && fileOf(used.Pos()) != fileOf(o.Pos()) {
			edges[[2]string{fileOf(used.Pos()), fileOf(o.Pos())}] = o.Name()
		}
	}
	require.Greater(t, len(edges), 100, "the references were not found")
	found := make(map[string]bool)
	for e, name := range edges {
		if slices.Index(layers, e[0]) < slices.Index(layers, e[1]) {
			continue
		}
		key := e[0] + " " + e[1]
		found[key] = true
		require.Contains(t, upwards, key, "%s refers upwards to %s in %s", e[0], name, e[1])
	}
	for key := range upwards {
		require.Contains(t, found, key, "this exception is not needed any more")
	}
}

// isNamed reports whether o is declared in the package block, a method or a field.
func isNamed(o types.Object, pkg *types.Package) bool {
	switch o := o.(type) {
	case *types.Var:
		return o.Parent() == pkg.Scope() || o.IsField()
	case *types.Func:
		return true
	}
	return o.Parent() == pkg.Scope()
}

type empty struct{}

func (empty) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, path[strings.LastIndex(path, "/")+1:])
	p.MarkComplete()
	return p, nil
}
