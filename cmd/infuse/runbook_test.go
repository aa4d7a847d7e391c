package main

// This file tests the commands in docs/operations.md.

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")

// Each command of docs/operations.md runs, in order, while a circuit is open.
func TestRunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	if _, err := exec.LookPath("redis-cli"); err != nil {
		t.Skip("redis-cli is not installed")
	}
	d := redisCLI(t)
	d.open("inventory.internal", "503 Service Unavailable")
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "infuse"), ".").CombinedOutput()
	require.NoError(t, err, "%s", out)

	all := make(map[string]string)
	for _, block := range shellBlock.FindAllStringSubmatch(string(text), -1) {
		for _, line := range strings.Split(strings.TrimSpace(block[1]), "\n") {
			if name, _, _ := strings.Cut(line, " "); name == "infuse" || name == "redis-cli" {
				all[line] = d.shell(line, dir)
			}
		}
	}
	require.Greater(t, len(all), 12)
	for line, want := range map[string]string{
		`infuse list`:                                                `inventory\.internal +open .*503 Service Unavailable`,
		`infuse show inventory.internal`:                             `override removed`,
		`infuse remove-override inventory.internal`:                  `inventory.internal: override removed, the state is open`,
		`redis-cli -u "$INFUSE_REDIS" --scan --pattern 'infuse:{*}'`: `^infuse:\{inventory\.internal\}\n$`,
		`redis-cli -u "$INFUSE_REDIS" HMGET 'infuse:{inventory.internal}' r r1 r2 r3 r4 r5 r6 r7 r8 | tr -d '\n'`: `"state":1.*"due":\d+`,
		`redis-cli -u "$INFUSE_REDIS" HGET 'infuse:{inventory.internal}' n`:                                       `^\d+\n$`,
		`redis-cli -u "$INFUSE_REDIS" HGET 'infuse:{inventory.internal}' t`:                                       `^\d{13}\n$`,
		`redis-cli -u "$INFUSE_REDIS" LRANGE 'infuse:{inventory.internal}:log' 0 9`:                               `"cause":"503 Service Unavailable"`,
		`redis-cli -u "$INFUSE_REDIS" PSUBSCRIBE 'infuse:{*}'`:                                                    `psubscribe`,
	} {
		require.Contains(t, all, line)
		require.Regexp(t, want, all[line], line)
	}
}

// shell runs a line. It stops endless commands after their first output.
func (d *cli) shell(line, path string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*patience)
	defer cancel()
	endless := line == "infuse watch" || strings.Contains(line, "SUBSCRIBE")
	if endless {
		line = "exec " + line
	}
	c := exec.CommandContext(ctx, "sh", "-c", line)
	c.Env = append(os.Environ(), "INFUSE_REDIS="+d.args[1], "PATH="+path+string(os.PathListSeparator)+os.Getenv("PATH"))
	var stdout, stderr output
	c.Stdout, c.Stderr = &stdout, &stderr
	require.NoError(d.t, c.Start())
	if endless {
		require.Eventually(d.t, func() bool { return stdout.String()+stderr.String() != "" }, patience, time.Millisecond, line)
		require.NoError(d.t, c.Process.Signal(syscall.SIGTERM))
		_ = c.Wait()
		return stdout.String()
	}
	require.NoError(d.t, c.Wait(), "%s: %s%s", line, stdout.String(), stderr.String())
	return stdout.String()
}
