// Package house tests the shape of the project: its files, the references between
// them, and how many names it exports.
package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
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

// TestTheRootIsSmall: the files of the root show the architecture.
func TestTheRootIsSmall(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	require.NoError(t, err)
	tests := 0
	for _, file := range files {
		if name := filepath.Base(file); strings.HasSuffix(name, "_test.go") {
			tests++
		} else {
			require.Contains(t, layers, name, "a file without a layer")
		}
	}
	require.LessOrEqual(t, len(layers), 24, "source files in the root")
	require.LessOrEqual(t, tests, 24, "test files in the root")
}

// maxLines is the maximum number of lines of a Go file, except those in long.
const maxLines = 500

var long = map[string]string{
	"state.go":   "the rules of a record, which a reader must compare",
	"replica.go": "every decision of a process",
}

func TestFilesAreShort(t *testing.T) {
	found := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "node_modules") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		found++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		lines := bytes.Count(text, []byte("\n"))
		if _, mayBeLong := long[filepath.ToSlash(name)]; mayBeLong {
			assert.Greater(t, lines, maxLines, "%s need not be an exception", name)
		} else {
			assert.LessOrEqual(t, lines, maxLines, "lines of %s", name)
		}
		return err
	})
	require.NoError(t, err)
	require.Greater(t, found, 200, "Go files")
}

// TestExportedNames: users of the root meet few names. Those that doc.go lists for
// authors of a Storage do not count.
func TestExportedNames(t *testing.T) {
	docs, err := os.ReadFile(filepath.Join(root, "doc.go"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(docs), "\n// # For authors of a Storage\n")
	require.True(t, found)
	forAuthors := make(map[string]bool)
	for _, name := range regexp.MustCompile(`\[(\w+)\]`).FindAllStringSubmatch(section, -1) {
		forAuthors[name[1]] = true
	}
	var forUsers []string
	files := token.NewFileSet()
	for _, name := range layers {
		f, err := parser.ParseFile(files, filepath.Join(root, name), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, name := range declared(f) {
			if ast.IsExported(name) && !forAuthors[name] {
				forUsers = append(forUsers, name)
			}
			delete(forAuthors, name)
		}
	}
	slices.Sort(forUsers)
	t.Log(len(forUsers), forUsers)
	require.LessOrEqual(t, len(forUsers), 45, "%s", forUsers)
	require.Empty(t, forAuthors, "doc.go lists names that the package does not have")
}

// declared returns the names that a file declares in the package block.
func declared(f *ast.File) (names []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names = append(names, spec.Name.Name)
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

type empty struct{}

func (empty) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, path[strings.LastIndex(path, "/")+1:])
	p.MarkComplete()
	return p, nil
}
