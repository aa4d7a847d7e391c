package prominfuse_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The code in the README is part of a compiled example.
func TestReadmeHasTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	flat := strings.ReplaceAll(string(example), "\n\t", "\n")
	for _, block := range blocks {
		require.Contains(t, flat, block[1])
	}
}

// The table in the README lists the metrics of a fleet, and no others.
func TestReadmeHasTheMetrics(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	listed, shown := make(map[string]bool), make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `(infuse_\\w+)`").FindAllStringSubmatch(string(readme), -1) {
		listed[row[1]] = true
	}
	for _, s := range scrapeFleet(t) {
		shown[s.name] = true
	}
	require.Equal(t, shown, listed)
}
