package grpcinfuse_test

// This file tests the names of circuits.

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func TestTargetHasOneName(t *testing.T) {
	for target, name := range map[string]string{
		"dns:///inventory.internal:8443":      "inventory.internal:8443",
		"dns:///Inventory.Internal.:443":      "inventory.internal",
		"dns:///inventory.internal":           "inventory.internal",
		"dns:inventory.internal:8443":         "inventory.internal:8443",
		"dns://8.8.8.8/inventory.internal:80": "inventory.internal:80",
		"passthrough:///127.0.0.1:50051":      "127.0.0.1:50051",
		"dns:///[2001:DB8::1]:50051":          "[2001:db8::1]:50051",
		"dns:///[2001:db8::1]:443":            "[2001:db8::1]",
		"dns:///2001:db8::1":                  "[2001:db8::1]",
		"unix:///run/inventory.sock":          "unix:///run/inventory.sock",
		"xds:///inventory":                    "xds:///inventory",
		"dns:///":                             "dns:///",
	} {
		require.Equal(t, name, grpcinfuse.NameOf(target), target)
	}
}

func TestSpellingsShareACircuit(t *testing.T) {
	f := start(t, &service{unary: unhealthy})
	for _, target := range []string{"dns:///" + f.address, "passthrough:///" + f.address} {
		client := testpb.NewTestServiceClient(dial(t, target, grpcinfuse.New(f.group)))
		_, err := client.EmptyCall(f.ctx, new(testpb.Empty))
		require.Error(t, err)
	}
	requireRejected(t, f.call())
}

func TestTwoProcessesShareACircuit(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	f := startWith(t, &service{unary: healthy}, infuse.Config{Storage: storage})
	other, err := infuse.NewGroup(infuse.Config{Storage: storage})
	require.NoError(t, err)
	defer other.Stop()
	client := testpb.NewTestServiceClient(dial(t, f.address, grpcinfuse.New(other)))
	call := func() error {
		_, err := client.EmptyCall(f.ctx, new(testpb.Empty))
		return err
	}
	require.NoError(t, call())
	f.setState(infuse.StateOpen)
	require.Eventually(t, func() bool { return call() != nil }, patience, time.Millisecond)
	requireRejected(t, call())
	f.setState(infuse.StateClosed)
	require.Eventually(t, func() bool { return call() == nil }, patience, time.Millisecond)
}

func TestCircuitByMethod(t *testing.T) {
	f := start(t, &service{unary: unhealthy}, grpcinfuse.WithCircuit(grpcinfuse.ByMethod))
	require.Error(t, f.call())
	require.Error(t, f.call())
	require.Equal(t, f.address+testpb.TestService_EmptyCall_FullMethodName, requireRejected(t, f.call()).Circuit)
	_, err := f.UnaryCall(f.ctx, new(testpb.SimpleRequest))
	require.NoError(t, err)
}

func TestCallBypassesTheBreakers(t *testing.T) {
	nameless := func(context.Context, string, string) string { return "" }
	f := start(t, &service{unary: unhealthy, server: sends(1, nil)}, grpcinfuse.WithCircuit(nameless))
	f.setState(infuse.StateOpen)
	for range 5 {
		require.NotErrorIs(t, f.call(), infuse.ErrOpen)
	}
	n, err := f.drain(f.serverStream())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	f.requireCounts(0, 0, 0)
}

func TestWithoutAGroup(t *testing.T) {
	_, address := serve(t, &service{unary: unhealthy}, "127.0.0.1:0")
	client := testpb.NewTestServiceClient(dial(t, address, grpcinfuse.New(nil)))
	for range 5 {
		_, err := client.EmptyCall(context.Background(), new(testpb.Empty))
		require.NotErrorIs(t, err, infuse.ErrOpen)
	}
	_, err := client.EmptyCall(context.Background(), new(testpb.Empty))
	requireRejected(t, err)
}
