package main

// This file tests the command watch, and the compiled program.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// watching is a running watch.
type watching struct {
	t              *testing.T
	stdout, stderr output
	stop           func() (code int)
}

func (d *cli) watches(args ...string) *watching {
	d.t.Helper()
	w := &watching{t: d.t}
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- d.run(ctx, append(append(d.args[:len(d.args):len(d.args)], "watch"), args...), &w.stdout, &w.stderr)
	}()
	w.stop = func() int { cancel(); return <-ended }
	d.t.Cleanup(cancel)
	require.Eventually(d.t, func() bool { return strings.Contains(w.stderr.String(), "watching") }, patience, time.Millisecond, "watch does not start")
	return w
}

// expect waits for a line of stdout.
func (w *watching) expect(line string) {
	w.t.Helper()
	is := regexp.MustCompile("(?m)" + line)
	require.Eventually(w.t, func() bool { return is.MatchString(w.stdout.String()) }, 2*patience, 5*time.Millisecond, "no %s", line)
}

const anyTime = `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d\d\d  `

func TestWatch(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		d.mustRun("set-state", "-force", "old", "open") // before: it is not printed
		time.Sleep(20 * time.Millisecond)
		w := d.watches("-interval", "50ms")
		d.mustRun("override", "-force", "old", "closed", "-reason", "false alarm", "-until", "removed", "-by", "ann")
		w.expect(anyTime + `old +forced closed +by ann until removed: false alarm$`)
		d.mustRun("remove-override", "old", "-by", "bob")
		w.expect(anyTime + `old +override removed +by bob$`)
		d.open("new", "503 Service Unavailable") // its first failure
		w.expect(anyTime + `new +closed -> open +by web-1: 503 Service Unavailable$`)
		d.mustRun("set-state", "-force", "new", "half-open", "-by", "ann")
		w.expect(anyTime + `new +set to half-open +by ann$`)
		require.NoError(t, d.breaker("new").Call(t.Context(), func(context.Context) error { return nil }))
		w.expect(anyTime + `new +half-open -> closed +by web-1$`)
		time.Sleep(200 * time.Millisecond)
		require.Zero(t, w.stop())
		require.Equal(t, 5, strings.Count(w.stdout.String(), "\n"), w.stdout.String())
	})
}

func TestWatchNamedCircuits(t *testing.T) {
	onEach(t, func(t *testing.T, d *cli) {
		w := d.watches("-json", "one", "two")
		d.mustRun("set-state", "-force", "other", "open")
		d.mustRun("set-state", "-force", "one", "open", "-by", "ann")
		d.mustRun("override", "-force", "two", "open", "-by", "ann", "-reason", "x", "-until", "1h")
		w.expect(`"override"`)
		w.expect(`"one"`)
		require.Zero(t, w.stop())
		decoder := json.NewDecoder(strings.NewReader(w.stdout.String()))
		var set, forced event
		require.NoError(t, decoder.Decode(&set))
		require.NoError(t, decoder.Decode(&forced))
		require.ErrorIs(t, decoder.Decode(&event{}), io.EOF)
		require.WithinDuration(t, time.Now(), set.At, 10*time.Second)
		set.At = time.Time{}
		require.Equal(t, event{Circuit: "one", What: isSetState, From: "closed", To: "open", By: "ann"}, set)
		require.Equal(t, isOverride, forced.What)
		require.Equal(t, "open", forced.Override.State)
		require.WithinDuration(t, time.Now().Add(time.Hour), *forced.Override.Until, 10*time.Second)
	})
}

// The expiry of an override is printed once, and not if it was removed.
func TestWatchReportsExpiredOverrides(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, d *cli) {
		w := d.watches("-interval", "50ms")
		d.mustRun("override", "-force", "cleared", "open", "-by", "ann", "-reason", "x", "-until", "3s")
		d.mustRun("remove-override", "cleared", "-by", "bob")
		d.mustRun("override", "-force", "ends", "open", "-by", "ann", "-reason", "x", "-until", "3s") // later than the other
		w.expect(anyTime + `ends +override expired +by ann$`)
		d.mustRun("set-state", "-force", "ends", "open", "-by", "ann")
		w.expect(anyTime + `ends +set to open +by ann$`)
		time.Sleep(300 * time.Millisecond)
		require.Zero(t, w.stop())
		require.Equal(t, 5, strings.Count(w.stdout.String(), "\n"), w.stdout.String())
	})
}

