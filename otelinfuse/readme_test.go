package otelinfuse_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/otelinfuse"
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

// The table in the README lists the metrics with their units, and no others.
func TestReadmeHasTheMetrics(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	listed, shown := make(map[string]string), make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `(infuse[.\\w]+)` \\| \\w+ \\| `(.+?)`").FindAllStringSubmatch(string(readme), -1) {
		listed[row[1]] = row[2]
	}
	group := newGroup(t, infuse.Config{CountCalls: true})
	require.NoError(t, breakerOf(t, group, "prices").Call(t.Context(), succeeds))
	for _, m := range collect(t, start(t, group, otelinfuse.WithTransitions(new(otelinfuse.Transitions)))) {
		shown[m.Name] = m.Unit
	}
	require.Equal(t, shown, listed)
}
