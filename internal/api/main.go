// Api writes the exported API of each published package to the folder api, with one line
// for each name, field and method. A diff then shows every change of the API.
//
//	go run ./internal/api          # in the root of the repository
//	go run ./internal/api -check   # fails if a file differs
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/constant"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const root = "github.com/infuse-go/infuse"

// packages are the published packages, with the folders of their modules.
var packages = []struct{ path, module string }{
	{root, "."},
	{root + "/ops", "."},
	{root + "/storagetest", "."},
	{root + "/connectinfuse", "connectinfuse"},
	{root + "/grpcinfuse", "grpcinfuse"},
	{root + "/otelinfuse", "otelinfuse"},
	{root + "/prominfuse", "prominfuse"},
	{root + "/pybreakerstorage", "pybreakerstorage"},
}

func main() {
	log.SetFlags(0)
	check := flag.Bool("check", false, "compare the files, do not write them")
	flag.Parse()
	different := false
	for _, p := range packages {
		pkg, err := load(p.path, p.module)
		if err != nil {
			log.Fatalf("api: %s: %v", p.path, err)
		}
		file := filepath.Join("api", path.Base(p.path)+".txt")
		features := featuresOf(pkg)
		if !*check {
			if err := os.WriteFile(file, []byte(strings.Join(features, "\n")+"\n"), 0o644); err != nil {
				log.Fatal("api: ", err)
			}
			continue
		}
		recorded, err := os.ReadFile(file)
		if err != nil {
			log.Fatal("api: ", err)
		}
		for _, line := range difference(strings.Split(strings.TrimSuffix(string(recorded), "\n"), "\n"), features) {
			different = true
			fmt.Printf("%s: %s\n", file, line)
		}
	}
	if different {
		log.Fatal("api: the exported API differs from the folder api: run make api, and commit its diff if you mean it")
	}
}

// difference returns the lines that are in only one of the lists.
func difference(old, current []string) (lines []string) {
	for _, line := range old {
		if !slices.Contains(current, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range current {
		if !slices.Contains(old, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return lines
}

// load reads the export data of a package.
func load(importPath, module string) (*types.Package, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Export", importPath)
	cmd.Dir, cmd.Stderr = module, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	exports := make(map[string]string)
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var listed struct{ ImportPath, Export string }
		err := decoder.Decode(&listed)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		exports[listed.ImportPath] = listed.Export
	}
	open := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	return importer.ForCompiler(token.NewFileSet(), "gc", open).Import(importPath)
}

// featuresOf returns the lines of a package, sorted.
func featuresOf(pkg *types.Package) []string {
	var features []string
	add := func(format string, args ...any) { features = append(features, fmt.Sprintf(format, args...)) }
	text := func(t types.Type) string {
		return types.TypeString(t, func(other *types.Package) string {
			if other == pkg {
				return ""
			}
			return other.Name()
		})
	}
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		switch object := object.(type) {
		case *types.Const:
			add("const %s %s = %s", name, text(object.Type()), valueOf(object))
		case *types.Var:
			add("var %s %s", name, text(object.Type()))
		case *types.Func:
			add("func %s%s", name, strings.TrimPrefix(text(unnamed(object.Signature())), "func"))
		case *types.TypeName:
			addType(object, add, text)
		}
	}
	slices.Sort(features)
	return features
}

func valueOf(c *types.Const) string {
	if c.Val().Kind() == constant.String {
		return c.Val().ExactString()
	}
	return c.Val().String()
}

func addType(name *types.TypeName, add func(string, ...any), text func(types.Type) string) {
	if name.IsAlias() {
		add("type %s = %s", name.Name(), text(types.Unalias(name.Type())))
		return
	}
	addMethods(name, add, text)
	switch underlying := name.Type().Underlying().(type) {
	case *types.Struct:
		add("type %s struct", text(name.Type()))
		for field := range underlying.Fields() {
			if field.Exported() {
				embedded := ""
				if field.Embedded() {
					embedded = "embedded "
				}
				add("type %s struct, %s%s %s", name.Name(), embedded, field.Name(), text(field.Type()))
			}
		}
	case *types.Interface:
		add("type %s interface", text(name.Type()))
		for method := range underlying.Methods() {
			if method.Exported() {
				add("type %s interface, %s%s", name.Name(), method.Name(), strings.TrimPrefix(text(unnamed(method.Signature())), "func"))
			} else {
				add("type %s interface, unexported methods", name.Name())
			}
		}
	default:
		add("type %s %s", text(name.Type()), text(underlying))
	}
}

// addMethods adds all methods of a type that is not an interface, including promoted
// methods.
func addMethods(name *types.TypeName, add func(string, ...any), text func(types.Type) string) {
	if types.IsInterface(name.Type()) {
		return
	}
	byValue := types.NewMethodSet(name.Type())
	for selection := range types.NewMethodSet(types.NewPointer(name.Type())).Methods() {
		method := selection.Obj().(*types.Func)
		if !method.Exported() {
			continue
		}
		receiver := "*" + name.Name()
		if byValue.Lookup(method.Pkg(), method.Name()) != nil {
			receiver = name.Name()
		}
		add("method (%s) %s%s", receiver, method.Name(), strings.TrimPrefix(text(unnamed(method.Signature())), "func"))
	}
}

// unnamed returns a signature without the names of parameters and results, which are not
// part of the API. Generic signatures keep them.
func unnamed(s *types.Signature) *types.Signature {
	if s.TypeParams() != nil {
		return s
	}
	without := func(tuple *types.Tuple) *types.Tuple {
		var vars []*types.Var
		for v := range tuple.Variables() {
			vars = append(vars, types.NewParam(token.NoPos, v.Pkg(), "", v.Type()))
		}
		return types.NewTuple(vars...)
	}
	return types.NewSignatureType(nil, nil, nil, without(s.Params()), without(s.Results()), s.Variadic())
}
