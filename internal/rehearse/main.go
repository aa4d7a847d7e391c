// Rehearse rehearses a release of the checkout: it tags a copy of the files in a local
// repository. Modules outside of it get each published module from there, compile the Go
// code of its README, and install the CLI. Third-party modules come from the module cache,
// or from GOPROXY.
//
//	go run ./internal/rehearse   # in the root of the repository
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const root = "github.com/infuse-go/infuse"

// published are the modules that a release tags, in addition to the root.
var published = []string{"connectinfuse", "grpcinfuse", "otelinfuse", "prominfuse", "pybreakerstorage"}

// mostRedis is the limit of the symbols of go-redis, in bytes, in a program without Redis:
// initialization needs some.
const mostRedis = 16 << 10

func main() {
	log.SetFlags(0)
	began := time.Now()
	dir, err := os.MkdirTemp("", "rehearse-")
	if err == nil {
		err = rehearse(dir)
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		log.Fatal("rehearse: ", err)
	}
	fmt.Printf("released and used in %v\n", time.Since(began).Round(time.Second))
}

func rehearse(dir string) error {
	version, err := nextVersion()
	if err != nil {
		return err
	}
	if err := checkRequirements(version); err != nil {
		return err
	}
	mirror := filepath.Join(dir, "mirror")
	if err := tagCopy(mirror, version); err != nil {
		return err
	}
	env, err := environment(dir, mirror)
	if err != nil {
		return err
	}
	s := &stranger{dir: dir, env: env, version: version}
	for _, module := range append([]string{""}, published...) {
		if err := s.compileReadme(module); err != nil {
			return err
		}
	}
	if err := s.installCLI(); err != nil {
		return err
	}
	return s.buildLocalOnly()
}

// nextVersion returns the version that CHANGELOG.md begins with.
func nextVersion() (string, error) {
	text, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^## (\d+\.\d+\.\d+\S*)`).FindSubmatch(text)
	if m == nil {
		return "", errors.New("CHANGELOG.md: no version")
	}
	return "v" + string(m[1]), nil
}

var requirement = regexp.MustCompile(`(?m)^\s*(?:require )?(` + root + `\S*) (v\S+)`)

// checkRequirements checks that each module requires the new version of the others, and
// that the root has no replace directive, with which it could not be installed.
func checkRequirements(version string) error {
	return filepath.WalkDir(".", func(file string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(file) != "go.mod" {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range requirement.FindAllSubmatch(text, -1) {
			if string(m[2]) != version {
				return fmt.Errorf("%s: requires %s %s, and CHANGELOG.md has %s", file, m[1], m[2], version)
			}
		}
		if file == "go.mod" && strings.Contains(string(text), "\nreplace ") {
			return errors.New("go.mod: replace in the root module")
		}
		return nil
	})
}

// tagCopy makes a repository with the current files of the checkout in one commit, with
// all tags.
func tagCopy(mirror, version string) error {
	steps := [][]string{
		{"init", "--quiet", "--bare", mirror},
		{"add", "--all"},
		{"-c", "user.name=rehearse", "-c", "user.email=rehearse@localhost", "commit", "--quiet", "--message", version},
		{"tag", version},
	}
	for _, module := range published {
		steps = append(steps, []string{"tag", module + "/" + version})
	}
	for i, step := range steps {
		if i > 0 {
			step = append([]string{"--git-dir", mirror, "--work-tree", "."}, step...)
		}
		if _, err := output(exec.Command("git", step...)); err != nil {
			return err
		}
	}
	return nil
}

// environment makes the go command fetch the modules of this repository from the mirror,
// into a temporary module cache.
func environment(dir, mirror string) ([]string, error) {
	values, err := output(exec.Command("go", "env", "GOMODCACHE", "GOPROXY"))
	if err != nil {
		return nil, err
	}
	cache, proxy, _ := strings.Cut(values, "\n")
	url := func(path string) string { return "file://" + filepath.ToSlash(path) }
	return append(os.Environ(),
		"GOPROXY="+url(filepath.Join(cache, "cache", "download"))+","+proxy,
		"GOPRIVATE=", "GONOPROXY="+root, "GONOSUMDB="+root,
		"GOMODCACHE="+filepath.Join(dir, "modules"),
		"GOFLAGS=-trimpath -modcacherw", // with trimmed paths, the build cache is reused
		"GOBIN="+filepath.Join(dir, "bin"), "GOWORK=off",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=url."+url(mirror)+".insteadOf", "GIT_CONFIG_VALUE_0=https://"+root,
	), nil
}

// stranger has modules that use the release.
type stranger struct {
	dir     string
	env     []string
	version string
}

// module makes a module that requires the release of one module.
func (s *stranger) module(name, requires string, files map[string]string) error {
	for file, text := range files {
		path := filepath.Join(s.dir, name, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"mod", "init", "example.com/" + name},
		{"get", requires + "@" + s.version},
		{"get", "./..."},
		{"vet", "./..."},
		{"build", "-o", os.DevNull, "./..."},
	} {
		if _, err := s.run(name, args...); err != nil {
			return err
		}
	}
	all, err := s.run(name, "list", "-m", "all")
	if err != nil {
		return err
	}
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, root) && !strings.HasSuffix(line, " "+s.version+"\n") {
			return fmt.Errorf("%s is built with %s", requires, line)
		}
	}
	return nil
}

