package results

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestASectionIsReplacedAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "RESULTS.md")
	require.NoError(t, os.WriteFile(file, []byte("method\n<!-- one -->\nold\n<!-- end of one -->\n<!-- two -->\n<!-- end of two -->\n"), 0o600))
	require.NoError(t, Write(file, "one", "new\n"))
	require.NoError(t, Write(file, "one", "newer\n"))
	require.NoError(t, Write(file, "two", "second"))
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "method\n<!-- one -->\nnewer\n<!-- end of one -->\n<!-- two -->\nsecond\n<!-- end of two -->\n", string(page))
	require.ErrorContains(t, Write(file, "three", ""), "has no part")
}

func TestACountOfZeroHasABound(t *testing.T) {
	require.Equal(t, "0 (< 0.3 %)", Count(0, 1000./100, " %"))
	require.Equal(t, "2 (0.2 %)", Count(2, 1000./100, " %"))
	require.Equal(t, "0", Count(0, 0, " an hour"))
}
