package connectinfuse_test

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

// pingv1connect is what the generated code of a service looks like.
var pingv1connect struct {
	NewPingServiceClient  func(client connect.HTTPClient, url string, options ...connect.ClientOption) any
	NewPingServiceHandler func(service any, options ...connect.HandlerOption) (string, http.Handler)
}

func readme(url string, storage infuse.Storage) error {
	breakers, err := infuse.NewGroup(infuse.Config{Storage: storage})
	if err != nil {
		return err
	}
	defer breakers.Stop()
	client := pingv1connect.NewPingServiceClient(http.DefaultClient, url,
		connect.WithInterceptors(connectinfuse.New(breakers)))
	_ = client
	return nil
}

func readmeHandler(service any) {
	path, handler := pingv1connect.NewPingServiceHandler(service,
		connect.WithInterceptors(connectinfuse.HandlerInterceptor()))
	_, _ = path, handler
}

var _, _ = readme, readmeHandler

// TestReadmeCompiles finds the README's Go in this very file.
func TestReadmeCompiles(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("readme_test.go")
	require.NoError(t, err)
	code := strings.ReplaceAll(string(source), "\n\t", "\n") // as it is outside of a func
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		require.Contains(t, code, block[1])
	}
}
