package documents_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const recipes = "docs/recipes.md"

// The tests that run the code of each recipe.
var recipeTests = map[string]map[string][]string{
	"1":  {"examples/recipes/recipes_test.go": {"TestThreeUpstreams"}},
	"2":  {"examples/recipes/recipes_test.go": {"TestFallback"}},
	"3":  {"examples/integrations/integrations_test.go": {"TestGoRetryablehttp"}},
	"4":  {"examples/recipes/recipes_test.go": {"TestTimeoutOfEachTry"}},
	"5":  {"prominfuse/recipe_test.go": {"ExampleNewCollector"}},
	"6":  {"otelinfuse/recipe_test.go": {"ExampleRegister"}},
	"7":  {"examples/recipes/recipes_test.go": {"TestOpsPage"}},
	"8":  {"cmd/infuse/access_test.go": {"TestClusterIsDetected", "TestMutualTLS", "TestPasswordFromEnvironment"}},
	"9":  {"grpcinfuse/example_test.go": {"Example"}},
	"10": {"examples/recipes/recipes_test.go": {"TestDatabase"}},
	"11": {"examples/recipes/recipes_test.go": {"TestConsumer"}},
	"12": {"examples/integrations/settings_test.go": {"TestSettingsFromYAML"}, "examples/recipes/recipes_test.go": {"TestSettingsFromTheEnvironment"}},
	"13": {"examples/recipes/recipes_test.go": {"TestForcedState"}},
	"14": {"examples/recipes/recipes_test.go": {"TestDryRun"}},
	"15": {"examples/recipes/readiness_test.go": {"TestReadinessWithoutACircuitRecovers"}},
	"16": {"examples/recipes/recipes_test.go": {"TestTenants"}},
	"17": {"examples/recipes/recipes_test.go": {"TestShortLivedProcesses", "TestShutdown"}},
}

var (
	notOfBreaker = regexp.MustCompile(`^([})\],]*|//.*|"[^"]*": \{.*|if err != nil \{.*|return (nil, |infuse\.Config\{\}, |false, )?err|for \{|.*context\.WithTimeout.*|defer cancel\(\)|require\.(NoError\(t, err\)|Equal.*))$`)
)

// TestRecipes: each recipe has a test, each block of Go of it is part of the code
// beside that test, and it has at most 6 lines for the breaker.
func TestRecipes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(recipes)
	require.NoError(t, err)
	sources := make(map[string]string) // by number
	for number, files := range recipeTests {
		for file, tests := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, test := range tests {
				require.Contains(t, string(source), "func "+test+"(", file)
			}
			all, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*.go"))
			require.NoError(t, err)
			for _, path := range all {
				source, err := os.ReadFile(path)
				require.NoError(t, err)
				sources[number] += unindented(string(source))
			}
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
			t.Logf("recipe %s: %d lines, tested by %v", number, lines, recipeTests[number])
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

// TestOperationsHasTheLogLines: the lines that docs/operations.md explains are those of
// LogListener.
func TestOperationsHasTheLogLines(t *testing.T) {
	t.Parallel()
	operations, err := os.ReadFile("docs/operations.md")
	require.NoError(t, err)
	source, err := os.ReadFile("listener.go")
	require.NoError(t, err)
	explained := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]*?)( …[^`]*)?` (?:\\(\\w+\\) )?\\|").FindAllStringSubmatch(string(operations), -1) {
		explained[m[1]] = true
	}
	logged := regexp.MustCompile(`(?:slog|logger)\.(?:Log\(.*?, level, |Warn\(|Info\(|Error\()"([^"]*)"`).FindAllStringSubmatch(string(source), -1)
	require.Len(t, logged, 5)
	for _, m := range logged {
		require.True(t, explained[m[1]], "docs/operations.md is to explain %q", m[1])
	}
}
