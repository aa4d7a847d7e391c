package infuse_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const recipes = "docs/recipes.md"

var (
	recipeTest   = regexp.MustCompile("(?m)^\\| (\\d+) \\| `(\\w+)` \\| \\[[^]]*\\]\\(\\.\\./([^)]*)\\) \\|$")
	notOfBreaker = regexp.MustCompile(`^([})\],]*|//.*|"[^"]*": \{.*|if err != nil \{.*|return (nil, |infuse\.Config\{\}, |false, )?err|for \{|.*context\.WithTimeout.*|defer cancel\(\)|require\.(NoError\(t, err\)|Equal.*))$`)
)

// TestRecipes: each recipe has a test, each block of Go of it is part of the code
// beside that test, and it has at most 6 lines for the breaker.
func TestRecipes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(recipes)
	require.NoError(t, err)
	sources := make(map[string]string) // by number
	for _, m := range recipeTest.FindAllStringSubmatch(string(text), -1) {
		file, err := os.ReadFile(m[3])
		require.NoError(t, err)
		require.Contains(t, string(file), "func "+m[2]+"(", m[3])
		all, err := filepath.Glob(filepath.Join(filepath.Dir(m[3]), "*.go"))
		require.NoError(t, err)
		for _, path := range all {
			source, err := os.ReadFile(path)
			require.NoError(t, err)
			sources[m[1]] += unindented(string(source))
		}
	}
	sections := regexp.MustCompile(`(?m)^## (\d+)\. `).Split(string(text), -1)[1:]
	require.Len(t, sections, 17)
	require.Len(t, sources, 17)
	numbers := regexp.MustCompile(`(?m)^## (\d+)\. `).FindAllStringSubmatch(string(text), -1)
	for i, section := range sections {
		number := numbers[i][1]
		for _, part := range strings.Split(section, "\n\n**") { // a section may have two recipes
			lines := 0
			for _, block := range goBlock.FindAllStringSubmatch(part, -1) {
				code := unindented(block[1])
				require.True(t, strings.Contains(sources[number], code), "recipe %s is not in the code of its test:\n%s", number, block[1])
				for line := range strings.Lines(code) {
					if !notOfBreaker.MatchString(strings.TrimSpace(line)) {
						lines++
					}
				}
			}
			t.Logf("recipe %s: %d lines", number, lines)
			require.LessOrEqual(t, lines, 6, "recipe %s", number)
		}
	}
}

// unindented returns the lines without the space around them and before comments.
func unindented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

// TestRunbookHasTheLogLines: the lines that docs/runbook.md explains are those of
// LogListener.
func TestRunbookHasTheLogLines(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("docs/runbook.md")
	require.NoError(t, err)
	source, err := os.ReadFile("listener.go")
	require.NoError(t, err)
	explained := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]*?)( …[^`]*)?` (?:\\(\\w+\\) )?\\|").FindAllStringSubmatch(string(runbook), -1) {
		explained[m[1]] = true
	}
	logged := regexp.MustCompile(`(?:slog|logger)\.(?:Log\(.*?, level, |Warn\(|Info\(|Error\()"([^"]*)"`).FindAllStringSubmatch(string(source), -1)
	require.Len(t, logged, 5)
	for _, m := range logged {
		require.True(t, explained[m[1]], "docs/runbook.md is to explain %q", m[1])
	}
}
