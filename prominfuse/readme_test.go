package prominfuse_test

// This file tests the code and the table in README.md.

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/snippets"
)

func TestReadmeCompiles(t *testing.T) {
	require.Equal(t, 1, snippets.Build(t, "README.md"))
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
