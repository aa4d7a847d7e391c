package documents_test

import (
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/snippets"
)

// The documents tell what is true: each block of Go in them compiles, and each
// link to a file leads somewhere.

func documents(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	return append(all, "README.md", "CONTRIBUTING.md")
}

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```")

// TestDocumentsCompile has the compiler see a package that is not on disk: a
// file for each block, and one that declares what the blocks take for granted.
func TestDocumentsCompile(t *testing.T) {
	t.Parallel()
	dir, folder := t.TempDir(), absolute(t, "internal/documents")
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	add := func(name, source string) {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
		overlay.Replace[filepath.Join(folder, name)] = file
	}
	add("given.go", given)
	blocks := 0
	for _, document := range documents(t) {
		if document == recipes { // TestRecipes finds its blocks in code that is compiled, in modules with more dependencies
			continue
		}
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, at := range goBlock.FindAllSubmatchIndex(text, -1) {
			block := string(text[at[2]:at[3]])
			if strings.HasPrefix(block, "package ") { // TestProgramsInDocuments
				continue
			}
			blocks++
			line := 1 + strings.Count(string(text[:at[2]]), "\n")
			add(fmt.Sprintf("block%d.go", blocks), source(block, absolute(t, document), line, blocks))
		}
	}
	require.Greater(t, blocks, 5)
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	file := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", file, "./internal/documents").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestProgramsInDocuments: each block that is a whole program compiles as it stands.
func TestProgramsInDocuments(t *testing.T) {
	t.Parallel()
	require.Positive(t, snippets.Build(t, "README.md"), "the README needs a program")
	snippets.Build(t, append(documents(t), "llms.txt", "ops/README.md")...)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

// source makes a file of a block: of declarations, or of what belongs in a func.
func source(block, document string, line, number int) string {
	at := fmt.Sprintf("//line %s:%d\n", document, line)
	if _, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+block, parser.SkipObjectResolution); err == nil {
		return imports + at + block
	}
	return fmt.Sprintf("%sfunc block%d() error {\n%s%s\nreturn nil\n}\n", imports, number, at, block)
}

const imports = `package documents

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"log"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

var (
	_ context.Context
	_ tls.Config
	_ x509.CertPool
	_ sql.DB
	_ = errors.Is
	_ log.Logger
	_ http.Client
	_ time.Time
	_ redis.Options
	_ infuse.Config
)

`

const given = imports + `
var (
	ctx         context.Context
	client      *http.Client
	request     *http.Request
	redisClient *redis.Client
	password    string
	rootCAs     *x509.CertPool
	certificate tls.Certificate
	storage     infuse.Storage
	breaker     *infuse.Breaker

	errBadRequest = errors.New("bad request")
)

