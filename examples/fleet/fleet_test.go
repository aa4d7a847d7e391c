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
		require.Contains(t, out, "process "+process+": circuit closed -> open")
		require.Regexp(t, "process "+process+": circuit (open|half-open) -> closed", out) // the record may have changed again since the message
	}
	require.Contains(t, out, "all processes continue")
}

// run builds and runs the program, for at most a minute.
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
