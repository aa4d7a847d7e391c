package prominfuse_test

// This file tests the queries and the alerts in docs/operations.md.

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each metric, label and value in the queries of docs/operations.md exists in a running fleet.
func TestQueriesInDocsMatchTheMetrics(t *testing.T) {
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
			require.True(t, labels[name], "%s: label %s", expr, name)
		}
	}
}

// docs/operations.md describes each alert, and no others.
func TestOperationsHasEveryAlert(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	rules, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	names := func(pattern string, text []byte) (all []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			all = append(all, string(m[1]))
		}
		return all
	}
	alerts := names(`- alert: (\w+)`, rules)
	require.NotEmpty(t, alerts)
	require.ElementsMatch(t, alerts, names("(?m)^\\| `(Infuse\\w+)` \\|", page))
}
