// Package redistest runs redis-servers for tests, examples and benchmarks. Each has a free
// loopback port, its own directory and no persistence, and is stopped at the end. The
// package sends signals only to processes that it started.
//
// It requires redis-server 7 or later in the PATH. Set INFUSE_REDIS_SERVER to use another
// program, such as valkey-server.
package redistest

// This file contains Server, a single redis-server.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ErrNotInstalled is returned if there is no redis-server in the PATH, and none at
// INFUSE_REDIS_SERVER. It wraps [exec.ErrNotFound].
var ErrNotInstalled = fmt.Errorf("redistest: redis-server is not installed: %w", exec.ErrNotFound)

// errEnded is returned if a server ends before it replies, probably because another
// program has its port.
var errEnded = errors.New("redis-server ended")

const (
	loopback       = "127.0.0.1"
	startTimeout   = 10 * time.Second
	launchAttempts = 5

	// Neither these ports nor those of the cluster bus, 10000 above, are ephemeral
	// ports of Linux, macOS or Windows: so a killed server can restart with its port.
	firstPort = 10000
	lastPort  = 22000
)

// A Server is a redis-server. Its methods are safe for concurrent use.
type Server struct {
	port int
	dir  string
	args []string

	mu      sync.Mutex // guards the fields below
	process *process
	clients []*redis.Client
	closed  bool
}

// Start is [Launch] for a test: it closes the server when the test ends. If redis-server
// is not installed, it skips the test; with CI=true the test fails.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	Require(tb)
	s, err := Launch(args...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Require skips a test if redis-server is not installed; with CI=true the test fails. With
// -short it always skips the test.
func Require(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("starts a redis-server: skipped by -short")
	}
	if _, err := program(); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		tb.Fatal(ErrNotInstalled)
	}
	tb.Cleanup(func() {
		if tb.Skipped() {
			skipped.Add(1)
		}
	})
	tb.Skip("redis-server is not installed: skipped")
}

// program returns the path of the server program.
func program() (string, error) {
	return exec.LookPath(cmp.Or(os.Getenv("INFUSE_REDIS_SERVER"), "redis-server"))
}

// skipped counts the tests that Require has skipped.
var skipped atomic.Int64

// Run is m.Run for a package whose tests use Start. At the end it prints how many of them
// were skipped. The go command shows that with -v, or for the package in the current
// folder.
func Run(m *testing.M) (code int) {
	code = m.Run()
	if n := skipped.Load(); n > 0 {
		fmt.Printf("tests skipped because redis-server is not installed: %d\n", n)
	}
	return code
}

// Launch starts a redis-server and returns once it replies. It passes the args to
// redis-server, such as "--maxmemory", "1mb"; they must permit INFO for the default user.
// The caller closes the server.
func Launch(args ...string) (*Server, error) {
	var s *Server
	err := errEnded
	for attempt := 0; attempt < launchAttempts && errors.Is(err, errEnded); attempt++ {
		s, err = launchOn(claimPort(), args)
	}
	return s, err
}

func launchOn(port int, args []string) (*Server, error) {
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, fmt.Errorf("redistest: %w", err)
	}
	s := &Server{port: port, dir: dir, args: args}
	// A file, because a sentinel requires one that it can rewrite.
	config := fmt.Sprintf(`bind %s
port %d
save ""
appendonly no
repl-diskless-sync-delay 0
rdb-del-sync-files yes
`, loopback, port)
	if err = os.WriteFile(filepath.Join(dir, "redis.conf"), []byte(config), 0o600); err == nil {
		err = s.start()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Addr is the host:port at which the server listens.
func (s *Server) Addr() string {
	return net.JoinHostPort(loopback, strconv.Itoa(s.port))
}

// Client returns a new client of the server, with the defaults of go-redis, changed by
// opts. The server closes it at the latest when it is closed.
func (s *Server) Client(opts ...func(*redis.Options)) *redis.Client {
	options := &redis.Options{Addr: s.Addr()}
	for _, opt := range opts {
		opt(options)
	}
	client := redis.NewClient(options)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = append(s.clients, client)
	return client
}

// Pause makes the server hang: it keeps its connections, and the kernel accepts new ones,
// but there are no replies until Resume. It has no effect on a server that is not running.
func (s *Server) Pause() { s.signal(pauseSignal) }

// Resume lets a paused server reply again, including to requests sent meanwhile.
func (s *Server) Resume() { s.signal(resumeSignal) }

// Kill ends the server like a crash, and returns once the process has ended.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.kill()
}

