package prominfuse_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The queries of docs/operations.md ask for what a fleet shows.
func TestRolloutAsksForWhatThereIs(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	found := regexp.MustCompile("\\| `([^`]*infuse_[^`]*)` \\|").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(found), 6)
	scraped := scrapeFleet(t)
	for _, f := range found {
		expr := strings.ReplaceAll(f[1], `\|`, "|")
		labels := map[string]bool{"instance": true, "job": true} // those of Prometheus
		for _, s := range selectors.FindAllStringSubmatch(expr, -1) {
			samples := selected(t, scraped, s[1], s[2])
			require.NotEmpty(t, samples, expr)
			for label := range samples[0].labels {
				labels[label] = true
			}
		}
		for _, name := range labelsOf(query{expr: expr}) {
			require.True(t, labels[name], "%s: the label %s", expr, name)
		}
	}
}