func routeOf(*http.Request) string     { return "" }
func tenantOf(context.Context) string { return "" }
func call(context.Context) error       { return nil }
`

var (
	link        = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	written     = regexp.MustCompile(`<a id="(\w+)">`)
	heading     = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noAnchor    = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	codeOfAPage = regexp.MustCompile("(?ms)^```.*?^```")
)

// pages returns all documents of the repository.
func pages(t *testing.T) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "node_modules"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			all = append(all, path)
		}
		return nil
	}))
	return all
}

// TestDocumentsLinkToFiles: each link leads to a file, and to an anchor of it.
func TestDocumentsLinkToFiles(t *testing.T) {
	t.Parallel()
	for _, document := range append(pages(t), "llms.txt") {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, m := range link.FindAllSubmatch(codeOfAPage.ReplaceAll(text, nil), -1) {
			target, anchor := document, string(m[2])
			if len(m[1]) > 0 {
				target = filepath.Join(filepath.Dir(document), string(m[1]))
			}
			_, err := os.Stat(target)
			require.NoError(t, err, "%s links to %s", document, m[1])
			if anchor == "" {
				continue
			}
			page, err := os.ReadFile(target)
			require.NoError(t, err)
			require.Contains(t, anchors(page), anchor, "%s links to %s", document, target)
		}
	}
}

// anchors returns the anchors that GitHub makes of a page's headings, and the written ones.
func anchors(page []byte) (all []string) {
	for _, m := range written.FindAllSubmatch(page, -1) {
		all = append(all, string(m[1]))
	}
	for _, m := range heading.FindAllSubmatch(codeOfAPage.ReplaceAll(page, nil), -1) {
		text := noAnchor.ReplaceAllString(strings.ToLower(string(m[1])), "")
		all = append(all, strings.ReplaceAll(text, " ", "-"))
	}
	return all
}

var generated = regexp.MustCompile(`(?s)<!-- rules -->.*<!-- /rules -->`)

// words returns how many words a page has: not the bars of its tables, and nothing
// that is generated.
func words(page []byte) (n int) {
	for _, word := range strings.Fields(string(generated.ReplaceAll(page, nil))) {
		if strings.IndexFunc(word, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) >= 0 {
			n++
		}
	}
	return n
}

// TestDocumentsAreShort: who reads all of them needs less than an hour.
func TestDocumentsAreShort(t *testing.T) {
	t.Parallel()
	most := map[string]int{"README.md": 800, "CONTRIBUTING.md": 700}
	all := 0
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		n := words(text)
		t.Logf("%s: %d words", document, n)
		if filepath.Dir(document) == "docs" {
			all += n
		} else {
			require.LessOrEqual(t, n, most[document], document)
		}
	}
	require.LessOrEqual(t, all, 11_000, "words of docs/")
}

// TestRulesHaveNumbers: the rules of docs/concepts.md are numbered without a gap, and
// a rule that a document cites exists.
func TestRulesHaveNumbers(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/concepts.md")
	require.NoError(t, err)
	rules := regexp.MustCompile(`(?m)^<a id="r(\d+)"></a>\*\*R(\d+)\.\*\* `).FindAllStringSubmatch(string(text), -1)
	require.GreaterOrEqual(t, len(rules), 45, "a rule that was published stays")
	for i, rule := range rules {
		require.Equal(t, []string{fmt.Sprint(i + 1), fmt.Sprint(i + 1)}, rule[1:])
	}
	for _, document := range documents(t) {
		page, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, cited := range regexp.MustCompile(`\bR(\d+)\b`).FindAllStringSubmatch(string(codeOfAPage.ReplaceAll(page, nil)), -1) {
			number, err := strconv.Atoi(cited[1])
			require.NoError(t, err)
			require.LessOrEqual(t, number, len(rules), "%s cites %s", document, cited[0])
		}
	}
}

// TestCorrectnessNamesTests: each test that docs/correctness.md names exists.
func TestCorrectnessNamesTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/correctness.md")
	require.NoError(t, err)
	var tests strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		tests.Write(source)
		return err
	}))
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(named), 10)
	for _, name := range named {
		require.True(t, strings.Contains(tests.String(), "func "+name[1]+"("), "docs/correctness.md names %s", name[1])
	}
}

// TestDocumentsNameFiles: each file of code that a page for contributors names exists.
func TestDocumentsNameFiles(t *testing.T) {
	t.Parallel()
	exists := make(map[string]bool)
	require.NoError(t, filepath.WalkDir(".", func(_ string, entry fs.DirEntry, err error) error {
		if err == nil {
			exists[entry.Name()] = true
		}
		return err
	}))
	for _, document := range []string{"docs/internals.md", "CONTRIBUTING.md"} {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		named := regexp.MustCompile(`\w+\.(?:go|lua)\b`).FindAllString(string(text), -1)
		require.Greater(t, len(named), 5)
		for _, name := range named {
			require.True(t, exists[name], "%s names %s", document, name)
		}
	}
}

var testCommand = regexp.MustCompile("(?:cd ([\\w/]+) && )?go test ([^`\n#]*)")

// TestDocumentsRunTests: each name after -run, in a command of a document, is that of
// a test in its packages.
func TestDocumentsRunTests(t *testing.T) {
	t.Parallel()
	run, commands := regexp.MustCompile(`-run '?([^' ]+)'?`), 0
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, command := range testCommand.FindAllStringSubmatch(string(text), -1) {
			names := run.FindStringSubmatch(command[2])
			if names == nil {
				continue
			}
			commands++
			var tests strings.Builder
			for _, arg := range strings.Fields(command[2]) {
				if strings.HasPrefix(arg, ".") {
					files, err := filepath.Glob(filepath.Join(command[1], arg, "*_test.go"))
					require.NoError(t, err)
					for _, file := range files {
						source, err := os.ReadFile(file)
						require.NoError(t, err)
						tests.Write(source)
					}
				}
			}
			for _, name := range strings.Split(names[1], "|") {
				exists := regexp.MustCompile(`(?m)^func Test\w*` + strings.TrimPrefix(name, "Test")).MatchString(tests.String())
				require.True(t, exists, "%s: %s in go test %s", document, name, command[2])
			}
		}
	}
	require.Greater(t, commands, 2)
}

// TestReadmeIsTheIndex: each page of docs/ is linked from it.
func TestReadmeIsTheIndex(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	for _, document := range documents(t) {
		if filepath.Dir(document) == "docs" {
			require.True(t, strings.Contains(string(text), "]("+document+")"), document)
		}
	}
}