// The processes that opened the circuit have ended when the event is printed.
func TestWatchReportsOtherProcesses(t *testing.T) {
	server := redistest.Start(t)
	d := cliAt(t, "redis://"+server.Addr())
	for i, args := range [][]string{{"-interval", "100ms"}, {"prices"}} {
		w := d.watches(args...)
		other := exec.CommandContext(t.Context(), os.Args[0])
		other.Env = append(os.Environ(), failElsewhere+"="+server.Addr())
		out, err := other.CombinedOutput()
		require.NoError(t, err, "%s", out)
		w.expect(anyTime + `prices +closed -> open +by elsewhere: 503 Service Unavailable$`)
		require.Zero(t, w.stop())
		require.Equal(t, 1, strings.Count(w.stdout.String(), "\n"), "%d: %s", i, w.stdout.String())
		require.NoError(t, server.Client().FlushAll(t.Context()).Err())
	}
}

// Redis becomes unavailable, and is empty when it is available again. Searches that time
// out do not delay the next search.
func TestWatchContinuesWhileRedisIsUnavailable(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	d := cliAt(t, "redis://"+server.Addr(), "-timeout", "2s")
	d.mustRun("set-state", "-force", "old", "open")
	w := d.watches("-interval", "50ms")
	server.Kill()
	requireStderr := func(text string) {
		require.Eventually(t, func() bool { return strings.Contains(w.stderr.String(), text) }, patience, 5*time.Millisecond, "no %s", text)
	}
	requireStderr("Redis is unavailable: ")
	require.NoError(t, server.Restart())
	requireStderr("Redis is available again after ")
	d.mustRun("set-state", "-force", "old", "closed", "-by", "ann")
	d.mustRun("set-state", "-force", "new", "open", "-by", "ann")
	w.expect(`old +set to closed +by ann$`)
	w.expect(`new +set to open +by ann$`)
	require.Zero(t, w.stop())
	require.Equal(t, 3, strings.Count(w.stderr.String(), "\n"), "each once: %s", w.stderr.String())
}

type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestWatchEndsWithItsOutput(t *testing.T) {
	for want, stdout := range map[int]io.Writer{exitDone: closedPipe{}, exitFailed: fullDisk{}} {
		storage := infuse.NewMemoryStorage()
		var stderr output
		p := program{stdout, &stderr, func(context.Context, *options, func(string)) (store, func(), error) { return storage, func() {}, nil }}
		ended := make(chan int, 1)
		go func() { ended <- p.run(t.Context(), []string{"watch", "a"}) }()
		require.Eventually(t, func() bool { return strings.Contains(stderr.String(), "watching") }, patience, time.Millisecond)
		b, err := infuse.New("a", infuse.Config{Storage: storage})
		require.NoError(t, err)
		require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
		require.Equal(t, want, <-ended, stderr.String())
		b.Stop()
	}
}

// The compiled program ends on signals, and when the reader closes the pipe.
func TestProgram(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	binary := filepath.Join(t.TempDir(), "infuse.exe")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	program := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), binary, args...)
		c.Env = append(os.Environ(), "INFUSE_REDIS=redis://"+server.Addr())
		return c
	}
	out, err = program("override", "prices", "open", "-force", "-reason", "x", "-until", "1h").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = program("list").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "prices")
	var exit *exec.ExitError
	require.ErrorAs(t, program("show").Run(), &exit)
	require.Equal(t, exitUsage, exit.ExitCode())

	begin := func() (w *exec.Cmd, stdout io.ReadCloser) {
		w = program("watch")
		stdout, err := w.StdoutPipe()
		require.NoError(t, err)
		stderr, err := w.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, w.Start())
		line, err := bufio.NewReader(stderr).ReadString('\n')
		require.NoError(t, err)
		require.Contains(t, line, "watching")
		return w, stdout
	}
	w, stdout := begin()
	require.NoError(t, program("remove-override", "prices").Run())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "override removed")
	if runtime.GOOS != "windows" {
		require.NoError(t, w.Process.Signal(syscall.SIGTERM))
		require.NoError(t, w.Wait(), "exit code 0")
	}

	w, stdout = begin()
	require.NoError(t, stdout.Close())
	require.NoError(t, program("set-state", "prices", "open").Run())
	ended := make(chan struct{})
	go func() { _ = w.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("watch does not end after its output is closed")
	}
}

