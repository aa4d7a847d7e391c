package documents_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// banned are words that Infuse does not use, and why not. Words within an identifier
// count, too.
var banned = []struct{ pattern, why string }{
	{`away`, "a storage is unavailable, or a process is detached"},
	{`by hand`, "a change is manual, or made manually"},
	{`sick|ill`, "a service is unhealthy or failing"},
	{`in health`, "a circuit is healthy"},
	{`in a row`, "failures are consecutive; their number is the streak"},
	{`(is|are|was|were|be|been|get|gets|got) told`, "machines report, notify, send and receive"},
	{`(hear|hears|heard) (of|from)`, "machines receive"},
	{`knock|knocks|knocked`, "a process probes the storage"},
	{`what it (comes|came|has come) to`, "say result or outcome"},
	{`count(s|ed)? for nothing`, "a call is not counted"},
	{`(is|are|was|were|be|been) put back`, "a record is restored"},
	{`prove(s|d|n)? itself`, "a response is established"},
	{`br(eak|eaks|oke|oken) off`, "a response is truncated"},
	{`refute(s|d)?`, "a suspicion is dismissed"},
	{`ghost|ghosts`, "a lease that nobody holds"},
	{`mend(s|ed)?`, "repair or fix"},
}

// TestWords keeps words out of all texts but CHANGELOG.md and recorded data.
func TestWords(t *testing.T) {
	t.Parallel()
	humps := regexp.MustCompile(`([a-z0-9])([A-Z])`)
	var all []string
	for _, b := range banned {
		all = append(all, "("+b.pattern+")")
	}
	pattern := regexp.MustCompile(`(?i)\b(?:` + strings.Join(all, "|") + `)\b`)
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && (entry.Name()[0] == '.' || entry.Name() == "testdata" || entry.Name() == "node_modules"):
			return filepath.SkipDir
		case entry.IsDir(), path == "CHANGELOG.md", path == "internal/tests/documents/words_test.go",
			!slices.Contains([]string{".go", ".md", ".lua", ".yml", ".yaml", ".html", ".js", ".css"}, filepath.Ext(path)):
			return nil
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		words := humps.ReplaceAllString(string(text), "$1 $2")
		for _, at := range pattern.FindAllStringIndex(words, -1) {
			why := slices.IndexFunc(banned, func(b struct{ pattern, why string }) bool {
				return regexp.MustCompile(`(?i)^(?:` + b.pattern + `)$`).MatchString(words[at[0]:at[1]])
			})
			t.Errorf("%s:%d: %q: %s", path, 1+strings.Count(words[:at[0]], "\n"), words[at[0]:at[1]], banned[why].why)
		}
		return nil
	}))
}
