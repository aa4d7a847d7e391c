package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }

func TestFleet(t *testing.T) {
	t.Parallel()
	requireFleet(t, run(t))
}

func TestFleetOnRedis(t *testing.T) {
	t.Parallel()
	requireFleet(t, run(t, "-redis", redistest.Start(t).Addr()))
}

func requireFleet(t *testing.T, out string) {
	for _, process := range []string{"1", "2", "3", "4", "5"} {
		require.Contains(t, out, "process "+process+" sees the circuit go from closed to open")
		require.Regexp(t, "process "+process+" sees the circuit go from (open|half-open) to closed", out) // a message is a hint: what is read may be a state later
	}
	require.Contains(t, out, "all go on")
}

// run builds and runs the program, within a minute.
func run(t *testing.T, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "fleet.exe")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err = exec.CommandContext(ctx, binary, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}
