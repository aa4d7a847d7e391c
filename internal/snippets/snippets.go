// Package snippets checks the Go programs in documents.
package snippets

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var block = regexp.MustCompile("(?ms)^```go\n(package .*?)^```")

// Build compiles each Go block in the documents that is a complete file, as a separate
// package in the module of the current directory. It returns the number of blocks. It
// writes nothing to the module.
func Build(t *testing.T, documents ...string) (programs int) {
	t.Helper()
	dir := t.TempDir()
	folder, err := filepath.Abs("internal/snippets/found")
	fatal(t, err)
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for _, document := range documents {
		text, err := os.ReadFile(document)
		fatal(t, err)
		path, err := filepath.Abs(document)
		fatal(t, err)
		for _, at := range block.FindAllSubmatchIndex(text, -1) {
			programs++
			line := 1 + strings.Count(string(text[:at[2]]), "\n")
			source := fmt.Sprintf("//line %s:%d\n%s", path, line, text[at[2]:at[3]])
			file := filepath.Join(dir, fmt.Sprintf("program%d.go", programs))
			fatal(t, os.WriteFile(file, []byte(source), 0o600))
			overlay.Replace[filepath.Join(folder, fmt.Sprintf("program%d", programs), "main.go")] = file
		}
	}
	if programs == 0 {
		return 0
	}
	text, err := json.Marshal(overlay)
	fatal(t, err)
	file := filepath.Join(dir, "overlay.json")
	fatal(t, os.WriteFile(file, text, 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", os.DevNull, "-overlay", file, "./internal/snippets/found/...").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return programs
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
