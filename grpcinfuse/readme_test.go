package grpcinfuse_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/credentials"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func readme(target string, credentials credentials.TransportCredentials, storage infuse.Storage) error {
	breakers, err := infuse.NewGroup(infuse.Config{Storage: storage})
	if err != nil {
		return err
	}
	defer breakers.Stop()
	calls := grpcinfuse.New(breakers)
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials),
		grpc.WithChainUnaryInterceptor(calls.Unary),
		grpc.WithChainStreamInterceptor(calls.Stream))
	_ = conn
	return err
}

func readmeServer() {
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcinfuse.UnaryServer),
		grpc.ChainStreamInterceptor(grpcinfuse.StreamServer))
	_ = server
}

func readmeBackends(target string, credentials credentials.TransportCredentials, breakers *infuse.Group) {
	backends := grpcinfuse.NewBackends("infuse", breakers)
	balancer.Register(backends) // once, at the beginning of main
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"infuse": {}}]}`),
		grpc.WithChainUnaryInterceptor(backends.Unary),
		grpc.WithChainStreamInterceptor(backends.Stream))
	_, _ = conn, err
}

var _, _, _ = readme, readmeServer, readmeBackends

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
