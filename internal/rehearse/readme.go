package main

// This file makes Go files of the code in a README.

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// packages are the imports of README blocks, by name.
var packages = map[string]string{
	"balancer":         "google.golang.org/grpc/balancer",
	"connect":          "connectrpc.com/connect",
	"connectinfuse":    root + "/connectinfuse",
	"context":          "context",
	"errors":           "errors",
	"fmt":              "fmt",
	"grpc":             "google.golang.org/grpc",
	"grpcinfuse":       root + "/grpcinfuse",
	"http":             "net/http",
	"infuse":           root,
	"log":              "log",
	"otel":             "go.opentelemetry.io/otel",
	"otelhttp":         "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",
	"otelinfuse":       root + "/otelinfuse",
	"prometheus":       "github.com/prometheus/client_golang/prometheus",
	"prominfuse":       root + "/prominfuse",
	"promhttp":         "github.com/prometheus/client_golang/prometheus/promhttp",
	"pybreakerstorage": root + "/pybreakerstorage",
	"redis":            "github.com/redis/go-redis/v9",
	"time":             "time",
}

// given are the variables that README blocks use without a declaration.
var given = map[string]string{
	"connectinfuse": `package readme

import (
	"net/http"

	"connectrpc.com/connect"
	"github.com/infuse-go/infuse"
)

var (
	storage infuse.Storage
	url     string
	service any
)

// Stands for the generated code of a service.
var pingv1connect struct {
	NewPingServiceClient  func(connect.HTTPClient, string, ...connect.ClientOption) any
	NewPingServiceHandler func(any, ...connect.HandlerOption) (string, http.Handler)
}
`,
	"grpcinfuse": `package readme

import (
	"github.com/infuse-go/infuse"
	transport "google.golang.org/grpc/credentials"
)

var (
	breakers    *infuse.Group
	storage     infuse.Storage
	target      string
	credentials transport.TransportCredentials
)
`,
	"pybreakerstorage": `package readme

import "github.com/redis/go-redis/v9"

var redisClient *redis.Client
`,
}

var block = regexp.MustCompile("(?ms)^```go\n(.*?)^```")

// readmeFiles returns Go files with the blocks of a module's README.
func readmeFiles(module string) (files map[string]string, blocks int, err error) {
	text, err := os.ReadFile(filepath.Join(module, "README.md"))
	if err != nil {
		return nil, 0, err
	}
	files = make(map[string]string)
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		blocks++
		name := fmt.Sprintf("block%d", blocks)
		if strings.HasPrefix(m[1], "package main\n") {
			files[name+"/main.go"] = m[1]
			continue
		}
		source, err := fragment(name, m[1])
		if err != nil {
			return nil, 0, fmt.Errorf("%s/README.md: %w", module, err)
		}
		files[name+".go"] = source
		if variables, ok := given[module]; ok {
			files["given.go"] = variables
		}
	}
	if blocks == 0 {
		return nil, 0, errors.New(module + "/README.md: no Go")
	}
	return files, blocks, nil
}

// fragment makes a file of statements, with the imports that they need, and a use of each
// variable.
func fragment(name, statements string) (string, error) {
	source := func(imports, uses string) string {
		return fmt.Sprintf("package readme\n\n%s\nfunc %s() error {\n%s%s\treturn nil\n}\n\nvar _ = %[2]s\n", imports, name, statements, uses)
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), name+".go", source("", ""), 0)
	if err != nil {
		return "", err
	}
	var imports, uses strings.Builder
	var imported []string
	for _, unresolved := range parsed.Unresolved {
		path, ok := packages[unresolved.Name]
		if ok && !slices.Contains(imported, path) {
			imported = append(imported, path)
			fmt.Fprintf(&imports, "import %s %q\n", unresolved.Name, path)
		}
	}
	for _, statement := range parsed.Decls[0].(*ast.FuncDecl).Body.List {
		if define, ok := statement.(*ast.AssignStmt); ok && define.Tok == token.DEFINE {
			for _, variable := range define.Lhs {
				fmt.Fprintf(&uses, "\t_ = %s\n", variable.(*ast.Ident).Name)
			}
		}
	}
	return source(imports.String(), uses.String()), nil
}
