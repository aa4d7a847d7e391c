package connectinfuse_test

// This file tests the names of circuits.

import (
	"context"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func TestHostHasOneName(t *testing.T) {
	for addr, name := range map[string]string{
		"inventory.internal":      "inventory.internal",
		"Inventory.Internal.:443": "inventory.internal",
		"inventory.internal:80":   "inventory.internal",
		"inventory.internal:8443": "inventory.internal:8443",
		"[2001:DB8::1]:8443":      "[2001:db8::1]:8443",
		"[2001:db8::1]":           "[2001:db8::1]",
		"127.0.0.1:50051":         "127.0.0.1:50051",
	} {
		require.Equal(t, name, connectinfuse.HostName(addr), addr)
	}
}

func TestCircuitByMethod(t *testing.T) {
	f := start(t, &service{unary: unhealthy, server: sends(1, nil)}, connectinfuse.WithCircuit(connectinfuse.ByMethod))
	require.Error(t, f.call())
	require.Error(t, f.call())
	require.Equal(t, f.address+"/test.Test/Unary", requireRejected(t, f.call()).Circuit)
	require.NoError(t, kinds["server"](f))
}

func TestCallBypassesTheBreakers(t *testing.T) {
	nameless := func(context.Context, string, string) string { return "" }
	f := start(t, &service{unary: unhealthy, server: sends(1, nil)}, connectinfuse.WithCircuit(nameless))
	f.setState(infuse.StateOpen)
	for range 5 {
		require.NotErrorIs(t, f.call(), infuse.ErrOpen)
	}
	require.NoError(t, kinds["server"](f))
	f.requireCounts(0, 0, 0)
}

func TestTwoProcessesShareACircuit(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	f := startWith(t, &service{unary: unhealthy}, infuse.Config{Storage: storage})
	other, err := infuse.NewGroup(infuse.Config{Storage: storage})
	require.NoError(t, err)
	defer other.Stop()
	b, err := other.Breaker(f.address)
	require.NoError(t, err)
	for b.State() == infuse.StateClosed {
		_ = f.call()
		f.interceptor, f.group = connectinfuse.New(other), other // the next call belongs to the other process
	}
	requireRejected(t, f.call())
}

func TestWithoutAGroup(t *testing.T) {
	f := start(t, &service{unary: unhealthy})
	f.interceptor = connectinfuse.New(nil)
	for range 5 {
		require.NotErrorIs(t, f.call(), infuse.ErrOpen)
	}
	requireRejected(t, f.call())
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(f.call()))
}
