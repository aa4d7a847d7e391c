package pybreakerstorage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// This file tests against the real pybreaker. The tests need python3, and a directory
// with the Python packages pybreaker 1.4.1 and redis, and their dependencies:
//
//	pip install --target /tmp/python pybreaker==1.4.1 redis
//	PYBREAKER_PATH=/tmp/python go test -run Live -v .
const livePath = "PYBREAKER_PATH"

// peer is a Python process that shares the circuit.
type peer struct {
	t       *testing.T
	in      io.Writer
	answers *bufio.Scanner
}

func startPeer(t *testing.T, server *redistest.Server, namespace string, failMax int, resetTimeout time.Duration) *peer {
	t.Helper()
	path := os.Getenv(livePath)
	if path == "" {
		t.Skip("needs python3, and " + livePath + " set to a directory with the Python packages pybreaker 1.4.1 and redis")
	}
	cmd := exec.Command("python3", "testdata/peer.py", server.Addr(), namespace, fmt.Sprint(failMax), fmt.Sprint(resetTimeout.Seconds()))
	cmd.Env = append(os.Environ(), "PYTHONPATH="+path, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close() // ends the process
		require.NoError(t, cmd.Wait())
	})
	p := &peer{t, in, bufio.NewScanner(out)}
	require.Equal(t, "ready", p.answer())
	return p
}

func (p *peer) answer() string {
	p.t.Helper()
	require.True(p.t, p.answers.Scan(), "the Python process has ended: %v", p.answers.Err())
	return p.answers.Text()
}

func (p *peer) do(what string) string {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, what)
	require.NoError(p.t, err)
	return p.answer()
}

var errFailed = errors.New("failed")

// service is a Go process that shares the circuit.
type service struct {
	*infuse.Breaker
	storage *Storage
}

func startService(t *testing.T, server *redistest.Server, namespace string, cfg infuse.Config) service {
	t.Helper()
	storage, err := New(server.Client(), Options{ResetTimeout: cfg.ResetTimeout, PollInterval: 10 * time.Millisecond})
	require.NoError(t, err)
	cfg.Storage, cfg.StorageTimeout = storage, 10*time.Second
	b, err := infuse.New(namespace, cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return service{b, storage}
}

func (s service) do(t *testing.T, what string) string {
	t.Helper()
	moves := map[string]infuse.State{"open": infuse.StateOpen, "half_open": infuse.StateHalfOpen, "close": infuse.StateClosed}
	if to, ok := moves[what]; ok {
		require.NoError(t, s.SetState(t.Context(), to))
		return "done"
	}
	err := s.Call(t.Context(), func(context.Context) error {
		if what == "failure" {
			return errFailed
		}
		return nil
	})
	switch {
	case errors.Is(err, infuse.ErrOpen):
		return "rejected"
	case err != nil:
		return "error"
	}
	return "ok"
}

const patience = 30 * time.Second

func (s service) waitFor(t *testing.T, state infuse.State) {
	t.Helper()
	require.Eventually(t, func() bool { return s.State() == state }, patience, 5*time.Millisecond)
}

func TestLivePythonOpensAndGoCloses(t *testing.T) {
	server := redistest.Start(t)
	python := startPeer(t, server, "orders", 3, 5*time.Second)
	service := startService(t, server, "orders", infuse.Config{FailMax: 3, ResetTimeout: 5 * time.Second})
	require.Equal(t, "ok", service.do(t, "success"))
	for range 2 {
		require.Equal(t, "error", python.do("failure"))
	}
	require.Contains(t, python.do("failure"), "Failures threshold reached")
	service.waitFor(t, infuse.StateOpen)
	require.Equal(t, "rejected", service.do(t, "success"))
	require.Eventually(t, func() bool { return service.do(t, "success") == "ok" }, patience, 10*time.Millisecond)
	require.Equal(t, infuse.StateClosed, service.State())
	require.Equal(t, "closed", python.do("state"))
	require.Equal(t, "ok", python.do("success"))
}

func TestLiveGoOpensAndPythonCloses(t *testing.T) {
	server := redistest.Start(t)
	python := startPeer(t, server, "orders", 3, 3*time.Second)
	service := startService(t, server, "orders", infuse.Config{FailMax: 3, ResetTimeout: time.Hour})
	require.Equal(t, "ok", python.do("success"))
	for service.State() != infuse.StateOpen {
		service.do(t, "failure")
	}
	require.Eventually(t, func() bool { return python.do("state") == "open" }, patience, 10*time.Millisecond)
	require.Contains(t, python.do("success"), "Timeout not elapsed yet")
	require.Eventually(t, func() bool { return python.do("success") == "ok" }, patience, 10*time.Millisecond)
	service.waitFor(t, infuse.StateClosed)
	require.Equal(t, "ok", service.do(t, "success"))
}

// Two Go and two Python processes make random calls and changes, one after another.
func TestLiveMixed(t *testing.T) {
	server := redistest.Start(t)
	const failMax, resetTimeout = 3, time.Second
	pythons := []*peer{startPeer(t, server, "orders", failMax, resetTimeout), startPeer(t, server, "orders", failMax, resetTimeout)}
	services := make([]service, 2)
	for i := range services {
		services[i] = startService(t, server, "orders", infuse.Config{FailMax: failMax, ResetTimeout: resetTimeout, Strict: true})
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	said := make(map[string]int)
	for step := range 600 {
		what := []string{"success", "success", "failure", "failure", "failure", "failure", "open", "half_open", "close"}[random.IntN(9)]
		which := random.IntN(4)
		var result string
		if which < 2 {
			result = pythons[which].do(what)
		} else {
			result = services[which-2].do(t, what)
		}
		word, _, _ := strings.Cut(result, ":")
		said[word]++
		for i, python := range pythons { // a suspicion may end meanwhile
			require.Eventually(t, func() bool {
				record, err := services[0].storage.Load(t.Context(), "orders")
				require.NoError(t, err)
				return record.State.String() == python.do("state")
			}, patience, time.Millisecond, "seed %d, step %d: process %d did %s: %s; python %d has another state", seed, step, which, what, result, i)
		}
		if random.IntN(100) == 0 {
			time.Sleep(resetTimeout)
		}
	}
	t.Log(said)
	for _, word := range []string{"ok", "error", "rejected", "done"} {
		require.NotZero(t, said[word], word)
	}
}

// Concurrent failures of both sides are all counted.
func TestLiveCounts(t *testing.T) {
	server := redistest.Start(t)
	python := startPeer(t, server, "orders", 1_000_000, time.Second)
	s, err := New(server.Client(), Options{})
	require.NoError(t, err)
	const each = 200
	var both sync.WaitGroup
	both.Go(func() {
		for range each {
			if _, _, err := s.Apply(t.Context(), "orders", oneFailure); err != nil {
				t.Error(err)
			}
		}
	})
	for range each {
		require.Equal(t, "error", python.do("failure"))
	}
	both.Wait()
	record, err := s.Load(t.Context(), "orders")
	require.NoError(t, err)
	require.Equal(t, 2*each, record.Failures)
}
