// Package examples runs the example programs, so that they stay true.
package examples

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/stretchr/testify/require"
)

func TestQuickstart(t *testing.T) {
	t.Parallel()
	out := run(t, "quickstart")
	require.Contains(t, out, "closed -> open")
	require.Contains(t, out, "was never sent")
	require.Contains(t, out, "half-open -> closed")
}

func TestQuickstartOnRedis(t *testing.T) {
	t.Parallel()
	out := run(t, "quickstart", "-redis", redistest.Start(t).Addr())
	require.Contains(t, out, "half-open -> closed")
}

func TestFleet(t *testing.T) {
	t.Parallel()
	requireFleet(t, run(t, "fleet"))
}

func TestFleetOnRedis(t *testing.T) {
	t.Parallel()
	requireFleet(t, run(t, "fleet", "-redis", redistest.Start(t).Addr()))
}

func requireFleet(t *testing.T, out string) {
	for _, process := range []string{"1", "2", "3", "4", "5"} {
		require.Contains(t, out, "process "+process+" sees the circuit go from closed to open")
		require.Contains(t, out, "process "+process+" sees the circuit go from half-open to closed")
	}
	require.Contains(t, out, "all go on")
}

// run builds and runs a program of this folder, within a minute.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name+".exe")
	out, err := exec.Command("go", "build", "-o", binary, "./"+name).CombinedOutput()
	require.NoError(t, err, "%s", out)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err = exec.CommandContext(ctx, binary, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}
