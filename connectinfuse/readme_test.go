package connectinfuse_test

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

// pingv1connect is what the generated code of a service looks like.
var pingv1connect struct {
	NewPingServiceHandler func(service any, options ...connect.HandlerOption) (string, http.Handler)
}

func readmeHandler(service any) {
	path, handler := pingv1connect.NewPingServiceHandler(service,
		connect.WithInterceptors(connectinfuse.HandlerInterceptor()))
	_, _ = path, handler
}

var _ = readmeHandler

// TestReadmeCompiles compiles the README's program, and finds its other code in this
// very file.
func TestReadmeCompiles(t *testing.T) {
	require.Equal(t, 1, snippets.Build(t, "README.md"))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("readme_test.go")
	require.NoError(t, err)
	code := strings.ReplaceAll(string(source), "\n\t", "\n") // as it is outside of a func
	for _, block := range regexp.MustCompile("(?ms)^```go\n(.*?)^```").FindAllStringSubmatch(string(readme), -1) {
		if !strings.HasPrefix(block[1], "package ") {
			require.Contains(t, code, block[1])
		}
	}
}
