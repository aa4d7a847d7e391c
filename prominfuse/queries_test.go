package prominfuse_test

// This file tests the queries of the alerts and of the dashboard.

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// query is an expression, with the texts that show its result.
type query struct {
	where string
	expr  string
	texts []string // a legend, annotations
}

type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert       string
			Expr        string
			Annotations map[string]string
		}
	}
}

func alertQueries(t *testing.T) (all []query) {
	text, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	var file ruleFile
	require.NoError(t, yaml.Unmarshal(text, &file))
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			all = append(all, query{"alert " + r.Alert, r.Expr, slices.Collect(maps.Values(r.Annotations))})
		}
	}
	require.NotEmpty(t, all)
	return all
}

type dashboard struct {
	Panels []struct {
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
	Templating struct {
		List []struct{ Name, Definition string }
	}
}

// anything replaces the variables, as Grafana does.
var anything = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$circuit", ".*")

func dashboardQueries(t *testing.T) (all []query) {
	text, err := os.ReadFile("grafana-dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d))
	for _, panel := range d.Panels {
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			all = append(all, query{"panel " + panel.Title, anything.Replace(target.Expr), []string{target.LegendFormat}})
		}
	}
	for _, v := range d.Templating.List {
		if inner, is := strings.CutPrefix(v.Definition, "label_values("); is {
			metric, label, _ := strings.Cut(strings.TrimSuffix(inner, ")"), ", ")
			all = append(all, query{"variable " + v.Name, anything.Replace(metric), []string{"{{" + label + "}}"}})
		}
	}
	require.NotEmpty(t, all)
	return all
}

var (
	selectors = regexp.MustCompile(`\b(infuse_\w+)(?:\{([^}]*)\})?`)
	matchers  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	groupings = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	shown     = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}`)
)

// Each metric, label and value in a query exists in a running fleet.
func TestQueriesMatchTheMetrics(t *testing.T) {
	scraped := scrapeFleet(t)
	for _, q := range append(alertQueries(t), dashboardQueries(t)...) {
		t.Run(q.where, func(t *testing.T) {
			labels := make(map[string]bool)
			asked := selectors.FindAllStringSubmatch(q.expr, -1)
			require.NotEmpty(t, asked)
			for _, s := range asked {
				found := selected(t, scraped, s[1], s[2])
				require.NotEmpty(t, found, s[0])
				for label := range found[0].labels {
					labels[label] = true
				}
			}
			for _, name := range labelsOf(q) {
				require.True(t, labels[name], "the label %s", name)
			}
		})
	}
}

// selected returns the samples that a selector finds.
func selected(t *testing.T, scraped []sample, name, inBraces string) (found []sample) {
	conditions := matchers.FindAllStringSubmatch(inBraces, -1)
	for _, s := range scraped {
		if s.name != name {
			continue
		}
		is := true
		for _, c := range conditions {
			value, has := s.labels[c[1]]
			require.True(t, has, "%s has no label %s", name, c[1])
			pattern := c[3]
			if !strings.HasSuffix(c[2], "~") {
				pattern = regexp.QuoteMeta(pattern)
			}
			is = is && regexp.MustCompile("^(?:"+pattern+")$").MatchString(value) != strings.HasPrefix(c[2], "!")
		}
		if is {
			found = append(found, s)
		}
	}
	return found
}

// labelsOf returns the labels by which a query groups, and those in its texts.
func labelsOf(q query) (all []string) {
	for _, g := range groupings.FindAllStringSubmatch(q.expr, -1) {
		for name := range strings.SplitSeq(g[1], ",") {
			all = append(all, strings.TrimSpace(name))
		}
	}
	for _, text := range q.texts {
		for _, s := range shown.FindAllStringSubmatch(text, -1) {
			all = append(all, s[1])
		}
	}
	return all
}

// promtool runs promtool, the checker of Prometheus.
func promtool(t *testing.T, args ...string) {
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is not installed: install Debian's package prometheus")
		}
		t.Skip("promtool is not installed")
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", "alerts.yml")
	promtool(t, "test", "rules", "alerts_test.yml")
}

// With the metrics of a running fleet, exactly the expected alerts fire, and each panel
// has data.
func TestAlertsAndPanelsOnARunningFleet(t *testing.T) {
	testRules(t, map[string]any{
		"interval":         "1m",
		"input_series":     lasting(scrapeFleet(t)),
		"promql_expr_test": append([]any{firing()}, panels(t)...),
	})
}

// testRules runs a test of the alert rules with promtool.
func testRules(t *testing.T, test map[string]any) {
	file := map[string]any{
		"rule_files":          []string{absolute(t, "alerts.yml")},
		"evaluation_interval": "1m",
		"tests":               []any{test},
	}
	text, err := yaml.Marshal(file)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "fleet_test.yml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	promtool(t, "test", "rules", path)
}

func absolute(t *testing.T, path string) string {
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

// day is slightly longer than the longest alert takes to fire, in minutes.
const day = 24*60 + 10

// lasting returns the samples as series that keep their values. Rejections continue.
func lasting(scraped []sample) (series []any) {
	for _, s := range scraped {
		step := 0
		if s.labels["outcome"] == "rejected" && s.value > 0 {
			step = 60
		}
		series = append(series, map[string]string{
			"series": s.String(),
			"values": fmt.Sprintf("%g+%dx%d", s.value, step, day),
		})
	}
	return series
}

func firing() any {
	var samples []any
	for _, labels := range []string{
		`{alertname="InfuseCircuitOpen", circuit="failing"}`,
		`{alertname="InfuseCircuitOpenInManyProcesses", circuit="partitioned"}`,
		`{alertname="InfuseOverrideOld", circuit="forced"}`,
		`{alertname="InfuseRejectedShareHigh", circuit="forced"}`,
		`{alertname="InfuseRejectedShareHigh", circuit="failing"}`,
		`{alertname="InfuseRejectedShareHigh", circuit="partitioned"}`,
		`{alertname="InfuseStorageUnavailable"}`,
	} {
		samples = append(samples, map[string]any{"labels": labels, "value": 1})
	}
	return evaluated(`count by (alertname, circuit) (ALERTS{alertstate="firing"})`, samples...)
}

// panels returns a check of each panel: its query is valid, and returns data.
func panels(t *testing.T) (all []any) {
	for _, q := range dashboardQueries(t) {
		found := map[string]any{"labels": "{}", "value": 1}
		all = append(all, evaluated("count("+q.expr+") > bool 0", found))
	}
	return all
}

func evaluated(expr string, samples ...any) any {
	return map[string]any{"expr": expr, "eval_time": fmt.Sprintf("%dm", day-5), "exp_samples": samples}
}