func (s *stranger) run(module string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = filepath.Join(s.dir, module), s.env
	return output(cmd)
}

func (s *stranger) compileReadme(module string) error {
	began := time.Now()
	files, blocks, err := readmeFiles(module)
	if err != nil {
		return err
	}
	path := strings.TrimSuffix(root+"/"+module, "/")
	if err := s.module("readme-"+module, path, files); err != nil {
		return err
	}
	fmt.Printf("go get %s@%s: ok, %d blocks of its README compile (%v)\n", path, s.version, blocks, time.Since(began).Round(time.Second))
	return nil
}

func (s *stranger) installCLI() error {
	if _, err := s.run("", "install", root+"/cmd/infuse@"+s.version); err != nil {
		return err
	}
	reported, err := output(exec.Command(filepath.Join(s.dir, "bin", "infuse"), "version"))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(reported, "infuse "+s.version+" ") {
		return fmt.Errorf("infuse version printed %q", reported)
	}
	fmt.Printf("go install %s/cmd/infuse@%s: ok; infuse version: %s\n", root, s.version, reported)
	return nil
}

// buildLocalOnly checks that the linker drops go-redis from a program without Redis.
func (s *stranger) buildLocalOnly() error {
	const name = "local-only"
	if err := s.module(name, root, map[string]string{"main.go": localOnly}); err != nil {
		return err
	}
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-o", "program", "."}} {
		if _, err := s.run(name, args...); err != nil {
			return err
		}
	}
	symbols, err := s.run(name, "tool", "nm", "-size", "program")
	if err != nil {
		return err
	}
	count, size := 0, 0
	for line := range strings.Lines(symbols) {
		if !strings.Contains(line, "github.com/redis/go-redis") {
			continue
		}
		bytes, err := strconv.Atoi(strings.Fields(line)[1])
		if err != nil {
			return fmt.Errorf("go tool nm: %w: %s", err, line)
		}
		count++
		size += bytes
	}
	sums, err := os.ReadFile(filepath.Join(s.dir, name, "go.sum"))
	if err != nil {
		return err
	}
	fmt.Printf("a program without Redis: %d bytes of go-redis in %d symbols; its go.sum has %d lines\n", size, count, strings.Count(string(sums), "\n"))
	if count == 0 || size > mostRedis { // 0 would mean that the output of nm was misread
		return fmt.Errorf("a program without Redis links %d bytes of go-redis: want some for the initialization of its packages, and at most %d", size, mostRedis)
	}
	return nil
}

const localOnly = `package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/infuse-go/infuse"
)

func main() {
	breakers, err := infuse.NewGroup(infuse.Config{Listeners: []*infuse.Listener{infuse.LogListener(nil)}})
	if err != nil {
		panic(err)
	}
	defer breakers.Stop()
	client := &http.Client{Transport: &infuse.Transport{Breakers: breakers}}
	_, err = client.Get("http://127.0.0.1:1")
	fmt.Println(err)
	prices, err := infuse.New("prices", infuse.Config{FailureRate: 0.5})
	if err != nil {
		panic(err)
	}
	fmt.Println(prices.Call(context.Background(), func(context.Context) error { return nil }))
}
`

// output runs a command and returns what it printed to standard output.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return strings.TrimRight(string(out), "\n"), nil
}