// Restart kills the server if it runs, and starts it again with the same port and args,
// and without data. It returns once the server replies.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.kill()
	return s.start()
}

// Close ends the server, running, paused or killed, and closes its clients.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for _, client := range s.clients {
		_ = client.Close() // the test may have closed it
	}
	s.process.kill()
	_ = os.RemoveAll(s.dir)
	claimed.Delete(s.port)
}

// Commands returns the number of calls of each command since the server started, by
// lower-case name: "get", "evalsha", "config|set". It includes commands that clients send
// by themselves, and the INFO of this package.
func (s *Server) Commands(ctx context.Context) (map[string]int64, error) {
	info, err := s.do(ctx, "info", "commandstats").Text()
	if err != nil {
		return nil, fmt.Errorf("redistest: count commands: %w", err)
	}
	commands := make(map[string]int64)
	for line := range strings.Lines(info) {
		name, stats, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if !ok {
			continue
		}
		calls, _, _ := strings.Cut(stats, ",")
		if commands[name], err = strconv.ParseInt(calls, 10, 64); err != nil {
			return nil, fmt.Errorf("redistest: count commands: %w", err)
		}
	}
	return commands, nil
}

// start runs the server and waits until it replies. The caller holds s.mu, or has the only
// reference to the server.
func (s *Server) start() error {
	path, err := program()
	if err != nil {
		return ErrNotInstalled
	}
	logName := filepath.Join(s.dir, "redis.log")
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	defer log.Close()

	cmd := exec.Command(path, append([]string{"redis.conf"}, s.args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if s.process, err = startProcess(cmd); err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	ctx, cancel := context.WithTimeout(s.process.alive, startTimeout)
	defer cancel()
	if err = until(ctx, s.replies); err != nil {
		s.process.kill()
		printed, _ := os.ReadFile(logName)
		return fmt.Errorf("redistest: start redis-server: %w; it printed:\n%s", err, printed)
	}
	return nil
}

// replies checks that the process that replies is the one that was started: another server
// may have the port.
func (s *Server) replies(ctx context.Context) error {
	info, err := s.do(ctx, "info", "server").Text()
	if err != nil {
		return err
	}
	if pid := field(info, "process_id"); pid != strconv.Itoa(s.process.child.Pid) {
		return fmt.Errorf("process %s replies at %s instead of %d", pid, s.Addr(), s.process.child.Pid)
	}
	return nil
}

func (s *Server) signal(signal os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.signal(signal)
}

// do runs a command once, over a new connection.
func (s *Server) do(ctx context.Context, args ...any) *redis.Cmd {
	// Dial here, because go-redis logs dial errors.
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		cmd := redis.NewCmd(ctx, args...)
		cmd.SetErr(err)
		return cmd
	}
	client := redis.NewClient(&redis.Options{
		Dialer:                func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		MaxRetries:            -1,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
		MaintNotificationsConfig: &maintnotifications.Config{
			Mode: maintnotifications.ModeDisabled,
		},
	})
	defer client.Close()
	return client.Do(ctx, args...)
}

// field returns the value of a "name:value" line.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// until calls check until it returns nil. If ctx ends before that, it returns the last
// error of check.
func until(ctx context.Context, check func(context.Context) error) error {
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// claimed contains the ports of all servers that are not closed. A killed server may
// restart.
var claimed sync.Map

// claimPort picks a port. Another program may have it, which shows when the server binds
// to it.
func claimPort() int {
	for {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if _, taken := claimed.LoadOrStore(port, true); !taken {
			return port
		}
	}
}
