package redistest

// This file contains Mini, a miniredis in another process.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Mini is a miniredis: a Redis written in Go, whose clock a test can set. It runs in
// another process, because only the module in the folder miniredis depends on miniredis.
type Mini struct {
	tb     testing.TB
	addr   string
	client *redis.Client
}

// StartMini builds and starts a miniredis, which ends when the test ends. If the build
// fails, because there is no go command or the module cannot be downloaded, the test is
// skipped; with CI=true it fails.
func StartMini(tb testing.TB) *Mini {
	tb.Helper()
	addr, err := launchMini(tb)
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	m := &Mini{tb: tb, addr: addr}
	m.client = m.Client()
	return m
}

// Addr is the host:port at which the miniredis listens.
func (m *Mini) Addr() string { return m.addr }

// Client returns a new client of the miniredis. It is closed at the latest when the test
// ends.
func (m *Mini) Client() *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: m.addr})
	m.tb.Cleanup(func() { _ = client.Close() }) // the test may have closed it
	return client
}

// SetTime sets the clock of TIME, which stands still from then on.
func (m *Mini) SetTime(t time.Time) { m.do("test.settime", t.UnixNano()) }

// FastForward expires the keys whose time to live is at most d.
func (m *Mini) FastForward(d time.Duration) { m.do("test.fastforward", d.Nanoseconds()) }

func (m *Mini) do(args ...any) {
	if err := m.client.Do(context.Background(), args...).Err(); err != nil {
		m.tb.Errorf("redistest: miniredis: %v: %v", args[0], err)
	}
}

// launchMini starts a process that ends with the test and with this process, and returns
// its address.
func launchMini(tb testing.TB) (addr string, err error) {
	dir, err := miniModule()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("redistest: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("redistest: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("redistest: %w", err)
	}
	end := func() error { return errors.Join(stdin.Close(), cmd.Wait()) }
	addr, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("redistest: start a miniredis: %w; it printed:\n%s", errors.Join(err, end()), &stderr)
	}
	tb.Cleanup(func() {
		if err := end(); err != nil {
			tb.Errorf("redistest: miniredis: %v\n%s", err, &stderr)
		}
	})
	return strings.TrimSpace(addr), nil
}

// miniModule returns the folder of the module. The current folder must be in the
// repository.
func miniModule() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("redistest: %w", err)
	}
	for {
		module := filepath.Join(dir, "internal", "redistest", "miniredis")
		if _, err := os.Stat(filepath.Join(module, "go.mod")); !errors.Is(err, fs.ErrNotExist) {
			return module, err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("redistest: no miniredis outside of Infuse's repository")
		}
		dir = parent
	}
}