func TestClusterAndSentinel(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many servers")
	}
	cluster := redistest.StartCluster(t, 3)
	sentinel := redistest.StartSentinel(t)
	addrs := cluster.Addrs()
	for name, url := range map[string]string{
		"cluster":  fmt.Sprintf("redis://%s?addr=%s", addrs[0], addrs[1]),
		"sentinel": fmt.Sprintf("redis://%s?master_name=%s", sentinel.Addr(), sentinel.MasterName()),
	} {
		d := cliAt(t, url)
		w := d.watches("-interval", "50ms")
		for i := range 10 {
			d.mustRun("set-state", "-force", fmt.Sprint("circuit", i), "open")
		}
		require.Equal(t, 11, strings.Count(d.mustRun("list"), "\n"), name)
		for i := range 10 {
			w.expect(fmt.Sprintf("circuit%d +set to open", i))
		}
		require.Zero(t, w.stop())
	}
}

// A thousand circuits are listed and watched in time, although each reply of Redis takes
// 40 ms: one after the other they would take longer than -timeout.
func TestManyCircuits(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	d := cliAt(t, "redis://"+proxy.Addr(), "-timeout", "1m")
	storage := infuse.NewRedisStorage(server.Client(func(o *redis.Options) { o.PoolSize = 32 }), infuse.RedisOptions{})
	require.NoError(t, each(1000, func(i int) error {
		_, _, err := storage.Apply(t.Context(), fmt.Sprint("circuit", i), infuse.Change{By: "web-1", Limits: infuse.Limits{ResetTimeout: time.Hour}, Manual: &infuse.ManualState{To: infuse.StateOpen}})
		return err
	}))
	proxy.SetDelay(40 * time.Millisecond)
	began := time.Now()
	require.Equal(t, 1001, strings.Count(d.mustRun("list"), "\n"))
	t.Log("listed after", time.Since(began))
	proxy.SetDelay(0)
	w := d.watches("-interval", "50ms")
	d.mustRun("set-state", "-force", "circuit7", "closed")
	d.mustRun("set-state", "-force", "another", "closed")
	w.expect("circuit7 +set to closed")
	w.expect("another +set to closed")
	require.Zero(t, w.stop())
}

// A missing permission to read the history is reported once.
func TestWatchWithoutPermission(t *testing.T) {
	server := redistest.Start(t)
	require.NoError(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-lrange").Err())
	d := cliAt(t, "redis://ann:secret@"+server.Addr())
	d.mustRun("set-state", "-force", "prices", "open")
	require.Regexp(t, `(?m)^prices +open .*the history cannot be read`, d.mustRun("list"))
	require.Regexp(t, `(?m)^error +the history cannot be read: `, d.mustRun("show", "prices"))
	w := d.watches("-interval", "20ms")
	unavailable := func() int { return strings.Count(w.stderr.String(), "Redis is unavailable") }
	require.Eventually(t, func() bool { return unavailable() > 0 }, patience, time.Millisecond)
	time.Sleep(300 * time.Millisecond)
	require.Zero(t, w.stop())
	require.Equal(t, 1, unavailable(), w.stderr.String())
	require.NotContains(t, w.stderr.String(), "again")
}

// Redis delivers the messages of all databases, and a history may contain
// anything. Neither is printed, and neither ends the watch.
func TestWatchIgnoresOtherDatabasesAndUnreadableHistories(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	d, staging := cliAt(t, "redis://"+server.Addr()+"/0"), cliAt(t, "redis://"+server.Addr()+"/1")
	w := d.watches("-interval", "50ms")
	staging.mustRun("set-state", "-force", "prices", "open", "-by", "staging")
	d.mustRun("set-state", "-force", "prices", "half-open", "-by", "ann")
	staging.mustRun("override", "-force", "prices", "open", "-reason", "x", "-until", "500ms", "-by", "staging")
	w.expect(anyTime + `prices +set to half-open +by ann$`)

	admin := server.Client()
	require.NoError(t, admin.Set(t.Context(), "infuse:{broken}:log", "garbage", 0).Err())
	d.mustRun("set-state", "-force", "broken", "open", "-by", "ann")
	d.mustRun("set-state", "-force", "prices", "closed", "-by", "ann")
	w.expect(anyTime + `prices +set to closed +by ann$`)
	time.Sleep(700 * time.Millisecond)
	require.Zero(t, w.stop())
	require.Equal(t, 2, strings.Count(w.stdout.String(), "\n"), w.stdout.String())
	require.NotContains(t, w.stderr.String(), "unavailable")
}
