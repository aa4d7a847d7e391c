package main

// This file contains the helpers of the tests.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

// failElsewhere makes the test binary another process of the fleet. Its calls fail, on
// the circuit prices of the Redis at that address.
const failElsewhere = "INFUSE_TEST_FAIL_ON"

func TestMain(m *testing.M) {
	if addr := os.Getenv(failElsewhere); addr != "" {
		failOn(addr)
		return
	}
	for _, name := range []string{"INFUSE_REDIS", "INFUSE_PREFIX", "INFUSE_REDIS_PASSWORD"} {
		os.Unsetenv(name)
	}
	os.Exit(redistest.Run(m))
}

func failOn(addr string) {
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()
	cfg := infuse.Config{Storage: storage, Instance: "elsewhere", StorageTimeout: patience}
	var fleet []*infuse.Breaker
	for range 2 { // one process alone does not open the shared circuit
		b, err := infuse.New("prices", cfg)
		if err != nil {
			panic(err)
		}
		defer b.Stop()
		fleet = append(fleet, b)
	}
	for _, b := range fleet {
		for range 5 {
			_ = b.Call(context.Background(), func(context.Context) error { return errors.New("503 Service Unavailable") })
		}
		time.Sleep(breakertest.Suspicion)
	}
}

// output is the stdout or stderr of a command.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *output) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *output) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// cli runs commands on one storage.
type cli struct {
	t       *testing.T
	storage store
	survey  surveyor // of the server, if it is Redis
	args    []string // before the command
	run     func(ctx context.Context, args []string, stdout, stderr *output) int
}

// onEach runs a test with a MemoryStorage and with a real Redis.
func onEach(t *testing.T, test func(t *testing.T, d *cli)) {
	t.Run("memory", func(t *testing.T) { test(t, memoryCLI(t)) })
	t.Run("redis", func(t *testing.T) { test(t, redisCLI(t)) })
}

func memoryCLI(t *testing.T) *cli {
	storage := infuse.NewMemoryStorage()
	return &cli{t: t, storage: storage, run: func(ctx context.Context, args []string, stdout, stderr *output) int {
		open := func(context.Context, *options, func(string)) (store, func(), error) { return storage, func() {}, nil }
		return program{stdout, stderr, open}.run(ctx, args)
	}}
}

func redisCLI(t *testing.T) *cli {
	server := redistest.Start(t)
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	d := cliAt(t, "redis://"+server.Addr())
	d.storage, d.survey = storage, &redisStore{storage, server.Client(), defaultPrefix}
	return d
}

// cliAt returns a cli without a storage.
func cliAt(t *testing.T, url string, args ...string) *cli {
	return &cli{t: t, args: append([]string{"-redis", url}, args...), run: func(ctx context.Context, args []string, stdout, stderr *output) int {
		return run(ctx, args, stdout, stderr)
	}}
}

// exec runs a command.
func (d *cli) exec(args ...string) (out, errs string, code int) {
	d.t.Helper()
	var stdout, stderr output
	code = d.run(d.t.Context(), append(d.args[:len(d.args):len(d.args)], args...), &stdout, &stderr)
	return stdout.String(), stderr.String(), code
}

// mustRun is exec for a command that must succeed.
func (d *cli) mustRun(args ...string) string {
	d.t.Helper()
	out, errs, code := d.exec(args...)
	require.Zero(d.t, code, errs)
	require.Empty(d.t, errs)
	return out
}

// mustDecode is mustRun with -json.
func (d *cli) mustDecode(into any, args ...string) {
	d.t.Helper()
	require.NoError(d.t, json.Unmarshal([]byte(d.mustRun(append(args, "-json")...)), into))
}

// breaker returns a breaker of one process.
func (d *cli) breaker(name string) *infuse.Breaker {
	d.t.Helper()
	b, err := infuse.New(name, infuse.Config{Storage: d.storage, Instance: "web-1", StorageTimeout: 5 * time.Second})
	require.NoError(d.t, err)
	d.t.Cleanup(b.Stop)
	return b
}

// watched returns a breaker that has subscribed.
func (d *cli) watched(name string) *infuse.Breaker {
	d.t.Helper()
	b := d.breaker(name)
	if s, ok := d.storage.(*infuse.RedisStorage); ok && s != nil {
		require.Eventually(d.t, func() bool {
			n, err := d.survey.processes(d.t.Context(), name)
			return err == nil && n > 0
		}, patience, time.Millisecond)
	}
	return b
}

func (d *cli) fail(b *infuse.Breaker, cause string) {
	for range 5 {
		_ = b.Call(d.t.Context(), func(context.Context) error { return errors.New(cause) })
	}
}

// open opens the shared circuit: the calls of two processes fail.
func (d *cli) open(name, cause string) {
	d.t.Helper()
	one, other := d.breaker(name), d.breaker(name)
	d.fail(one, cause)
	time.Sleep(breakertest.Suspicion)
	d.fail(other, cause)
	require.Equal(d.t, infuse.StateOpen, breakertest.RecordOf(d.t, one).State)
}

// requireHarmless fails if the text contains characters that control a terminal.
func requireHarmless(t *testing.T, text string) {
	t.Helper()
	bad := strings.IndexFunc(text, func(r rune) bool {
		return r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u2028' || r == '\ufffd')
	})
	require.Equal(t, -1, bad, "%q", text)
}
