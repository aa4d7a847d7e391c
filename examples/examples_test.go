// Package examples tests the example programs: their output must be correct.
package examples

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/stretchr/testify/require"
)

func TestQuickstart(t *testing.T) {
	t.Parallel()
	const ending = "35 calls, 17 reached the server, 18 rejected\n"
	out := run(t, "quickstart")
	for tries := 1; tries < 3 && !strings.HasSuffix(out, ending); tries++ {
		requireQuickstart(t, out) // the machine delayed a call, so the trial came one call earlier
		out = run(t, "quickstart")
	}
	requireQuickstart(t, out)
	require.True(t, strings.HasSuffix(out, ending), out)
	require.Contains(t, out, "closed -> open")
	require.Contains(t, out, "half-open -> closed")
	require.LessOrEqual(t, strings.Count(out, "\n"), 20, out)
}

func TestQuickstartOnRedis(t *testing.T) {
	t.Parallel()
	out := run(t, "quickstart", "-redis", redistest.Start(t).Addr())
	requireQuickstart(t, out)
	require.Contains(t, out, "half-open -> closed")
}

var calls = regexp.MustCompile(`(?m)(\d+) GET .* (reached the server|never sent)$`)

// requireQuickstart checks that the last line is the sum of the others.
func requireQuickstart(t *testing.T, out string) {
	t.Helper()
	sum := make(map[string]int)
	for _, m := range calls.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		sum[m[2]] += n
	}
	reached, rejected := sum["reached the server"], sum["never sent"]
	last := fmt.Sprintf("%d calls, %d reached the server, %d rejected\n", reached+rejected, reached, rejected)
	require.True(t, strings.HasSuffix(out, last), "%s\ndoes not end with %s", out, last)
	require.Equal(t, 35, reached+rejected)
	require.NotZero(t, rejected)
}

// run builds and runs a program of this folder, for at most a minute.
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
