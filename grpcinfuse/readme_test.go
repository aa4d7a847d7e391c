package grpcinfuse_test

// This file tests the code in README.md.

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
	"github.com/infuse-go/infuse/internal/snippets"
)

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

var _, _ = readmeServer, readmeBackends

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
