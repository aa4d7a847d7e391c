package browsertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
)

// This file contains a process of the fleet: the test binary, run again. It serves the ops
// page, and makes calls on request.

const memberName, memberRedis = "BROWSERTEST_MEMBER", "BROWSERTEST_REDIS"

func TestMain(m *testing.M) {
	if name := os.Getenv(memberName); name != "" {
		if err := runMember(name, os.Getenv(memberRedis)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runMember serves until its standard input ends.
func runMember(name, address string) error {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()
	group, err := infuse.NewGroup(infuse.Config{Storage: storage, Instance: name, CountCalls: true, DryRun: strings.HasPrefix(name, "dry-run")})
	if err != nil {
		return err
	}
	defer group.Stop()
	mux := http.NewServeMux()
	mux.Handle("/infuse/", ops.Handler(ops.Options{
		Group: group, Storage: storage, Title: "Circuits of the shop",
		Authorize: func(*http.Request) (string, bool) { return "Alice", true },
	}))
	mux.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) { call(w, r, group) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, mux) }()
	fmt.Println(listener.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// call makes a call that fails with the given error, if any, and returns the error that
// the caller received.
func call(w http.ResponseWriter, r *http.Request, group *infuse.Group) {
	breaker, err := group.Breaker(r.FormValue("circuit"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	err = breaker.Call(r.Context(), func(context.Context) error {
		if text := r.FormValue("error"); text != "" {
			return errors.New(text)
		}
		return nil
	})
	var rejected *infuse.OpenError
	switch {
	case errors.As(err, &rejected):
		fmt.Fprintf(w, "%v (by %s, because %s)", err, rejected.By, rejected.Reason)
	case err != nil:
		fmt.Fprint(w, err)
	default:
		fmt.Fprint(w, "well")
	}
}

// member is a process of the fleet.
type member struct{ address string }

func startMember(t *testing.T, name, redisAddress string) *member {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	command := exec.Command(program)
	command.Env = append(os.Environ(), memberName+"="+name, memberRedis+"="+redisAddress)
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	require.NoError(t, err)
	output, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = input.Close()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(output)
	require.True(t, lines.Scan(), "the process prints its address")
	return &member{lines.Text()}
}

// call makes the process make a call, and returns its result.
func (m *member) call(t *testing.T, circuit, failure string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.address+"/call", nil)
	require.NoError(t, err)
	query := request.URL.Query()
	query.Set("circuit", circuit)
	query.Set("error", failure)
	request.URL.RawQuery = query.Encode()
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(text)
}
