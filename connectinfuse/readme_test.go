package connectinfuse_test

// This file tests the code in README.md.

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/connectinfuse"
	"github.com/infuse-go/infuse/internal/snippets"
)

// pingv1connect stands for the generated code of a service.
var pingv1connect struct {
	NewPingServiceHandler func(service any, options ...connect.HandlerOption) (string, http.Handler)
}

func readmeHandler(service any) {
	path, handler := pingv1connect.NewPingServiceHandler(service,
		connect.WithInterceptors(connectinfuse.HandlerInterceptor()))
	_, _ = path, handler
}

var _ = readmeHandler

// The program in the README compiles. The other code in the README is part of this file.
func TestReadmeCompiles(t *testing.T) {
	require.Equal(t, 1, snippets.Build(t, "README.md"))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("readme_test.go")
	require.NoError(t, err)
	code := strings.ReplaceAll(string(source), "\n\t", "\n") // without the indentation of a func
	for _, block := range regexp.MustCompile("(?ms)^```go\n(.*?)^```").FindAllStringSubmatch(string(readme), -1) {
		if !strings.HasPrefix(block[1], "package ") {
			require.Contains(t, code, block[1])
		}
	}
}