// TestDocumentsHaveEverySetting: docs/configuration.md has a row for each field of a
// Config, with its default.
func TestDocumentsHaveEverySetting(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/configuration.md")
	require.NoError(t, err)
	rows := make(map[string]string) // the default by field
	for _, m := range regexp.MustCompile("(?m)^- `(\\w+)`: (.*)$").FindAllSubmatch(text, -1) {
		require.NotContains(t, rows, string(m[1]), "twice")
		_, preset, _ := strings.Cut(string(m[2]), "Default ")
		rows[string(m[1])] = regexp.MustCompile("^[^.;:]*").FindString(preset)
	}
	for _, settings := range []any{infuse.Config{}, infuse.RedisOptions{}} {
		for _, field := range reflect.VisibleFields(reflect.TypeOf(settings)) {
			require.Contains(t, rows, field.Name)
		}
	}
	for name, inText := range rows {
		field, ok := reflect.TypeFor[infuse.Config]().FieldByName(name)
		if !ok {
			continue
		}
		invalid := reflect.New(reflect.TypeFor[infuse.Config]()).Elem()
		switch value := invalid.FieldByIndex(field.Index); {
		case name == "MaxRetryAfter":
			value.SetInt(math.MaxInt64)
		case value.CanInt():
			value.SetInt(-1)
		default:
			continue
		}
		err := invalid.Interface().(infuse.Config).Validate()
		require.ErrorContains(t, err, name)
		_, preset, _ := strings.Cut(err.Error(), "or 0 for ") // as the error has it
		if d, err := time.ParseDuration(preset); err == nil {
			documented, err := time.ParseDuration(strings.TrimSuffix(strings.ReplaceAll(inText, " ", ""), "in"))
			require.NoError(t, err, name)
			require.Equal(t, d, documented, name)
			continue
		}
		require.Equal(t, preset, inText, name)
	}
}

// TestDocumentedSettingsAreRead: the JSON of docs/configuration.md is one of Settings.
func TestDocumentedSettingsAreRead(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/configuration.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^```json\n(.*?)^```").FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		var settings infuse.Settings
		decoder := json.NewDecoder(strings.NewReader(block[1]))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&settings))
		require.NoError(t, settings.Config().Validate())
	}
}

// TestNamesInLlmsTxtExist: each exported name in code of llms.txt is one of the root.
func TestNamesInLlmsTxtExist(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("llms.txt")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(text), "## API in brief\n")
	section, _, _ = strings.Cut(section, "```go")
	api, err := exec.CommandContext(t.Context(), "go", "doc", "-all", ".").Output()
	require.NoError(t, err)
	code := regexp.MustCompile(`(?m)^\s*//.*|//.*$`).ReplaceAllString(string(api), "") // without comments
	names := 0
	for _, span := range regexp.MustCompile("`[^`]+`").FindAllString(section, -1) {
		for _, name := range regexp.MustCompile(`\b[A-Z]\w+`).FindAllString(span, -1) {
			names++
			require.Regexp(t, `\b`+name+`\b`, code, name)
		}
	}
	require.Greater(t, names, 40)
}

// TestComparedHasFiguresOfTheBenchmark: each figure in the table of docs/compared.md is
// in bench/RESULTS.md.
func TestComparedHasFiguresOfTheBenchmark(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/compared.md")
	require.NoError(t, err)
	results, err := os.ReadFile("bench/RESULTS.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## Measured\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	figures := regexp.MustCompile(`(?m)[|] ([\d.,]+(?: %)?) `).FindAllStringSubmatch(section, -1)
	require.Greater(t, len(figures), 10)
	for _, figure := range figures {
		require.Contains(t, string(results), "| "+figure[1]+" ", "bench/RESULTS.md")
	}
}

// TestNamesForAuthorsSaySo: doc.go lists the names that only authors of a
// Storage need, and the doc of each says that it is one.
func TestNamesForAuthorsSaySo(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	section := regexp.MustCompile(`(?s)# For authors of a Storage\n(.*?)storagetest`).FindSubmatch(text)
	require.NotNil(t, section)
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var sources []byte
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		sources = append(sources, source...)
	}
	names := regexp.MustCompile(`\[(\w+)\]`).FindAllSubmatch(section[1], -1)
	require.Greater(t, len(names), 10)
	for _, name := range names {
		comment := regexp.MustCompile(`(?m)^((?://.*\n)+)(?:type|func) ` + string(name[1]) + `\b`).FindSubmatch(sources)
		require.NotNil(t, comment, "%s", name[1])
		require.Regexp(t, `(?i)authors\s+(//\s+)?of\s+(//\s+)?a\s+(//\s+)?storage`, string(comment[1]))
	}
}
