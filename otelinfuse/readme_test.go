package otelinfuse_test

// This file tests the code and the table in README.md.

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/snippets"
	"github.com/infuse-go/infuse/otelinfuse"
)

func TestReadmeCompiles(t *testing.T) {
	require.Equal(t, 1, snippets.Build(t, "README.md"))
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
