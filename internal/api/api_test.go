package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"testing"

	"github.com/stretchr/testify/require"
)

const before = `package p

const Limit = 3

var Default *T

type T struct {
	inner
	Name  string
	count int
}

type inner struct{}

func (inner) Promoted(n int) error { return nil }
func (inner) hidden()              {}
func (*T) Close() (err error)      { return nil }

type Storage interface {
	Load(name string) (T, error)
	own()
}

type Option func(*T)

func New(name string, options ...Option) *T { return nil }
func Map[K comparable](keys []K) K           { return keys[0] }
func unexported()                            {}
`

func TestFeatures(t *testing.T) {
	require.Equal(t, []string{
		"const Limit untyped int = 3",
		"func Map[K comparable](keys []K) K",
		"func New(string, ...Option) *T",
		"method (*T) Close() error",
		"method (T) Promoted(int) error",
		"type Option func(*T)",
		"type Storage interface",
		"type Storage interface, Load(string) (T, error)",
		"type Storage interface, unexported methods",
		"type T struct",
		"type T struct, Name string",
		"var Default *T",
	}, featuresOf(compile(t, before)))
}

func TestDifference(t *testing.T) {
	require.Empty(t, difference([]string{"func A()", "func B()"}, []string{"func A()", "func B()"}))
	require.Equal(t, []string{"- func B()", "+ func B(int)"}, difference([]string{"func A()", "func B()"}, []string{"func A()", "func B(int)"}))
}

func compile(t *testing.T, source string) *types.Package {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "p.go", source, 0)
	require.NoError(t, err)
	pkg, err := new(types.Config).Check("p", files, []*ast.File{file}, nil)
	require.NoError(t, err)
	return pkg
}
